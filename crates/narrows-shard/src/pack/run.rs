//! One run of packing: from the journal that is there, or none, to the manifest.

use std::io;

use super::consume::{Consumable, consumables};
use super::copy::Copier;
use super::disk::Disk;
use super::journal::{JOURNAL, Journal};
use super::meter::{Meter, Progress, Step};
use super::out_dir::{OutDir, PARTIAL};
use super::plan::{Plan, PlannedFile};
use super::{PackReport, describe};
use crate::manifest::{FORMAT, VERSION_ENCODED, VERSION_VERBATIM};
use crate::small::changed;
use crate::verify::verify_file;
use crate::{Bytes, Checksum, Error, MANIFEST, Manifest, WeightFiles};

/// What one file takes of a file system beyond its bytes, at most.
const BLOCK: i128 = 4096;
/// Room for the directory, the manifest and what file systems keep to themselves.
const SLACK: Bytes = Bytes::mib(1);

pub(crate) struct Run<'a> {
    disk: &'a dyn Disk,
    source: &'a WeightFiles,
    plan: &'a Plan,
    out: &'a OutDir<'a>,
    journal: Journal,
    /// The weight files to delete on the way; none, unless the source is consumed.
    consumables: Vec<Consumable>,
    consume: bool,
    written: Bytes,
    resumed: Bytes,
}

impl<'a> Run<'a> {
    /// Takes up the journal in `out`, or begins one.
    pub(crate) fn new(
        disk: &'a dyn Disk,
        source: &'a WeightFiles,
        plan: &'a Plan,
        out: &'a OutDir<'a>,
        consume: bool,
    ) -> Result<Self, Error> {
        let journal = match Journal::read(out.dir())? {
            Some(journal) => journal,
            None => Journal::begin(source, plan)?,
        };
        if let Some(problem) = journal.mismatch(source, plan)? {
            return Err(journal.different(out.dir(), problem));
        }
        let consumables = if consume { consumables(source, plan, out.dir())? } else { Vec::new() };
        let resumed = journal.finished.iter().map(|file| file.size).sum();
        Ok(Self { disk, source, plan, out, journal, consumables, consume, written: Bytes(0), resumed })
    }

