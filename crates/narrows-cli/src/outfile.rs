//! Files that the program writes: there when complete, and not before.
//!
//! A result is written to a file without a name, which gets its name at the end; where the system has no such files, to
//! one with a name of its own that is deleted on every way out. What is there already is replaced if it is a file, through
//! symbolic links, and written into if it is a pipe or a device. Permissions are those of any new file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use narrows_shard::Cancel;

use crate::failure::{Failure, Result};

/// What is to be deleted where the program ends before it is complete.
static UNFINISHED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// The pack that is being written, which knows its files itself.
static PACK: OnceLock<Cancel> = OnceLock::new();

/// Where the system shows this process its open files.
#[cfg(target_os = "linux")]
const OPEN_FILES: &str = "/proc/self/fd";

/// Links that a path may pass, as in Linux.
const MOST_LINKS: usize = 40;

/// Deletes what is unfinished, before the program ends in the middle of its work.
pub(crate) fn discard_unfinished() {
    if let Some(pack) = PACK.get() {
        pack.discard();
    }
    let mut unfinished = UNFINISHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for path in unfinished.drain(..).rev() {
        // A directory that was made for the files in it, or a file.
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }
}

/// What a pack is given up with, also where the program ends in the middle of it: one in the life of the program.
pub(crate) fn pack_until(flag: Arc<std::sync::atomic::AtomicBool>) -> &'static Cancel {
    PACK.get_or_init(|| Cancel::on(flag))
}

/// Something that is deleted unless it is kept.
pub(crate) struct Unfinished(PathBuf);

impl Unfinished {
    pub(crate) fn new(path: &Path) -> Self {
        let path = path.to_owned();
        UNFINISHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(path.clone());
        Self(path)
    }

    fn forget(&self) {
        UNFINISHED.lock().unwrap_or_else(std::sync::PoisonError::into_inner).retain(|path| *path != self.0);
    }

    /// It is complete.
    pub(crate) fn keep(self) {
        self.forget();
        std::mem::forget(self);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.forget();
        let _ = fs::remove_file(&self.0).or_else(|_| fs::remove_dir(&self.0));
    }
}

/// A file that is being written.
pub(crate) struct OutFile {
    file: File,
    place: Place,
}

enum Place {
    /// A pipe or a device: what is written is out.
    Stream,
    /// To get this name, which is no link.
    Nameless(PathBuf),
    /// To be renamed to the latter.
    Named(Unfinished, PathBuf),
}

impl OutFile {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Self::open(path, nameless).map_err(|source| Failure::File { path: path.to_owned(), source })
    }

    /// Opens it, with `nameless` for a file without a name where there are such.
    fn open(path: &Path, nameless: fn(&Path) -> io::Result<Option<File>>) -> io::Result<Self> {
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if is_block_device(&found) => {
                return Err(io::Error::other("is a disk, which a file would overwrite"));
            }
            Ok(found) if !found.is_file() => {
                let file = File::options().write(true).open(path)?;
                return Ok(Self { file, place: Place::Stream });
            }
            _ => {}
        }
        let target = behind_links(path)?;
        let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Ok(found) = fs::metadata(&target)
            && found.permissions().readonly()
        {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        if let Some(file) = nameless(dir)? {
            return Ok(Self { file, place: Place::Nameless(target) });
        }
        let (file, name) = named(dir)?;
        Ok(Self { file, place: Place::Named(name, target) })
    }

    /// Gives the file its name, once all is written.
    pub(crate) fn finish(self) -> io::Result<()> {
        match self.place {
            Place::Stream => Ok(()),
            Place::Nameless(target) => give_name(&self.file, &target),
            Place::Named(name, target) => {
                keep_permissions(&self.file, &target)?;
                fs::rename(&name.0, &target)?;
                name.keep();
                Ok(())
            }
        }
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes all of a file at once.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |source| Failure::File { path: path.to_owned(), source };
    let mut file = OutFile::create(path)?;
    file.write_all(bytes).and_then(|()| file.finish()).map_err(failed)
}

/// Refuses an output in the place of a file that is read: replaced, it is lost.
pub(crate) fn refuse_in_place_of(path: &Path, inputs: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    let Ok(target) = fs::canonicalize(path) else { return Ok(()) };
    match inputs.into_iter().any(|input| fs::canonicalize(input).is_ok_and(|input| input == target)) {
        true => {
            let what = "is one of the files that are read, and would be replaced".to_owned();
            Err(Failure::Input { path: path.to_owned(), what })
        }
        false => Ok(()),
    }
}

