//! Reading a file at an offset, whatever its cursor and whoever else reads it.

#[cfg(unix)]
pub(crate) use unix::PositionalFile;

#[cfg(not(unix))]
pub(crate) use portable::PositionalFile;

#[cfg(unix)]
mod unix {
    use std::fs::File;
    use std::io;
    use std::os::unix::fs::FileExt;

    pub(crate) struct PositionalFile(File);

    impl PositionalFile {
        pub(crate) fn new(file: File) -> Self {
            Self(file)
        }

        pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.0.read_exact_at(buf, offset)
        }
    }
}

#[cfg(not(unix))]
mod portable {
    use std::fs::File;
    use std::io::{self, Read, Seek, SeekFrom};
    use std::sync::{Mutex, PoisonError};

    /// The cursor is shared, so a reader holds it from the seek to the end of the read.
    pub(crate) struct PositionalFile(Mutex<File>);

    impl PositionalFile {
        pub(crate) fn new(file: File) -> Self {
            Self(Mutex::new(file))
        }

        pub(crate) fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(buf)
        }
    }
}
