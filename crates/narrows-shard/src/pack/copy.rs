//! Streaming the bytes of a shard or sidecar through one buffer; what is to be quantised goes through another first.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use super::disk::Disk;
use super::plan::{PlacedTensor, PlannedFile, Quantise, Shard, Sidecar};
use super::quantise::{Failed, Quantiser};
use crate::small::{changed, open_file};
use crate::{Bytes, Error, Reader, Tensor, WeightFiles};

/// How many bytes move at once. Few in tests, so that small tensors cross the borders between chunks.
const CHUNK: usize = if cfg!(test) { 1 << 10 } else { 4 << 20 };
/// How far ahead of them the kernel is asked to read, so that the disk reads while it writes.
const AHEAD: u64 = 32 << 20;

type Emit<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Error>;

/// The one buffer that all bytes pass through.
pub(crate) struct Copier<'a> {
    disk: &'a dyn Disk,
    source: &'a WeightFiles,
    reader: Reader,
    buffer: Vec<u8>,
    quantiser: Quantiser,
}

/// Some bytes of a shard, at most a chunk, or one quantised row where that is longer.
enum Piece<'a> {
    Zeros(usize),
    Tensor { tensor: &'a Tensor, offset: u64, len: usize },
    Rows { placed: &'a PlacedTensor, quantise: Quantise, rows: Range<usize> },
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Zeros(len) | Self::Tensor { len, .. } => *len,
            Self::Rows { quantise, rows, .. } => rows.len() * quantise.to_bytes,
        }
    }

    /// The part of the source that it is made from.
    fn source(&self) -> Option<(&Tensor, u64, usize)> {
        match self {
            Self::Zeros(_) => None,
            Self::Tensor { tensor, offset, len } => Some((tensor, *offset, *len)),
            Self::Rows { placed, quantise, rows } => {
                let offset = rows.start as u64 * quantise.from_bytes as u64;
                Some((&placed.tensor, offset, rows.len() * quantise.from_bytes))
            }
        }
    }
}

impl<'a> Copier<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, source: &'a WeightFiles, threads: usize) -> Result<Self, Error> {
        let (reader, quantiser) = (source.reader()?, Quantiser::new(threads));
        Ok(Self { disk, source, reader, buffer: Vec::with_capacity(CHUNK), quantiser })
    }

    /// Closes a file of the source that is no longer needed.
    pub(crate) fn close(&mut self, file: usize) {
        self.reader.close(file);
    }

    /// Hands the bytes of `file` to `emit`, in order.
    pub(crate) fn stream(&mut self, file: PlannedFile<'_>, emit: Emit<'_>) -> Result<(), Error> {
        match file {
            PlannedFile::Sidecar(sidecar) => self.sidecar(sidecar, emit),
            PlannedFile::Shard(shard) => self.shard(shard, emit),
        }
    }

    /// Whether the finished file at `path` holds what `file` would be made of now; of a shard, those parts that come from
    /// files of the source for which `from` says so.
    pub(crate) fn made(
        &mut self,
        file: PlannedFile<'_>,
        path: &Path,
        from: &dyn Fn(usize) -> bool,
    ) -> Result<bool, Error> {
        let failed = |e| Error::io(path, "read it")(e);
        let (mut there, _) = open_file(path)?;
        let mut found = Vec::new();
        let mut same = true;
        match file {
            PlannedFile::Sidecar(sidecar) => self.sidecar(sidecar, &mut |bytes| {
                found.resize(bytes.len(), 0);
                same &= there.read_exact(&mut found).is_ok() && found == bytes;
                Ok(())
            })?,
            PlannedFile::Shard(shard) => {
                let mut at = shard.header.len() as u64;
                for piece in &pieces(shard) {
                    if same && piece.source().is_some_and(|(tensor, ..)| from(tensor.file)) {
                        self.buffer.clear();
                        self.append(piece)?;
                        found.resize(self.buffer.len(), 0);
                        there.seek(SeekFrom::Start(at)).map_err(failed)?;
                        there.read_exact(&mut found).map_err(failed)?;
                        same = found == self.buffer;
                    }
                    at += piece.len() as u64;
                }
            }
        }
        Ok(same)
    }

    fn shard(&mut self, shard: &Shard, emit: Emit<'_>) -> Result<(), Error> {
        emit(&shard.header)?;
        self.buffer.clear();
        let pieces = pieces(shard);
        let mut ahead = pieces.iter();
        let (mut asked, mut done) = (0, 0);
        for piece in &pieces {
            while asked < done + AHEAD {
                let Some(next) = ahead.next() else { break };
                asked += self.ask_for(next);
            }
            if self.buffer.len() + piece.len() > CHUNK {
                emit(&self.buffer)?;
                self.buffer.clear();
            }
            self.append(piece)?;
            done += piece.source().map_or(0, |(.., len)| len as u64);
        }
        if self.buffer.is_empty() { Ok(()) } else { emit(&self.buffer) }
    }

    /// Bytes of the source that the kernel was asked for.
    fn ask_for(&self, piece: &Piece<'_>) -> u64 {
        piece.source().map_or(0, |(tensor, offset, len)| {
            self.reader.will_need(tensor, offset, len as u64);
            len as u64
        })
    }

    fn append(&mut self, piece: &Piece<'_>) -> Result<(), Error> {
        let start = self.buffer.len();
        self.buffer.resize(start + piece.len(), 0);
        match piece {
            Piece::Zeros(_) => Ok(()),
            Piece::Tensor { tensor, offset, .. } => {
                self.disk.read(&self.reader, tensor, *offset, &mut self.buffer[start..])
            }
            Piece::Rows { placed, quantise, rows } => {
                let Some((tensor, offset, len)) = piece.source() else { return Ok(()) };
                let read = |buf: &mut [u8]| self.disk.read(&self.reader, tensor, offset, buf);
                let path = &self.source.files()[tensor.file].path;
                let out = &mut self.buffer[start..];
                self.quantiser.rows(quantise, len, read, out).map_err(|failed| match failed {
                    Failed::Read(e) => e,
                    Failed::Row(row, e) => {
                        let row = rows.start + row;
                        Error::invalid(path, format!("tensor {}, row {row}: {e}", placed.name))
                    }
                })
            }
        }
    }

    fn sidecar(&mut self, sidecar: &Sidecar, emit: Emit<'_>) -> Result<(), Error> {
        let path = &sidecar.path;
        let (mut file, len) = open_file(path)?;
        if Bytes(len) != sidecar.size {
            return Err(changed(path));
        }
        loop {
            self.buffer.clear();
            file.by_ref()
                .take(CHUNK as u64)
                .read_to_end(&mut self.buffer)
                .map_err(Error::io(path, "read it"))?;
            if self.buffer.is_empty() {
                return Ok(());
            }
            emit(&self.buffer)?;
        }
    }
}

fn pieces(shard: &Shard) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    for placed in &shard.tensors {
        if placed.gap > 0 {
            pieces.push(Piece::Zeros(placed.gap as usize));
        }
        if let Some(quantise) = placed.quantise {
            // Chunks of what is read, which is more than what is written.
            let step = (CHUNK / quantise.from_bytes.max(1)).max(1);
            for start in (0..quantise.rows).step_by(step) {
                let rows = start..quantise.rows.min(start + step);
                pieces.push(Piece::Rows { placed, quantise, rows });
            }
            continue;
        }
        let size = placed.tensor.bytes().get();
        for offset in (0..size).step_by(CHUNK) {
            let len = (size - offset).min(CHUNK as u64) as usize;
            pieces.push(Piece::Tensor { tensor: &placed.tensor, offset, len });
        }
    }
    pieces
}
