//! Opening files that others made, and reading the small ones whole.
//!
//! A name in a model's directory may lead anywhere: to a pipe that waits for a writer, to a device without an end,
//! to a blob that was never downloaded. Every file beside the weights is read by [`read_small_file`].

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::{Bytes, Error};

/// What git leaves in the place of a file that it keeps elsewhere begins so.
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";

/// Reads a whole file beside the weights; `None` if there is no such name.
///
/// Only a regular file of at most `limit` bytes is read; its size is known before memory is taken for it. A link
/// that leads nowhere is an error: what should be there is missing.
///
/// # Errors
///
/// [`Error::Invalid`] if it is no regular file, is longer than `limit`, is a git-lfs pointer or changes while it is
/// read; [`Error::NotFound`] if it is a link that leads nowhere; [`Error::Io`] if it cannot be read.
pub fn read_small_file(path: &Path, limit: Bytes) -> Result<Option<Vec<u8>>, Error> {
    match path.symlink_metadata() {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        _ => {}
    }
    let (mut file, len) = open_file(path)?;
    if Bytes(len) > limit {
        let problem = format!("{} is too big for such a file (the limit is {limit})", Bytes(len));
        return Err(Error::invalid(path, problem));
    }
    let failed = |e| Error::io(path, "read it")(e);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len as usize).map_err(|e| failed(io::Error::other(e)))?;
    // A byte more than there should be tells a file that grows.
    let read = file.by_ref().take(len).read_to_end(&mut bytes).map_err(failed)?;
    if read as u64 != len || file.read(&mut [0]).map_err(failed)? != 0 {
        return Err(changed(path));
    }
    refuse_pointer(path, &bytes)?;
    Ok(Some(bytes))
}

/// Opens the regular file at `path` for reading. Its length, too.
pub(crate) fn open_file(path: &Path) -> Result<(File, u64), Error> {
    // Asked before opening, since opening some devices changes them; and of the open file, since the name may lead
    // elsewhere by then. A pipe opened without waiting is no file either.
    let len = require_file(path)?;
    let file = open_without_waiting(path).map_err(Error::io(path, "open it"))?;
    let found = file.metadata().map_err(Error::io(path, "look at it"))?;
    if !found.is_file() || found.len() != len {
        return Err(changed(path));
    }
    Ok((file, len))
}

/// The length of the regular file at `path`.
pub(crate) fn require_file(path: &Path) -> Result<u64, Error> {
    let found = fs::metadata(path).map_err(|e| match fs::read_link(path) {
        Ok(target) if e.kind() == io::ErrorKind::NotFound => dangling(path, &target),
        Ok(_) if is_link_loop(&e) => Error::invalid(path, "is a link that leads back to itself"),
        _ => Error::io(path, "open it")(e),
    })?;
    if found.is_file() {
        Ok(found.len())
    } else {
        let kind = if found.is_dir() { "a directory" } else { "something special" };
        Err(Error::invalid(path, format!("is {kind}, not a file")))
    }
}

#[cfg(unix)]
fn is_link_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

#[cfg(not(unix))]
fn is_link_loop(_: &io::Error) -> bool {
    false
}

/// Refuses what git-lfs leaves in the place of a file, given how it begins.
pub(crate) fn refuse_pointer(path: &Path, start: &[u8]) -> Result<(), Error> {
    if !start.starts_with(LFS_POINTER) {
        return Ok(());
    }
    Err(Error::invalid(path, "is a git-lfs pointer, not the file that it stands for")
        .with_hint("`git lfs pull` in the model's directory downloads what git-lfs pointers stand for"))
}

/// The error for a file that is not what it was when it was looked at first.
pub(crate) fn changed(path: &Path) -> Error {
    Error::invalid(path, "changed while in use")
}

fn dangling(path: &Path, target: &Path) -> Error {
    let in_cache = target.parent().and_then(Path::file_name).is_some_and(|dir| dir == "blobs");
    let what = if in_cache { "the blob" } else { "what" };
    let target = target.display();
    let problem = match in_cache {
        true => format!("{what} {target} of the Hugging Face cache, to which it links, is missing"),
        false => format!("{what} it links to, {target}, is missing"),
    };
    Error::not_found(path, problem).with_hint("the download may be incomplete; download the model again")
}

#[cfg(unix)]
fn open_without_waiting(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};

    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

#[cfg(not(unix))]
fn open_without_waiting(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Bytes = Bytes::mib(1);

    #[test]
    fn a_file_is_read_up_to_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert_eq!(read_small_file(&path, LIMIT).unwrap(), None);
        fs::write(&path, "{}").unwrap();
        assert_eq!(read_small_file(&path, Bytes(2)).unwrap().unwrap(), b"{}");
        let refused = read_small_file(&path, Bytes(1)).unwrap_err();
        assert!(matches!(&refused, Error::Invalid { .. }), "{refused}");
        assert!(refused.to_string().contains("too big"), "{refused}");
        fs::write(&path, "").unwrap();
        assert_eq!(read_small_file(&path, LIMIT).unwrap().unwrap(), b"");
        let refused = read_small_file(dir.path(), LIMIT).unwrap_err();
        assert!(refused.to_string().contains("is a directory, not a file"), "{refused}");
        // As where an optional file is asked for beside a model that is a file.
        assert_eq!(read_small_file(&path.join("config.json"), LIMIT).unwrap(), None);
    }

    #[test]
    fn a_git_lfs_pointer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokenizer.json");
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:4d4d\nsize 4\n").unwrap();
        let refused = read_small_file(&path, LIMIT).unwrap_err();
        assert!(refused.to_string().contains("git-lfs"), "{refused}");
        assert!(refused.hint().is_some_and(|hint| hint.contains("git lfs pull")));
    }

    #[cfg(unix)]
    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        use std::os::unix::fs::symlink;
        use std::os::unix::net::UnixListener;

        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, 0o600.into()).unwrap();
        let socket = dir.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let (zero, to_pipe) = (dir.path().join("zero"), dir.path().join("to-pipe"));
        symlink("/dev/zero", &zero).unwrap();
        symlink("pipe", &to_pipe).unwrap();
        for path in [&pipe, &socket, &zero, &to_pipe] {
            let refused = read_small_file(path, LIMIT).unwrap_err();
            assert!(refused.to_string().contains("is something special, not a file"), "{refused}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_says_what_is_missing() {
        use std::os::unix::fs::symlink;

        let dir = tempfile::tempdir().unwrap();
        let (blob, other) = (dir.path().join("config.json"), dir.path().join("tokenizer.json"));
        symlink("../../blobs/abc", &blob).unwrap();
        symlink("elsewhere", &other).unwrap();
        let (round, back) = (dir.path().join("round"), dir.path().join("back"));
        symlink("back", &round).unwrap();
        symlink("round", &back).unwrap();
        let refused = read_small_file(&round, LIMIT).unwrap_err();
        assert!(matches!(&refused, Error::Invalid { .. }), "{refused}");
        assert!(refused.to_string().contains("leads back to itself"), "{refused}");
        for (path, says) in [(&blob, "the blob ../../blobs/abc"), (&other, "it links to, elsewhere")] {
            let refused = read_small_file(path, LIMIT).unwrap_err();
            assert!(matches!(&refused, Error::NotFound { .. }), "{refused}");
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }
}
