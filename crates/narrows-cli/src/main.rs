//! The program `narrows`.
#![forbid(unsafe_code)]

mod args;
mod commands;
mod failure;
mod figures;
mod interrupt;
mod memory;
mod output;
mod tensors;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};

fn main() -> ExitCode {
    let Cli { output, command } = Cli::parse();
    let result = match command {
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
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.exit_code())
        }
    }
}
