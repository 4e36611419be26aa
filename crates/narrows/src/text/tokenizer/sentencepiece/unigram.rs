//! The most probable pieces of a text (`unigram_model.cc`, `EncodeOptimized`), in the package's own precision: sums
//! are rounded to float32, comparisons are not.

use super::super::pieces::{Pieces, Prefixes};
use super::file::{File, Kind};

/// What a character without a piece costs besides the least probable piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// The scores of pieces.
#[derive(Debug)]
pub(super) struct Unigram {
    min: f32,
    max: f32,
}

/// The end of a piece, and the best way to it.
#[derive(Clone, Copy)]
struct Node {
    score: f32,
    /// Where its piece begins; its own place if no way leads here.
    start: u32,
    id: u32,
}

impl Unigram {
    pub(super) fn new(file: &File) -> Self {
        let normal = file.kinds.iter().zip(&file.scores).filter(|(kind, _)| **kind == Kind::Normal);
        // As the package begins: the greatest float32, and the least above zero.
        let start = Self { min: f32::MAX, max: f32::MIN_POSITIVE };
        normal.fold(start, |all, (_, score)| Self { min: all.min.min(*score), max: all.max.max(*score) })
    }

    /// The pieces of `text`, first to last, as ends and numbers; a character without one is `unknown`.
    pub(super) fn cut(
        &self,
        text: &str,
        pieces: &Pieces,
        prefixes: &Prefixes,
        kinds: &[Kind],
        scores: &[f32],
        unknown: u32,
    ) -> Vec<(usize, u32)> {
        let mut nodes: Vec<_> =
            (0..=text.len() as u32).map(|start| Node { score: 0.0, start, id: 0 }).collect();
        let reach = |nodes: &mut [Node], start: usize, end: usize, id: u32, score: f64| {
            let score = score + f64::from(nodes[start].score);
            let node = &mut nodes[end];
            if node.start as usize == end || score > f64::from(node.score) {
                *node = Node { score: score as f32, start: start as u32, id };
            }
        };
        for (start, c) in text.char_indices() {
            let mut has_single = false;
            prefixes.search(pieces, &text.as_bytes()[start..], |len, id| {
                let score = match kinds[id as usize] {
                    Kind::Unused => return,
                    // So that these always win.
                    Kind::UserDefined => f64::from(len as f32 * self.max) - 0.1,
                    _ => f64::from(scores[id as usize]),
                };
                reach(&mut nodes, start, start + len, id, score);
                has_single |= len == c.len_utf8();
            });
            if !has_single {
                let score = f64::from(self.min - UNKNOWN_PENALTY);
                reach(&mut nodes, start, start + c.len_utf8(), unknown, score);
            }
        }
        let mut cut = Vec::new();
        let mut end = text.len();
        while end > 0 {
            let node = nodes[end];
            cut.push((end, node.id));
            end = node.start as usize;
        }
        cut.reverse();
        cut
    }
}
