//! SIGINT and SIGTERM: the first ends the text after the current token, the second ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

use crate::failure::{Failure, Result};

/// Remembers whether the program was asked to end.
pub(crate) struct Interrupt {
    signal: Arc<AtomicUsize>,
    again_kills: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens from now on; until then a signal ends the program at once.
    pub(crate) fn listen() -> Result<Self> {
        let interrupt =
            Self { signal: Arc::new(AtomicUsize::new(0)), again_kills: Arc::new(AtomicBool::new(false)) };
        for signal in [SIGINT, SIGTERM] {
            // In this order: the first signal finds the flag down, and raises it.
            flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&interrupt.again_kills))
                .and_then(|_| flag::register(signal, Arc::clone(&interrupt.again_kills)))
                .and_then(|_| {
                    flag::register_usize(
                        signal,
                        Arc::clone(&interrupt.signal),
                        signal.unsigned_abs() as usize,
                    )
                })
                .map_err(|e| Failure::Other(format!("cannot listen to signals: {e}")))?;
        }
        Ok(interrupt)
    }

    /// Whether a signal came.
    pub(crate) fn came(&self) -> bool {
        self.signal.load(Ordering::Relaxed) != 0
    }

    /// Forgets a signal that was dealt with.
    pub(crate) fn reset(&self) {
        self.signal.store(0, Ordering::Relaxed);
        self.again_kills.store(false, Ordering::Relaxed);
    }

    /// The failure to end with, if a signal came.
    pub(crate) fn check(&self) -> Result<()> {
        match self.signal.load(Ordering::Relaxed) {
            0 => Ok(()),
            signal => Err(Failure::Interrupted { code: u8::try_from(128 + signal).unwrap_or(130) }),
        }
    }
}
