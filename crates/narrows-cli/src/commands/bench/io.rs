//! `narrows bench io`

use narrows::Bytes;
use narrows_bench::Disk;
use narrows_bench::io::{Case, IoEngine, Rw, Settings, run};

use super::{Session, memory};
use crate::args::Output;
use crate::args::bench::BenchIo;
use crate::failure::Result;
use crate::output::say;

pub(super) fn io(output: &Output, args: &BenchIo) -> Result<()> {
    let mut session = Session::begin(output)?;
    session.machine.disk = Disk::behind(&args.path);
    if let Some(disk) = &session.machine.disk {
        say(output, &format!("disk: {}, mounted at {}", disk.key(), disk.mount.display()));
    }
    let settings = settings(args);
    let result = run(&args.path, &settings, &mut |step| session.go_on(step));
    let report = session.results(result)?;
    let record = session.record(report.results, report.notes);
    session.end(&args.output, &record)
}

fn settings(args: &BenchIo) -> Settings {
    let all = args.ioengine.is_empty();
    let mut engines = if all { IoEngine::ALL.to_vec() } else { args.ioengine.clone() };
    engines.retain(|engine| args.direct.is_none_or(|direct| engine.direct() == (direct == 1)));
    let rws = if args.rw.is_empty() { &[Rw::Read][..] } else { &args.rw };
    let mut cases = Case::grid(&engines, rws, &args.cache, &args.bs, &args.iodepth);
    // The figure that plans are made with, unless somebody wants something else or there is less than a tile.
    let file = std::fs::metadata(&args.path).ok().filter(std::fs::Metadata::is_file);
    let size = args.size.map(Bytes::get).into_iter().chain(file.map(|meta| meta.len())).min();
    let room = size.is_none_or(|size| size > 2 * args.tile.get());
    if args.rw.is_empty() && room && engines.contains(&Case::as_run().engine) {
        cases.push(Case::as_run());
    }
    Settings {
        cases,
        size: args.size,
        tile: args.tile,
        runtime: args.runtime,
        ramp_time: args.ramp_time,
        loops: args.loops,
        memory: memory(),
        skip_missing: all,
    }
}
