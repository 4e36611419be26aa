//! A JSON object whose keys must differ.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

/// A JSON object as a map; two equal keys are an error, where serde's own maps keep the last.
///
/// Readers that disagree on which of two entries counts would load different weights from one file.
pub(crate) struct Unique<T>(pub(crate) BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Keys<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
                let mut map = BTreeMap::new();
                while let Some(key) = entries.next_key::<String>()? {
                    let value = entries.next_value()?;
                    insert_new(&mut map, key, value)?;
                }
                Ok(Unique(map))
            }
        }

        deserializer.deserialize_map(Keys(PhantomData))
    }
}

/// Inserts, or fails if `key` is there already.
pub(crate) fn insert_new<T, E: Error>(map: &mut BTreeMap<String, T>, key: String, value: T) -> Result<(), E> {
    if map.contains_key(&key) {
        return Err(E::custom(format_args!("the key {key:?} appears twice")));
    }
    map.insert(key, value);
    Ok(())
}
