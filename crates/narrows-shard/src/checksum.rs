//! The checksum of a file.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xxhash_rust::xxh3::Xxh3;

/// The XXH3-128 of some bytes, shown as 32 lowercase hexadecimal digits, most significant first.
///
/// It finds accidents, not attacks: whoever can change a shard can change the manifest too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Checksum(pub u128);

impl Checksum {
    /// The checksum of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(bytes))
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl Serialize for Checksum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match u128::from_str_radix(&text, 16) {
            // Only the one canonical spelling: no sign, no capitals, no missing zeros.
            Ok(sum) if Self(sum).to_string() == text => Ok(Self(sum)),
            _ => Err(serde::de::Error::custom("a checksum is 32 lowercase hexadecimal digits")),
        }
    }
}

/// Takes the checksum of bytes that come in pieces.
pub(crate) struct Checksummer(Box<Xxh3>);

impl Checksummer {
    pub(crate) fn new() -> Self {
        Self(Box::default())
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(&self) -> Checksum {
        Checksum(self.0.digest128())
    }
}
