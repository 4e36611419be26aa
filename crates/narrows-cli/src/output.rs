//! What the program prints: results on stdout, everything else on stderr.

use std::io::{ErrorKind, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::{Output, ProgressMode};
use crate::failure::{Failure, Result};

/// Writes a piece of the result to stdout at once.
pub(crate) fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Failure::StdoutClosed,
        _ => Failure::Stdout(e),
    })
}

/// Writes the result as one JSON document.
pub(crate) fn write_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|e| Failure::Other(format!("JSON: {e}")))?;
    write(&(text + "\n"))
}

/// Says something on stderr, unless asked to be quiet.
#[allow(clippy::print_stderr)] // The one place for words that are neither result nor error.
pub(crate) fn say(output: &Output, text: &str) {
    if !output.quiet {
        eprintln!("{text}");
    }
}

/// How progress is shown.
fn mode(output: &Output) -> ProgressMode {
    match output.progress {
        _ if output.quiet => ProgressMode::None,
        ProgressMode::Auto if std::io::stderr().is_terminal() => ProgressMode::Bar,
        ProgressMode::Auto => ProgressMode::Plain,
        mode => mode,
    }
}

/// Between lines where progress is no bar.
const EVERY: Duration = Duration::from_secs(10);

/// A line on stderr that says how far a long pass is; its clones are one line.
#[derive(Clone)]
pub(crate) struct StatusLine {
    bar: Option<ProgressBar>,
    /// When the last line was printed, where there is no bar.
    last: Option<Instant>,
}

impl StatusLine {
    pub(crate) fn new(output: &Output) -> Self {
        let bar = || {
            let bar = ProgressBar::with_draw_target(None, indicatif::ProgressDrawTarget::stderr());
            bar.set_style(
                ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar
        };
        match mode(output) {
            ProgressMode::Bar => Self { bar: Some(bar()), last: None },
            ProgressMode::None => Self { bar: None, last: None },
            ProgressMode::Auto | ProgressMode::Plain => Self { bar: None, last: Some(Instant::now()) },
        }
    }

    /// Shows the line that `text` makes, if it is time.
    #[allow(clippy::print_stderr)] // Progress is for stderr.
    pub(crate) fn set(&mut self, text: impl FnOnce() -> String) {
        match (&self.bar, &mut self.last) {
            (Some(bar), _) => bar.set_message(text()),
            (None, Some(last)) if last.elapsed() >= EVERY => {
                *last = Instant::now();
                eprintln!("{}", text());
            }
            (None, _) => {}
        }
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What a progress display counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Tokens,
}

/// A progress display on stderr.
pub(crate) enum Progress {
    Bar(ProgressBar),
    /// A line now and then, for logs.
    Plain {
        what: &'static str,
        unit: Unit,
        total: u64,
        start: Instant,
        last: Instant,
    },
    None,
}

impl Progress {
    pub(crate) fn new(output: &Output, what: &'static str, unit: Unit, total: u64) -> Self {
        let start = Instant::now();
        match mode(output) {
            ProgressMode::Bar => Self::Bar(bar(what, unit, total)),
            ProgressMode::None => Self::None,
            ProgressMode::Auto | ProgressMode::Plain => Self::Plain { what, unit, total, start, last: start },
        }
    }

    /// Sets how much is done.
    #[allow(clippy::print_stderr)] // Progress is for stderr.
    pub(crate) fn set(&mut self, done: u64) {
        match self {
            Self::Bar(bar) => bar.set_position(done),
            Self::Plain { what, unit, total, start, last } if last.elapsed() >= EVERY => {
                *last = Instant::now();
                let seconds = start.elapsed().as_secs_f64();
                let left = seconds / done.max(1) as f64 * total.saturating_sub(done) as f64;
                let amount = |n: u64| match unit {
                    Unit::Bytes => narrows::Bytes(n).to_string(),
                    Unit::Tokens => n.to_string(),
                };
                eprintln!("{what}: {} of {}, eta {left:.0} s", amount(done), amount(*total));
            }
            Self::Plain { .. } | Self::None => {}
        }
    }

    /// Takes the display away.
    pub(crate) fn clear(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, unit: Unit, total: u64) -> ProgressBar {
    let template = match unit {
        Unit::Bytes => {
            "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} eta {eta}"
        }
        Unit::Tokens => "{msg} {wide_bar} {pos}/{len} {per_sec} eta {eta}",
    };
    // The bar was asked for: it draws even where stderr is no terminal.
    let bar = ProgressBar::with_draw_target(Some(total), indicatif::ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what);
    bar
}
