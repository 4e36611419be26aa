//! One pass of a step through the model.

use std::ops::Range;

use narrows_shard::Encoding;

use crate::architecture::{Architecture, ExpertWeight, Experts, LayerWeight};
use crate::backend::{Activation, Backend, Step};
use crate::error::{Error, Result};
use crate::routing::Routing;
use crate::sequence::Sequence;
use crate::weights::{Pass, Weights, operand};

/// Rows of a step for which the experts of the next layer are guessed.
const PREFETCH_ROWS: usize = 4;

/// Consecutive tokens of one sequence in a step: a chunk of its prompt, or the one token just sampled.
pub(crate) struct Segment<'a> {
    /// The sequence, which grows by the tokens.
    pub(crate) sequence: &'a mut Sequence,
    /// The tokens, at the positions after those that the sequence has.
    pub(crate) tokens: &'a [u32],
    /// Which of the tokens' logits somebody needs.
    pub(crate) wanted: Range<usize>,
}

/// Computes steps: ragged batches of rows of any number of sequences.
pub(crate) struct Decoder<B: Backend> {
    architecture: Architecture,
    weights: Weights<B>,
    backend: B,
    tables: Tables,
    layer_hook: Option<Box<dyn FnMut(usize) + Send>>,
}

/// What a step is made of, on the host. Reused.
#[derive(Default)]
struct Tables {
    tokens: Vec<u32>,
    rows: Vec<(usize, usize)>,
    wanted: Vec<usize>,
    embeddings: Vec<u8>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn new(architecture: Architecture, weights: Weights<B>, backend: B) -> Self {
        Self { architecture, weights, backend, tables: Tables::default(), layer_hook: None }
    }

    pub(crate) const fn backend(&self) -> &B {
        &self.backend
    }

    pub(crate) const fn weights(&self) -> &Weights<B> {
        &self.weights
    }

    /// Bytes of what a step of `rows` rows is made of on the host.
    pub(crate) const fn table_bytes(a: &Architecture, rows: usize) -> usize {
        let routed = match &a.experts {
            // While rows are sorted by expert, each is there as what is sorted and as the result.
            Some(experts) => 24 * Routing::most_rows(experts, rows),
            None => 0,
        };
        // Embeddings, of at most a float each, cosines and sines.
        4 * (a.hidden_size + a.head_dim) * rows + routed
    }

    /// Calls `hook(layer)` before each layer of each step.
    pub(crate) fn on_layer(&mut self, hook: Box<dyn FnMut(usize) + Send>) {
        self.layer_hook = Some(hook);
    }

