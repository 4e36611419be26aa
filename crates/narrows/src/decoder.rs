//! One pass of a step through the model: an interpreter of its program.

use std::ops::Range;
use std::sync::Arc;

use narrows_model::{Experts, Op, Program, Route};

use crate::backend::{Backend, Step};
use crate::error::{Error, Result};
use crate::lower::Lowered;
use crate::routing::{self, Routing};
use crate::sequence::Sequence;
use crate::weights::{Pass, Weights};

/// Rows of a step for which the experts of the next layer are guessed.
const PREFETCH_ROWS: usize = 4;

/// Consecutive tokens of one sequence in a step: a chunk of its prompt, or the one token just sampled.
pub(crate) struct Segment<'a> {
    /// The sequence, which grows by the tokens.
    pub(crate) sequence: &'a mut Sequence,
    /// The tokens, at the positions after those that the sequence has.
    pub(crate) tokens: &'a [u32],
    /// The tokens whose logits the caller needs.
    pub(crate) wanted: Range<usize>,
}

/// Computes steps: ragged batches of rows of any number of sequences.
pub(crate) struct Decoder<B: Backend> {
    lowered: Arc<Lowered>,
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
    /// Cosines and sines, by rotary embedding.
    angles: Vec<(Vec<f32>, Vec<f32>)>,
}

impl<B: Backend> Decoder<B> {
    pub(crate) fn new(lowered: Arc<Lowered>, weights: Weights<B>, backend: B) -> Self {
        Self { lowered, weights, backend, tables: Tables::default(), layer_hook: None }
    }

    pub(crate) const fn backend(&self) -> &B {
        &self.backend
    }

    pub(crate) const fn weights(&self) -> &Weights<B> {
        &self.weights
    }

    /// Bytes of what a step of `rows` rows is made of on the host.
    pub(crate) fn table_bytes(program: &Program, rows: usize) -> usize {
        // While rows are sorted by expert, each is there as what is sorted and as the result.
        let routed = 24 * routing::most_rows(program, rows);
        let angles: usize = program.ropes.iter().map(|rope| rope.dims).sum();
        // Embeddings, of at most a float each, cosines and sines.
        4 * (program.dims.hidden + angles) * rows + routed
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
        let Self { lowered, weights, backend, tables: t, layer_hook } = self;
        t.fill(&lowered.program, segments)?;
        weights.read_embeddings(&t.tokens, &mut t.embeddings)?;
        let step = Step {
            rows: &t.rows,
            embeddings: &t.embeddings,
            encoding: weights.embedding_encoding(),
            angles: &t.angles,
            wanted: &t.wanted,
        };
        let mut sequences: Vec<_> = segments.iter_mut().map(|segment| &mut *segment.sequence).collect();
        backend.begin(&step, &mut sequences)?;

        let mut run =
            Run { lowered, pass: weights.pass(), backend, rows: &t.rows, routing: Routing::default() };
        run.all(&lowered.prologue, None, &mut sequences).map_err(|error| run.pass.named(error))?;
        for (layer, ops) in lowered.layers.iter().enumerate() {
            if let Some(hook) = layer_hook {
                hook(layer);
            }
            run.all(ops, Some(layer), &mut sequences).map_err(|error| run.pass.named(error))?;
            if let Some(row) = run.backend.not_finite() {
                return Err(not_finite("the activations", Some(layer), &t.rows, row));
            }
        }
        let finished = match t.wanted.is_empty() {
            true => run.skip(&lowered.epilogue),
            false => run.all(&lowered.epilogue, None, &mut sequences),
        };
        finished.map_err(|error| run.pass.named(error))?;
        let Run { pass, backend, .. } = run;
        let logits = backend.logits().map_err(|error| pass.named(error))?;
        if let Some(row) = first_not_finite(logits, lowered.program.dims.vocab) {
            return Err(not_finite("the logits", None, &t.rows, t.wanted.get(row).copied().unwrap_or(0)));
        }
        for segment in segments.iter_mut() {
            segment.sequence.advance(segment.tokens.len());
        }
        Ok(logits)
    }
}

