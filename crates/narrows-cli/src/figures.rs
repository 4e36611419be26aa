//! Where figures are kept: the user's cache.

use std::env;
use std::path::{Path, PathBuf};

use narrows_bench::{Figures, Record};

use crate::args::Output;
use crate::failure::{Failure, Result};
use crate::outfile;
use crate::output::say;

/// The file, by the XDG base directory specification; `None` where there is no home.
fn path() -> Option<PathBuf> {
    // What is not absolute is to be ignored.
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(cache.join("narrows/figures.json"))
}

/// Those that there are.
pub(crate) fn read() -> Figures {
    path().map(|path| Figures::read(&path)).unwrap_or_default()
}

/// Keeps what plans want to know of a record. A cache that cannot be written is worth a word and no failure.
pub(crate) fn keep(output: &Output, record: &Record) {
    let Some(path) = path() else { return };
    let mut figures = Figures::read(&path);
    if figures.keep(record)
        && let Err(error) = written(&path, &figures)
    {
        say(output, &format!("note: figures are not kept: {error}"));
    }
}

/// Whoever reads meanwhile finds the old ones or the new ones; what the path links to is written, and stays linked.
fn written(path: &Path, figures: &Figures) -> Result<()> {
    let failed = |source| Failure::File { path: path.to_owned(), source };
    std::fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    outfile::write(path, figures.text().as_bytes())
}
