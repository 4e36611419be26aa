use std::ops::Range;

use narrows_shard::Encoding;
use narrows_staging::device::{DeviceSlice, Stream};

use crate::error::{Error, Result, check_len, check_nonzero, check_rows, narrow, product};
use crate::image::{self, Kernel, Loader, Params, PerEncoding};
use crate::{Kernels, KvLayout, KvRow, elements};

/// Rows of a step that belong to one sequence and follow each other in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// How many.
    pub rows: usize,
    /// The position of the first in its sequence; each further row's is one more.
    pub position: usize,
}

/// What an attention has besides its operands.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// Query heads, a multiple of the key-value heads. Head `h` uses the key-value head
    /// `h / (heads / kv_heads)`.
    pub heads: usize,
    /// What scores are multiplied with, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// `cap * tanh(score / cap)`, behind the factor.
    pub softcap: Option<f32>,
    /// f32 `[heads]`: what a score loses for each position between query and key, behind the cap (ALiBi, Press et al.
    /// 2022, arXiv:2108.12409).
    pub slopes: Option<&'a DeviceSlice>,
    /// How many positions a row sees, itself included; all up to its own where there is no window.
    pub window: Option<usize>,
    /// The rows of the step, all of them in order.
    pub segments: &'a [Segment],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionDecodeParams {
    q: u64,
    rows: u64,
    sums: u64,
    softmax: u64,
    kv_heads: u32,
    group: u32,
    head_dim: u32,
    layer: u32,
    window: u32,
    splits: u32,
    scale: f32,
    cap: f32,
    slopes: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in attention_decode.cuh.