    /// Computes all rows of `segments` and returns the logits of the wanted ones, `[wanted, vocab]`, in the
    /// order of the segments.
    ///
    /// If it fails, the sequences are as long as before and may be used again.
    pub(crate) fn step(&mut self, segments: &mut [Segment<'_>]) -> Result<&mut [f32]> {
        let Self { architecture: a, weights, backend, tables: t, layer_hook } = self;
        t.fill(a, segments)?;
        weights.read_embeddings(&t.tokens, &mut t.embeddings)?;
        let step = Step {
            rows: &t.rows,
            embeddings: &t.embeddings,
            encoding: weights.embedding_encoding(),
            cos: &t.cos,
            sin: &t.sin,
            wanted: &t.wanted,
        };
        let mut sequences: Vec<_> = segments.iter_mut().map(|segment| &mut *segment.sequence).collect();
        backend.begin(&step, &mut sequences)?;

        let mut pass = weights.pass();
        for layer in 0..a.layers {
            if let Some(hook) = layer_hook {
                hook(layer);
            }
            let mut half = Half { a, pass: &mut pass, backend, layer, rows: &t.rows };
            let computed = half.attention(&mut sequences).and_then(|()| match a.experts_of(layer) {
                Some(experts) => half.mixture(experts, t.rows.len()),
                None => half.mlp(t.rows.len()),
            });
            computed.map_err(|error| pass.named(error))?;
            if let Some(row) = backend.not_finite() {
                return Err(not_finite("the activations", Some(layer), &t.rows, row));
            }
        }
        let encoding = pass.head_operand();
        let finished = backend.finish(pass.final_norm()?, a.norm_eps, encoding);
        finished.and_then(|()| pass.head(backend, t.wanted.is_empty())).map_err(|error| pass.named(error))?;
        let logits = backend.logits().map_err(|error| pass.named(error))?;
        if let Some(row) = first_not_finite(logits, a.vocab_size) {
            return Err(not_finite("the logits", None, &t.rows, t.wanted.get(row).copied().unwrap_or(0)));
        }
        for segment in segments.iter_mut() {
            segment.sequence.advance(segment.tokens.len());
        }
        Ok(logits)
    }
}

impl Tables {
    fn fill(&mut self, a: &Architecture, segments: &[Segment<'_>]) -> Result<()> {
        self.rows.clear();
        self.tokens.clear();
        self.wanted.clear();
        for (index, segment) in segments.iter().enumerate() {
            let start = segment.sequence.len();
            if segment.tokens.len() > segment.sequence.capacity() - start {
                return Err(Error::PromptTooLong {
                    prompt: start + segment.tokens.len(),
                    context: segment.sequence.capacity(),
                });
            }
            if let Some(token) = segment.tokens.iter().find(|token| **token as usize >= a.vocab_size) {
                return Err(Error::Request(format!(
                    "token id {token} is outside the vocabulary of {}",
                    a.vocab_size
                )));
            }
            self.wanted.extend(segment.wanted.clone().map(|row| self.rows.len() + row));
            self.rows.extend((0..segment.tokens.len()).map(|i| (index, start + i)));
            self.tokens.extend_from_slice(segment.tokens);
        }
        let half = a.head_dim / 2;
        self.cos.resize(self.rows.len() * half, 0.0);
        self.sin.resize(self.rows.len() * half, 0.0);
        for (i, &(segment, position)) in self.rows.iter().enumerate() {
            let frequencies = a.rope.inverse_frequencies(segments[segment].sequence.rope_length(position));
            let row = i * half..(i + 1) * half;
            a.rope.angles(&frequencies, position, &mut self.cos[row.clone()], &mut self.sin[row]);
        }
        Ok(())
    }
}

/// A layer being computed.
struct Half<'a, 'w, B: Backend> {
    a: &'a Architecture,
    pass: &'a mut Pass<'w, B>,
    backend: &'a mut B,
    layer: usize,
    /// Sequence and position of each row.
    rows: &'a [(usize, usize)],
}

impl<B: Backend> Half<'_, '_, B> {
    /// `x += o_proj(attention(norm(x)))`, the sum being left to the next norm.
    fn attention(&mut self, sequences: &mut [&mut Sequence]) -> Result<()> {
        let (a, layer) = (self.a, self.layer);
        self.project_normed(
            layer > 0,
            LayerWeight::AttentionNorm,
            &[
                (LayerWeight::QProj, LayerWeight::QBias, Activation::Query),
                (LayerWeight::KProj, LayerWeight::KBias, Activation::Key),
                (LayerWeight::VProj, LayerWeight::VBias, Activation::Value),
            ],
        )?;
        for (weight, heads) in
            [(LayerWeight::QNorm, Activation::Query), (LayerWeight::KNorm, Activation::Key)]
        {
            if let Some(norm) = self.pass.vector(layer, weight) {
                self.backend.norm_heads(heads, norm, a.norm_eps)?;
            }
        }
        let encoding = operand(self.pass.matrix(layer, LayerWeight::OProj));
        self.backend.attention(layer, a.windows[layer], sequences, encoding)?;
        self.project(LayerWeight::OProj, LayerWeight::OBias, Activation::Attended, Activation::Projected)
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`, the sum being left to the next norm.
    fn mlp(&mut self, rows: usize) -> Result<()> {
        self.backend.shape_mlp(rows, self.a.intermediate_size);
        self.project_normed(
            true,
            LayerWeight::MlpNorm,
            &[
                (LayerWeight::GateProj, LayerWeight::GateBias, Activation::Gate),
                (LayerWeight::UpProj, LayerWeight::UpBias, Activation::Up),
            ],
        )?;
        self.backend.swiglu(operand(self.pass.matrix(self.layer, LayerWeight::DownProj)))?;
        self.project(
            LayerWeight::DownProj,
            LayerWeight::DownBias,
            Activation::Activated,
            Activation::Projected,
        )
    }

    /// `x += sum of weight * expert(norm(x))` over the experts that each row is routed to.
    ///
    /// Results are added up in the order of the experts, whichever come first, so they do not depend on what was in
    /// memory.
    fn mixture(&mut self, experts: &Experts, rows: usize) -> Result<()> {
        let (a, layer) = (self.a, self.layer);
        let norm =
            self.pass.vector(layer, LayerWeight::MlpNorm).ok_or_else(|| missing(LayerWeight::MlpNorm))?;
        let router =
            self.pass.vector(layer, LayerWeight::Router).ok_or_else(|| missing(LayerWeight::Router))?;
        // Routers are multiplied in float32 everywhere: a rounding can send a row elsewhere.
        let next = self.next_routing(experts, rows)?;
        self.backend.norm(next.is_none(), norm, a.norm_eps, Encoding::F32)?;
        let scores = self.backend.scores(router, experts.count)?;
        check_scores(scores, experts.count, layer, self.rows)?;
        let mut routing = Routing::new(scores, experts);
        // What has to be read is on its way while the rest is computed.
        self.pass.demand(layer, routing.experts.iter().map(|(expert, _)| *expert))?;
        if let Some(next) = next {
            self.pass.prefetch(layer + 1, next.experts.iter().map(|(expert, _)| *expert));
        }
        if let Some(gate) = self.pass.vector(layer, LayerWeight::SharedExpertGate) {
            let scores = self.backend.scores(gate, 1)?;
            check_scores(scores, 1, layer, self.rows)?;
            routing.share(scores);
        }
        self.backend.route(&routing)?;

        let mut made = Encoding::F32;
        let mut normed_as = |backend: &mut B, encoding: Encoding| {
            if std::mem::replace(&mut made, encoding) == encoding {
                return Ok(());
            }
            backend.norm(false, norm, a.norm_eps, encoding)
        };
        // The shared expert first.
        let mut mlps = Vec::with_capacity(1 + routing.experts.len());
        if let (Some(chosen), Some(width)) = (routing.shared, experts.shared_intermediate_size) {
            use LayerWeight::{SharedDownProj, SharedGateProj, SharedUpProj};
            let matrices = [SharedGateProj, SharedUpProj, SharedDownProj];
            mlps.push((chosen, width, matrices.map(|weight| self.pass.matrix(layer, weight))));
        }
        for (expert, chosen) in routing.experts {
            let matrices = [ExpertWeight::GateProj, ExpertWeight::UpProj, ExpertWeight::DownProj];
            let matrices = matrices.map(|weight| self.pass.expert_matrix(layer, expert, weight));
            mlps.push((chosen, experts.intermediate_size, matrices));
        }
        for (chosen, width, [gate, up, down]) in mlps {
            self.backend.shape_mlp(chosen.len(), width);
            // All rows, in their order, are there already.
            let from = if chosen.len() == rows { Activation::Normed } else { Activation::Routed };
            let mut taken = None;
            for (matrix, to) in [(gate, Activation::Gate), (up, Activation::Up)] {
                let encoding = operand(matrix);
                normed_as(self.backend, encoding)?;
                if from == Activation::Routed && taken.replace(encoding) != Some(encoding) {
                    self.backend.take_rows(chosen.clone(), encoding)?;
                }
                self.pass.linear(self.backend, matrix, from, to)?;
            }
            self.backend.swiglu(operand(down))?;
            self.pass.linear(self.backend, down, Activation::Activated, Activation::Expert)?;
            self.backend.add_expert(chosen)?;
        }
        Ok(())
    }

    /// Where the next layer would send the rows if this one's experts changed nothing: most go there in the end, so
    /// what is not in memory can be read while this layer is computed. `Hidden` is up to date afterwards.
    fn next_routing(&mut self, experts: &Experts, rows: usize) -> Result<Option<Routing>> {
        let next = self.layer + 1;
        // Many rows go nearly everywhere, and to know that is of no use.
        if rows > PREFETCH_ROWS
            || !self.pass.may_miss()
            || !experts.layers.get(next).is_some_and(|sparse| *sparse)
        {
            return Ok(None);
        }
        let norm =
            self.pass.vector(next, LayerWeight::MlpNorm).ok_or_else(|| missing(LayerWeight::MlpNorm))?;
        let router =
            self.pass.vector(next, LayerWeight::Router).ok_or_else(|| missing(LayerWeight::Router))?;
        self.backend.norm(true, norm, self.a.norm_eps, Encoding::F32)?;
        Ok(Some(Routing::new(self.backend.scores(router, experts.count)?, experts)))
    }

    /// The projections that share a norm. They are all multiplied with one encoding in most models; where not, the
    /// norm is made again for the next.
    fn project_normed(
        &mut self,
        mut add: bool,
        norm: LayerWeight,
        projections: &[(LayerWeight, LayerWeight, Activation)],
    ) -> Result<()> {
        let mut made = None;
        for &(weight, bias, to) in projections {
            let encoding = operand(self.pass.matrix(self.layer, weight));
            if made != Some(encoding) {
                let norm = self.pass.vector(self.layer, norm).ok_or_else(|| missing(norm))?;
                self.backend.norm(add, norm, self.a.norm_eps, encoding)?;
                (made, add) = (Some(encoding), false);
            }
            self.project(weight, bias, Activation::Normed, to)?;
        }
        Ok(())
    }

    fn project(
        &mut self,
        weight: LayerWeight,
        bias: LayerWeight,
        from: Activation,
        to: Activation,
    ) -> Result<()> {
        let matrix = self.pass.matrix(self.layer, weight);
        self.pass.linear(self.backend, matrix, from, to)?;
        if let Some(bias) = self.pass.vector(self.layer, bias) {
            self.backend.add_bias(bias, to)?;
        }
        Ok(())
    }
}

/// The first row of `values`, `[_, width]`, that has an element which is no number.
pub(crate) fn first_not_finite(values: &[f32], width: usize) -> Option<usize> {
    // All at once where all is well: without a branch an element it is vectorised.
    let well = values.iter().fold(true, |well, value| well & value.is_finite());
    if well {
        return None;
    }
    values.iter().position(|value| !value.is_finite()).map(|at| at / width.max(1))
}

fn not_finite(what: &'static str, layer: Option<usize>, rows: &[(usize, usize)], row: usize) -> Error {
    Error::NotFinite { what, layer, position: rows.get(row).map_or(0, |(_, position)| *position) }
}

fn check_scores(scores: &[f32], count: usize, layer: usize, rows: &[(usize, usize)]) -> Result<()> {
    match first_not_finite(scores, count) {
        Some(row) => Err(not_finite("the router's scores", Some(layer), rows, row)),
        None => Ok(()),
    }
}

fn missing(weight: LayerWeight) -> Error {
    Error::Request(format!("{weight:?} is not loaded"))
}
