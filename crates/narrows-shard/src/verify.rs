//! Reading a model from end to end, to know that it is whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use crate::checksum::Checksummer;
use crate::pack::{Meter, is_reserved};
use crate::positional::will_need;
use crate::small::{open_file, require_file};
use crate::{Bytes, Checksum, Error, Manifest, PackedFile, Progress, Step, WeightFiles};

const CHUNK: usize = 4 << 20;
/// How far ahead of the bytes at hand the kernel is asked to read.
const AHEAD: u64 = 32 << 20;

/// What [`verify`] has found whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// How many files were read.
    pub files: usize,
    /// Their sizes together.
    pub bytes: Bytes,
    /// Whether their contents were compared with checksums. A checkpoint has none: all that can be said is that
    /// its headers and lengths are right, and that every byte can be read.
    pub checksums: bool,
    /// What lies in the directory of a pack and is in no list of its manifest, by name: no part of the pack, so nothing
    /// vouches for it, and [`crate::read_sidecar`] does not read it. Hidden files are left out.
    pub unlisted: Vec<String>,
}

/// Reads every byte of the pack or checkpoint in `dir`, and compares the checksums of a pack.
///
/// # Errors
///
/// The first fault found: [`Error::Checksum`] or [`Error::Invalid`] for wrong bytes, [`Error::NotFound`] for a
/// missing file, [`Error::Io`] for one that cannot be read.
pub fn verify(dir: &Path, progress: &mut dyn FnMut(Progress<'_>)) -> Result<VerifyReport, Error> {
    let Some(manifest) = Manifest::read(dir)? else {
        let weights = WeightFiles::open(dir)?;
        let mut meter = Meter::new(progress, weights.files().iter().map(|file| file.len).sum());
        for file in weights.files() {
            checksum_file(&file.path, &mut |len| {
                meter.add(Step::Verifying, &file.name(), len);
                Ok(())
            })?;
        }
        return Ok(VerifyReport {
            files: weights.files().len(),
            bytes: meter.total(),
            checksums: false,
            unlisted: Vec::new(),
        });
    };
    let mut meter = Meter::new(progress, manifest.packed_files().map(|file| file.size).sum());
    for file in manifest.packed_files() {
        verify_file(dir, file, &mut |len| {
            meter.add(Step::Verifying, &file.name, len);
            Ok(())
        })?;
    }
    // The bytes are those that were packed; whether they make a pack is a question of its own.
    WeightFiles::open(dir)?;
    let unlisted = unlisted(dir, &manifest)?;
    let files = manifest.packed_files().count();
    Ok(VerifyReport { files, bytes: meter.total(), checksums: true, unlisted })
}

/// What lies beside the files of a pack.
fn unlisted(dir: &Path, manifest: &Manifest) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::io(dir, "list it"))?;
    let names = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<BTreeSet<_>>>()
        .map_err(Error::io(dir, "list it"))?;
    let listed = |name: &str| manifest.packed_files().any(|file| file.name == name);
    Ok(names
        .into_iter()
        .filter(|name| !name.starts_with('.') && !is_reserved(name) && !listed(name))
        .collect())
}

/// Compares a file on disk with what was recorded of it; `read` hears of every piece, and may end it.
pub(crate) fn verify_file(
    dir: &Path,
    file: &PackedFile,
    read: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    let path = dir.join(&file.name);
    require_size(&path, file.size)?;
    let found = checksum_file(&path, read)?;
    if found != file.xxh3_128 {
        return Err(Error::Checksum { path, expected: file.xxh3_128, found });
    }
    Ok(())
}

/// Checks that a file is there and of this size.
pub(crate) fn require_size(path: &Path, size: Bytes) -> Result<(), Error> {
    if path.symlink_metadata().is_err() {
        return Err(Error::not_found(path, "missing from the pack"));
    }
    let len = require_file(path)?;
    if Bytes(len) != size {
        let size = size.get();
        return Err(Error::invalid(path, format!("should have {size} bytes, but has {len}")));
    }
    Ok(())
}

/// The checksum of a file; `read` hears of every piece, and may end it.
fn checksum_file(path: &Path, read: &mut dyn FnMut(u64) -> Result<(), Error>) -> Result<Checksum, Error> {
    let (mut file, _) = open_file(path)?;
    let mut sum = Checksummer::new();
    let mut buffer = vec![0; CHUNK];
    let mut offset = 0;
    will_need(&file, 0, AHEAD);
    loop {
        let len = match file.read(&mut buffer) {
            Ok(0) => return Ok(sum.finish()),
            Ok(len) => len,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(path, format!("read it at offset {offset}"))(e)),
        };
        will_need(&file, offset + AHEAD, len as u64);
        sum.update(&buffer[..len]);
        offset += len as u64;
        read(len as u64)?;
    }
}