impl Tables {
    fn fill(&mut self, program: &Program, segments: &[Segment<'_>]) -> Result<()> {
        self.rows.clear();
        self.tokens.clear();
        self.wanted.clear();
        let vocab = program.dims.vocab;
        for (index, segment) in segments.iter().enumerate() {
            let start = segment.sequence.len();
            if segment.tokens.len() > segment.sequence.capacity() - start {
                return Err(Error::PromptTooLong {
                    prompt: start + segment.tokens.len(),
                    context: segment.sequence.capacity(),
                });
            }
            if let Some(token) = segment.tokens.iter().find(|token| **token as usize >= vocab) {
                return Err(Error::Request(format!("token id {token} is outside the vocabulary of {vocab}")));
            }
            self.wanted.extend(segment.wanted.clone().map(|row| self.rows.len() + row));
            self.rows.extend((0..segment.tokens.len()).map(|i| (index, start + i)));
            self.tokens.extend_from_slice(segment.tokens);
        }
        self.angles.resize_with(program.ropes.len(), Default::default);
        for (rope, (cos, sin)) in program.ropes.iter().zip(&mut self.angles) {
            let half = rope.dims / 2;
            cos.resize(self.rows.len() * half, 0.0);
            sin.resize(self.rows.len() * half, 0.0);
            for (i, &(segment, position)) in self.rows.iter().enumerate() {
                let frequencies = rope.inverse_frequencies(segments[segment].sequence.rope_length(position));
                let row = i * half..(i + 1) * half;
                let (cos, sin) = (&mut cos[row.clone()], &mut sin[row]);
                rope.angles(&frequencies, position, cos, sin);
                if let Some(factor) = rope.factor(position) {
                    cos.iter_mut().chain(sin).for_each(|value| *value *= factor);
                }
            }
        }
        Ok(())
    }
}

/// A step being computed.
struct Run<'a, 'w, B: Backend> {
    lowered: &'a Lowered,
    pass: Pass<'w, B>,
    backend: &'a mut B,
    /// Sequence and position of each row.
    rows: &'a [(usize, usize)],
    /// Where the layer's rows go.
    routing: Routing,
}

impl<B: Backend> Run<'_, '_, B> {
    /// Runs operations, of a layer if it is one.
    fn all(&mut self, ops: &[Op], layer: Option<usize>, sequences: &mut [&mut Sequence]) -> Result<()> {
        let mut next = None;
        for (index, op) in ops.iter().enumerate() {
            match op {
                Op::Linear(linear) => self.pass.linear(self.backend, linear, linear.weight, linear.from)?,
                Op::Norm(norm) => {
                    let mut norm = std::borrow::Cow::Borrowed(norm);
                    if let (Some(layer), Some(Op::Route(route))) = (layer, ops.get(index + 1)) {
                        next = self.next_routing(layer, route, norm.add)?;
                        if next.is_some() {
                            norm.to_mut().add = None;
                        }
                    }
                    self.backend.norm(&norm, self.pass.vectors())?;
                }
                Op::Route(route) => self.route(route, next.take())?,
                Op::Experts(experts) => self.experts(experts)?,
                Op::AddShared { from, to } => {
                    if let Some(shared) = self.routing.shared.clone() {
                        self.backend.add_routed(*from, *to, shared)?;
                    }
                }
                op => self.backend.run(op, self.pass.vectors(), sequences)?,
            }
        }
        Ok(())
    }

    /// Passes over the tiles of operations whose results are not wanted.
    fn skip(&mut self, ops: &[Op]) -> Result<()> {
        for op in ops {
            if let Op::Linear(linear) = op {
                self.pass.skip(linear.weight)?;
            }
        }
        Ok(())
    }

    /// Chooses the experts of each row, and asks for them; names those of the next layer that will probably be needed.
    fn route(&mut self, route: &Route, next: Option<Routing>) -> Result<()> {
        // Routers are multiplied in float32 everywhere: a rounding can send a row elsewhere.
        let scores = self.backend.scores(route, route.router, route.count, self.pass.vectors())?;
        check_scores(scores, route.count, route.layer, self.rows)?;
        let correction = route.correction.map(|id| self.pass.host_vector(id)).transpose()?;
        let mut routing = Routing::new(scores, route, correction);
        // What has to be read is on its way while the rest is computed.
        self.pass.demand(route.layer, routing.experts.iter().map(|(expert, _)| *expert))?;
        if let Some(next) = next {
            self.pass.prefetch(route.layer + 1, next.experts.iter().map(|(expert, _)| *expert));
        }
        if let Some(gate) = route.shared_gate {
            let scores = self.backend.scores(route, gate, 1, self.pass.vectors())?;
            check_scores(scores, 1, route.layer, self.rows)?;
            routing.share(scores);
        }
        self.backend.route(&routing)?;
        self.routing = routing;
        Ok(())
    }

    /// The experts that any row goes to, in their order, whichever come first, so that sums do not depend on what was in
    /// memory.
    fn experts(&mut self, experts: &Experts) -> Result<()> {
        for (expert, chosen) in std::mem::take(&mut self.routing.experts) {
            let all = chosen.len() == self.rows.len();
            self.backend.choose(chosen.len());
            // All rows, in their order, are there already.
            if !all {
                self.backend.take_rows(experts.from, experts.taken, chosen.clone())?;
            }
            for op in &experts.body {
                match op {
                    Op::Linear(linear) => {
                        let weight = Program::of_expert(experts, expert, linear.weight);
                        let from = match linear.from == experts.taken && all {
                            true => experts.from,
                            false => linear.from,
                        };
                        self.pass.linear(self.backend, linear, weight, from)?;
                    }
                    Op::Norm(norm) => self.backend.norm(norm, self.pass.vectors())?,
                    op => self.backend.run(op, self.pass.vectors(), &mut [])?,
                }
            }
            self.backend.add_routed(experts.made, experts.to, chosen)?;
        }
        Ok(())
    }

    /// Where the next layer would send the rows if this one's experts changed nothing: most go there in the end, so
    /// what is not in memory can be read while this layer is computed. The residual stream is up to date afterwards.
    fn next_routing(
        &mut self,
        layer: usize,
        route: &Route,
        add: Option<narrows_model::Value>,
    ) -> Result<Option<Routing>> {
        let lowered = self.lowered;
        // Many rows go nearly everywhere, and to know that is of no use.
        if self.rows.len() > PREFETCH_ROWS || !self.pass.may_miss() {
            return Ok(None);
        }
        let (Some(next), Some(Some(norm)), Some(Some(own))) = (
            lowered.program.router(layer + 1),
            lowered.before_router.get(layer + 1),
            lowered.before_router.get(layer),
        ) else {
            return Ok(None);
        };
        if next.count != route.count {
            return Ok(None);
        }
        // Into the place of this layer's, which is made behind it.
        let norm = narrows_model::Norm { add, to: own.to, ..norm.clone() };
        self.backend.norm(&norm, self.pass.vectors())?;
        let scores = self.backend.scores(route, next.router, next.count, self.pass.vectors())?;
        let correction = next.correction.map(|id| self.pass.host_vector(id)).transpose()?;
        Ok(Some(Routing::new(scores, next, correction)))
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
