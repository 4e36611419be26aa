//! `narrows bench host`

use narrows_bench::host::{Settings, run};

use super::{Session, memory};
use crate::args::Output;
use crate::args::bench::BenchHost;
use crate::failure::Result;

pub(super) fn host(output: &Output, args: &BenchHost) -> Result<()> {
    let mut session = Session::begin(output)?;
    let all = Settings::thread_counts(session.machine.threads);
    let settings = Settings {
        tests: args.test.clone(),
        threads: if args.threads.is_empty() { all } else { args.threads.iter().map(|n| n.get()).collect() },
        pages: args.pages.clone(),
        size: args.size,
        runtime: args.runtime,
        loops: args.loops,
        memory: memory(),
    };
    let result = run(&settings, &mut |step| session.go_on(step));
    let report = session.results(result)?;
    let record = session.record(report.results, report.notes);
    session.end(&args.output, &record)
}
