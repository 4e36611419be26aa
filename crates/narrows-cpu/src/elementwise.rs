//! Everything that looks at one element or one row of activations at a time.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use narrows_shard::Encoding;

use crate::error::{check_len, check_rows, product};
use crate::linear::decode;
use crate::simd::{Kernel, Simd};
use crate::stored::{Encoded, EncodedKernel, F32, Stored, load_up_to};
use crate::{Cpu, Error, Matrix};

impl Cpu {
    /// Stored weights as `f32`: rows of an embedding, biases, norms; of a quantised matrix one row.
    pub fn decode(&self, encoding: Encoding, bytes: &[u8], out: &mut [f32]) -> Result<(), Error> {
        let expected = encoding.row_bytes(out.len()).ok_or(Error::Overflow { what: "stored weights" })?;
        check_len("stored weights", bytes.len(), expected)?;
        self.run(Encoded(encoding, Decode { bytes, out }));
        Ok(())
    }

    /// `f32` in stored form, rounded to the nearest, ties to even: what goes into a KV cache.
    ///
    /// Too big for the encoding becomes infinity, and NaN stays NaN; where the encoding is one of blocks, which
    /// store one row, both are an [`Error::Row`].
    pub fn encode(&self, values: &[f32], encoding: Encoding, out: &mut [u8]) -> Result<(), Error> {
        let expected = encoding.row_bytes(values.len()).ok_or(Error::Overflow { what: "stored weights" })?;
        check_len("the destination of stored weights", out.len(), expected)?;
        match encoding {
            Encoding::F32 => encode_each(values, out, f32::to_le_bytes),
            Encoding::F16 => encode_each(values, out, |value| f16::from_f32(value).to_le_bytes()),
            Encoding::Bf16 => encode_each(values, out, |value| bf16::from_f32(value).to_le_bytes()),
            Encoding::Q8 | Encoding::Nf4 => narrows_shard::blocks::quantise(encoding, values, out)?,
        }
        Ok(())
    }

