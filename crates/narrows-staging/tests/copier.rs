//! The copier under the software driver: when copies were done, and slots that are not given back while the device reads them.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a test may")]

use narrows_softgpu::{SoftGpu, skip_or_fail};
use narrows_staging::device::{
    Carving, Copied, Copier, Device, DeviceArena, DeviceRegion, Event, Events, Priority, Source, Stream,
};
use narrows_staging::{Arena, ArenaOptions, Budget, Bytes, Free, InUse, Memory as _, Slot};

struct Setup {
    device: Device,
    host: Arena,
    target: DeviceArena,
    user: Stream,
    copier: Copier,
}

impl Setup {
    fn new() -> Self {
        let device = Device::open(0).unwrap();
        let budget = Budget::new(Bytes::mib(64));
        let host = Arena::new(&budget, "host", Bytes::mib(8), ArenaOptions::default()).unwrap();
        let target = DeviceArena::new(&device, &budget, "device", Bytes::mib(8), Carving::Together).unwrap();
        let user = Stream::new(&device, Priority::Normal).unwrap();
        let mut copier = Copier::new(&device).unwrap();
        copier.pin(&host).unwrap();
        Self { device, host, target, user, copier }
    }

    fn tile(&self, len: usize, byte: u8) -> Slot<InUse> {
        let slot = Slot::new(self.host.carve(len).unwrap()).fill(0);
        let filled = slot.fill_with(|bytes| {
            bytes[..len].fill(byte);
            Ok::<_, ()>(0..len)
        });
        filled.unwrap().take()
    }

    fn slot(&self, len: usize) -> Slot<Free, DeviceRegion> {
        Slot::new(DeviceRegion::new(self.target.carve(len).unwrap(), &self.user))
    }
}

#[test]
fn times_stay_exact_for_hours() {
    if !SoftGpu::inside() {
        if skip_or_fail() {
            // A byte takes 1.43 ms, which is no whole number of the steps of a float32.
            let gpu = SoftGpu::new().unwrap().link(0.7e-6);
            let finished = gpu.rerun("times_stay_exact_for_hours").unwrap();
            finished.assert_clean();
        }
        return;
    }
    let mut setup = Setup::new();
    let mut slot = setup.slot(4 << 20);
    // 100 minutes, after which float32 milliseconds go in steps of half a millisecond; then a hundred short ones.
    let (mut spare, mut last) = (Events::default(), std::time::Duration::ZERO);
    for len in std::iter::once(4 << 20).chain((0..100).map(|turn| 3 + turn % 7)) {
        let tile = setup.tile(len, 1);
        let copied = setup.copier.copy(Source::Passing(tile), slot.fill(0)).unwrap().take();
        copied.memory().acquire().unwrap();
        copied.memory().release(&mut spare).unwrap();
        slot = copied.release();
        let Copied { time, .. } = setup.copier.wait().unwrap().unwrap();
        let (seconds, expected) = ((time.end - time.start).as_secs_f64(), len as f64 / 700.0);
        assert!((seconds / expected - 1.0).abs() < 1e-2, "{len} bytes: {seconds} s");
        assert!(time.start >= last && last <= time.end);
        last = time.end;
    }
    assert!(last.as_secs() > 4000);
}

/// Copies that follow each other begin as the one before them ends: the times add up to the time of all.
#[test]
fn copies_that_follow_each_other_leave_no_gap() {
    if !SoftGpu::inside() {
        if skip_or_fail() {
            for seed in 0..4 {
                let gpu = SoftGpu::new().unwrap().link(1e-3).seed(seed);
                gpu.rerun("copies_that_follow_each_other_leave_no_gap").unwrap().assert_clean();
            }
        }
        return;
    }
    let mut setup = Setup::new();
    let mut slots = (0..3).map(|_| setup.slot(64 << 10)).collect::<Vec<_>>();
    let (mut spare, mut times) = (Events::default(), Vec::new());
    for turn in 0..12_u8 {
        if setup.copier.in_flight() == 3 {
            let Copied { time, .. } = setup.copier.wait().unwrap().unwrap();
            times.push(time);
        }
        let tile = setup.tile(64 << 10, turn);
        let slot = slots.remove(0);
        let copied = setup.copier.copy(Source::Passing(tile), slot.fill(u64::from(turn))).unwrap().take();
        copied.memory().acquire().unwrap();
        let mut found = vec![0; 64 << 10];
        if turn % 5 == 4 {
            setup.user.download(&copied.memory().slice().slice(0..64 << 10).unwrap(), &mut found).unwrap();
            assert!(found.iter().all(|byte| *byte == turn));
        }
        copied.memory().release(&mut spare).unwrap();
        slots.push(copied.release());
    }
    while let Some(Copied { time, .. }) = setup.copier.wait().unwrap() {
        times.push(time);
    }
    assert_eq!(times.len(), 12);
    for pair in times.windows(2) {
        assert!(pair[0].start < pair[0].end && pair[0].end <= pair[1].start, "{pair:?}");
    }
    let (busy, one) =
        (times.iter().map(|time| (time.end - time.start).as_secs_f64()).sum::<f64>(), 65536.0 / 1e6);
    assert!((busy / (12.0 * one) - 1.0).abs() < 0.01, "{busy}");
}

/// A copy is under way and no event says when it ends: the slot comes back only once the device is done.
#[test]
fn a_copy_whose_event_fails_gives_its_slot_back_after_it() {
    const TEST: &str = "a_copy_whose_event_fails_gives_its_slot_back_after_it";
    if !SoftGpu::inside() {
        if skip_or_fail() {
            // The copier's own is the first record; a start and an end follow for each copy.
            for (record, seed) in [(2, 0), (3, 0), (3, 1), (3, 2)] {
                let gpu = SoftGpu::new().unwrap().fail_record(record).seed(seed);
                gpu.rerun(TEST).unwrap().assert_clean();
            }
        }
        return;
    }
    let mut setup = Setup::new();
    let tile = setup.tile(1 << 20, 7);
    let slot = setup.slot(1 << 20);
    let Err((error, slot)) = setup.copier.copy(Source::Passing(tile), slot.fill(0)) else {
        panic!("the record fails");
    };
    assert!(error.to_string().contains("recording an event"), "{error}");
    assert_eq!(setup.copier.in_flight(), 0);
    // Both slots may be written to at once: what the device still did with them would be a hazard.
    setup.user.zero(slot.memory().slice()).unwrap();
    setup.user.synchronize().unwrap();
    let tile = setup.tile(1 << 20, 9);
    let copied = setup.copier.copy(Source::Passing(tile), slot.fill(1)).unwrap().take();
    copied.memory().acquire().unwrap();
    let mut found = vec![0; 1 << 20];
    setup.user.download(&copied.memory().slice().slice(0..1 << 20).unwrap(), &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 9));
    assert!(setup.device.is_software());
}

/// A thread that has called nothing of the driver yet asks for an event.
#[test]
fn any_thread_asks_for_an_event() {
    if !SoftGpu::inside() {
        if skip_or_fail() {
            SoftGpu::new().unwrap().rerun("any_thread_asks_for_an_event").unwrap().assert_clean();
        }
        return;
    }
    let setup = Setup::new();
    let event = Event::timed(&setup.device).unwrap();
    event.record(&setup.user).unwrap();
    setup.user.synchronize().unwrap();
    assert!(std::thread::spawn(move || event.happened()).join().unwrap().unwrap());
}
