//! Which matrices of a model are quantised to what when it is packed.

use narrows_model::Role;
use narrows_shard::{Bytes, Encoding};

/// What the matrices of a pack are quantised to, by their part in the model; `None`: they stay as they are, as
/// embeddings, norms, biases and routers always do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quantisation {
    /// The matrices of layers, experts among them, that are no projections of attention.
    pub layers: Option<Encoding>,
    /// The projections to queries, keys and values, and from what attention gives.
    pub attention: Option<Encoding>,
    /// The head, if it is a matrix of its own and not the embedding table.
    pub head: Option<Encoding>,
}

impl Quantisation {
    /// Everything that can be, to one encoding.
    #[must_use]
    pub const fn all(encoding: Option<Encoding>) -> Self {
        Self { layers: encoding, attention: encoding, head: encoding }
    }

    /// Target encoding of a weight.
    pub(crate) fn of(&self, role: Role) -> Option<Encoding> {
        match role {
            Role::Embedding | Role::Vector => None,
            Role::Head => self.head,
            Role::Attention => self.attention,
            Role::Mlp | Role::Expert => self.layers,
        }
    }

    /// Bytes of a weight of that shape, which takes `stored` as it is.
    pub(crate) fn bytes(&self, role: Role, shape: &[usize], stored: Bytes) -> Bytes {
        match (self.of(role), shape) {
            (Some(encoding), &[rows, cols]) => {
                let row = encoding.row_bytes(cols).unwrap_or(usize::MAX);
                Bytes((row as u64).saturating_mul(rows as u64))
            }
            _ => stored,
        }
    }
}
