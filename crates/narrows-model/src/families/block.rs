//! Layers of two halves: attention, then an MLP or experts, and the norms around them.

use crate::builder::{Attention, Builder, Mixture, Mlp, NormAs};
use crate::error::Result;
use crate::program::Value;

/// The order of a layer, and its names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Before the number of a layer.
    pub(super) layers: &'static str,
    pub(super) norm: NormAs,
    /// The norms of what goes into each half; without one it is the residual stream itself, and in a parallel layer what
    /// the first half takes.
    pub(super) before: [Option<&'static str>; 2],
    /// The norms of what each half gives.
    pub(super) after: [Option<&'static str>; 2],
    /// Where the tensors of each half are.
    pub(super) at: [&'static str; 2],
    /// What each half gives is multiplied with this.
    pub(super) scale: f32,
    /// Both halves take the residual stream as it came into the layer.
    pub(super) parallel: bool,
}

/// What the second half of a layer is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Feed<'a> {
    Mlp(&'a Mlp),
    Experts(&'a Mixture),
}

impl Block {
    /// A norm before each half, as Llama has it.
    pub(super) const fn pre_norm(norm: NormAs) -> Self {
        Self {
            layers: "model.layers",
            norm,
            before: [Some("input_layernorm"), Some("post_attention_layernorm")],
            after: [None, None],
            at: ["self_attn", "mlp"],
            scale: 1.0,
            parallel: false,
        }
    }

    /// Writes the next layer.
    pub(super) fn write(&self, b: &mut Builder<'_>, attention: &Attention, feed: Feed<'_>) -> Result<()> {
        b.layer(self.layers);
        let x = self.operand_of(b, 0, b.hidden());
        let a = b.attention(self.at[0], x, attention);
        self.result_of(b, 0, a);
        if !self.parallel {
            b.add(a);
        }
        let x = self.operand_of(b, 1, if self.parallel { x } else { b.hidden() });
        let m = match feed {
            Feed::Mlp(mlp) => b.mlp(self.at[1], x, mlp),
            Feed::Experts(mixture) => b.experts(x, mixture)?,
        };
        self.result_of(b, 1, m);
        if self.parallel {
            b.add(a);
        }
        b.add(m);
        Ok(())
    }

    fn operand_of(&self, b: &mut Builder<'_>, half: usize, otherwise: Value) -> Value {
        self.before[half].map_or(otherwise, |name| b.norm(name, self.norm))
    }

    fn result_of(&self, b: &mut Builder<'_>, half: usize, value: Value) {
        if let Some(name) = self.after[half] {
            b.norm_in_place(value, name, self.norm);
        }
        b.scale(value, self.scale);
    }
}