unsafe impl Params for AttentionDecodeParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionCombineParams {
    sums: u64,
    softmax: u64,
    rows: u64,
    out: u64,
    head_dim: u32,
    window: u32,
    splits: u32,
    reserved: u32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in attention_decode.cu.
unsafe impl Params for AttentionCombineParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionPrefillParams {
    q: u64,
    rows: u64,
    out: u64,
    count: u32,
    kv_heads: u32,
    group: u32,
    head_dim: u32,
    layer: u32,
    window: u32,
    out_encoding: u32,
    scale: f32,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in attention_prefill.cu.
unsafe impl Params for AttentionPrefillParams {}

#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionPlainParams {
    q: u64,
    rows: u64,
    out: u64,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    layer: u32,
    window: u32,
    out_encoding: u32,
    scale: f32,
    cap: f32,
    slopes: u64,
}
// SAFETY: `repr(C)` without padding, the twin of the struct in attention_plain.cu.
unsafe impl Params for AttentionPlainParams {}

/// Positions of a split of the cache; its twin is in attention_decode.cuh.
const SPLIT: usize = 256;
const DECODE_THREADS: u32 = 256;
/// Threads and heads of a block in attention_units.cu.
const UNITS_THREADS: u32 = 128;
const UNITS_HEADS: usize = 8;
const COMBINE_THREADS: u32 = 256;
/// Rows from which a segment goes through the matrix units: fewer make too few blocks for a long cache.
const PREFILL_ROWS: usize = 16;
/// Queries of a block; its twin is in attention_prefill.cu.
const PREFILL_QUERIES: usize = 64;
const PREFILL_THREADS: u32 = 128;
const MAX_HEAD_DIM: usize = 256;
/// Heads of multiples of so many elements lie in the cache in words of 16 bytes, in every encoding.
const HEAD_UNIT: usize = 8;
/// Heads of a block of the plain kernel; its twin is in attention_plain.cu.
const PLAIN_WARPS: usize = 4;
/// CUDA's limit for all but the first dimension of a grid.
const MAX_GRID: usize = 65_535;
/// What [`Kernels::attention_scratch_bytes`] asks for if one row needs no more: with it, launches of several
/// rows fill any device.
const SCRATCH: usize = 16 << 20;

/// The kernels of the tensor cores for heads up to `dim`.
struct Prefill {
    dim: usize,
    shared: u32,
    f16: Kernel<AttentionPrefillParams>,
    bf16: Kernel<AttentionPrefillParams>,
}

impl Prefill {
    /// The shared memory of queries, keys and values.
    fn new(
        module: &image::Module,
        dim: usize,
        keys: usize,
        f16: &'static str,
        bf16: &'static str,
    ) -> Result<Self> {
        let shared = narrow("shared memory", (PREFILL_QUERIES + 2 * keys) * dim * 2)?;
        let kernel = |name| -> Result<_> {
            let kernel: Kernel<AttentionPrefillParams> = module.kernel(name)?;
            kernel.allow_shared(shared)?;
            Ok(kernel)
        };
        Ok(Self { dim, shared, f16: kernel(f16)?, bf16: kernel(bf16)? })
    }
}

/// The kernels of single rows in the matrix units, for heads up to `dim`.
struct Units {
    dim: usize,
    f16: Kernel<AttentionDecodeParams>,
    bf16: Kernel<AttentionDecodeParams>,
}

pub(crate) struct Attention {
    units: [Units; 2],
    /// For 1, 4 and 8 query heads at a time.
    decode: [(usize, PerEncoding<Kernel<AttentionDecodeParams>>); 3],
    combine: PerEncoding<Kernel<AttentionCombineParams>>,
    prefill: [Prefill; 3],
    plain: PerEncoding<Kernel<AttentionPlainParams>>,
    architecture: u32,
}

impl Attention {
    pub(crate) fn load(loader: &Loader<'_>) -> Result<Self> {
        let decode = loader.module("attention_decode", image::ATTENTION_DECODE)?;
        let prefill = loader.module("attention_prefill", image::ATTENTION_PREFILL)?;
        let units = loader.module("attention_units", image::ATTENTION_UNITS)?;
        let of_units = |dim, prefix| -> Result<_> {
            Ok(Units { dim, f16: units.of(prefix, Encoding::F16)?, bf16: units.of(prefix, Encoding::Bf16)? })
        };
        Ok(Self {
            units: [of_units(64, "attention_units_64")?, of_units(128, "attention_units_128")?],
            decode: [
                (1, decode.per_encoding("attention_decode_1")?),
                (4, decode.per_encoding("attention_decode_4")?),
                (8, decode.per_encoding("attention_decode_8")?),
            ],
            combine: decode.per_encoding("attention_combine")?,
            prefill: [
                Prefill::new(&prefill, 64, 64, "attention_prefill_64_f16", "attention_prefill_64_bf16")?,
                Prefill::new(&prefill, 128, 64, "attention_prefill_128_f16", "attention_prefill_128_bf16")?,
                Prefill::new(&prefill, 256, 32, "attention_prefill_256_f16", "attention_prefill_256_bf16")?,
            ],
            plain: loader
                .module("attention_plain", image::ATTENTION_PLAIN)?
                .per_encoding("attention_plain")?,
            architecture: loader.architecture(),
        })
    }

    /// The kernel of single rows, its threads, and how many of `group` heads a block of it takes: in the matrix units
    /// where there are such for the encoding, heads are short enough for registers, and scores are only multiplied.
    fn decode(
        &self,
        encoding: Encoding,
        head_dim: usize,
        group: usize,
        bent: bool,
    ) -> Result<(&Kernel<AttentionDecodeParams>, u32, usize)> {
        let units = self.units.iter().find(|units| head_dim <= units.dim && !bent);
        match (units, encoding) {
            (Some(units), Encoding::F16) if self.architecture >= 75 => {
                Ok((&units.f16, UNITS_THREADS, UNITS_HEADS))
            }
            (Some(units), Encoding::Bf16) if self.architecture >= 80 => {
                Ok((&units.bf16, UNITS_THREADS, UNITS_HEADS))
            }
            _ => {
                let last = &self.decode[2];
                let (heads, kernel) = self.decode.iter().find(|(heads, _)| group <= *heads).unwrap_or(last);
                Ok((kernel.get(encoding)?, DECODE_THREADS, *heads))
            }
        }
    }

