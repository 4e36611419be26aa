//! SIGINT and SIGTERM: the first ends the work after the current pass and is acknowledged at once, the second ends the
//! program. A command that does not listen ends at the first.
//!
//! Signals belong to the process, so this state is the program's one global.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, mpsc};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::args::Output;
use crate::failure::{Failure, Result};
use crate::output::say;

/// The first signal that came; 0: none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// Whether a command listens, so that the first signal is its own to obey.
static LISTENS: AtomicBool = AtomicBool::new(false);

/// When the current pass ends at the latest by the newest estimate, in microseconds after [`START`]; 0: unknown.
static PASS_ENDS: AtomicU64 = AtomicU64::new(0);

/// For how long the line that acknowledges a signal may keep the signal from being obeyed.
const MOST_TO_SAY: Duration = Duration::from_millis(200);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// What an engine polls.
static CANCEL: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(false)));

/// Begins to wait for signals, on a thread of its own.
pub(crate) fn install(output: &Output) -> Result<()> {
    let failed = |e| Failure::Other(format!("cannot listen to signals: {e}"));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    LazyLock::force(&START);
    let output = output.clone();
    let wait = move || {
        for signal in signals.forever() {
            let first = SIGNAL.compare_exchange(0, signal, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if !first || !LISTENS.load(Ordering::Relaxed) {
                crate::outfile::discard_unfinished();
                std::process::exit(i32::from(code(signal)));
            }
            acknowledge(&output);
            CANCEL.store(true, Ordering::Relaxed);
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(())
}

fn code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(130)
}

/// Says that a signal was heard, and waits no longer than [`MOST_TO_SAY`] for it: a stderr that is read by a program that
/// has stopped reading takes nothing, and the next signal has to be heard all the same.
fn acknowledge(output: &Output) {
    let (output, (said, wait)) = (output.clone(), mpsc::channel::<()>());
    let speak = move || {
        say(&output, &acknowledgement());
        drop(said);
    };
    if std::thread::Builder::new().name("acknowledges".to_owned()).spawn(speak).is_ok() {
        // An end, since the other side sends nothing.
        let _ = wait.recv_timeout(MOST_TO_SAY);
    }
}

fn acknowledgement() -> String {
    let ends = Duration::from_micros(PASS_ENDS.load(Ordering::Relaxed));
    match ends.checked_sub(START.elapsed()) {
        Some(left) => {
            let seconds = left.as_secs() + 1;
            format!("interrupted: stopping after this pass, at most {seconds} s; again: at once")
        }
        None => "interrupted: stopping after this pass; again: at once".to_owned(),
    }
}

/// Says that the current pass takes at most `left` from now on.
pub(crate) fn pass_ends_within(left: Duration) {
    let ends = (START.elapsed() + left).as_micros();
    PASS_ENDS.store(u64::try_from(ends).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// A command that ends its work in an orderly way after a first signal.
pub(crate) struct Interrupt(());

impl Interrupt {
    /// Listens from now on; until then a signal ends the program at once.
    pub(crate) fn listen() -> Self {
        LISTENS.store(true, Ordering::Relaxed);
        Self(())
    }

    /// A flag that is set by a signal, for an engine to poll.
    pub(crate) fn flag() -> Arc<AtomicBool> {
        Arc::clone(&CANCEL)
    }

    /// Whether a signal came.
    pub(crate) fn came(&self) -> bool {
        SIGNAL.load(Ordering::Relaxed) != 0
    }

    /// Forgets a signal that was dealt with.
    pub(crate) fn reset(&self) {
        CANCEL.store(false, Ordering::Relaxed);
        SIGNAL.store(0, Ordering::Relaxed);
    }

    /// The failure to end with, if a signal came.
    pub(crate) fn check(&self) -> Result<()> {
        match SIGNAL.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Failure::Interrupted { code: code(signal) }),
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        LISTENS.store(false, Ordering::Relaxed);
    }
}
