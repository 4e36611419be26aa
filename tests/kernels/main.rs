//! Every kernel against the plain loop of [`narrows_kernels::reference`], and against itself in other batches
//! and tiles.
//!
//! Ranges of device memory are allocated one by one, so that a driver that checks accesses sees those beyond a
//! range. What nobody wrote holds whatever it held.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test may")]

mod activate;
mod add;
mod architectures;
mod argmax;
mod attention;
mod blocks;
mod embed;
mod gemm;
mod kv;
mod linear;
mod map;
mod piece_norm;
/// What the build script makes of nvcc's words is tested here, since a build script has no tests.
#[path = "../../build/resources.rs"]
mod resources;
mod rms_norm;
mod roofline;
mod rope;
mod rows;
mod top_k;

use half::{bf16, f16};
use narrows_bytes::Bytes;
use narrows_kernels::Kernels;
use narrows_shard::Encoding;
use narrows_softgpu::SoftGpu;
use narrows_staging::Budget;
use narrows_staging::device::{Carving, Device, DeviceArena, DeviceSlice, Priority, Stream};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Runs a test under the software driver: as an old and as a new device, the laziest, the most eager, and one in
/// between. With `NARROWS_TEST_GPU=1` it runs on the GPU of this machine instead.
///
/// The test is its closure, so that it can be found again by name in the process that is started for it.
pub fn on_every_device<F: Fn(&Gpu)>(test: F) {
    if SoftGpu::inside() || on_gpu() {
        return test(&Gpu::open());
    }
    if !narrows_softgpu::skip_or_fail() {
        return;
    }
    let closure = std::any::type_name::<F>();
    let (_, path) = closure.split_once("::").unwrap();
    let name = path.strip_suffix("::{{closure}}").unwrap();
    for ((major, minor), seed) in [((9, 0), 0), ((7, 5), 1), ((9, 0), 42)] {
        let gpu = SoftGpu::new().unwrap().arch(major, minor).seed(seed);
        gpu.rerun(name).unwrap().assert_clean();
    }
}

/// Whether the tests run on a real device, which can do what takes too much time or memory elsewhere.
pub fn on_gpu() -> bool {
    std::env::var("NARROWS_TEST_GPU").is_ok_and(|value| value == "1")
}

/// `test` for so many values of `strategy`, the same in every run.
pub fn property<S: Strategy>(cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner
        .run(&strategy, |value| {
            test(value);
            Ok(())
        })
        .unwrap();
}

/// Half the distance of 1 to the next f32: what one rounding costs at most, relatively.
pub const ROUNDING: f64 = f32::EPSILON as f64 / 2.0;

/// A device with all kernels and one stream.
pub struct Gpu {
    pub device: Device,
    pub stream: Stream,
    pub kernels: Kernels,
}

impl Gpu {
    pub fn open() -> Self {
        let device = Device::open(0).unwrap();
        let stream = Stream::new(&device, Priority::Normal).unwrap();
        let kernels = Kernels::load(&device).unwrap();
        Self { device, stream, kernels }
    }

    /// `len` bytes that nobody has written.
    pub fn range(&self, len: usize) -> DeviceSlice {
        let budget = Budget::new(Bytes(u64::MAX));
        let size = Bytes(len.next_multiple_of(256) as u64);
        let arena = DeviceArena::new(&self.device, &budget, "a test", size, Carving::Apart).unwrap();
        arena.carve(len).unwrap()
    }

    pub fn bytes(&self, bytes: &[u8]) -> DeviceSlice {
        self.shifted(bytes, 0)
    }

    /// `bytes` at an address that is `shift` more than an aligned one.
    pub fn shifted(&self, bytes: &[u8], shift: usize) -> DeviceSlice {
        let range = self.range(shift + bytes.len()).slice(shift..shift + bytes.len()).unwrap();
        self.stream.upload(bytes, &range).unwrap();
        range
    }

    pub fn f32s(&self, values: &[f32]) -> DeviceSlice {
        self.bytes(bytemuck::cast_slice(values))
    }

    pub fn u32s(&self, values: &[u32]) -> DeviceSlice {
        self.bytes(bytemuck::cast_slice(values))
    }

    pub fn stored(&self, encoding: Encoding, values: &[f32]) -> DeviceSlice {
        self.bytes(&encode(encoding, values))
    }

    pub fn read(&self, range: &DeviceSlice) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        self.stream.download(range, &mut bytes).unwrap();
        bytes
    }

    pub fn read_f32s(&self, range: &DeviceSlice) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.read(range))
    }

    pub fn read_u32s(&self, range: &DeviceSlice) -> Vec<u32> {
        bytemuck::pod_collect_to_vec(&self.read(range))
    }

    pub fn read_stored(&self, encoding: Encoding, range: &DeviceSlice) -> Vec<f32> {
        decode(encoding, &self.read(range))
    }
}

pub fn encode(encoding: Encoding, values: &[f32]) -> Vec<u8> {
    match encoding {
        Encoding::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Encoding::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        Encoding::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        Encoding::Q8 | Encoding::Nf4 => {
            assert!(values.is_empty(), "values are in plain encodings");
            Vec::new()
        }
    }
}

pub fn decode(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    let halves = || bytes.as_chunks::<2>().0.iter().copied();
    match encoding {
        Encoding::F32 => bytemuck::pod_collect_to_vec(bytes),
        Encoding::F16 => halves().map(|x| f16::from_le_bytes(x).to_f32()).collect(),
        Encoding::Bf16 => halves().map(|x| bf16::from_le_bytes(x).to_f32()).collect(),
        Encoding::Q8 | Encoding::Nf4 => {
            assert!(bytes.is_empty(), "values are in plain encodings");
            Vec::new()
        }
    }
}

/// What `encoding` makes of `values`.
pub fn rounded(encoding: Encoding, values: &[f32]) -> Vec<f32> {
    decode(encoding, &encode(encoding, values))
}

/// What rounding to `encoding` costs at most: relatively, and absolutely where numbers get subnormal.
pub fn rounding(encoding: Encoding) -> (f64, f64) {
    match encoding {
        Encoding::F32 => (ROUNDING, 0.0),
        Encoding::F16 => (2_f64.powi(-11), 2_f64.powi(-25)),
        Encoding::Bf16 => (2_f64.powi(-8), 0.0),
        Encoding::Q8 | Encoding::Nf4 => (f64::NAN, f64::NAN),
    }
}

/// Numbers in -1..1 that look random and are the same in every run (SplitMix64).
pub fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// That each element is as far from the reference as `tolerance` of its index allows, and no farther.
#[track_caller]
pub fn assert_close(got: &[f32], want: &[f32], tolerance: impl Fn(usize) -> f64, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let (error, bound) = ((f64::from(got) - f64::from(want)).abs(), tolerance(i));
        assert!(error <= bound, "{what}: element {i} is {got}, not {want}: {error:e}, bound {bound:e}");
    }
}

/// That all bits are the same.
#[track_caller]
pub fn assert_same(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.to_bits() == want.to_bits(), "{what}: element {i} is {got}, not {want}");
    }
}
