//! Calls into a crate that panics on some malformed input.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The result of `call`, or an error where it panics; nothing is printed then.
///
/// `call` may only leave behind what nobody looks at after a panic.
pub(in crate::text) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, tokenizers::Error> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    QUIET.set(before);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        format!("malformed ({})", text.as_deref().unwrap_or("panicked")).into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[allow(clippy::panic)]
    fn a_panic_is_an_error() {
        let failed: Result<(), _> = guarded(|| panic!("at {}", 3));
        assert_eq!(failed.unwrap_err().to_string(), "malformed (at 3)");
        assert_eq!(guarded(|| 7).unwrap(), 7);
    }
}
