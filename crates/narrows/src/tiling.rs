//! The matrices of a model cut into tiles: runs of whole rows, in the order in which a pass uses them.

use std::ops::Range;

use narrows_model::{Op, Role, WeightId};
use narrows_shard::{Bytes, Encoding};
use narrows_staging::Read;
use narrows_stream::{Access, Group};

use crate::model::{Located, Model};

/// Every matrix that a pass walks, and its tiles. Vectors are no tiles: they are small, and stay.
#[derive(Clone, Debug)]
pub(crate) struct Tiling {
    pub(crate) tiles: Vec<RowTile>,
    /// By [`WeightId`].
    matrices: Vec<Option<Matrix>>,
    /// By layer, by expert.
    pub(crate) experts: Vec<Vec<Group>>,
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
            names.push(located.spec.name.clone());
            Some(Matrix { encoding: located.encoding, rows, cols, tiles: first..tiles.len() })
        };
        let program = model.program();
        let mut matrices = vec![None; program.weights.len()];
        let mut experts = vec![Vec::new(); program.layers.len()];
        let mut groups = (0..).map(Group);
        for op in program.ops() {
            match op {
                Op::Experts(op) => {
                    for expert in 0..op.count {
                        let Some(group) = groups.next() else { break };
                        experts[op.layer].push(group);
                        for weight in 0..op.each {
                            let id = WeightId(op.first.0 + expert * op.each + weight);
                            matrices[id.0] = model
                                .weight(id)
                                .ok()
                                .and_then(|located| add(located, Access::Demanded(group)));
                        }
                    }
                }
                Op::Linear(linear) if program.weights[linear.weight.0].role != Role::Expert => {
                    let located = model.weight(linear.weight).ok();
                    matrices[linear.weight.0] = located.and_then(|located| add(located, Access::Walked));
                }
                _ => {}
            }
        }
        Self { matrices, experts, tiles, names }
    }

    /// A matrix that is cut into tiles.
    pub(crate) fn matrix(&self, weight: WeightId) -> Option<&Matrix> {
        self.matrices.get(weight.0)?.as_ref()
    }

    /// The matrices that every pass multiplies with, and those of experts.
    pub(crate) fn matrices(&self) -> (impl Iterator<Item = &Matrix>, impl Iterator<Item = &Matrix>) {
        let demanded = |matrix: &&Matrix| {
            let first = self.tiles.get(matrix.tiles.start);
            first.is_some_and(|tile| matches!(tile.access, Access::Demanded(_)))
        };
        let all = || self.matrices.iter().flatten();
        (all().filter(move |matrix| !demanded(matrix)), all().filter(demanded))
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
