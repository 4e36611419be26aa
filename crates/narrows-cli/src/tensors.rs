//! Token ids in and logits out, as safetensors files.

use std::io::{BufWriter, Write};
use std::path::Path;

use narrows::Bytes;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::failure::{Failure, Result};
use crate::ids::{self, Ids};
use crate::outfile::OutFile;

/// Far more than any prompt: 2^25 ids.
const MAX_IDS: Bytes = Bytes::mib(256);

/// Of a file of ids that counts in a budget; what is shorter is part of the program's own.
const MANY_IDS: Bytes = Bytes::mib(1);

/// Memory that ids take while they are read, in times of their file: its bytes, their values, the rows of these.
const READING: u64 = 3;

/// Reads the ids in a file, within `budget`.
pub(crate) fn read_ids(path: &Path, budget: Option<Bytes>) -> Result<Ids> {
    use narrows_shard::Error;

    let found = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file);
    let size = Bytes(found.map_or(0, |found| found.len()));
    let needed = Bytes(size.get().saturating_mul(READING));
    if let Some(budget) = budget
        && (MANY_IDS..=MAX_IDS).contains(&size)
        && needed > budget
    {
        return Err(Failure::ManyIds { path: path.to_owned(), size, needed, budget });
    }
    let input = |what: String| Failure::Input { path: path.to_owned(), what };
    let bytes = match narrows_shard::read_small_file(path, MAX_IDS) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(input("no such file".to_owned())),
        Err(Error::Invalid { problem, .. } | Error::NotFound { problem, .. }) => return Err(input(problem)),
        Err(error) => return Err(error.into()),
    };
    ids::parse(&bytes).map_err(input)
}

/// A safetensors file with one f32 tensor that grows value by value, so that it never lies in memory whole.
/// It appears under its name only when complete; a pipe or a device gets it as it comes.
pub(crate) struct LogitsFile<'a> {
    path: &'a Path,
    file: BufWriter<OutFile>,
}

impl<'a> LogitsFile<'a> {
    /// Starts a file for `logits` of `shape`.
    pub(crate) fn create(path: &'a Path, shape: [usize; 3]) -> Result<Self> {
        let too_big =
            || Failure::Input { path: path.to_owned(), what: format!("logits {shape:?} are too many") };
        let bytes =
            shape.iter().try_fold(size_of::<f32>(), |bytes, n| bytes.checked_mul(*n)).ok_or_else(too_big)?;
        let info = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets: (0, bytes) };
        let mut header = Metadata::new(None, vec![("logits".to_owned(), info)])
            .ok()
            .and_then(|metadata| serde_json::to_vec(&metadata).ok())
            .ok_or_else(too_big)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let failed = |source| Failure::File { path: path.to_owned(), source };
        let mut file = BufWriter::new(OutFile::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&header))
            .map_err(failed)?;
        Ok(Self { path, file })
    }

    /// Adds values.
    pub(crate) fn write(&mut self, values: &[f32]) -> std::io::Result<()> {
        values.iter().try_for_each(|value| self.file.write_all(&value.to_le_bytes()))
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<()> {
        let Self { path, file } = self;
        let failed = |source| Failure::File { path: path.to_owned(), source };
        let file = file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.finish().map_err(failed)
    }
}
