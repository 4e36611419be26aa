use narrows_kernels::{AttentionShape, Error, Kernels, KvLayout, KvRow, Segment, reference};
use narrows_shard::Encoding;
use narrows_staging::device::DeviceSlice;

use crate::{Gpu, assert_close, assert_same, encode, noise, on_every_device, property, rounded, rounding};

/// Rows from which a segment goes through the matrix units.
const MANY: usize = 16;

/// Neither a window nor anything but a factor for scores.
fn shape_of(heads: usize, scale: f32, segments: &[Segment]) -> AttentionShape<'_> {
    AttentionShape { heads, scale, softcap: None, slopes: None, window: None, segments }
}

/// A case: heads, caches and the sequences of a step.
#[derive(Clone, Debug)]
struct Case {
    encoding: Encoding,
    out: Encoding,
    kv_heads: usize,
    group: usize,
    head_dim: usize,
    window: Option<usize>,
    softcap: Option<f32>,
    /// Whether heads have slopes.
    slopes: bool,
    segments: Vec<Segment>,
    /// Positions in a cache beyond the last that a row sees, which nobody has written.
    spare: usize,
    layer: usize,
    seed: u64,
}

impl Case {
    fn new(encoding: Encoding, heads: (usize, usize), head_dim: usize, segments: &[(usize, usize)]) -> Self {
        Self {
            encoding,
            out: Encoding::F32,
            kv_heads: heads.0,
            group: heads.1,
            head_dim,
            window: None,
            softcap: None,
            slopes: false,
            segments: segments.iter().map(|&(rows, position)| Segment { rows, position }).collect(),
            spare: 3,
            layer: 0,
            seed: 1,
        }
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn width(&self) -> usize {
        self.heads() * self.head_dim
    }

    fn layout(&self) -> KvLayout {
        KvLayout { encoding: self.encoding, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// Scores that spread, as those of a model do: with `noise` alone all weights would be about the same.
    fn scale(&self) -> f32 {
        8.0 / (self.head_dim as f32).sqrt()
    }

    /// Down to where the exponential of a few hundred positions is nothing.
    fn head_slopes(&self) -> Option<Vec<f32>> {
        self.slopes.then(|| (0..self.heads()).map(|head| 0.5_f32.powi(head as i32 % 9)).collect())
    }

    fn bent(&self) -> bool {
        self.softcap.is_some() || self.slopes
    }

    fn rows(&self) -> usize {
        self.segments.iter().map(|s| s.rows).sum()
    }

    fn queries(&self) -> Vec<f32> {
        noise(self.seed, self.rows() * self.width())
    }

    /// Keys and values `[2, kv_heads, end, head_dim]` of a sequence.
    fn cached(&self, sequence: usize, end: usize) -> Vec<f32> {
        let len = 2 * self.kv_heads * end * self.head_dim;
        rounded(self.encoding, &noise(self.seed * 1000 + 7 + sequence as u64, len))
    }

    fn want(&self) -> Vec<f32> {
        let mut queries = &self.queries()[..];
        let mut want = Vec::new();
        let slopes = self.head_slopes();
        let scores =
            reference::Scores { scale: self.scale(), softcap: self.softcap, slopes: slopes.as_deref() };
        for (sequence, segment) in self.segments.iter().enumerate() {
            let end = segment.position + segment.rows;
            let cached = self.cached(sequence, end);
            let (keys, values) = cached.split_at(cached.len() / 2);
            let row = |position| reference::AttentionRow {
                keys,
                values,
                capacity: end,
                position,
                window: self.window,
            };
            let rows: Vec<_> = (segment.position..end).map(row).collect();
            let (q, rest) = queries.split_at(segment.rows * self.width());
            queries = rest;
            want.extend(reference::attention(q, &rows, self.heads(), self.kv_heads, self.head_dim, scores));
        }
        want
    }

    /// What the device computes, with as much scratch as it wants.
    fn got(&self, gpu: &Gpu) -> Vec<f32> {
        let longest = self.segments.iter().map(|s| s.position + s.rows).max().unwrap_or(0);
        self.got_with(
            gpu,
            Kernels::attention_scratch_bytes(self.rows(), self.heads(), self.head_dim, longest),
        )
    }

    fn got_with(&self, gpu: &Gpu, scratch: usize) -> Vec<f32> {
        let mut rows = Vec::new();
        let mut caches = Vec::new();
        for (sequence, segment) in self.segments.iter().enumerate() {
            let end = segment.position + segment.rows;
            let capacity = end + self.spare;
            let layout = self.layout();
            let layer = layout.layer_bytes(capacity).unwrap();
            let cache = gpu.range((self.layer + 1) * layer);
            let head = self.encoding.row_bytes(end * self.head_dim).unwrap();
            let of_capacity = self.encoding.row_bytes(capacity * self.head_dim).unwrap();
            let bytes = encode(self.encoding, &self.cached(sequence, end));
            for (i, bytes) in bytes.chunks(head.max(1)).enumerate() {
                let at = self.layer * layer + i * of_capacity;
                gpu.stream.upload(bytes, &cache.slice(at..at + head).unwrap()).unwrap();
            }
            for position in segment.position..end {
                let (capacity, position) = (capacity as u32, position as u32);
                rows.push(KvRow { base: cache.address(), capacity, position });
            }
            caches.push(cache);
        }
        let out = gpu.range(self.out.row_bytes(self.rows() * self.width()).unwrap());
        let slopes = self.head_slopes().map(|slopes| gpu.f32s(&slopes));
        let shape = AttentionShape {
            heads: self.heads(),
            scale: self.scale(),
            softcap: self.softcap,
            slopes: slopes.as_ref(),
            window: self.window,
            segments: &self.segments,
        };
        gpu.kernels
            .attention(
                &gpu.stream,
                &gpu.f32s(&self.queries()),
                &gpu.bytes(bytemuck::cast_slice(&rows)),
                &self.layout(),
                self.layer,
                &shape,
                &gpu.range(scratch),
                self.out,
                &out,
            )
            .unwrap();
        let got = gpu.read_stored(self.out, &out);
        drop(caches);
        got
    }

    /// How far off a result may be. Values are below 1, so an error of a weight counts by itself.
    ///
    /// Scores are sums of `head_dim` products below 1; an error in a score is the same relative error of its
    /// weight, and the weights' errors count twice, above and below the line. Rounded to f32, a sum of k terms
    /// is off by k roundings of the sum of magnitudes at most; rounding queries to the cache's encoding moves
    /// each product by as much as it rounds; so does rounding weights to it.
    fn tolerance(&self) -> f64 {
        let scale = f64::from(self.scale());
        let longest = self.segments.iter().map(|s| s.position + s.rows).max().unwrap_or(0) as f64;
        let head_dim = self.head_dim as f64;
        let single = rounding(Encoding::F32).0;
        // Terms have random signs: sqrt(head_dim) of them, rather than all, come together. Six times that is out
        // of reach of any element here.
        let magnitude = 6.0 * head_dim.sqrt() / 3.0;
        let score = scale * (magnitude * head_dim * single + head_dim * single);
        let sums = longest * single + 16.0 * single;
        let (relative, absolute) = rounding(self.encoding);
        // Capping and sinking: a tangent of two roundings, whose own error is that of its argument at most, and a product
        // with the distance, of the greatest slope, which is 1.
        let bending = if self.bent() { single * (8.0 * scale * magnitude + 4.0 * longest) } else { 0.0 };
        let score = score + bending;
        let prompts = self.segments.iter().any(|s| s.rows >= MANY) && !self.bent();
        let units = if prompts && self.encoding != Encoding::F32 {
            scale * magnitude * relative + 2.0 * (relative + absolute * longest)
        } else {
            0.0
        };
        2.0 * (score + sums) + 2.0 * units + rounding(self.out).0 + rounding(self.out).1
    }

    fn check(&self, gpu: &Gpu) {
        let tolerance = self.tolerance();
        assert_close(&self.got(gpu), &self.want(), |_| tolerance, &format!("{self:?}"));
    }
}

/// Every head dimension of a family, and those that fill a lane, a slice, a tile, and the next one.
const HEAD_DIMS: [usize; 14] = [8, 16, 24, 32, 40, 64, 72, 80, 96, 112, 128, 136, 192, 256];

#[test]
fn head_dimensions_of_single_rows() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for head_dim in HEAD_DIMS {
                Case::new(encoding, (2, 2), head_dim, &[(1, 36), (2, 0)]).check(gpu);
            }
        }
    });
}