/// The files of a directory.
pub(crate) fn files_of(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// The file that `path` names, whether or not there is one, behind all symbolic links.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) if path.file_name().is_none() => return Err(io::ErrorKind::IsADirectory.into()),
            Err(_) => return Ok(path),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// A file that there is already keeps its permissions.
fn keep_permissions(file: &File, target: &Path) -> io::Result<()> {
    match fs::metadata(target) {
        Ok(found) => file.set_permissions(found.permissions()),
        Err(_) => Ok(()),
    }
}

/// A new file of a name that nothing has.
fn named(dir: &Path) -> io::Result<(File, Unfinished)> {
    for n in 0_u32.. {
        let path = dir.join(format!(".narrows-{}-{n}.tmp", std::process::id()));
        match File::options().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, Unfinished::new(&path))),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// A file without a name; `None` where the file system has none.
#[cfg(target_os = "linux")]
fn nameless(dir: &Path) -> io::Result<Option<File>> {
    use rustix::fs::{Mode, OFlags};
    use rustix::io::Errno;

    // It would not get a name where there is no /proc to name it by.
    if !Path::new(OPEN_FILES).exists() {
        return Ok(None);
    }
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::from_raw_mode(0o666)) {
        Ok(file) => Ok(Some(File::from(file))),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn nameless(_: &Path) -> io::Result<Option<File>> {
    Ok(None)
}

/// Names a nameless file, in place of what has the name.
#[cfg(target_os = "linux")]
fn give_name(file: &File, target: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    use rustix::fs::{AtFlags, CWD, linkat};
    use rustix::io::Errno;

    keep_permissions(file, target)?;
    let open = format!("{OPEN_FILES}/{}", file.as_raw_fd());
    let link = |to: &Path| linkat(CWD, &open, CWD, to, AtFlags::SYMLINK_FOLLOW);
    match link(target) {
        Err(Errno::EXIST) => {}
        result => return Ok(result?),
    }
    // A link replaces nothing, a rename does.
    let dir = target.parent().unwrap_or(Path::new(""));
    for n in 0_u32.. {
        let name = Unfinished::new(&dir.join(format!(".narrows-{}-{n}.tmp", std::process::id())));
        match link(&name.0) {
            Ok(()) => {
                fs::rename(&name.0, target)?;
                name.keep();
                return Ok(());
            }
            // Somebody else's.
            Err(Errno::EXIST) => name.keep(),
            Err(e) => return Err(e.into()),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

#[cfg(not(target_os = "linux"))]
fn give_name(_: &File, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(unix)]
fn is_block_device(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    found.file_type().is_block_device()
}

#[cfg(not(unix))]
fn is_block_device(_: &fs::Metadata) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As where the file system has no files without a name.
    #[allow(clippy::unnecessary_wraps, reason = "in the place of a function that may fail")]
    fn none(_: &Path) -> io::Result<Option<File>> {
        Ok(None)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Without files that have no name a file has another until it is complete, beside its place; given up, it is gone.
    #[test]
    fn a_file_has_another_name_until_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("result");
        let other = format!(".narrows-{}-0.tmp", std::process::id());
        let write = |text: &str| {
            let mut file = OutFile::open(&path, none).unwrap();
            assert!(names(dir.path()).contains(&other));
            file.write_all(text.as_bytes()).unwrap();
            file
        };
        drop(write("given up"));
        assert!(names(dir.path()).is_empty());
        write("first").finish().unwrap();
        let second = write("second");
        assert_eq!(fs::read_to_string(&path).unwrap(), "first");
        second.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(names(dir.path()), ["result"]);

        // A name that is there already is another process's of before, and is left alone.
        fs::write(dir.path().join(&other), "of another").unwrap();
        write("third").finish().unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(&other)).unwrap(), "of another");
        assert_eq!(names(dir.path()).len(), 2);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_keeps_permissions_and_links_whatever_it_is_called_meanwhile() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};

        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        for make in [none as fn(&Path) -> _, nameless] {
            fs::write(&file, "old").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
            let _ = fs::remove_file(&link);
            symlink("file", &link).unwrap();
            let mut out = OutFile::open(&link, make).unwrap();
            out.write_all(b"new").unwrap();
            out.finish().unwrap();
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&file).unwrap(), "new");
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
            assert_eq!(names(dir.path()).len(), 2);
        }
    }
}
