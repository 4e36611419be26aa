//! The small files beside the weights.

use std::path::Path;

pub(crate) use narrows_model::Fields;
use narrows_shard::Bytes;

use crate::error::Result;

/// Far above any real tokenizer (the largest known tokenizer.json has 33 MB).
const MAX_FILE: Bytes = Bytes::mib(256);

/// Far above any real config; parsed, a file may take forty times its size.
const MAX_FIELDS: Bytes = Bytes::mib(16);

/// Reads a whole small file beside the weights, of a pack only what its manifest lists; `None` where the model has none.
pub(crate) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>> {
    read_within(path, MAX_FILE)
}

/// [`read_optional`] for a file of at most `limit`.
pub(crate) fn read_within(path: &Path, limit: Bytes) -> Result<Option<Vec<u8>>> {
    let dir = path.parent().unwrap_or(Path::new(""));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    Ok(narrows_shard::read_sidecar(dir, &name, limit)?)
}

/// Reads the object in `path`; `None` where there is no such file.
pub(crate) fn read_fields(path: &Path) -> Result<Option<Fields>> {
    let bytes = read_within(path, MAX_FIELDS)?;
    Ok(bytes.map(|bytes| Fields::parse(path, &bytes)).transpose()?)
}