    /// The kernel that takes many rows at once, where there are matrix units for the encoding.
    fn prefill(&self, encoding: Encoding, head_dim: usize) -> Option<(&Kernel<AttentionPrefillParams>, u32)> {
        let prefill = self.prefill.iter().find(|prefill| head_dim <= prefill.dim)?;
        let kernel = match encoding {
            Encoding::F16 if self.architecture >= 75 => &prefill.f16,
            Encoding::Bf16 if self.architecture >= 80 => &prefill.bf16,
            _ => return None,
        };
        Some((kernel, prefill.shared))
    }
}

/// The operands of one attention, checked.
struct Operands<'a> {
    q: u64,
    rows: u64,
    out: u64,
    out_encoding: Encoding,
    layout: &'a KvLayout,
    layer: u32,
    heads: usize,
    window: u32,
    /// Times log2(e), since kernels compute powers of two.
    scale: f32,
    /// The same of the cap of scores; 0 where there is none.
    cap: f32,
    /// The slopes of all heads, or null.
    slopes: u64,
}

impl Operands<'_> {
    /// Whether more becomes of scores than a factor makes of them.
    const fn bent(&self) -> bool {
        self.cap > 0.0 || self.slopes != 0
    }

    /// Queries, rows and results from `row` on.
    fn from(&self, row: usize) -> (u64, u64, u64) {
        let elements = (row * self.heads * self.layout.head_dim) as u64;
        let out = self.out_encoding.row_bytes(1).unwrap_or(1) as u64;
        (
            self.q + elements * size_of::<f32>() as u64,
            self.rows + (row * size_of::<KvRow>()) as u64,
            self.out + elements * out,
        )
    }
}

/// Splits that a row touches at most if its position is below `longest`.
fn splits(longest: usize, window: u32) -> usize {
    // A window may start and end within a split.
    longest.div_ceil(SPLIT).min((window as usize).div_ceil(SPLIT) + 1).max(1)
}

/// Bytes of scratch for one row; `None` on overflow.
fn scratch_of_row(heads: usize, head_dim: usize, splits: usize) -> Option<usize> {
    heads.checked_mul(splits)?.checked_mul(head_dim.checked_add(2)?)?.checked_mul(size_of::<f32>())
}

impl Kernels {
    /// How much scratch [`Kernels::attention`] wants for `n` rows at positions below `longest`. With more, more
    /// rows are computed at once; any that is enough for one row will do, and results do not depend on it.
    #[must_use]
    pub fn attention_scratch_bytes(n: usize, heads: usize, head_dim: usize, longest: usize) -> usize {
        let row = scratch_of_row(heads, head_dim, splits(longest, u32::MAX)).unwrap_or(usize::MAX);
        row.saturating_mul(n.min((SCRATCH / row.max(1)).max(1)))
    }

