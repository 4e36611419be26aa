//! `narrows.json`, the manifest of a pack.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::is_plain_name;
use crate::small::read_small_file;
use crate::{Bytes, Checksum, Error};

/// The name of the manifest; a directory that holds it is a pack.
pub const MANIFEST: &str = "narrows.json";

pub(crate) const FORMAT: &str = "narrows-pack";
/// The version of packs whose tensors are all as the checkpoint had them.
pub(crate) const VERSION_VERBATIM: u32 = 1;
/// The version of packs that hold quantised tensors.
pub(crate) const VERSION_ENCODED: u32 = 2;

const MAX_MANIFEST: Bytes = Bytes(100_000_000);

/// What a pack holds. Written last, so that where there is one the pack is complete.
///
/// It has one spelling only: reading it, writing it again and comparing finds every changed byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// `narrows-pack`.
    pub format: String,
    /// The version of the format: 1, or 2 where tensors are quantised.
    pub version: u32,
    /// What was packed.
    pub source: Source,
    /// The architecture of the model, in the caller's words.
    pub architecture: String,
    /// The shards, in compute order.
    pub shards: Vec<PackedFile>,
    /// The small files beside them (`config.json`, `tokenizer.json` ...).
    pub sidecars: Vec<PackedFile>,
    /// The checksum of this file, as it is with 32 zeros here.
    pub checksum: Checksum,
}

/// The checkpoint that was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `ORG/NAME`, if it came from a Hugging Face cache.
    pub repository: Option<String>,
    /// The commit, if it came from a Hugging Face cache.
    pub revision: Option<String>,
    /// Its weight files.
    pub files: Vec<SourceFile>,
}

/// A weight file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Bytes,
}

/// A file of the pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub size: Bytes,
    /// The checksum of all its bytes.
    pub xxh3_128: Checksum,
}

impl Manifest {
    /// Reads `narrows.json` in `dir`; `None` if there is none.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(MANIFEST);
        read_small_file(&path, MAX_MANIFEST)?.map(|bytes| Self::parse(&path, &bytes)).transpose()
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        /// Readable whatever else a later version holds.
        #[derive(Deserialize)]
        struct Preamble {
            format: String,
            version: u32,
        }

        let invalid = |problem: String| Error::invalid(path, problem);
        let damaged = |e: serde_json::Error| invalid(format!("damaged manifest: {e}"));
        let preamble: Preamble = serde_json::from_slice(bytes).map_err(damaged)?;
        if preamble.format != FORMAT {
            return Err(invalid(format!("not the manifest of a pack: format {:?}", preamble.format)));
        }
        if !(VERSION_VERBATIM..=VERSION_ENCODED).contains(&preamble.version) {
            let version = preamble.version;
            let known = format!("{VERSION_VERBATIM} and {VERSION_ENCODED}");
            return Err(invalid(format!("pack of version {version}; this program reads versions {known}")));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(damaged)?;
        if manifest.to_bytes(path)? != bytes || manifest.own_checksum(path)? != manifest.checksum {
            return Err(invalid("damaged manifest: its checksum does not match".into()));
        }
        if let Some(file) = manifest.packed_files().find(|file| !is_plain_name(&file.name)) {
            return Err(invalid(format!("damaged manifest: {:?} is not a file name", file.name)));
        }
        Ok(manifest)
    }

    /// The shards, then the sidecars.
    pub fn packed_files(&self) -> impl Iterator<Item = &PackedFile> {
        self.shards.iter().chain(&self.sidecars)
    }

    /// The bytes of `narrows.json`, the only ones that are valid for this manifest.
    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::invalid(path, format!("cannot be written as JSON: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// What `checksum` should be.
    pub(crate) fn own_checksum(&self, path: &Path) -> Result<Checksum, Error> {
        let zeroed = Self { checksum: Checksum(0), ..self.clone() };
        Ok(Checksum::of(&zeroed.to_bytes(path)?))
    }
}