    /// Does what is left to do.
    pub(crate) fn finish(
        mut self,
        copier: &mut Copier<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<PackReport, Error> {
        match self.write_all(copier, progress) {
            Ok(manifest) => {
                let (written, resumed) = (self.written, self.resumed);
                Ok(PackReport { manifest, written, resumed, already_packed: false })
            }
            Err(Error::Io { source, .. }) if is_full(&source) => Err(Error::NoSpace {
                path: self.out.dir().to_owned(),
                needed: self.space_needed(),
                available: self.disk.available(self.out.dir()).ok().flatten().unwrap_or_default(),
            }),
            Err(e) => Err(e),
        }
    }

    fn write_all(
        &mut self,
        copier: &mut Copier<'_>,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Manifest, Error> {
        let (plan, out) = (self.plan, self.out);
        for name in plan.files().map(PlannedFile::name).chain([JOURNAL, MANIFEST]) {
            out.remove(&format!("{name}{PARTIAL}"))?;
        }
        self.check_space()?;
        let bytes: Bytes = plan.files().map(PlannedFile::size).sum();
        let mut meter = Meter::new(progress, if self.consume { bytes + bytes } else { bytes });
        self.check_finished(&mut meter)?;
        self.check_touched(copier)?;
        self.write_journal()?;

        for file in plan.files() {
            if self.journal.finished(file.name()).is_some() {
                if self.consume {
                    meter.add(Step::Writing, file.name(), file.size().get());
                }
            } else {
                self.write_file(file, copier, &mut meter)?;
            }
            self.consume_after(file.name(), copier)?;
        }
        self.write_manifest()
    }

    /// Checks what earlier runs have finished. A file that is not as it was is an error, and redone next time.
    fn check_finished(&mut self, meter: &mut Meter<'_>) -> Result<(), Error> {
        for i in 0..self.journal.finished.len() {
            let file = &self.journal.finished[i];
            let checked = verify_file(self.out.dir(), file, &mut |len| {
                meter.add(Step::Verifying, &file.name, len);
                self.disk.go_on()
            });
            if matches!(checked, Err(Error::Cancelled { .. })) {
                return checked;
            }
            // Unless its source may be gone: then somebody has to look at it.
            if checked.is_err() && self.journal.consumed.is_empty() {
                self.journal.finished.remove(i);
                self.write_journal()?;
            }
            checked?;
        }
        Ok(())
    }

    /// Compares what was taken from files of the source that have another time now, and takes that for theirs.
    fn check_touched(&mut self, copier: &mut Copier<'_>) -> Result<(), Error> {
        let touched = self.journal.touched(self.source.dir())?;
        let is_touched = |file: usize| touched.contains(&self.source.files()[file].name());
        let finished = |file: &PlannedFile<'_>| self.journal.finished(file.name()).is_some();
        for file in self.plan.files().filter(|file| !touched.is_empty() && finished(file)) {
            if !copier.made(file, &self.out.path(file.name()), &is_touched)? {
                let problem = format!("{} was made from other bytes than the source has now", file.name());
                return Err(self.journal.different(self.out.dir(), problem));
            }
        }
        self.journal.accept_times(self.source.dir())
    }

    fn write_file(
        &mut self,
        file: PlannedFile<'_>,
        copier: &mut Copier<'_>,
        meter: &mut Meter<'_>,
    ) -> Result<(), Error> {
        let name = file.name();
        let packed = self.out.write_file(name, |writer| {
            copier.stream(file, &mut |bytes| {
                writer.write(bytes)?;
                meter.add(Step::Writing, name, bytes.len() as u64);
                Ok(())
            })
        })?;
        if packed.size != file.size() {
            return Err(changed(&self.source.dir().join(name)));
        }
        if self.consume {
            verify_file(self.out.dir(), &packed, &mut |len| {
                meter.add(Step::Verifying, name, len);
                self.disk.go_on()
            })?;
        }
        self.written += packed.size;
        self.journal.finished.push(packed);
        self.write_journal()
    }

    /// Deletes the weight files of the source that nothing needs once `written` is finished.
    fn consume_after(&mut self, written: &str, copier: &mut Copier<'_>) -> Result<(), Error> {
        let (ready, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.consumables).into_iter().partition(|file| file.last_shard == written);
        self.consumables = later;
        if ready.is_empty() {
            return Ok(());
        }
        self.refuse_changed_source()?;
        for file in &ready {
            if !self.journal.is_consumed(&file.name) {
                self.journal.consumed.push(file.name.clone());
            }
        }
        self.write_journal()?;
        for file in &ready {
            copier.close(file.file);
            file.delete(self.disk)?;
        }
        Ok(())
    }

    fn write_manifest(&mut self) -> Result<Manifest, Error> {
        self.refuse_changed_source()?;
        let path = self.out.path(MANIFEST);
        let finished = |file: PlannedFile<'_>| self.journal.finished(file.name()).cloned();
        let mut manifest = Manifest {
            format: FORMAT.into(),
            version: if self.plan.encoded { VERSION_ENCODED } else { VERSION_VERBATIM },
            source: describe(self.source),
            architecture: self.plan.architecture.clone(),
            shards: self.plan.shards.iter().map(PlannedFile::Shard).filter_map(finished).collect(),
            sidecars: self.plan.sidecars.iter().map(PlannedFile::Sidecar).filter_map(finished).collect(),
            checksum: Checksum(0),
        };
        manifest.checksum = manifest.own_checksum(&path)?;
        let bytes = manifest.to_bytes(&path)?;
        self.out.write_file(MANIFEST, |writer| writer.write(&bytes))?;
        self.out.remove(JOURNAL)?;
        self.out.sync()?;
        Ok(manifest)
    }

    fn write_journal(&self) -> Result<(), Error> {
        let bytes = self.journal.to_bytes(&self.out.path(JOURNAL))?;
        self.out.write_file(JOURNAL, |writer| writer.write(&bytes)).map(|_| ())
    }

    fn refuse_changed_source(&self) -> Result<(), Error> {
        match self.journal.changed_meanwhile(self.source.dir())? {
            None => Ok(()),
            Some(problem) => Err(self.journal.different(self.out.dir(), problem)),
        }
    }

    fn check_space(&self) -> Result<(), Error> {
        let dir = self.out.dir();
        let available = self.disk.available(dir).map_err(Error::io(dir, "ask how much space is left"))?;
        let needed = self.space_needed();
        match available {
            Some(available) if available < needed => {
                Err(Error::NoSpace { path: dir.to_owned(), needed, available })
            }
            _ => Ok(()),
        }
    }

    /// The most that this run will take at any one moment, beyond what the pack takes already.
    fn space_needed(&self) -> Bytes {
        let (mut taken, mut peak) = (0i128, 0i128);
        for file in self.plan.files() {
            if self.journal.finished(file.name()).is_none() {
                taken += i128::from(file.size().get()) + BLOCK;
            }
            peak = peak.max(taken);
            let freed = self.consumables.iter().filter(|consumable| consumable.last_shard == file.name());
            taken -= freed.map(|consumable| i128::from(consumable.frees.get())).sum::<i128>();
        }
        // The journal is there twice while it is replaced.
        let headers: usize =
            self.journal.source.iter().filter_map(|stamp| stamp.header.as_deref().map(str::len)).sum();
        Bytes(u64::try_from(peak).unwrap_or(u64::MAX)) + SLACK + Bytes(4 * headers as u64)
    }
}

fn is_full(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