#[test]
fn head_dimensions_of_prompts() {
    on_every_device(|gpu| {
        for encoding in [Encoding::F16, Encoding::Bf16] {
            for head_dim in HEAD_DIMS {
                Case::new(encoding, (1, 2), head_dim, &[(MANY + 19, 0)]).check(gpu);
            }
        }
        Case::new(Encoding::F32, (1, 2), 64, &[(MANY + 19, 0)]).check(gpu);
    });
}

/// Heads that no word of 16 bytes divides, of single rows and of prompts.
#[test]
fn head_dimensions_of_no_whole_words() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for head_dim in [1, 4, 12, 33, 100, 250] {
                let mut case = Case::new(encoding, (2, 3), head_dim, &[(1, 36), (MANY + 3, 4), (2, 0)]);
                case.check(gpu);
                (case.window, case.out, case.layer) = (Some(5), encoding, 1);
                case.check(gpu);
            }
        }
    });
}

/// None shared, as many as a kernel takes, more than one takes, and shares that are left over.
#[test]
fn heads_that_share() {
    on_every_device(|gpu| {
        for group in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17] {
            for encoding in [Encoding::Bf16, Encoding::F32] {
                Case::new(encoding, (2, group), 32, &[(1, 70), (3, 10)]).check(gpu);
            }
            Case::new(Encoding::F16, (2, group), 32, &[(MANY + 5, 9)]).check(gpu);
        }
        // As many lanes for a position as heads at a time, twice and four times as many.
        for head_dim in [64, 128, 256] {
            for group in [1, 4, 8] {
                Case::new(Encoding::Bf16, (1, group), head_dim, &[(2, 90)]).check(gpu);
            }
        }
    });
}

