//! Everything that can go wrong between a model directory and its tensors.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Bytes, Checksum};

/// Why a checkpoint or pack could not be read or written. Each names the path and is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The model directory, its weights or one of their files is not there.
    #[error("{}: {problem}", path.display())]
    NotFound {
        /// What was looked for, or where.
        path: PathBuf,
        /// What is missing.
        problem: String,
        /// What may help.
        hint: Option<&'static str>,
    },

    /// The bytes are corrupt, or of a kind that we do not read.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What may help.
        hint: Option<&'static str>,
    },

    /// The operating system refused.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried, to follow "cannot": `read 4096 bytes at offset 8192`.
        action: String,
        /// The refusal.
        source: io::Error,
    },

    /// The disk is too full for the pack.
    #[error("{}: needs {needed} more on this disk, which has {available} free", path.display())]
    NoSpace {
        /// Where the pack was to go.
        path: PathBuf,
        /// What writing it takes, beside what is there already.
        needed: Bytes,
        /// What the file system has left for us.
        available: Bytes,
    },

    /// A file holds other bytes than were written to it.
    #[error("{}: damaged: checksum {found}, but {expected} was recorded when it was packed", path.display())]
    Checksum {
        /// The damaged file.
        path: PathBuf,
        /// The checksum in the manifest or journal.
        expected: Checksum,
        /// The checksum of the bytes there now.
        found: Checksum,
    },

    /// The output directory holds something that no pack put there.
    #[error("{}: not empty: holds {found:?}, which is no part of a pack", path.display())]
    OutputNotEmpty {
        /// The output directory.
        path: PathBuf,
        /// One of the foreign entries.
        found: String,
    },

    /// The output directory holds a pack, finished or begun, of something else.
    #[error("{}: holds a different pack: {problem}", path.display())]
    DifferentPack {
        /// The output directory.
        path: PathBuf,
        /// What differs.
        problem: String,
        /// Whether it may hold the only copy of something: it is finished, or has consumed files of its source.
        keep: bool,
    },

    /// A weight file is not what it was when the model was opened.
    #[error("{}: changed while in use, so what was computed meanwhile may be wrong", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },

    /// The caller asked to stop.
    #[error("{}: stopped", path.display())]
    Cancelled {
        /// The output directory.
        path: PathBuf,
    },

    /// The output directory is the source, inside it or around it.
    #[error("{}: cannot pack {} into a directory that overlaps it", out.display(), source_dir.display())]
    Overlap {
        /// The checkpoint.
        source_dir: PathBuf,
        /// The output directory.
        out: PathBuf,
    },

    /// Another process is packing into the same directory.
    #[error("{}: another narrows is packing into this directory", path.display())]
    Locked {
        /// The output directory.
        path: PathBuf,
    },
}

/// Whether the system refused to open one more file.
fn too_many_open(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error());
    #[cfg(not(unix))]
    {
        let _ = error;
        false
    }
}

impl Error {
    /// What to do about it, where there is something to do.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { hint, .. } | Self::Invalid { hint, .. } => *hint,
            Self::NoSpace { .. } => {
                Some("free some space, or let the source be consumed, which deletes it as the pack grows")
            }
            Self::Checksum { .. } => Some("the disk may be failing; pack the model again"),
            Self::OutputNotEmpty { .. } | Self::Overlap { .. } => Some("name a new directory for the pack"),
            Self::DifferentPack { keep: true, .. } => Some(
                "keep that directory, which may hold the only copy of what it was packed from; name a new one for the pack",
            ),
            Self::DifferentPack { keep: false, .. } => {
                Some("name a new directory for the pack; what was begun there has consumed nothing")
            }
            Self::Io { source, .. } if too_many_open(source) => Some(
                "this process may not open as many files as the model has: raise the limit (`ulimit -n`)",
            ),
            Self::Io { .. } | Self::Locked { .. } | Self::Changed { .. } | Self::Cancelled { .. } => None,
        }
    }

    pub(crate) fn invalid(path: &Path, problem: impl Into<String>) -> Self {
        Self::Invalid { path: path.to_owned(), problem: problem.into(), hint: None }
    }

    pub(crate) fn not_found(path: &Path, problem: impl Into<String>) -> Self {
        Self::NotFound { path: path.to_owned(), problem: problem.into(), hint: None }
    }

    pub(crate) fn with_hint(mut self, text: &'static str) -> Self {
        if let Self::NotFound { hint, .. } | Self::Invalid { hint, .. } = &mut self {
            *hint = Some(text);
        }
        self
    }

    /// For `map_err`: `File::open(path).map_err(Error::io(path, "open it"))`.
    pub(crate) fn io(path: &Path, action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { path: path.to_owned(), action: action.into(), source }
    }
}
