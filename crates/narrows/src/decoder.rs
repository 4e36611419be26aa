//! One pass of a step through the model.

use std::ops::Range;

use narrows_cpu::{AttentionRow, Cpu};

use crate::architecture::{Architecture, LayerWeight};
use crate::error::{Error, Result};
use crate::sequence::Sequence;
use crate::weights::{Pass, Weights};

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
pub(crate) struct Decoder {
    architecture: Architecture,
    weights: Weights,
    cpu: Cpu,
    buffers: Buffers,
    layer_hook: Option<Box<dyn FnMut(usize) + Send>>,
}

/// Activations of a step of `n` rows. They grow with the largest step and are reused.
#[derive(Default)]
struct Buffers {
    /// The residual stream, `[n, hidden]`.
    x: Vec<f32>,
    /// Normed rows going into a projection, and what comes back, `[n, hidden]`.
    normed: Vec<f32>,
    out: Vec<f32>,
    /// `[n, q_size]`
    q: Vec<f32>,
    attended: Vec<f32>,
    /// `[n, kv_size]`
    k: Vec<f32>,
    v: Vec<f32>,
    /// `[n, intermediate]`
    gate: Vec<f32>,
    up: Vec<f32>,
    /// `[n, head_dim / 2]`
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// `[wanted, vocab]`
    logits: Vec<f32>,
}

impl Decoder {
    pub(crate) fn new(architecture: Architecture, weights: Weights, cpu: Cpu) -> Self {
        Self { architecture, weights, cpu, buffers: Buffers::default(), layer_hook: None }
    }

    pub(crate) const fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    pub(crate) const fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    pub(crate) const fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Calls `hook(layer)` before each layer of each step.
    pub(crate) fn on_layer(&mut self, hook: Box<dyn FnMut(usize) + Send>) {
        self.layer_hook = Some(hook);
    }

    /// Bytes of activations of a step of `rows` rows of which `wanted` come to logits.
    pub(crate) fn activation_bytes(a: &Architecture, rows: usize, wanted: usize) -> usize {
        let row = 3 * a.hidden_size + 2 * a.q_size() + 2 * a.kv_size() + 2 * a.intermediate_size + a.head_dim;
        4 * row * rows + 4 * a.vocab_size * wanted
    }

    /// Computes all rows of `segments` and returns the logits of the wanted ones, `[wanted, vocab]`, in the
    /// order of the segments.
    ///
    /// If it fails, the sequences are as long as before and may be used again.
    pub(crate) fn step(&mut self, segments: &mut [Segment<'_>]) -> Result<&mut [f32]> {
        let Self { architecture: a, weights, cpu, buffers: b, layer_hook } = self;
        let mut rows = Vec::new();
        let mut tokens = Vec::new();
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
            rows.extend((0..segment.tokens.len()).map(|i| (index, start + i)));
            tokens.extend_from_slice(segment.tokens);
        }
        let n = rows.len();
        b.resize(a, n);

        weights.embed(cpu, &tokens, &mut b.x)?;
        let half = a.head_dim / 2;
        for (i, &(segment, position)) in rows.iter().enumerate() {
            let frequencies = a.rope.inverse_frequencies(segments[segment].sequence.rope_length(position));
            let row = i * half..(i + 1) * half;
            a.rope.angles(&frequencies, position, &mut b.cos[row.clone()], &mut b.sin[row]);
        }

        let mut pass = weights.pass();
        for layer in 0..a.layers {
            if let Some(hook) = layer_hook {
                hook(layer);
            }
            let mut layer = Layer { a, pass: &mut pass, cpu, layer };
            layer.attention(b, &rows, segments)?;
            layer.mlp(b)?;
        }
        for segment in segments.iter_mut() {
            segment.sequence.advance(segment.tokens.len());
        }

        // The head runs for the wanted rows alone: gather them.
        let hidden = a.hidden_size;
        let mut wanted = 0;
        let mut first = 0;
        for segment in segments.iter() {
            for row in segment.wanted.clone() {
                let from = (first + row) * hidden;
                b.x.copy_within(from..from + hidden, wanted * hidden);
                wanted += 1;
            }
            first += segment.tokens.len();
        }
        resize(&mut b.logits, wanted * a.vocab_size);
        let (x, normed) = (&b.x[..wanted * hidden], &mut b.normed[..wanted * hidden]);
        cpu.rms_norm(x, pass.final_norm(), a.norm_eps, normed)?;
        pass.head(cpu, normed, &mut b.logits)?;
        Ok(&mut b.logits)
    }
}