    /// `out = softmax(scale * q keys^T) values` for each row and head, over the positions of the row's sequence
    /// up to its own: `q` is f32 `[n, heads * head_dim]`, `rows` is `[KvRow; n]`, `out` is
    /// `[n, heads * head_dim]` in `encoding`.
    ///
    /// Segments of 16 rows and more go through the matrix units where the device has them for the cache's
    /// encoding (f16 from compute capability 7.5, bf16 from 8.0): FlashAttention-2 (Dao 2023, arXiv:2307.08691),
    /// with queries and exponentials rounded to the cache's encoding and all sums in f32. All others are computed
    /// to the precision of f32, with the cache in splits of 256 positions (Flash-Decoding, Dao et al. 2023): in f32,
    /// or, for heads of up to 128 elements, in the matrix units with queries and exponentials as sums of three
    /// numbers of the cache's encoding, which is exact. Both read
    /// what is cached once for up to 8 query heads that share it (Ainslie et al. 2023, arXiv:2305.13245), and in
    /// both the result for a row depends on its position and window alone: not on what else is in the batch,
    /// not on where the segment starts, not on the size of `scratch`. Between the two a row's result differs by
    /// the rounding of queries and exponentials: about 2^-8 of the greatest value for bf16, 2^-11 for f16.
    ///
    /// Where scores are capped or sink with the distance, all rows are computed one by one in f32.
    ///
    /// What `rows` holds is on the device, where the host cannot check it: bases as for
    /// [`Kernels::kv_write`], positions as `shape.segments` says, below the capacities, and all positions up to
    /// them written.
    ///
    /// # Errors
    /// [`Error::Shape`] for a head dimension above 256, heads that are no multiple
    /// of `kv_heads`, a window of no positions; [`Error::Scale`]; [`Error::Softcap`]; [`Error::Length`] or [`Error::Ragged`] where
    /// lengths or addresses do not fit; [`Error::Overflow`]; or what the driver says.
    #[expect(clippy::too_many_arguments, reason = "the operands of an attention")]
    pub fn attention(
        &self,
        stream: &Stream,
        q: &DeviceSlice,
        rows: &DeviceSlice,
        layout: &KvLayout,
        layer: usize,
        shape: &AttentionShape<'_>,
        scratch: &DeviceSlice,
        encoding: Encoding,
        out: &DeviceSlice,
    ) -> Result<()> {
        let KvLayout { kv_heads, head_dim, .. } = *layout;
        check_nonzero("the number of key-value heads", kv_heads)?;
        check_nonzero("the head dimension", head_dim)?;
        if head_dim > MAX_HEAD_DIM {
            let takes = "at most 256";
            return Err(Error::Shape { what: "the head dimension", found: head_dim, takes });
        }
        if shape.heads == 0 || !shape.heads.is_multiple_of(kv_heads) || shape.heads > MAX_GRID {
            let takes = "multiples of the number of key-value heads up to 65535";
            return Err(Error::Shape { what: "the number of query heads", found: shape.heads, takes });
        }
        if shape.window == Some(0) {
            return Err(Error::Shape { what: "an attention window", found: 0, takes: "at least 1" });
        }
        if !(shape.scale.is_finite() && shape.scale > 0.0) {
            return Err(Error::Scale { found: shape.scale });
        }
        let n = check_rows("rows", rows.len(), size_of::<KvRow>())?;
        let len = product("the queries", &[n, shape.heads, head_dim])?;
        check_len("q", elements("q", q, Encoding::F32)?, len)?;
        check_len("out", elements("out", out, encoding)?, len)?;
        check_start("q", q, size_of::<f32>())?;
        check_start("rows", rows, align_of::<KvRow>())?;
        check_start("out", out, 4 * encoding.row_bytes(1).unwrap_or(1))?;
        check_start("the scratch of an attention", scratch, 16)?;
        let cap = shape.softcap.map_or(0.0, |cap| cap * std::f32::consts::LOG2_E);
        if let Some(found) = shape.softcap.filter(|_| !(cap.is_finite() && cap > 0.0)) {
            return Err(Error::Softcap { found });
        }
        if let Some(slopes) = shape.slopes {
            const WHAT: &str = "the slopes of scores";
            check_len(WHAT, elements(WHAT, slopes, Encoding::F32)?, shape.heads)?;
            check_start(WHAT, slopes, size_of::<f32>())?;
        }
        let plain = !head_dim.is_multiple_of(HEAD_UNIT);
        let straight = shape.softcap.is_none() && shape.slopes.is_none();
        let prefill = self.attention.prefill(layout.encoding, head_dim).filter(|_| straight);
        let is_prefill = |segment: &Segment| prefill.is_some() && segment.rows >= PREFILL_ROWS;
        let window = shape.window.map_or(u32::MAX, |window| u32::try_from(window).unwrap_or(u32::MAX));
        let mut total = 0_usize;
        for segment in shape.segments {
            const WHAT: &str = "the rows of all segments";
            total = total.checked_add(segment.rows).ok_or(Error::Overflow { what: WHAT })?;
            let end = segment.position.checked_add(segment.rows).ok_or(Error::Overflow { what: WHAT })?;
            narrow("a position", end)?;
            let splits = splits(end, window);
            let row = scratch_of_row(shape.heads, head_dim, splits).ok_or(Error::Overflow { what: WHAT })?;
            if !plain
                && !is_prefill(segment)
                && segment.rows > 0
                && (scratch.len() < row || splits > i32::MAX as usize)
            {
                let what = "the scratch of an attention";
                return Err(Error::Length { what, expected: row, found: scratch.len() });
            }
        }
        check_len("the segments of an attention, in rows,", total, n)?;

        let operands = Operands {
            q: q.address(),
            rows: rows.address(),
            out: out.address(),
            out_encoding: encoding,
            layout,
            layer: narrow("the layer", layer)?,
            heads: shape.heads,
            window,
            scale: shape.scale * std::f32::consts::LOG2_E,
            cap,
            slopes: shape.slopes.map_or(0, DeviceSlice::address),
        };
        if plain {
            return self.attention_plain(stream, &operands, n);
        }
        // Segments that follow each other and are not for the matrix units are launched together.
        let (mut first, mut together, mut longest) = (0, 0..0, 0);
        for segment in shape.segments {
            let rows = first..first + segment.rows;
            first = rows.end;
            match prefill {
                Some(prefill) if is_prefill(segment) => {
                    self.attention_decode(stream, &operands, together, longest, scratch)?;
                    (together, longest) = (rows.end..rows.end, 0);
                    attention_prefill(stream, prefill, &operands, rows)?;
                }
                _ => {
                    together.end = rows.end;
                    longest = longest.max(segment.position + segment.rows);
                }
            }
        }
        self.attention_decode(stream, &operands, together, longest, scratch)
    }

