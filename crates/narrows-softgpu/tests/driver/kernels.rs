//! Kernels against plain references.

use narrows_softgpu::{SoftGpu, skip_or_fail};

use crate::common::{Gpu, address, launch};
use crate::params;

params!(Axpy { x: u64, y: u64, n: u32, a: f32 });

#[test]
fn a_kernel_computes() {
    if SoftGpu::inside() {
        let gpu = Gpu::new();
        let stream = gpu.context.new_stream().unwrap();
        let n = 1000;
        let x = stream.clone_htod(&(0..n).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
        let y = stream.clone_htod(&vec![1.0f32; n]).unwrap();
        let params = Axpy { x: address(&x, &stream), y: address(&y, &stream), n: n as u32, a: 2.0 };
        launch(&stream, &gpu.function("softgpu_axpy"), 4, 256, 0, &params);
        let result = stream.clone_dtoh(&y).unwrap();
        assert!(result.iter().enumerate().all(|(i, v)| *v == 2.0 * i as f32 + 1.0));
        return;
    }
    if !skip_or_fail() {
        return;
    }
    for seed in 0..4 {
        let finished = SoftGpu::new().unwrap().seed(seed).rerun("kernels::a_kernel_computes").unwrap();
        finished.assert_clean();
        assert_eq!(finished.number("/kernels/launches"), Some(1.0), "{}", finished.text());
        assert_eq!(finished.number("/h2d/bytes"), Some(8000.0));
    }
}
