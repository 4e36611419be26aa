//! The matrices of a model cut into tiles: runs of whole rows, in the order in which a pass uses them.

use std::ops::Range;

use narrows_shard::{Bytes, Encoding};
use narrows_staging::Read;
use narrows_stream::{Access, Group};

use crate::architecture::{ExpertWeight, LayerWeight, Weight};
use crate::model::{Located, Model};

/// Every matrix that a pass walks, and its tiles. Vectors are no tiles: they are small, and stay.
#[derive(Clone, Debug)]
pub(crate) struct Tiling {
    pub(crate) tiles: Vec<RowTile>,
    pub(crate) layers: Vec<[Option<Matrix>; LayerWeight::COUNT]>,
    /// By layer, by expert.
    pub(crate) experts: Vec<Vec<Expert>>,
    pub(crate) head: Option<Matrix>,
    /// Names of the matrices, for messages.
    names: Vec<String>,
}

/// A matrix and the tiles that hold it.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    pub(crate) encoding: Encoding,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) tiles: Range<usize>,
}

/// The matrices of an expert, whose tiles are a group.
#[derive(Clone, Debug)]
pub(crate) struct Expert {
    pub(crate) group: Group,
    pub(crate) matrices: [Option<Matrix>; ExpertWeight::COUNT],
}

/// Rows of a matrix, and where their bytes lie.
#[derive(Clone, Debug)]
pub(crate) struct RowTile {
    matrix: usize,
    /// When it is read.
    pub(crate) access: Access,
    pub(crate) rows: Range<usize>,
    pub(crate) read: Read,
}

/// Tiles begin at multiples of this many rows, which kernels compute side by side.
const ROW_GRAIN: usize = 16;

impl Tiling {
    /// Cuts the matrices of `model` into tiles of at most `tile` bytes, or of one row where a row is longer.
    pub(crate) fn new(model: &Model, tile: Bytes) -> Self {
        let (mut tiles, mut names) = (Vec::new(), Vec::new());
        let mut add = |located: &Located, access: Access| {
            let &[rows, cols] = &located.tensor.shape[..] else { return None };
            let row_bytes = located.tensor.bytes().get() as usize / rows.max(1);
            let first = tiles.len();
            tiles.extend(cut(rows, row_bytes, tile.get() as usize).map(|rows| RowTile {
                matrix: names.len(),
                access,
                read: Read {
                    file: located.tensor.file,
                    offset: located.tensor.range.start + (rows.start * row_bytes) as u64,
                    len: rows.len() * row_bytes,
                },
                rows,
            }));
            names.push(located.name.clone());
            Some(Matrix { encoding: located.encoding, rows, cols, tiles: first..tiles.len() })
        };
        let mut layers: Vec<_> = std::iter::repeat_with(|| [const { None }; LayerWeight::COUNT])
            .take(model.architecture().layers)
            .collect();
        let mut experts = vec![Vec::new(); model.architecture().layers];
        let mut groups = (0..).map(Group);
        for located in model.located().iter().filter(|located| !located.stays()) {
            match located.weight {
                Weight::Layer(layer, weight) => {
                    layers[layer][weight as usize] = add(located, Access::Walked);
                }
                Weight::Expert(layer, expert, weight) => {
                    let experts: &mut Vec<Expert> = &mut experts[layer];
                    if experts.len() == expert {
                        let matrices = [const { None }; ExpertWeight::COUNT];
                        experts.extend(groups.next().map(|group| Expert { group, matrices }));
                    }
                    let Expert { group, matrices } = &mut experts[expert];
                    matrices[weight as usize] = add(located, Access::Demanded(*group));
                }
                Weight::Embedding | Weight::FinalNorm | Weight::Head => {}
            }
        }
        let head = add(model.head(), Access::Walked);
        Self { layers, experts, head, tiles, names }
    }

    /// The matrices that every pass multiplies with, and those of experts.
    pub(crate) fn matrices(&self) -> (impl Iterator<Item = &Matrix>, impl Iterator<Item = &Matrix>) {
        let walked = self.layers.iter().flatten().chain([&self.head]).flatten();
        let experts = self.experts.iter().flatten().flat_map(|expert| &expert.matrices).flatten();
        (walked, experts)
    }

    /// A tile as a message names it.
    pub(crate) fn describe(&self, tile: usize) -> String {
        let RowTile { matrix, rows, .. } = &self.tiles[tile];
        format!("{}[{}..{}]", self.names[*matrix], rows.start, rows.end)
    }
}

/// Even pieces of at most `tile` bytes, or of one row.
fn cut(rows: usize, row_bytes: usize, tile: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (tile / row_bytes.max(1)).max(1);
    let most = if most >= ROW_GRAIN { most / ROW_GRAIN * ROW_GRAIN } else { most };
    let even = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    let step = if most >= ROW_GRAIN { even.next_multiple_of(ROW_GRAIN).min(most) } else { even };
    (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_cover_all_rows_within_the_size(rows in 1usize..5000, row_bytes in 1usize..300, tile in 1usize..100_000) {
            let mut next = 0;
            for piece in cut(rows, row_bytes, tile) {
                prop_assert_eq!(piece.start, next);
                prop_assert!(piece.len() * row_bytes <= tile || piece.len() == 1);
                next = piece.end;
            }
            prop_assert_eq!(next, rows);
        }
    }
}