/// A split of the cache, one position less and one more.
#[test]
fn splits() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for position in [0, 1, 15, 16, 254, 255, 256, 257, 511, 512, 700] {
                Case::new(encoding, (1, 4), 64, &[(1, position)]).check(gpu);
            }
        }
        Case::new(Encoding::Bf16, (1, 1), 128, &[(1, 5000)]).check(gpu);
    });
}

/// Chunks that start anywhere, beside the tiles of positions and of queries.
#[test]
fn prompts_at_any_position() {
    on_every_device(|gpu| {
        for encoding in [Encoding::F16, Encoding::Bf16] {
            for position in [0, 1, 31, 63, 64, 65, 130] {
                for rows in [MANY, 17, 33, 65] {
                    Case::new(encoding, (1, 3), 64, &[(rows, position)]).check(gpu);
                }
            }
            Case::new(encoding, (1, 2), 256, &[(70, 45)]).check(gpu);
            Case::new(encoding, (2, 1), 128, &[(150, 0)]).check(gpu);
        }
    });
}

/// Windows of one position, of less and more than a tile or a split, and beyond all positions.
#[test]
fn windows() {
    on_every_device(|gpu| {
        for window in [1, 2, 31, 64, 65, 255, 256, 257, 300, 10_000] {
            for encoding in [Encoding::F16, Encoding::Bf16] {
                let mut case = Case::new(encoding, (1, 2), 32, &[(1, 600), (2, 255), (1, 0), (40, 300)]);
                case.window = Some(window);
                case.check(gpu);
            }
        }
    });
}