    /// The weights of `matrix` as `[rows, cols]` in `encoding`, one of [`Encoding::PLAIN`]: those of
    /// [`Cpu::decode`], rounded once more to `encoding`, to nearest even.
    ///
    /// # Errors
    /// [`Error::Quantised`] where `encoding` is one of blocks, [`Error::Length`] where `out` has another length.
    pub fn dequantise(&self, matrix: Matrix<'_>, encoding: Encoding, out: &mut [u8]) -> Result<(), Error> {
        if encoding.block().is_some() {
            return Err(Error::Quantised { what: "dequantised weights", encoding });
        }
        let what = "dequantised weights";
        let row_bytes = encoding.row_bytes(matrix.cols()).ok_or(Error::Overflow { what })?;
        check_len("the destination of weights", out.len(), product(what, &[matrix.rows(), row_bytes])?)?;
        self.for_rows(out, row_bytes, 1, |first, out| {
            for (row, out) in out.chunks_mut(row_bytes).enumerate() {
                let bytes = matrix.row(first + row);
                self.run(Encoded(
                    matrix.encoding(),
                    Dequantise { bytes, cols: matrix.cols(), encoding, out },
                ));
            }
        });
        Ok(())
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight` for each row of `x`, `[n, weight.len()]`.
    ///
    /// `LlamaRMSNorm` of Hugging Face's `modeling_llama.py` in float32 (Zhang and Sennrich 2019,
    /// arXiv:1910.07467). For a norm of each head, rows are heads.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<(), Error> {
        check_rows("the input of a norm", x.len(), weight.len())?;
        check_len("the result of a norm", out.len(), x.len())?;
        out.copy_from_slice(x);
        self.rms_norm_in_place(out, weight, eps)
    }

    /// [`Cpu::rms_norm`] with its input as destination.
    pub fn rms_norm_in_place(&self, x: &mut [f32], weight: &[f32], eps: f32) -> Result<(), Error> {
        check_rows("the input of a norm", x.len(), weight.len())?;
        self.for_rows(x, weight.len(), 2, |_, x| self.run(RmsNorm { x, weight, eps }));
        Ok(())
    }

    /// `y += x`, element by element.
    pub fn add(&self, x: &[f32], y: &mut [f32]) -> Result<(), Error> {
        check_len("the addend", x.len(), y.len())?;
        self.for_rows(y, 1, 1, |first, y| self.run(Add { x: &x[first..][..y.len()], y }));
        Ok(())
    }

    /// Adds `bias` to each row of `y`, `[n, bias.len()]`.
    pub fn add_bias(&self, bias: &[f32], y: &mut [f32]) -> Result<(), Error> {
        check_rows("what a bias is added to", y.len(), bias.len())?;
        for row in y.chunks_exact_mut(bias.len()) {
            self.run(Add { x: bias, y: row });
        }
        Ok(())
    }

    /// Rotary position embedding of `x`, `[n, heads, head_dim]`, by the angles whose cosines and sines are
    /// given for each row, `[n, head_dim / 2]`.
    ///
    /// The halves `(x1, x2)` of a head become `(x1 cos - x2 sin, x2 cos + x1 sin)`: `apply_rotary_pos_emb`
    /// of Hugging Face's `modeling_llama.py` (Su et al. 2021, arXiv:2104.09864, with halves for pairs).
    pub fn rope(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        cos: &[f32],
        sin: &[f32],
    ) -> Result<(), Error> {
        if !head_dim.is_multiple_of(2) {
            return Err(Error::OddHead { head_dim });
        }
        let row = product("a row of heads", &[heads, head_dim])?;
        let n = check_rows("the heads to rotate", x.len(), row)?;
        let half = head_dim / 2;
        check_len("the cosines", cos.len(), n * half)?;
        check_len("the sines", sin.len(), n * half)?;
        self.rotate(x, row, Turn { head_dim, half, neighbours: false }, cos, sin);
        Ok(())
    }

    /// [`Cpu::rope`] of the first `2 * cos.len() / n` elements of each head alone, whose neighbours `(x[2 j], x[2 j + 1])`
    /// turn together where `neighbours` says so (`apply_rotary_pos_emb` of Hugging Face's `modeling_glm.py`).
    ///
    /// # Errors
    /// As [`Cpu::rope`].
    pub fn rope_in_part(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        neighbours: bool,
        cos: &[f32],
        sin: &[f32],
    ) -> Result<(), Error> {
        let row = product("a row of heads", &[heads, head_dim])?;
        let n = check_rows("the heads to rotate", x.len(), row)?;
        check_len("the sines", sin.len(), cos.len())?;
        if n == 0 {
            return check_len("the cosines", cos.len(), 0);
        }
        let half = cos.len() / n;
        check_len("the cosines", cos.len(), n * half)?;
        if half == 0 || 2 * half > head_dim {
            return Err(Error::Beyond { what: "the elements to rotate", end: 2 * half, limit: head_dim });
        }
        self.rotate(x, row, Turn { head_dim, half, neighbours }, cos, sin);
        Ok(())
    }

    /// Turns heads, `[n, row]`, by angles of `[n, half]`: lengths that were checked.
    fn rotate(&self, x: &mut [f32], row: usize, turn: Turn, cos: &[f32], sin: &[f32]) {
        self.for_rows(x, row, 2, |first, x| {
            let angles = first * turn.half..(first + x.len() / row) * turn.half;
            self.run(Rope { x, row, turn, cos: &cos[angles.clone()], sin: &sin[angles] });
        });
    }

    /// `x = (x - mean) / sqrt(variance + eps) * weight + bias` for each piece of `piece` elements, in place: `LayerNorm` of
    /// torch in float32 (Ba et al. 2016, arXiv:1607.06450). Weights and biases are of one piece, or of several that follow
    /// each other, in turn.
    ///
    /// # Errors
    /// [`Error::Ragged`] or [`Error::Length`] where lengths do not match, [`Error::Zero`] where there is no element.
    pub fn layer_norm_in_place(
        &self,
        x: &mut [f32],
        piece: usize,
        weight: &[f32],
        bias: Option<&[f32]>,
        eps: f32,
    ) -> Result<(), Error> {
        check_rows("the weights of a norm", weight.len(), piece)?;
        check_rows("the input of a norm", x.len(), weight.len())?;
        check_len("the bias of a norm", bias.map_or(weight.len(), <[f32]>::len), weight.len())?;
        self.for_rows(x, weight.len(), 4, |_, x| self.run(LayerNorm { x, piece, weight, bias, eps }));
        Ok(())
    }

    /// [`Cpu::rms_norm_in_place`] of pieces of `piece` elements that have weights of their own, in turn.
    ///
    /// # Errors
    /// As [`Cpu::layer_norm_in_place`].
    pub fn rms_norm_pieces(
        &self,
        x: &mut [f32],
        piece: usize,
        weight: &[f32],
        eps: f32,
    ) -> Result<(), Error> {
        check_rows("the weights of a norm", weight.len(), piece)?;
        check_rows("the input of a norm", x.len(), weight.len())?;
        self.for_rows(x, weight.len(), 2, |_, x| {
            for row in x.chunks_exact_mut(weight.len()) {
                for (x, weight) in row.chunks_exact_mut(piece).zip(weight.chunks_exact(piece)) {
                    self.run(RmsNorm { x, weight, eps });
                }
            }
        });
        Ok(())
    }

    /// The index of the greatest element: the first of equal ones, and the first NaN where there is one, as
    /// `torch.argmax`.
    pub fn argmax(&self, row: &[f32]) -> Result<usize, Error> {
        let mut best = *row.first().ok_or(Error::Zero { what: "the length of a row to search" })?;
        let mut index = 0;
        for (i, &value) in row.iter().enumerate() {
            if value.is_nan() {
                return Ok(i);
            }
            if value > best {
                (best, index) = (value, i);
            }
        }
        Ok(index)
    }
}

fn encode_each<const SIZE: usize>(values: &[f32], out: &mut [u8], encode: impl Fn(f32) -> [u8; SIZE]) {
    for (out, &value) in out.as_chunks_mut::<SIZE>().0.iter_mut().zip(values) {
        *out = encode(value);
    }
}

struct Decode<'a> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl EncodedKernel for Decode<'_> {
    #[inline(always)]
    fn run<S: Simd, E: Stored>(self, simd: S) {
        decode::<S, E>(simd, self.bytes, 0, self.out);
    }
}

/// One row of [`Cpu::dequantise`].
struct Dequantise<'a> {
    bytes: &'a [u8],
    cols: usize,
    encoding: Encoding,
    out: &'a mut [u8],
}

impl EncodedKernel for Dequantise<'_> {
    #[inline(always)]
    fn run<S: Simd, E: Stored>(self, simd: S) {
        // Decoded to the nearest cache first: whole spans of any encoding.
        const PIECE: usize = 1024;
        let (mut floats, mut halves) = ([0.0_f32; PIECE], [f16::ZERO; PIECE]);
        let mut out = self.out;
        for from in (0..self.cols).step_by(PIECE) {
            let floats = &mut floats[..PIECE.min(self.cols - from)];
            let halves = &mut halves[..floats.len()];
            decode::<S, E>(simd, self.bytes, from, floats);
            let bytes = match self.encoding {
                Encoding::F16 => {
                    halves.convert_from_f32_slice(floats);
                    bytemuck::cast_slice(halves)
                }
                Encoding::Bf16 => {
                    for (half, float) in halves.iter_mut().zip(&*floats) {
                        *half = f16::from_bits(bf16_bits(*float));
                    }
                    bytemuck::cast_slice(halves)
                }
                _ => bytemuck::cast_slice(floats),
            };
            let (piece, rest) = out.split_at_mut(bytes.len());
            piece.copy_from_slice(bytes);
            out = rest;
        }
    }
}

/// The bits of a bfloat16, rounded to nearest even, in steps that a compiler makes vectors of.
#[inline(always)]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN must not be rounded to infinity; this one is quiet and keeps its sign.
    let nan = bits >> 16 | 0x40;
    (if value.is_nan() { nan } else { rounded }) as u16
}

struct RmsNorm<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Kernel for RmsNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for row in self.x.chunks_exact_mut(self.weight.len()) {
            let factor = 1.0 / (sum_of_squares(simd, row) / row.len() as f32 + self.eps).sqrt();
            for (x, weight) in row.iter_mut().zip(self.weight) {
                *x = *x * factor * weight;
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, row: &[f32]) -> f32 {
    sum_by_lanes(simd, row, |x, sum| simd.mul_add(x, x, sum))
}

/// Lane `l` of four vectors in turn takes its columns into a sum, so that four additions are under way at a time.
#[inline(always)]
fn sum_by_lanes<S: Simd>(simd: S, row: &[f32], take: impl Fn(S::V, S::V) -> S::V) -> f32 {
    let mut sums = [simd.splat(0.0); 4];
    let mut col = 0;
    while col < row.len() {
        for sum in &mut sums {
            let count = S::LANES.min(row.len() - col);
            let x = load_up_to::<S, F32>(simd, bytemuck::cast_slice(row), col, count);
            *sum = take(x, *sum);
            col += count;
        }
    }
    let [a, b, c, d] = simd.sums(sums);
    (a + b) + (c + d)
}

struct Add<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for Add<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y += x;
        }
    }
}

/// What of a head turns.
#[derive(Clone, Copy)]
struct Turn {
    head_dim: usize,
    /// Half of the elements that turn.
    half: usize,
    /// Neighbours turn together, and not halves.
    neighbours: bool,
}

struct Rope<'a> {
    x: &'a mut [f32],
    row: usize,
    turn: Turn,
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Kernel for Rope<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Turn { head_dim, half, neighbours } = self.turn;
        let angles = self.cos.chunks_exact(half).zip(self.sin.chunks_exact(half));
        for (row, (cos, sin)) in self.x.chunks_exact_mut(self.row).zip(angles) {
            for head in row.chunks_exact_mut(head_dim) {
                let turned = &mut head[..2 * half];
                if neighbours {
                    for ((pair, cos), sin) in turned.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                        let [x1, x2] = *pair;
                        *pair = [x1 * cos - x2 * sin, x2 * cos + x1 * sin];
                    }
                    continue;
                }
                let (first, second) = turned.split_at_mut(half);
                for (((x1, x2), cos), sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
                    (*x1, *x2) = (*x1 * cos - *x2 * sin, *x2 * cos + *x1 * sin);
                }
            }
        }
    }
}

struct LayerNorm<'a> {
    x: &'a mut [f32],
    piece: usize,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
}

impl Kernel for LayerNorm<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let pieces = self.weight.len() / self.piece;
        for (index, x) in self.x.chunks_exact_mut(self.piece).enumerate() {
            let at = index % pieces * self.piece..(index % pieces + 1) * self.piece;
            let one = simd.splat(1.0);
            let mean = sum_by_lanes(simd, x, |x, sum| simd.mul_add(x, one, sum)) / x.len() as f32;
            x.iter_mut().for_each(|x| *x -= mean);
            let factor = 1.0 / (sum_of_squares(simd, x) / x.len() as f32 + self.eps).sqrt();
            for (x, weight) in x.iter_mut().zip(&self.weight[at.clone()]) {
                *x = *x * factor * weight;
            }
            for (x, bias) in x.iter_mut().zip(self.bias.map_or(&[][..], |bias| &bias[at])) {
                *x += bias;
            }
        }
    }
}
