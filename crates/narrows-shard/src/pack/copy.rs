//! Streaming the bytes of a shard or sidecar through one buffer.

use std::fs::File;
use std::io::Read;

use super::disk::Disk;
use super::plan::{PlannedFile, Shard, Sidecar};
use crate::{Error, Reader, Tensor};

/// How many bytes move at once. Few in tests, so that small tensors cross the borders between chunks.
const CHUNK: usize = if cfg!(test) { 1 << 10 } else { 4 << 20 };
/// How far ahead of them the kernel is asked to read, so that the disk reads while it writes.
const AHEAD: u64 = 32 << 20;

type Emit<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), Error>;

/// The one buffer that all bytes pass through.
pub(crate) struct Copier<'a> {
    disk: &'a dyn Disk,
    reader: Reader,
    buffer: Vec<u8>,
}

/// Some bytes of a shard, at most a chunk.
enum Piece<'a> {
    Zeros(usize),
    Tensor { tensor: &'a Tensor, offset: u64, len: usize },
}

impl Piece<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Zeros(len) | Self::Tensor { len, .. } => *len,
        }
    }
}

impl<'a> Copier<'a> {
    pub(crate) fn new(disk: &'a dyn Disk, reader: Reader) -> Self {
        Self { disk, reader, buffer: Vec::with_capacity(CHUNK) }
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

    fn shard(&mut self, shard: &Shard, emit: Emit<'_>) -> Result<(), Error> {
        emit(&shard.header)?;
        self.buffer.clear();
        let pieces = pieces(shard);
        let mut ahead = pieces.iter();
        let (mut asked, mut done) = (0, 0);
        for piece in &pieces {
            while asked < done + AHEAD {
                let Some(next) = ahead.next() else { break };
                self.ask_for(next);
                asked += next.len() as u64;
            }
            if self.buffer.len() + piece.len() > CHUNK {
                emit(&self.buffer)?;
                self.buffer.clear();
            }
            self.append(piece)?;
            done += piece.len() as u64;
        }
        if self.buffer.is_empty() { Ok(()) } else { emit(&self.buffer) }
    }

    fn ask_for(&self, piece: &Piece<'_>) {
        if let Piece::Tensor { tensor, offset, len } = piece {
            self.reader.will_need(tensor, *offset, *len as u64);
        }
    }

    fn append(&mut self, piece: &Piece<'_>) -> Result<(), Error> {
        let start = self.buffer.len();
        self.buffer.resize(start + piece.len(), 0);
        match piece {
            Piece::Zeros(_) => Ok(()),
            Piece::Tensor { tensor, offset, .. } => {
                self.disk.read(&self.reader, tensor, *offset, &mut self.buffer[start..])
            }
        }
    }

    fn sidecar(&mut self, sidecar: &Sidecar, emit: Emit<'_>) -> Result<(), Error> {
        let path = &sidecar.path;
        let mut file = File::open(path).map_err(Error::io(path, "open it"))?;
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
        let size = placed.tensor.bytes().get();
        for offset in (0..size).step_by(CHUNK) {
            let len = (size - offset).min(CHUNK as u64) as usize;
            pieces.push(Piece::Tensor { tensor: &placed.tensor, offset, len });
        }
    }
    pieces
}
