//! The driver: one state under one lock, and the entry points that cudarc resolves by name.

mod api_context;
mod api_memory;
mod api_module;
mod api_stream;
mod block;
mod check;
mod code;
mod config;
mod execute;
mod fault;
mod fiber;
mod history;
mod images;
mod machine;
mod memory;
mod queue;
mod random;
mod report;
mod state;
mod timeline;

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use code::{Code, Outcome};
use queue::{Advance, Goal};
use state::State;

pub(crate) use config::PREFIX;
pub(crate) use images::LACKING;

static STATE: Mutex<Option<Box<State>>> = Mutex::new(None);
/// Where the state lies, for callbacks of a running kernel and for the end of the process.
static POINTER: AtomicPtr<State> = AtomicPtr::new(std::ptr::null_mut());
/// Told whenever a host function returned.
static PROGRESS: Condvar = Condvar::new();

fn lock() -> MutexGuard<'static, Option<Box<State>>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One driver call. A sticky error is the answer to every call.
fn call(work: impl FnOnce(&mut State) -> Outcome) -> u32 {
    let mut guard = lock();
    let Some(state) = guard.as_mut() else { return Code::NOT_INITIALIZED.0 };
    if let Some(code) = state.sticky {
        return code.0;
    }
    finish(state, work)
}

fn finish(state: &mut State, work: impl FnOnce(&mut State) -> Outcome) -> u32 {
    match work(state) {
        Ok(()) => state.sticky.map_or(0, |code| code.0),
        Err(code) => code.0,
    }
}

/// A driver call that waits for the device and then goes on.
fn call_until(
    prepare: impl FnOnce(&mut State) -> Outcome<Goal>,
    then: impl FnOnce(&mut State) -> Outcome,
) -> u32 {
    let mut guard = lock();
    let goal = {
        let Some(state) = guard.as_mut() else { return Code::NOT_INITIALIZED.0 };
        if let Some(code) = state.sticky {
            return code.0;
        }
        match prepare(state) {
            Ok(goal) => goal,
            Err(code) => return code.0,
        }
    };
    loop {
        let Some(state) = guard.as_mut() else { return Code::NOT_INITIALIZED.0 };
        match state.advance(&goal) {
            Advance::Stepped => {}
            Advance::Reached => {
                state.observe(&goal);
                return match state.sticky {
                    Some(code) => code.0,
                    None => finish(state, then),
                };
            }
            Advance::HostFunction => guard = PROGRESS.wait(guard).unwrap_or_else(PoisonError::into_inner),
        }
    }
}

/// The state, for code that a kernel called back or that ends the process.
///
/// # Safety
/// The caller runs under the driver's lock, on the thread that holds it, or ends the process.
unsafe fn state_in_call<'a>() -> Option<&'a mut State> {
    // SAFETY: set once, from a box that is never dropped; exclusive by the caller's promise.
    unsafe { POINTER.load(Ordering::Acquire).as_mut() }
}

extern "C" fn at_exit() {
    // A thread that is inside a driver call ends it soon; one that never does keeps no report back.
    for _ in 0..200 {
        if let Ok(mut guard) = STATE.try_lock() {
            if let Some(state) = guard.as_mut() {
                report::write(state);
            }
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// What `cuInit` does the first time.
fn initialise() -> Code {
    let mut guard = lock();
    if guard.is_some() {
        return Code::SUCCESS;
    }
    let config = match config::Config::from_environment() {
        Ok(config) => config,
        Err(error) => fault::refuse(&error.to_string()),
    };
    if config.devices == 0 {
        return Code::NO_DEVICE;
    }
    let Some(mut state) = State::new(config) else { return Code::OUT_OF_MEMORY };
    POINTER.store(&mut *state, Ordering::Release);
    *guard = Some(state);
    // SAFETY: a plain function of this library, which cudarc never unloads.
    unsafe { libc::atexit(at_exit) };
    Code::SUCCESS
}
