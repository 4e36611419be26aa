//! `narrows completions` and `narrows man`: files for a shell and for `man`, made from the command line itself.

use std::path::Path;

use clap::CommandFactory;

use crate::args::{Cli, Completions, Man};
use crate::failure::{Failure, Result};
use crate::outfile;
use crate::output::write;

pub(crate) fn completions(args: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "narrows", &mut script);
    write(&String::from_utf8_lossy(&script))
}

pub(crate) fn man(args: &Man) -> Result<()> {
    let failed = |source| Failure::File { path: args.output.clone(), source };
    std::fs::create_dir_all(&args.output).map_err(failed)?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, &args.output)
}

/// A page of a command, and one of each command below it.
fn pages(command: &clap::Command, dir: &Path) -> Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        pages(command, dir)?;
    }
    let page = clap_mangen::Man::new(command.clone());
    let path = dir.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text).map_err(|source| Failure::File { path: path.clone(), source })?;
    outfile::write(&path, &text)
}