    /// Heads of any length, each by itself.
    fn attention_plain(&self, stream: &Stream, operands: &Operands<'_>, n: usize) -> Result<()> {
        let Operands { layout: KvLayout { encoding, kv_heads, head_dim }, heads, .. } = *operands;
        for first in (0..n).step_by(MAX_GRID) {
            let count = MAX_GRID.min(n - first);
            let (q, rows, out) = operands.from(first);
            let params = AttentionPlainParams {
                q,
                rows,
                out,
                heads: heads as u32,
                kv_heads: *kv_heads as u32,
                head_dim: *head_dim as u32,
                layer: operands.layer,
                window: operands.window,
                out_encoding: number(operands.out_encoding)?,
                scale: operands.scale,
                cap: operands.cap,
                slopes: operands.slopes,
            };
            let grid = (heads.div_ceil(PLAIN_WARPS) as u32, count as u32, 1);
            let threads = (PLAIN_WARPS * 32) as u32;
            // SAFETY: The kernel reads `count` rows of `q` and `rows`, which have so many, and the caches that the
            // rows name, for which the caller vouches, and writes `count` rows of `out`.
            unsafe { self.attention.plain.get(*encoding)?.launch(stream, grid, threads, 0, &params)? };
        }
        Ok(())
    }

    /// The rows one by one, split over the cache, as many at a time as there is scratch for.
    fn attention_decode(
        &self,
        stream: &Stream,
        operands: &Operands<'_>,
        rows: Range<usize>,
        longest: usize,
        scratch: &DeviceSlice,
    ) -> Result<()> {
        let Operands { layout: KvLayout { encoding, kv_heads, head_dim }, heads, window, .. } = *operands;
        let splits = splits(longest, window);
        let row = scratch_of_row(heads, *head_dim, splits).unwrap_or(usize::MAX);
        let at_once = (scratch.len() / row).clamp(1, MAX_GRID);
        let group = heads / kv_heads;
        let (kernel, threads, heads_of_block) =
            self.attention.decode(*encoding, *head_dim, group, operands.bent())?;
        let parts = group.div_ceil(heads_of_block);
        for first in rows.clone().step_by(at_once) {
            let count = at_once.min(rows.end - first);
            let (q, rows, out) = operands.from(first);
            // Sums first: they are read in words of 16 bytes.
            let sums = scratch.address();
            let softmax = sums + (count * heads * splits * head_dim * size_of::<f32>()) as u64;
            let params = AttentionDecodeParams {
                q,
                rows,
                sums,
                softmax,
                kv_heads: *kv_heads as u32,
                group: group as u32,
                head_dim: *head_dim as u32,
                layer: operands.layer,
                window,
                splits: splits as u32,
                scale: operands.scale,
                cap: operands.cap,
                slopes: operands.slopes,
            };
            let grid = (splits as u32, (kv_heads * parts) as u32, count as u32);
            let combine = AttentionCombineParams {
                sums,
                softmax,
                rows,
                out,
                head_dim: *head_dim as u32,
                window,
                splits: splits as u32,
                reserved: 0,
            };
            // SAFETY: The kernel reads `count` rows of `q` and `rows`, which have so many, and the caches that the
            // rows name, for which the caller vouches; it writes `count * heads * splits` results to the
            // scratch, which was found to have room for at least one row and is used for as many as it holds.
            unsafe { kernel.launch(stream, grid, threads, 0, &params)? };
            // SAFETY: The kernel reads what the one before has written, and writes `count` rows of `out`.
            unsafe {
                self.attention.combine.get(operands.out_encoding)?.launch(
                    stream,
                    (heads as u32, count as u32, 1),
                    COMBINE_THREADS,
                    0,
                    &combine,
                )?;
            };
        }
        Ok(())
    }
}

