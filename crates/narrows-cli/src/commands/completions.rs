//! `narrows completions` and `narrows man`: files for a shell and for `man`, made from the command line itself.

use clap::CommandFactory;

use crate::args::{Cli, Completions, Man};
use crate::failure::{Failure, Result};
use crate::output::write;

pub(crate) fn completions(args: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "narrows", &mut script);
    write(&String::from_utf8_lossy(&script))
}

pub(crate) fn man(args: &Man) -> Result<()> {
    let failed = |source| Failure::File { path: args.output.clone(), source };
    std::fs::create_dir_all(&args.output).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.output).map_err(failed)
}