/// Several sequences with caches of their own, single rows and prompts in turn.
#[test]
fn ragged_batches() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            let segments =
                [(1, 300), (0, 5), (MANY, 7), (3, 0), (1, 12), (1, 512), (MANY + 4, 0), (20, 100), (2, 30)];
            let mut case = Case::new(encoding, (2, 4), 16, &segments);
            case.check(gpu);
            (case.out, case.spare, case.layer) = (encoding, 0, 2);
            case.check(gpu);
        }
    });
}

#[test]
fn results_in_every_encoding() {
    on_every_device(|gpu| {
        for encoding in Encoding::PLAIN {
            for out in Encoding::PLAIN {
                let mut case = Case::new(encoding, (2, 2), 24, &[(1, 40), (18, 3)]);
                case.out = out;
                case.check(gpu);
            }
        }
    });
}

#[test]
fn any_shape() {
    on_every_device(|gpu| {
        let heads = (1_usize..3, 1_usize..10, 1_usize..18);
        let segments = proptest::collection::vec((0_usize..24, 0_usize..300), 1..4);
        let rest = (0_usize..3, 0_usize..3, proptest::option::of(1_usize..500), 0_u64..1000);
        property(12, (heads, segments, rest), |((kv_heads, group, eighths), segments, rest)| {
            let (encoding, out, window, seed) = rest;
            let mut case = Case::new(Encoding::PLAIN[encoding], (kv_heads, group), eighths * 8, &segments);
            (case.out, case.window, case.seed) = (Encoding::PLAIN[out], window, seed);
            case.check(gpu);
        });
    });
}

/// A row alone, with others, and with the least scratch gets the same bits; so does a row of a prompt in any
/// chunk.
#[test]
fn same_bits_in_every_batch_and_chunk() {
    on_every_device(|gpu| {
        for (encoding, window) in
            [(Encoding::Bf16, None), (Encoding::F16, Some(270)), (Encoding::F32, Some(40))]
        {
            let mut case = Case::new(encoding, (2, 4), 40, &[(12, 520)]);
            case.window = window;
            let together = case.got(gpu);
            // Room for one row with three splits.
            let least = 8 * 3 * (40 + 2) * 4;
            assert_same(&case.got_with(gpu, least), &together, &format!("{encoding}, least scratch"));
            assert_same(&case.got_with(gpu, 5 * least), &together, &format!("{encoding}, some scratch"));

            let (layout, scratch) = (case.layout(), gpu.range(4 << 20));
            let (rows, width) = (100, case.width());
            let (cache, q) = (case.cached(0, rows), noise(9, rows * width));
            let cache = gpu.stored(encoding, &cache);
            let run = |from: usize, to: usize| -> Vec<f32> {
                let row = |position| KvRow { base: cache.address(), capacity: rows as u32, position };
                let places: Vec<_> = (from as u32..to as u32).map(row).collect();
                let segments = [Segment { rows: to - from, position: from }];
                let shape = AttentionShape { window, ..shape_of(8, 0.3, &segments) };
                let out = gpu.range((to - from) * width * 4);
                let q = gpu.f32s(&q[from * width..to * width]);
                let places = gpu.bytes(bytemuck::cast_slice(&places));
                gpu.kernels
                    .attention(&gpu.stream, &q, &places, &layout, 0, &shape, &scratch, Encoding::F32, &out)
                    .unwrap();
                gpu.read_f32s(&out)
            };
            let whole = run(0, rows);
            for chunk in [MANY, 33] {
                let starts = (0..rows - MANY).step_by(chunk);
                let ends = starts.clone().skip(1).chain([rows]);
                let chunked: Vec<_> = starts.zip(ends).flat_map(|(from, to)| run(from, to)).collect();
                assert_same(&chunked, &whole, &format!("{encoding}, chunks of {chunk}"));
            }
        }
    });
}

