//! `narrows bench pcie`

use narrows::Bytes;
use narrows_bench::Disk;
use narrows_bench::pcie::{Device, HostKind, Settings, Test, nvbandwidth, run};

use super::{Session, memory};
use crate::args::Output;
use crate::args::bench::{BenchOutput, BenchPcie, Format};
use crate::failure::{Failure, Result};
use crate::output::say;

/// Sizes of a copy unless told otherwise; those that do not fit are left out.
const SIZES: [Bytes; 6] =
    [Bytes(4 << 10), Bytes(64 << 10), Bytes::mib(1), Bytes::mib(16), Bytes::mib(256), Bytes::mib(1024)];

pub(super) fn pcie(output: &Output, args: &BenchPcie) -> Result<()> {
    let mut session = Session::begin(output)?;
    let device = open(args.device)?;
    say(output, &format!("device: cuda:{} {}", device.ordinal(), device.name()));
    session.machine.disk = args.file.as_deref().and_then(Disk::behind);
    let settings = Settings {
        tests: if args.testcase.is_empty() { Test::ALL.to_vec() } else { args.testcase.clone() },
        memory: if args.memory.is_empty() { HostKind::ALL.to_vec() } else { args.memory.clone() },
        sizes: if args.size.is_empty() { SIZES.to_vec() } else { args.size.clone() },
        streams: args.streams.clone(),
        loops: args.loops,
        host: memory(),
        skip_missing: args.size.is_empty() && args.memory.is_empty(),
        file: args.file.clone(),
        runtime: args.runtime,
    };
    let result = run(&device, &settings, &mut |step| session.go_on(step));
    let report = session.results(result)?;
    let document = nvbandwidth::document(&report.gpu, &report.results);
    session.machine.gpu = Some(report.gpu);
    let mut record = session.record(report.results, report.notes);
    record.nvbandwidth = Some(document);
    let format = if args.j { BenchOutput { output: Format::Json } } else { args.output.clone() };
    session.end(&format, &record)
}

/// The device that was asked for; else the first that is no driver's imitation of one.
fn open(which: Option<crate::args::Device>) -> Result<Device> {
    use crate::args::Device as Which;
    let open = |ordinal| Device::open(ordinal).map_err(|error| Failure::Bench(error.into()));
    match which {
        Some(Which::Cuda(ordinal)) => open(ordinal),
        Some(Which::Cpu) => Err(Failure::Usage("--device cpu: there is no link to it".to_owned())),
        None | Some(Which::Auto) => {
            let device = open(0)?;
            device.require_gpu().map_err(|error| Failure::Bench(error.into()))?;
            Ok(device)
        }
    }
}