/// The number by which kernels know the encoding of a result.
fn number(encoding: Encoding) -> Result<u32> {
    match encoding {
        Encoding::F32 => Ok(0),
        Encoding::F16 => Ok(1),
        Encoding::Bf16 => Ok(2),
        Encoding::Q8 | Encoding::Nf4 => {
            Err(Error::Quantised { what: "the result of an attention", encoding })
        }
    }
}

/// The rows of one segment, in the matrix units.
fn attention_prefill(
    stream: &Stream,
    (kernel, shared): (&Kernel<AttentionPrefillParams>, u32),
    operands: &Operands<'_>,
    rows: Range<usize>,
) -> Result<()> {
    let KvLayout { kv_heads, head_dim, .. } = *operands.layout;
    let count = rows.len();
    let group = operands.heads / kv_heads;
    let queries = narrow("the queries of a segment", product("the queries of a segment", &[count, group])?)?;
    let (q, rows, out) = operands.from(rows.start);
    let params = AttentionPrefillParams {
        q,
        rows,
        out,
        count: count as u32,
        kv_heads: kv_heads as u32,
        group: group as u32,
        head_dim: head_dim as u32,
        layer: operands.layer,
        window: operands.window,
        out_encoding: number(operands.out_encoding)?,
        scale: operands.scale,
    };
    let grid = (queries.div_ceil(PREFILL_QUERIES as u32), kv_heads as u32, 1);
    // SAFETY: The kernel reads `count` rows of `q`, the first of `rows` and the cache that it names, for which
    // the caller vouches, and writes `count` rows of `out`.
    unsafe { kernel.launch(stream, grid, PREFILL_THREADS, shared, &params) }
}

fn check_start(what: &'static str, range: &DeviceSlice, unit: usize) -> Result<()> {
    if range.address().is_multiple_of(unit as u64) {
        Ok(())
    } else {
        Err(Error::Ragged { what, unit, found: range.address() as usize })
    }
}
