//! A disk that fails at a chosen step, and forgets what was not made durable.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::pack::disk::{Disk, RealDisk};
use crate::{Bytes, Error, Reader, Tensor};

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// The process is killed: nothing further happens, and what was written stays.
    Kill,
    /// The power goes: files that were not synced lose their contents.
    PowerCut,
    /// The power goes: besides, names changed since the directory was synced are as they were.
    PowerCutLosingNames,
    /// This step alone fails.
    Fail,
    /// From this step on the disk has no room.
    Full,
}

pub(super) struct FaultyDisk {
    fault: Fault,
    at: usize,
    /// Keeps what was deleted or replaced, since a power cut may bring it back.
    attic: PathBuf,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    steps: usize,
    dead: bool,
    unsynced: Vec<PathBuf>,
    undo: Vec<Undo>,
    kept: usize,
}

/// How a change of names is taken back.
enum Undo {
    Created(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, replaced: Option<PathBuf> },
    Removed { path: PathBuf, kept: PathBuf },
}

impl Undo {
    fn path(&self) -> &Path {
        match self {
            Self::Created(path) | Self::Renamed { to: path, .. } | Self::Removed { path, .. } => path,
        }
    }
}

impl FaultyDisk {
    pub(super) fn new(attic: &Path, fault: Fault, at: usize) -> Self {
        Self { fault, at, attic: attic.to_owned(), state: RefCell::default() }
    }

    pub(super) fn steps(&self) -> usize {
        self.state.borrow().steps
    }

    /// Leaves the files as they are found after the fault.
    pub(super) fn settle(self) {
        let state = self.state.into_inner();
        if !matches!(self.fault, Fault::PowerCut | Fault::PowerCutLosingNames) {
            return;
        }
        for path in state.unsynced {
            if let Ok(bytes) = fs::read(&path) {
                fs::write(&path, vec![0xEE; bytes.len() / 2]).unwrap();
            }
        }
        if self.fault == Fault::PowerCutLosingNames {
            for undo in state.undo.into_iter().rev() {
                match undo {
                    Undo::Created(path) if path.is_dir() => fs::remove_dir_all(path).unwrap(),
                    Undo::Created(path) => drop(fs::remove_file(path)),
                    Undo::Removed { path, kept } => fs::rename(kept, path).unwrap(),
                    Undo::Renamed { from, to, replaced } => {
                        fs::rename(&to, from).unwrap();
                        if let Some(replaced) = replaced {
                            fs::rename(replaced, to).unwrap();
                        }
                    }
                }
            }
        }
    }

    fn step(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.steps += 1;
        let now = state.steps == self.at;
        match self.fault {
            Fault::Fail if now => Err(io::Error::other("injected")),
            Fault::Kill | Fault::PowerCut | Fault::PowerCutLosingNames if now || state.dead => {
                state.dead = true;
                Err(io::Error::other("dead"))
            }
            _ => Ok(()),
        }
    }

    /// A step that takes space.
    fn growing_step(&self) -> io::Result<()> {
        self.step()?;
        if self.fault == Fault::Full && self.steps() >= self.at {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn keep(&self) -> PathBuf {
        let mut state = self.state.borrow_mut();
        state.kept += 1;
        self.attic.join(state.kept.to_string())
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.growing_step()?;
        RealDisk.create_dir(path)?;
        self.state.borrow_mut().undo.push(Undo::Created(path.into()));
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.growing_step()?;
        let is_new = !path.exists();
        let file = RealDisk.create(path)?;
        let mut state = self.state.borrow_mut();
        state.unsynced.push(path.into());
        if is_new {
            state.undo.push(Undo::Created(path.into()));
        }
        Ok(file)
    }

    fn open_lock(&self, path: &Path) -> io::Result<File> {
        self.growing_step()?;
        let is_new = !path.exists();
        let file = RealDisk.open_lock(path)?;
        if is_new {
            self.state.borrow_mut().undo.push(Undo::Created(path.into()));
        }
        Ok(file)
    }

    fn write(&self, path: &Path, mut file: &File, bytes: &[u8]) -> io::Result<()> {
        let step = self.growing_step();
        if step.is_err() {
            // A write that fails may have done some of it.
            file.write_all(&bytes[..bytes.len() / 2])?;
        }
        step.and_then(|()| RealDisk.write(path, file, bytes))
    }

    fn sync(&self, path: &Path, _: &File) -> io::Result<()> {
        self.step()?;
        self.state.borrow_mut().unsynced.retain(|unsynced| unsynced != path);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        let replaced = to.exists().then(|| self.keep());
        if let Some(kept) = &replaced {
            fs::hard_link(to, kept)?;
        }
        RealDisk.rename(from, to)?;
        let mut state = self.state.borrow_mut();
        state.unsynced.iter_mut().filter(|path| *path == from).for_each(|path| *path = to.into());
        state.undo.push(Undo::Renamed { from: from.into(), to: to.into(), replaced });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.step()?;
        self.state.borrow_mut().undo.retain(|undo| undo.path().parent() != Some(dir));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step()?;
        let kept = self.keep();
        fs::rename(path, &kept)?;
        self.state.borrow_mut().undo.push(Undo::Removed { path: path.into(), kept });
        Ok(())
    }

    fn read(&self, reader: &Reader, tensor: &Tensor, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        self.step().map_err(Error::io(Path::new("source"), "read it"))?;
        RealDisk.read(reader, tensor, offset, buf)
    }

    fn available(&self, _: &Path) -> io::Result<Option<Bytes>> {
        self.step()?;
        Ok(Some(Bytes::mib(64)))
    }
}
