//! `narrows bench`

mod host;
mod io;
mod kernels;
mod pcie;
mod report;
mod run;

use std::ops::ControlFlow;

use narrows::Bytes;
use narrows_bench::io::Step;
use narrows_bench::{Entry, Machine, Record};

use crate::args::Output;
use crate::args::bench::{Bench, BenchCommand, BenchOutput, Format};
use crate::failure::Result;
use crate::figures;
use crate::interrupt::Interrupt;
use crate::output::{StatusLine, say, write};

pub(crate) fn bench(output: &Output, args: &Bench) -> Result<()> {
    match &args.command {
        BenchCommand::Io(args) => io::io(output, args),
        BenchCommand::Host(args) => host::host(output, args),
        BenchCommand::Pcie(args) => pcie::pcie(output, args),
        BenchCommand::Kernels(args) => kernels::kernels(output, args),
        BenchCommand::Run(args) => run::run(output, args),
        BenchCommand::Report(args) => report::report(output, args),
    }
}

/// What benches have in common: a clock that started, a signal to listen to, a line of progress.
struct Session<'a> {
    output: &'a Output,
    date: chrono::DateTime<chrono::Utc>,
    machine: Machine,
    interrupt: Interrupt,
    status: StatusLine,
}

impl<'a> Session<'a> {
    fn begin(output: &'a Output) -> Result<Self> {
        Ok(Self {
            output,
            date: crate::clock::now(),
            machine: Machine::here(),
            interrupt: Interrupt::listen(),
            status: StatusLine::new(output),
        })
    }

    /// Shows how far it is, and says whether to go on.
    fn go_on(&mut self, step: &Step) -> ControlFlow<()> {
        self.status.set(|| format!("{}/{} {}", step.done + 1, step.of, step.what));
        if self.interrupt.came() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The results of a bench, or the signal that ended it.
    fn results<T>(&self, result: narrows_bench::Result<T>) -> Result<T> {
        self.status.clear();
        self.interrupt.check()?;
        Ok(result?)
    }

    /// The record of what was measured.
    fn record(&self, results: Vec<Entry>, notes: Vec<String>) -> Record {
        Record::new(self.date, command_line(), self.machine.clone(), notes, results)
    }

    /// Writes it.
    fn end(self, args: &BenchOutput, record: &Record) -> Result<()> {
        let format = match args.output {
            _ if self.output.json => narrows_bench::Format::Json,
            Format::Md => narrows_bench::Format::Md,
            Format::Json => narrows_bench::Format::Json,
            Format::Jsonl => narrows_bench::Format::Jsonl,
            Format::Csv => narrows_bench::Format::Csv,
        };
        if format != narrows_bench::Format::Md {
            record.notes.iter().for_each(|note| say(self.output, &format!("note: {note}")));
        }
        write(&record.text(format))?;
        figures::keep(self.output, record);
        Ok(())
    }
}

/// Memory that a bench may map: half of what there is, since the page cache wants some and so do others.
fn memory() -> Bytes {
    narrows::memory::available_memory().map_or(Bytes(u64::MAX), |available| Bytes(available.get() / 2))
}

/// What was typed, by the name of the program and not by where it lies.
pub(super) fn command_line() -> String {
    let quoted = |arg: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,:=+%@".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            arg
        } else {
            format!("'{}'", arg.replace('\'', "'\\''"))
        }
    };
    let args = std::env::args_os().skip(1).map(|arg| quoted(arg.to_string_lossy().into_owned()));
    std::iter::once("narrows".to_owned()).chain(args).collect::<Vec<_>>().join(" ")
}
