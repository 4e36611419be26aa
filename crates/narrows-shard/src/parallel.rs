//! Tasks on threads of their own, which end with them.

use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder};

/// Runs `tasks` at once; their results in their order. The caller does the first, and those that the system has no thread
/// for: one that allows too few is slower and no failure.
pub(crate) fn run<T: Send, F: FnOnce() -> T + Send>(tasks: impl IntoIterator<Item = F>) -> Vec<T> {
    run_on(&Builder::new, tasks)
}

fn run_on<T: Send, F: FnOnce() -> T + Send>(
    builder: &dyn Fn() -> Builder,
    tasks: impl IntoIterator<Item = F>,
) -> Vec<T> {
    // A task that gets no thread comes back from here.
    let tasks: Vec<_> = tasks.into_iter().map(|task| Mutex::new(Some(task))).collect();
    let take = |i: usize| {
        let task = tasks[i].lock().unwrap_or_else(PoisonError::into_inner).take();
        task.map(|task| task())
    };
    thread::scope(|scope| {
        let take = &take;
        let others: Vec<_> =
            (1..tasks.len()).map(|i| (i, builder().spawn_scoped(scope, move || take(i)))).collect();
        let mut results = Vec::with_capacity(tasks.len());
        results.extend((!tasks.is_empty()).then(|| take(0)).flatten());
        for (i, other) in others {
            results.extend(match other {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(_) => take(i),
            });
        }
        results
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_without_threads_are_done_all_the_same() {
        let tasks = || (0..5).map(|i| move || i * i);
        // No system has room for such a stack.
        for builder in [&Builder::new as &dyn Fn() -> Builder, &|| Builder::new().stack_size(usize::MAX / 4)]
        {
            assert_eq!(run_on(builder, tasks()), [0, 1, 4, 9, 16]);
        }
        assert!(run(std::iter::empty::<fn() -> u8>()).is_empty());
    }
}
