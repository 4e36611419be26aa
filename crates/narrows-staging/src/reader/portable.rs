//! What other systems have of the Linux-only devices: a refusal, which the caller knows how to go on from.

pub(super) mod uring {
    use std::io;
    use std::sync::Arc;

    use crate::Arena;
    use crate::reader::files::Files;
    use crate::reader::threads::Threads;

    /// Never set up.
    pub(in crate::reader) struct Uring;

    impl Uring {
        pub(in crate::reader) fn set_up(
            _files: &Arc<Files>,
            _depth: usize,
            _arenas: &[Arena],
            _notes: &mut Vec<String>,
        ) -> io::Result<Threads> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

pub(super) mod mmap {
    use std::io;
    use std::sync::Arc;

    use crate::reader::files::Files;
    use crate::reader::threads::ReadAt;

    pub(in crate::reader) fn read_at(_files: &Arc<Files>) -> io::Result<Arc<ReadAt>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