/// Scores of hundreds, of which the exponential by itself is infinite or nothing.
#[test]
fn great_scores() {
    on_every_device(|gpu| {
        for encoding in [Encoding::F16, Encoding::Bf16] {
            for segments in [&[(1_usize, 299_usize)][..], &[(20, 280)]] {
                let case = Case::new(encoding, (1, 1), 64, segments);
                let (n, end) = (case.rows(), 300);
                // The key of position p is p in its first element, the value is 1 where p is the row's own.
                let key = |p: usize| (0..64).map(move |d| if d == 0 { p as f32 } else { 0.0 });
                let keys: Vec<f32> = (0..end).flat_map(key).collect();
                let values = (0..end).flat_map(|p| [if p + 1 == end { 1.0 } else { 0.0 }; 64]);
                let cache: Vec<f32> = keys.into_iter().chain(values).collect();
                let cache = gpu.stored(encoding, &cache);
                let row = |position| KvRow { base: cache.address(), capacity: end as u32, position };
                let rows: Vec<_> = ((end - n) as u32..end as u32).map(row).collect();
                let segments = &case.segments;
                let shape = shape_of(1, 100.0, segments);
                let q: Vec<f32> =
                    (0..n).flat_map(|_| (0..64).map(|d| if d == 0 { 1.0 } else { 0.0 })).collect();
                let out = gpu.range(n * 64 * 4);
                let (q, rows) = (gpu.f32s(&q), gpu.bytes(bytemuck::cast_slice(&rows)));
                let scratch = gpu.range(Kernels::attention_scratch_bytes(n, 1, 64, end));
                let out_encoding = Encoding::F32;
                gpu.kernels
                    .attention(
                        &gpu.stream,
                        &q,
                        &rows,
                        &case.layout(),
                        0,
                        &shape,
                        &scratch,
                        out_encoding,
                        &out,
                    )
                    .unwrap();
                let got = gpu.read_f32s(&out);
                assert!(got[(n - 1) * 64..].iter().all(|x| (x - 1.0).abs() < 1e-2), "{got:?}");
                assert!(got[..(n - 1) * 64].iter().all(|&x| x == 0.0));
            }
        }
    });
}

/// Scores that are capped, sink with the distance, or both: for every kernel of single rows, in several splits, beside
/// windows, and where segments would otherwise go through the matrix units.
#[test]
fn bent_scores() {
    on_every_device(|gpu| {
        for (softcap, slopes) in [(Some(3.0), false), (None, true), (Some(0.5), true), (Some(1e4), false)] {
            for encoding in Encoding::PLAIN {
                for (group, head_dim) in [(1, 8), (3, 64), (8, 128), (9, 256), (2, 12), (5, 33)] {
                    let mut case =
                        Case::new(encoding, (2, group), head_dim, &[(1, 290), (3, 254), (MANY + 4, 0)]);
                    (case.softcap, case.slopes, case.out) = (softcap, slopes, encoding);
                    case.check(gpu);
                    case.window = Some(37);
                    case.check(gpu);
                }
            }
        }
    });
}

#[test]
fn bent_scores_whatever_the_scratch() {
    on_every_device(|gpu| {
        let mut case = Case::new(Encoding::Bf16, (2, 3), 64, &[(40, 0)]);
        let straight = case.got(gpu);
        (case.softcap, case.slopes) = (Some(2.0), true);
        let least = case.heads() * (64 + 2) * 4;
        let bent = case.got(gpu);
        assert_same(&case.got_with(gpu, least), &bent, "least scratch");
        let farthest = straight.iter().zip(&bent).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(farthest > 0.05, "a cap and slopes move results by {farthest}");
    });
}

