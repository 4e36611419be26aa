//! `narrows.journal`: what an interrupted pack has done, so that the next one goes on from there.
//!
//! It lives in the output directory while a pack is being written, and is replaced as a whole at each step.
//! A file that it lists as finished is durable; a source file that it lists as consumed is about to be, or has
//! been deleted.

use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::checkpoint::is_plain_name;
use crate::small::read_small_file;
use crate::{Bytes, Checksum, Error, PackedFile, WeightFiles, header};

pub(crate) const JOURNAL: &str = "narrows.journal";

const VERSION: u32 = 1;
/// Headers are the bulk of it: some 150 bytes a tensor.
const MAX_JOURNAL: Bytes = Bytes::mib(256);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal {
    version: u32,
    /// Names and headers of what is being written.
    pub(crate) plan: Checksum,
    /// The weight files and sidecars it is made from.
    pub(crate) source: Vec<Stamp>,
    /// Every file that the pack will have: what may be found in the directory, whole or partial.
    pub(crate) files: Vec<String>,
    pub(crate) finished: Vec<PackedFile>,
    /// Whether all finished files have been read back from disk.
    pub(crate) verified: bool,
    /// Weight files of the source that are no longer needed, and deleted.
    pub(crate) consumed: Vec<String>,
}

/// By what we notice that a file of the source is another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stamp {
    pub(crate) name: String,
    pub(crate) size: Bytes,
    /// Seconds and nanoseconds since 1970.
    modified: (u64, u32),
    /// The JSON header of a weight file, which outlives the file when the source is consumed.
    pub(crate) header: Option<String>,
}

impl Journal {
    /// The journal of a pack at its beginning.
    pub(crate) fn begin(source: &WeightFiles, plan: &Plan) -> Result<Self, Error> {
        let mut stamps = Vec::new();
        for file in source.files() {
            let header = header::read_json(&file.path, file.len.get())?;
            stamps.push(Stamp { header: Some(header), ..Stamp::of(source.dir(), &file.name())? });
        }
        for sidecar in &plan.sidecars {
            stamps.push(Stamp::of(source.dir(), &sidecar.name)?);
        }
        Ok(Self {
            version: VERSION,
            plan: plan.fingerprint,
            source: stamps,
            files: plan.files().map(|file| file.name().to_owned()).collect(),
            finished: Vec::new(),
            verified: true,
            consumed: Vec::new(),
        })
    }

    /// Reads the journal in `out`; `None` if there is none.
    pub(crate) fn read(out: &Path) -> Result<Option<Self>, Error> {
        let path = out.join(JOURNAL);
        let Some(bytes) = read_small_file(&path, MAX_JOURNAL)? else { return Ok(None) };
        let invalid = |problem: String| {
            Error::invalid(&path, problem)
                .with_hint("delete that directory and pack again, unless the source was being consumed")
        };
        let journal: Self =
            serde_json::from_slice(&bytes).map_err(|e| invalid(format!("damaged journal: {e}")))?;
        if journal.version != VERSION {
            return Err(invalid(format!("a journal of version {}, not {VERSION}", journal.version)));
        }
        let names = journal.source.iter().map(|stamp| &stamp.name).chain(&journal.files);
        match names.into_iter().find(|name| !is_plain_name(name)) {
            Some(name) => Err(invalid(format!("damaged journal: {name:?} is not a file name"))),
            None => Ok(Some(journal)),
        }
    }

    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|e| Error::invalid(path, format!("cannot be written as JSON: {e}")))
    }

    pub(crate) fn finished(&self, name: &str) -> Option<&PackedFile> {
        self.finished.iter().find(|file| file.name == name)
    }

    pub(crate) fn is_consumed(&self, name: &str) -> bool {
        self.consumed.iter().any(|consumed| consumed == name)
    }

    /// Why this journal is not that of packing `source` by `plan`, if it is not.
    pub(crate) fn mismatch(&self, source: &WeightFiles, plan: &Plan) -> Result<Option<String>, Error> {
        if self.plan != plan.fingerprint {
            return Ok(Some("an interrupted pack with other tensors or another layout".into()));
        }
        self.changed_source(source.dir())
    }

    /// Names a file of the source that is not what it was when this journal began.
    pub(crate) fn changed_source(&self, dir: &Path) -> Result<Option<String>, Error> {
        for stamp in &self.source {
            let path = dir.join(&stamp.name);
            if self.is_consumed(&stamp.name) && !path.exists() {
                continue;
            }
            if !path.exists()
                || (Stamp { header: stamp.header.clone(), ..Stamp::of(dir, &stamp.name)? }) != *stamp
            {
                let name = &stamp.name;
                return Ok(Some(format!("{name} of the source has changed since that pack was begun")));
            }
        }
        Ok(None)
    }
}

impl Stamp {
    pub(crate) fn of(dir: &Path, name: &str) -> Result<Self, Error> {
        let path = dir.join(name);
        let found = std::fs::metadata(&path).map_err(Error::io(&path, "look at it"))?;
        // A file system without times, or a file from before 1970, is told apart by its size alone.
        let modified =
            found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        let modified = (modified.as_secs(), modified.subsec_nanos());
        Ok(Self { name: name.into(), size: Bytes(found.len()), modified, header: None })
    }
}
