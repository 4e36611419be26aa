//! The files beside the weights.

use std::path::Path;

use crate::small::read_small_file;
use crate::{Bytes, Checksum, Error, Manifest};

/// Reads the file `name` beside the weights of the model in `dir`, of at most `limit` bytes; `None` if the model has
/// none.
///
/// A checkpoint has what lies in its directory. A pack has what its manifest lists: a file that was put beside it is
/// none of it, and one that has changed is an error.
///
/// # Errors
///
/// Those of [`read_small_file`]; those of reading a manifest; [`Error::NotFound`], [`Error::Invalid`] or
/// [`Error::Checksum`] if a listed file is missing, has another size, or holds other bytes.
pub fn read_sidecar(dir: &Path, name: &str, limit: Bytes) -> Result<Option<Vec<u8>>, Error> {
    let path = dir.join(name);
    let Some(manifest) = Manifest::read(dir)? else { return read_small_file(&path, limit) };
    let Some(listed) = manifest.sidecars.iter().find(|file| file.name == name) else { return Ok(None) };
    let Some(bytes) = read_small_file(&path, limit)? else {
        return Err(Error::not_found(&path, "missing from the pack"));
    };
    if Bytes(bytes.len() as u64) != listed.size {
        let (size, len) = (listed.size.get(), bytes.len());
        return Err(Error::invalid(&path, format!("should have {size} bytes, but has {len}")));
    }
    match Checksum::of(&bytes) {
        found if found == listed.xxh3_128 => Ok(Some(bytes)),
        found => Err(Error::Checksum { path, expected: listed.xxh3_128, found }),
    }
}