#[test]
fn wrong_caps_and_slopes_are_errors() {
    on_every_device(|gpu| {
        let run = |softcap, slopes: Option<&DeviceSlice>| {
            let segments = [Segment { rows: 1, position: 7 }];
            let shape = AttentionShape { softcap, slopes, ..shape_of(2, 1.0, &segments) };
            let layout = KvLayout { encoding: Encoding::F32, kv_heads: 1, head_dim: 8 };
            let (q, rows, out) = (gpu.range(64), gpu.range(size_of::<KvRow>()), gpu.range(64));
            let (stream, scratch) = (&gpu.stream, gpu.range(1 << 10));
            gpu.kernels.attention(stream, &q, &rows, &layout, 0, &shape, &scratch, Encoding::F32, &out)
        };
        for cap in [0.0, -1.0, f32::NAN, f32::INFINITY, f32::MAX] {
            assert!(matches!(run(Some(cap), None), Err(Error::Softcap { .. })), "{cap}");
        }
        assert!(matches!(run(None, Some(&gpu.range(12))), Err(Error::Length { expected: 2, found: 3, .. })));
        assert!(matches!(run(None, Some(&gpu.range(7))), Err(Error::Ragged { .. })));
        let odd = gpu.range(10).slice(2..10).unwrap();
        assert!(matches!(run(None, Some(&odd)), Err(Error::Ragged { .. })));
    });
}

#[test]
fn wrong_shapes_are_errors() {
    on_every_device(|gpu| {
        let run = |heads: usize,
                   kv_heads,
                   head_dim,
                   scale,
                   window,
                   segments: &[Segment],
                   scratch: usize,
                   out: Option<&DeviceSlice>| {
            let n = 2;
            let layout = KvLayout { encoding: Encoding::Bf16, kv_heads, head_dim };
            let shape = AttentionShape { window, ..shape_of(heads, scale, segments) };
            let q = gpu.f32s(&vec![0.0; n * heads * head_dim]);
            let rows = gpu.range(n * size_of::<KvRow>());
            let own = gpu.range(n * heads * head_dim * 2);
            gpu.kernels.attention(
                &gpu.stream,
                &q,
                &rows,
                &layout,
                0,
                &shape,
                &gpu.range(scratch),
                Encoding::Bf16,
                out.unwrap_or(&own),
            )
        };
        let two = [Segment { rows: 2, position: 7 }];
        let shape = |heads, kv_heads, head_dim, scale, window| {
            run(heads, kv_heads, head_dim, scale, window, &two, 1 << 20, None)
        };
        for head_dim in [0, 264] {
            assert!(matches!(shape(2, 1, head_dim, 1.0, None), Err(Error::Shape { .. })), "{head_dim}");
        }
        assert!(matches!(shape(2, 0, 8, 1.0, None), Err(Error::Shape { .. })));
        assert!(matches!(shape(0, 1, 8, 1.0, None), Err(Error::Shape { .. })));
        assert!(matches!(shape(3, 2, 8, 1.0, None), Err(Error::Shape { .. })));
        assert!(matches!(shape(2, 1, 8, 1.0, Some(0)), Err(Error::Shape { .. })));
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert!(matches!(shape(2, 1, 8, scale, None), Err(Error::Scale { .. })));
        }
        let segments = |segments: &[Segment]| run(2, 1, 8, 1.0, None, segments, 1 << 20, None);
        assert!(matches!(segments(&[]), Err(Error::Length { .. })));
        assert!(matches!(segments(&[two[0], two[0]]), Err(Error::Length { .. })));
        let far = Segment { rows: 2, position: usize::MAX - 1 };
        assert!(matches!(segments(&[far]), Err(Error::Overflow { .. })));
        let beyond = Segment { rows: 2, position: 1 << 40 };
        assert!(matches!(segments(&[beyond]), Err(Error::Shape { .. })));
        let little = run(2, 1, 8, 1.0, None, &two, 2 * (8 + 2) * 4 - 1, None);
        assert!(matches!(little, Err(Error::Length { expected: 80, found: 79, .. })));
        let short = run(2, 1, 8, 1.0, None, &two, 1 << 20, Some(&gpu.range(62)));
        assert!(matches!(short, Err(Error::Length { .. })));
        let odd = gpu.range(66).slice(2..66).unwrap();
        assert!(matches!(run(2, 1, 8, 1.0, None, &two, 1 << 20, Some(&odd)), Err(Error::Ragged { .. })));
    });
}
