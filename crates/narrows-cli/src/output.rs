//! What the program prints: results on stdout, everything else on stderr.

use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::args::{Output, ProgressMode};
use crate::failure::{Failure, Result};

/// Text without control characters other than line ends and tabs, which are written as escapes: a name or a text from a
/// file must not move a terminal's cursor, set its title, or answer for the user.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    escaped(text, |c| matches!(c, '\n' | '\t'))
}

/// As [`plain`], for a message of one line.
pub(crate) fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, |_| false)
}

fn escaped(text: &str, keep: impl Fn(char) -> bool) -> Cow<'_, str> {
    // Besides controls: characters that change the direction of the text around them.
    let hostile = |c: char| {
        (c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')) && !keep(c)
    };
    if !text.contains(hostile) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hostile(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Writes lines to stderr. A stderr that is full or gone takes nothing, and that changes no result.
pub(crate) fn to_stderr(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all((plain(text) + "\n").as_bytes());
}

/// Writes a piece of the result to stdout at once. On a terminal control characters are shown as escapes.
pub(crate) fn write(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let text = if stdout.is_terminal() { plain(text) } else { Cow::Borrowed(text) };
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(stdout_failed)
}

/// A reader that has gone is no fault; a full disk is.
pub(crate) fn stdout_failed(error: std::io::Error) -> Failure {
    match error.kind() {
        ErrorKind::BrokenPipe => Failure::StdoutClosed,
        _ => Failure::Stdout(error),
    }
}

/// Whether a JSON document was written: there is one of a run, its result or its error.
static WRITTEN: AtomicBool = AtomicBool::new(false);

/// Writes a JSON document, unless there is one already.
pub(crate) fn write_json_once(value: &impl Serialize) -> Result<()> {
    if WRITTEN.load(Ordering::Relaxed) { Ok(()) } else { write_json(value) }
}

/// Writes the result as one JSON document.
pub(crate) fn write_json(value: &impl Serialize) -> Result<()> {
    WRITTEN.store(true, Ordering::Relaxed);
    let text = serde_json::to_string(value).map_err(|e| Failure::Other(format!("JSON: {e}")))?;
    write(&(text + "\n"))
}

/// Says something on stderr, unless asked to be quiet.
pub(crate) fn say(output: &Output, text: &str) {
    if !output.quiet {
        to_stderr(text);
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
    /// Whether the bar was taken away.
    cleared: Arc<AtomicBool>,
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
        let (bar, last) = match mode(output) {
            ProgressMode::Bar => (Some(bar()), None),
            ProgressMode::None => (None, None),
            ProgressMode::Auto | ProgressMode::Plain => (None, Some(Instant::now())),
        };
        Self { bar, cleared: Arc::default(), last }
    }

    /// Shows the line that `text` makes, if it is time.
    pub(crate) fn set(&mut self, text: impl FnOnce() -> String) {
        match (&self.bar, &mut self.last) {
            (Some(_), _) if self.cleared.load(Ordering::Relaxed) => {}
            (Some(bar), _) => bar.set_message(text()),
            (None, Some(last)) if last.elapsed() >= EVERY => {
                *last = Instant::now();
                to_stderr(&text());
            }
            (None, _) => {}
        }
    }

    /// Takes the line away; what is set afterwards does not bring it back.
    pub(crate) fn clear(&self) {
        if let Some(bar) = &self.bar
            && !self.cleared.swap(true, Ordering::Relaxed)
        {
            bar.finish_and_clear();
        }
    }

    /// Shows it again with what is set next.
    pub(crate) fn restart(&self) {
        if let Some(bar) = &self.bar {
            // Of what was shown last nothing is left.
            bar.set_message("");
            bar.reset();
            self.cleared.store(false, Ordering::Relaxed);
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
                to_stderr(&format!("{what}: {} of {}, eta {left:.0} s", amount(done), amount(*total)));
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

/// Serialises a path, with replacement characters where it is no Unicode.
pub(crate) fn lossy<S: serde::Serializer>(
    path: &impl AsRef<std::path::Path>,
    to: S,
) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&path.as_ref().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_escapes() {
        assert_eq!(plain("a\tb\nc \u{e9}"), "a\tb\nc \u{e9}");
        assert_eq!(plain("\u{1b}]0;x\u{7}"), "\\u{1b}]0;x\\u{7}");
        assert_eq!(plain("a\rb\u{9b}1m\u{202e}"), "a\\rb\\u{9b}1m\\u{202e}");
        assert_eq!(one_line("a\nerror: b"), "a\\nerror: b");
    }
}
