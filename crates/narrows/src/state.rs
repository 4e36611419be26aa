//! What sequences remember, as a program says it.

use narrows_model::{Program, StateSpec};
use narrows_shard::{Bytes, Encoding};

/// Heads of keys (or values) and their width, which all layers share.
pub(crate) fn shape(program: &Program) -> (usize, usize) {
    match program.states.first() {
        Some(StateSpec::Kv { kv_heads, head_dim, .. }) => (*kv_heads, *head_dim),
        None => (1, 2),
    }
}

/// Size of the KV cache of a sequence of `positions` positions; at the end of the range on overflow.
pub(crate) fn bytes(program: &Program, encoding: Encoding, positions: usize) -> Bytes {
    let of_layer = |state: &StateSpec| {
        let StateSpec::Kv { kv_heads, head_dim, .. } = state;
        let row = encoding.row_bytes(*head_dim).unwrap_or(usize::MAX) as u64;
        [2, *kv_heads, positions].into_iter().fold(row, |bytes, n| bytes.saturating_mul(n as u64))
    };
    Bytes(program.states.iter().map(of_layer).fold(0, u64::saturating_add))
}