impl Buffers {
    fn resize(&mut self, a: &Architecture, n: usize) {
        for (buffer, width) in [
            (&mut self.x, a.hidden_size),
            (&mut self.normed, a.hidden_size),
            (&mut self.out, a.hidden_size),
            (&mut self.q, a.q_size()),
            (&mut self.attended, a.q_size()),
            (&mut self.k, a.kv_size()),
            (&mut self.v, a.kv_size()),
            (&mut self.gate, a.intermediate_size),
            (&mut self.up, a.intermediate_size),
            (&mut self.cos, a.head_dim / 2),
            (&mut self.sin, a.head_dim / 2),
        ] {
            resize(buffer, n * width);
        }
    }
}

/// Makes a buffer that long without taking more memory than that, as a growing `Vec` otherwise would.
fn resize(buffer: &mut Vec<f32>, len: usize) {
    buffer.reserve_exact(len.saturating_sub(buffer.len()));
    buffer.resize(len, 0.0);
}

/// A layer being computed.
struct Layer<'a, 'w> {
    a: &'a Architecture,
    pass: &'a mut Pass<'w>,
    cpu: &'a Cpu,
    layer: usize,
}

impl Layer<'_, '_> {
    /// `x += o_proj(attention(norm(x)))`
    fn attention(
        &mut self,
        b: &mut Buffers,
        rows: &[(usize, usize)],
        segments: &mut [Segment<'_>],
    ) -> Result<()> {
        let (a, cpu) = (self.a, self.cpu);
        self.norm(LayerWeight::AttentionNorm, &b.x, &mut b.normed)?;
        self.project(LayerWeight::QProj, LayerWeight::QBias, &b.normed, &mut b.q)?;
        self.project(LayerWeight::KProj, LayerWeight::KBias, &b.normed, &mut b.k)?;
        self.project(LayerWeight::VProj, LayerWeight::VBias, &b.normed, &mut b.v)?;
        for (weight, heads) in [(LayerWeight::QNorm, &mut b.q), (LayerWeight::KNorm, &mut b.k)] {
            if let Some(norm) = self.pass.vector(self.layer, weight) {
                cpu.rms_norm_in_place(heads, norm, a.norm_eps)?;
            }
        }
        cpu.rope(&mut b.q, a.heads, a.head_dim, &b.cos, &b.sin)?;
        cpu.rope(&mut b.k, a.kv_heads, a.head_dim, &b.cos, &b.sin)?;
        let kv = a.kv_size();
        for (&(segment, position), (key, value)) in
            rows.iter().zip(b.k.chunks_exact(kv).zip(b.v.chunks_exact(kv)))
        {
            segments[segment].sequence.write(cpu, self.layer, position, key, value)?;
        }
        let window = a.windows[self.layer];
        let attention: Vec<_> = rows
            .iter()
            .map(|&(segment, position)| AttentionRow {
                kv: segments[segment].sequence.view(self.layer),
                position,
                window,
            })
            .collect();
        cpu.attention(&b.q, &attention, a.heads, a.attention_scale(), &mut b.attended)?;
        self.project(LayerWeight::OProj, LayerWeight::OBias, &b.attended, &mut b.out)?;
        Ok(cpu.add(&b.out, &mut b.x)?)
    }

    /// `x += down(silu(gate(norm(x))) * up(norm(x)))`
    fn mlp(&mut self, b: &mut Buffers) -> Result<()> {
        self.norm(LayerWeight::MlpNorm, &b.x, &mut b.normed)?;
        self.project(LayerWeight::GateProj, LayerWeight::GateBias, &b.normed, &mut b.gate)?;
        self.project(LayerWeight::UpProj, LayerWeight::UpBias, &b.normed, &mut b.up)?;
        self.cpu.swiglu(&mut b.gate, &b.up)?;
        self.project(LayerWeight::DownProj, LayerWeight::DownBias, &b.gate, &mut b.out)?;
        Ok(self.cpu.add(&b.out, &mut b.x)?)
    }

    fn norm(&self, weight: LayerWeight, x: &[f32], out: &mut [f32]) -> Result<()> {
        let weight = self.pass.vector(self.layer, weight).unwrap_or_default();
        Ok(self.cpu.rms_norm(x, weight, self.a.norm_eps, out)?)
    }

    fn project(&mut self, weight: LayerWeight, bias: LayerWeight, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.pass.linear(self.cpu, self.layer, weight, x, y)?;
        if let Some(bias) = self.pass.vector(self.layer, bias) {
            self.cpu.add_bias(bias, y)?;
        }
        Ok(())
    }
}
