//! How the driver ends a process: by a fault it found, or by a configuration it cannot read.

use std::io::Write as _;

use super::{report, state_in_call};

/// Exit code of a process in which a fault or hazard was found.
pub(crate) const EXIT_FAULT: i32 = 70;
/// Exit code of a process whose configuration was no good.
pub(crate) const EXIT_USAGE: i32 = 64;

/// Every line of the driver names it.
pub(crate) fn say(message: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "narrows-softgpu: {message}");
}

/// Ends the process for a fault; the report is written first.
pub(crate) fn found(message: &str) -> ! {
    say(&format!("hazard: {message}"));
    // SAFETY: faults are found under the lock, and the process ends here.
    if let Some(state) = unsafe { state_in_call() } {
        state.faults.push(message.to_owned());
        report::write(state);
    }
    // SAFETY: no destructor may run: threads are in the middle of a kernel.
    unsafe { libc::_exit(EXIT_FAULT) }
}

/// A fault of the thread that runs.
pub(crate) fn kernel(message: &str) -> ! {
    // SAFETY: called by a kernel, hence under the lock.
    let place = unsafe { state_in_call() }.map(|state| state.running_place()).unwrap_or_default();
    found(&format!("{place}: {message}"))
}

/// A fault of the thread that runs, at the access that it was about to make.
pub(crate) fn access(message: &str) -> ! {
    // SAFETY: called by a kernel, hence under the lock.
    let state = unsafe { state_in_call() };
    let lines = state.and_then(|state| state.running.as_ref()?.library.lines(state.machine.pc));
    match lines {
        Some(lines) => kernel(&format!("{message}, at {lines}")),
        None => kernel(message),
    }
}

/// Ends the process because the environment asks for something impossible.
pub(crate) fn refuse(message: &str) -> ! {
    say(message);
    // SAFETY: nothing has been set up yet that would need an orderly end.
    unsafe { libc::_exit(EXIT_USAGE) }
}
