//! Which matrices of a model are quantised to what when it is packed.

use narrows_shard::{Bytes, Encoding};

use crate::architecture::Weight;

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

    /// What becomes of a weight of that shape.
    pub(crate) fn of(&self, weight: Weight, shape: &[usize]) -> Option<Encoding> {
        match weight {
            _ if shape.len() != 2 => None,
            Weight::Embedding | Weight::FinalNorm => None,
            Weight::Head => self.head,
            weight if weight.routes() => None,
            Weight::Layer(_, weight) if weight.is_attention() => self.attention,
            Weight::Layer(..) | Weight::Expert(..) => self.layers,
        }
    }

    /// Bytes of a weight of that shape, which takes `stored` as it is.
    pub(crate) fn bytes(&self, weight: Weight, shape: &[usize], stored: Bytes) -> Bytes {
        match (self.of(weight, shape), shape) {
            (Some(encoding), &[rows, cols]) => {
                let row = encoding.row_bytes(cols).unwrap_or(usize::MAX);
                Bytes((row as u64).saturating_mul(rows as u64))
            }
            _ => stored,
        }
    }
}
