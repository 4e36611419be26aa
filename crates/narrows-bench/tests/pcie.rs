//! Copies to a device and back, under the software driver: whatever the order in which it does what may happen in any
//! order, what arrives is what was sent, and nothing touches what another stream still uses.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::ops::ControlFlow;
use std::time::Duration;

use narrows_bench::pcie::{DISK_TO_DEVICE, Settings, Test, run};
use narrows_bench::{Bytes, Entry, Error, PcieResult};
use narrows_softgpu::{SoftGpu, skip_or_fail};
use narrows_staging::device::{Device, HostKind, HostMemory};
use narrows_staging::{Budget, Error as StagingError};

fn settings() -> Settings {
    Settings {
        tests: Test::ALL.to_vec(),
        memory: HostKind::ALL.to_vec(),
        sizes: vec![Bytes(4096), Bytes(300_001)],
        streams: vec![1, 2],
        loops: 1,
        host: Bytes::mib(64),
        skip_missing: false,
        file: None,
        runtime: Duration::from_millis(1),
    }
}

fn copies(settings: &Settings) -> narrows_bench::Result<Vec<PcieResult>> {
    let report = run(&Device::open(0)?, settings, &mut |_| ControlFlow::Continue(()))?;
    assert!(report.gpu.software && report.gpu.link.is_none());
    let pcie = |entry| match entry {
        Entry::Pcie(result) => result,
        other => panic!("{other:?}"),
    };
    Ok(report.results.into_iter().map(pcie).collect())
}

#[test]
fn every_kind_of_copy() {
    if SoftGpu::inside() {
        let results = copies(&settings()).unwrap();
        assert_eq!(results.len(), 4 * 4 * 2 * 2);
        for result in &results {
            // The simulated link carries 25 GB/s in each direction, whatever goes the other way.
            let most = 25.5e9;
            let speed = result.bandwidth.bytes_per_second;
            assert!(result.verified && speed > 0.0 && speed < most, "{result:?}");
        }
        let of = |memory: &str| results.iter().filter(|result| result.memory == memory).count();
        assert!(HostKind::ALL.iter().all(|kind| of(kind.name()) == 16));
        return;
    }
    if skip_or_fail() {
        for seed in 0..4 {
            let gpu = SoftGpu::new().unwrap().vram(64 << 20).seed(seed);
            gpu.rerun("every_kind_of_copy").unwrap().assert_clean();
        }
    }
}

#[test]
fn from_disk_to_the_device() {
    if SoftGpu::inside() {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("model.bin");
        // Tiles of 8 MiB and a rest, which is no tile.
        std::fs::write(&path, (0..17_000_000_u32).map(|i| (i ^ i >> 9) as u8).collect::<Vec<_>>()).unwrap();
        let only = Settings { tests: Vec::new(), file: Some(path.clone()), ..settings() };
        let results = copies(&only).unwrap();
        assert_eq!((results.len(), results[0].test.as_str()), (1, DISK_TO_DEVICE));
        assert!(results[0].verified && results[0].bandwidth.bytes_per_second > 0.0);
        std::fs::write(&path, "little").unwrap();
        assert!(matches!(copies(&only), Err(Error::TooSmall { .. })));
        return;
    }
    if skip_or_fail() {
        for seed in [0, 1, 5] {
            let gpu = SoftGpu::new().unwrap().vram(128 << 20).seed(seed);
            gpu.rerun("from_disk_to_the_device").unwrap().assert_clean();
        }
    }
}

/// A copy that fails, memory that cannot be pinned, sizes that do not fit.
#[test]
fn what_goes_wrong() {
    if SoftGpu::inside() {
        let fails = |settings: &Settings| copies(settings).unwrap_err();
        if std::env::var("CASE").unwrap() == "copy" {
            assert!(fails(&settings()).is_device());
            return;
        }
        // Not even the list of kinds is cut short unasked.
        let refused = fails(&settings());
        assert!(refused.is_device() && refused.to_string().contains("pinn"), "{refused}");
        let lenient = Settings { skip_missing: true, ..settings() };
        let results = copies(&lenient).unwrap();
        assert!(results.len() == 16 && results.iter().all(|result| result.memory == "pageable"));
        let large = Settings { sizes: vec![Bytes::mib(100)], ..settings() };
        assert!(fails(&large).is_request());
        assert!(copies(&Settings { skip_missing: true, ..large }).unwrap().is_empty());
        for bad in [
            Settings { sizes: vec![Bytes(0)], ..settings() },
            Settings { streams: vec![0], ..settings() },
            Settings { streams: vec![1000], ..settings() },
            Settings { loops: 0, ..settings() },
            Settings { tests: Vec::new(), ..settings() },
        ] {
            assert!(fails(&bad).is_request(), "{bad:?}");
        }
        return;
    }
    if skip_or_fail() {
        let gpu = || SoftGpu::new().unwrap().vram(64 << 20);
        gpu().fail_copy(3).rerun_with("what_goes_wrong", &[("CASE", "copy")]).unwrap().assert_clean();
        gpu().fail_pinned(1000).rerun_with("what_goes_wrong", &[("CASE", "pinning")]).unwrap().assert_clean();
    }
}

#[test]
fn host_memory_is_accounted_for() {
    if SoftGpu::inside() {
        let device = Device::open(0).unwrap();
        let budget = Budget::new(Bytes::mib(1));
        for kind in HostKind::ALL {
            let mut memory = HostMemory::new(&device, &budget, "copies", kind, 5000).unwrap();
            assert!(memory.as_slice().len() >= 5000 && memory.as_slice().iter().all(|&byte| byte == 0));
            memory.as_mut_slice().fill(7);
            assert!(budget.used() >= Bytes(5000) && memory.as_slice()[4999] == 7 && memory.kind() == kind);
            drop(memory);
            assert_eq!(budget.used(), Bytes(0));
            let over = HostMemory::new(&device, &budget, "copies", kind, 2 << 20);
            assert!(matches!(over, Err(StagingError::OverBudget { .. })));
        }
        return;
    }
    if skip_or_fail() {
        SoftGpu::new().unwrap().rerun("host_memory_is_accounted_for").unwrap().assert_clean();
    }
}
