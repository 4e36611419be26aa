//! Reading a model from end to end, to know that it is whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::checkpoint::require_file;
use crate::checksum::Checksummer;
use crate::pack::Meter;
use crate::positional::will_need;
use crate::{Bytes, Checksum, Error, Manifest, PackedFile, Progress, Step, WeightFiles};

const CHUNK: usize = 4 << 20;
/// How far ahead of the bytes at hand the kernel is asked to read.
const AHEAD: u64 = 32 << 20;

/// What [`verify`] has found whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifyReport {
    /// How many files were read.
    pub files: usize,
    /// Their sizes together.
    pub bytes: Bytes,
    /// Whether their contents were compared with checksums. A checkpoint has none: all that can be said is that
    /// its headers and lengths are right, and that every byte can be read.
    pub checksums: bool,
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
            checksum_file(&file.path, &mut |len| meter.add(Step::Verifying, &file.name(), len))?;
        }
        return Ok(VerifyReport { files: weights.files().len(), bytes: meter.total(), checksums: false });
    };
    let mut meter = Meter::new(progress, manifest.packed_files().map(|file| file.size).sum());
    for file in manifest.packed_files() {
        verify_file(dir, file, &mut |len| meter.add(Step::Verifying, &file.name, len))?;
    }
    // The bytes are those that were packed; whether they make a pack is a question of its own.
    WeightFiles::open(dir)?;
    Ok(VerifyReport { files: manifest.packed_files().count(), bytes: meter.total(), checksums: true })
}

/// Compares a file on disk with what was recorded of it.
pub(crate) fn verify_file(dir: &Path, file: &PackedFile, read: &mut dyn FnMut(u64)) -> Result<(), Error> {
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

/// The checksum of a file; `read` hears of every piece.
fn checksum_file(path: &Path, read: &mut dyn FnMut(u64)) -> Result<Checksum, Error> {
    let mut file = File::open(path).map_err(Error::io(path, "open it"))?;
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
        read(len as u64);
    }
}
