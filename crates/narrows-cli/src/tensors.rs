//! Token ids in and logits out, as safetensors files.

use std::io::{BufWriter, Write};
use std::path::Path;

use narrows::Bytes;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensors};

use crate::failure::{Failure, Result};
use crate::outfile::OutFile;

/// Far more than any prompt: 2^25 ids.
const MAX_IDS: Bytes = Bytes::mib(256);

/// Tensors of a model's input that say more than ids and padding do, and that nothing here computes with.
const REFUSED: [&str; 4] = ["position_ids", "token_type_ids", "inputs_embeds", "attention_bias"];

/// Prompts of token ids.
#[derive(Debug)]
pub(crate) struct Ids {
    /// One prompt each, without padding.
    pub(crate) rows: Vec<Vec<u32>>,
    /// Whether an attention mask took padding away.
    pub(crate) padded: bool,
}

/// Reads `input_ids`, i64 or i32 `[batch, positions]`, and `attention_mask` of the same shape where there is one: 1 for
/// tokens, 0 for padding before or behind them.
pub(crate) fn read_ids(path: &Path) -> Result<Ids> {
    use narrows_shard::Error;

    let input = |what: String| Failure::Input { path: path.to_owned(), what };
    let bytes = match narrows_shard::read_small_file(path, MAX_IDS) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(input("no such file".to_owned())),
        Err(Error::Invalid { problem, .. } | Error::NotFound { problem, .. }) => return Err(input(problem)),
        Err(error) => return Err(error.into()),
    };
    let tensors =
        SafeTensors::deserialize(&bytes).map_err(|e| input(format!("not a safetensors file: {e}")))?;
    if let Some(name) = REFUSED.iter().find(|name| tensors.tensor(name).is_ok()) {
        return Err(input(format!("tensor {name} is not supported")));
    }
    let ids = tensors.tensor("input_ids").map_err(|_| input("no tensor input_ids".to_owned()))?;
    let &[batch, positions] = ids.shape() else {
        return Err(input(format!("input_ids has shape {:?}, not [batch, positions]", ids.shape())));
    };
    if batch == 0 || positions == 0 {
        return Err(input(format!("input_ids has shape {:?}: the prompt is empty", ids.shape())));
    }
    let token =
        |id: &i64| u32::try_from(*id).map_err(|_| input(format!("token id {id} is outside the vocabulary")));
    let values =
        whole_numbers(&ids).ok_or_else(|| input(format!("input_ids is {:?}, not I64", ids.dtype())))?;
    let rows = values.chunks(positions);
    let Ok(mask) = tensors.tensor("attention_mask") else {
        let rows = rows.map(|row| row.iter().map(token).collect()).collect::<Result<_>>()?;
        return Ok(Ids { rows, padded: false });
    };
    if mask.shape() != ids.shape() {
        return Err(input(format!(
            "attention_mask has shape {:?}, input_ids {:?}",
            mask.shape(),
            ids.shape()
        )));
    }
    let mask = whole_numbers(&mask)
        .filter(|mask| mask.iter().all(|one| matches!(one, 0 | 1)))
        .ok_or_else(|| input("attention_mask is not of integers 0 and 1".to_owned()))?;
    let kept = |(row, mask): (&[i64], &[i64])| {
        let start = mask.iter().position(|one| *one == 1).ok_or_else(|| {
            input("attention_mask has a row of padding alone: the prompt is empty".to_owned())
        })?;
        let len = mask[start..].iter().take_while(|one| **one == 1).count();
        if mask[start + len..].contains(&1) {
            return Err(input(
                "attention_mask has padding between tokens, which is not supported".to_owned(),
            ));
        }
        row[start..start + len].iter().map(token).collect()
    };
    let rows = rows.zip(mask.chunks(positions)).map(kept).collect::<Result<_>>()?;
    Ok(Ids { rows, padded: mask.contains(&0) })
}

/// The values of a tensor of integers or booleans.
fn whole_numbers(tensor: &TensorView<'_>) -> Option<Vec<i64>> {
    let data = tensor.data();
    Some(match tensor.dtype() {
        Dtype::I64 => data.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        Dtype::I32 => data.as_chunks().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
        Dtype::U8 | Dtype::BOOL => data.iter().map(|b| i64::from(*b)).collect(),
        _ => return None,
    })
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
