//! Prompts of token ids as a safetensors file holds them. Nothing here knows the program, so that `fuzz/` has it, too.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

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
/// tokens, 0 for padding before or behind them. An error is what is wrong, in words.
pub(crate) fn parse(bytes: &[u8]) -> Result<Ids, String> {
    let tensors = SafeTensors::deserialize(bytes).map_err(|e| format!("not a safetensors file: {e}"))?;
    if let Some(name) = REFUSED.iter().find(|name| tensors.tensor(name).is_ok()) {
        return Err(format!("tensor {name} is not supported"));
    }
    let ids = tensors.tensor("input_ids").map_err(|_| "no tensor input_ids".to_owned())?;
    let &[batch, positions] = ids.shape() else {
        return Err(format!("input_ids has shape {:?}, not [batch, positions]", ids.shape()));
    };
    if batch == 0 || positions == 0 {
        return Err(format!("input_ids has shape {:?}: the prompt is empty", ids.shape()));
    }
    let token = |id: &i64| u32::try_from(*id).map_err(|_| format!("token id {id} is outside the vocabulary"));
    let values = whole_numbers(&ids).ok_or_else(|| format!("input_ids is {:?}, not I64", ids.dtype()))?;
    let rows = values.chunks(positions);
    let Ok(mask) = tensors.tensor("attention_mask") else {
        let rows = rows.map(|row| row.iter().map(token).collect()).collect::<Result<_, String>>()?;
        return Ok(Ids { rows, padded: false });
    };
    if mask.shape() != ids.shape() {
        return Err(format!("attention_mask has shape {:?}, input_ids {:?}", mask.shape(), ids.shape()));
    }
    let mask = whole_numbers(&mask)
        .filter(|mask| mask.iter().all(|one| matches!(one, 0 | 1)))
        .ok_or_else(|| "attention_mask is not of integers 0 and 1".to_owned())?;
    let kept = |(row, mask): (&[i64], &[i64])| {
        let start = mask
            .iter()
            .position(|one| *one == 1)
            .ok_or_else(|| "attention_mask has a row of padding alone: the prompt is empty".to_owned())?;
        let len = mask[start..].iter().take_while(|one| **one == 1).count();
        if mask[start + len..].contains(&1) {
            return Err("attention_mask has padding between tokens, which is not supported".to_owned());
        }
        row[start..start + len].iter().map(token).collect()
    };
    let rows = rows.zip(mask.chunks(positions)).map(kept).collect::<Result<_, String>>()?;
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
