//! The program `narrows`.
#![forbid(unsafe_code)]

mod amounts;
mod args;
mod clock;
mod commands;
mod failure;
mod figures;
mod ids;
mod input;
mod interrupt;
mod models;
mod outfile;
mod output;
mod tensors;
mod version;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::failure::{Failure, Result};

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(panicked));
    let (json, result) = match Cli::try_parse() {
        // A panic was reported by the hook.
        Ok(cli) => {
            (cli.output.json, catch_unwind(AssertUnwindSafe(|| command(cli))).unwrap_or(Err(Failure::Panic)))
        }
        Err(error) if error.use_stderr() => {
            (std::env::args_os().any(|arg| arg == "--json"), Err(Failure::command_line(error)))
        }
        // What was asked for: help, or the version.
        Err(error) => (false, error.print().map_err(output::stdout_failed)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(json);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn command(Cli { output, command }: Cli) -> Result<()> {
    interrupt::install(&output)?;
    raise_open_files();
    match command {
        Command::Run(args) => commands::run::run(&output, &args),
        Command::Plan(args) => commands::plan::plan(&output, &args),
        Command::Pack(args) => commands::pack::pack(&output, &args),
        Command::Inspect(args) => commands::inspect::inspect(&output, &args),
        Command::Verify(args) => commands::verify::verify(&output, &args),
        Command::Logits(args) => commands::logits::logits(&output, &args),
        Command::Eval(args) => commands::eval::eval(&output, &args),
        Command::Synth(args) => commands::synth::synth(&output, &args),
        Command::Bench(args) => commands::bench::bench(&output, &args),
        Command::Doctor(args) => commands::doctor::doctor(&output, &args),
        Command::Completions(args) => commands::completions::completions(&args),
        Command::Schema(args) => commands::schema::schema(&args),
        Command::Man(args) => commands::completions::man(&args),
    }
}

/// Models of hundreds of files need more open files than the soft limit of some systems, which is there for programs that
/// cannot count so far; the hard limit is the one that is meant.
fn raise_open_files() {
    #[cfg(unix)]
    {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

        let limit = getrlimit(Resource::Nofile);
        // Refused, it stays as it is, and whatever cannot be opened says so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// A panic is a fault of this program: one line that says where, for a report.
fn panicked(info: &std::panic::PanicHookInfo<'_>) {
    let payload = info.payload();
    let what = payload.downcast_ref::<&str>().copied().map(str::to_owned);
    let what = what.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
    let place =
        info.location().map_or(String::new(), |place| format!(" ({}:{})", place.file(), place.line()));
    output::to_stderr(&format!("error: internal: {}{place}; please report this", output::one_line(&what)));
}
