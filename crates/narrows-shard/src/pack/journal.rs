//! `narrows.journal`: what an interrupted pack has done, so that the next one goes on from there.
//!
//! It lives in the output directory while a pack is being written, and is replaced as a whole at each step.
//! A file that it lists as finished is durable; a source file that it lists as consumed is about to be, or has
//! been deleted.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::plan::Plan;
use crate::checkpoint::is_plain_name;
use crate::checksum::Checksummer;
use crate::small::{open_file, read_small_file};
use crate::{Bytes, Checksum, Error, PackedFile, WeightFiles, header};

pub(crate) const JOURNAL: &str = "narrows.journal";

/// With a checksum behind it, and samples of the source.
const VERSION: u32 = 2;
/// Without; still resumed.
const VERSION_UNCHECKED: u32 = 1;
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
    /// Of version 1: whether all finished files have been read back from disk, which is now done when they are taken up.
    #[serde(default, rename = "verified", skip_serializing)]
    _verified: bool,
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
    /// The checksum of [`sample`], from version 2 on: what is compared where times differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sample: Option<Checksum>,
    /// The JSON header of a weight file, which outlives the file when the source is consumed.
    pub(crate) header: Option<String>,
}

impl Journal {
    /// The journal of a pack at its beginning.
    pub(crate) fn begin(source: &WeightFiles, plan: &Plan) -> Result<Self, Error> {
        let mut stamps = Vec::new();
        for file in source.files() {
            let header = header::read_json(&file.path, file.len.get())?;
            stamps.push(Stamp { header: Some(header), ..Stamp::sampled(source.dir(), &file.name())? });
        }
        for sidecar in &plan.sidecars {
            stamps.push(Stamp::sampled(source.dir(), &sidecar.name)?);
        }
        Ok(Self {
            version: VERSION,
            plan: plan.fingerprint,
            source: stamps,
            files: plan.files().map(|file| file.name().to_owned()).collect(),
            finished: Vec::new(),
            _verified: false,
            consumed: Vec::new(),
        })
    }

    /// Reads the journal in `out`; `None` if there is none.
    pub(crate) fn read(out: &Path) -> Result<Option<Self>, Error> {
        let path = out.join(JOURNAL);
        let Some(bytes) = read_small_file(&path, MAX_JOURNAL)? else { return Ok(None) };
        Self::parse(&path, &bytes).map(Some)
    }

    /// Reads a journal as it is written.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Error> {
        let invalid = |problem: String| {
            Error::invalid(path, problem).with_hint(
                "name a new directory for the pack; keep this one if the source was being consumed, since what it \
                 holds may be the only copy",
            )
        };
        // One line of JSON; from version 2 on its checksum on another.
        let end = bytes.iter().position(|byte| *byte == b'\n');
        let (json, checksum) = bytes.split_at(end.unwrap_or(bytes.len()));
        let journal: Self =
            serde_json::from_slice(json).map_err(|e| invalid(format!("damaged journal: {e}")))?;
        match journal.version {
            VERSION_UNCHECKED if checksum.is_empty() => {}
            VERSION if checksum == format!("\n{}\n", Checksum::of(json)).as_bytes() => {}
            VERSION | VERSION_UNCHECKED => {
                return Err(invalid("damaged journal: its checksum does not match".into()));
            }
            other => return Err(invalid(format!("a journal of version {other}, not {VERSION}"))),
        }
        let names = journal.source.iter().map(|stamp| &stamp.name).chain(&journal.files);
        match names.into_iter().find(|name| !is_plain_name(name)) {
            Some(name) => Err(invalid(format!("damaged journal: {name:?} is not a file name"))),
            None => Ok(journal),
        }
    }

    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, Error> {
        let mut bytes = serde_json::to_vec(self)
            .map_err(|e| Error::invalid(path, format!("cannot be written as JSON: {e}")))?;
        let checksum = Checksum::of(&bytes);
        bytes.extend_from_slice(format!("\n{checksum}\n").as_bytes());
        Ok(bytes)
    }

    pub(crate) fn finished(&self, name: &str) -> Option<&PackedFile> {
        self.finished.iter().find(|file| file.name == name)
    }

    pub(crate) fn is_consumed(&self, name: &str) -> bool {
        self.consumed.iter().any(|consumed| consumed == name)
    }

    /// The error for a source that is not this journal's.
    pub(crate) fn different(&self, out: &Path, problem: String) -> Error {
        Error::DifferentPack { path: out.to_owned(), problem, keep: !self.consumed.is_empty() }
    }

    /// Why this journal is not that of packing `source` by `plan`, if it is not.
    pub(crate) fn mismatch(&self, source: &WeightFiles, plan: &Plan) -> Result<Option<String>, Error> {
        if self.plan != plan.fingerprint {
            return Ok(Some("an interrupted pack with other tensors or another layout".into()));
        }
        self.changed_source(source.dir())
    }

    /// Names a file of the source that is not what it was when this journal began. A file that only has another time is
    /// not among them; what was taken from it already is still to be compared, see [`Journal::touched`].
    pub(crate) fn changed_source(&self, dir: &Path) -> Result<Option<String>, Error> {
        self.find_changed(dir, true)
    }

    /// As [`Journal::changed_source`], with other times as changes: for a source that is being read.
    pub(crate) fn changed_meanwhile(&self, dir: &Path) -> Result<Option<String>, Error> {
        self.find_changed(dir, false)
    }

    fn find_changed(&self, dir: &Path, times_may_differ: bool) -> Result<Option<String>, Error> {
        for stamp in &self.source {
            let path = dir.join(&stamp.name);
            if self.is_consumed(&stamp.name) && !path.exists() {
                continue;
            }
            let same = path.exists() && {
                let now = Stamp::of(dir, &stamp.name)?;
                now.size == stamp.size
                    && (now.modified == stamp.modified || times_may_differ && stamp.is_like(&path)?)
            };
            if !same {
                let name = &stamp.name;
                return Ok(Some(format!("{name} of the source has changed since that pack was begun")));
            }
        }
        Ok(None)
    }

    /// The files of the source that have another time than when this journal began.
    pub(crate) fn touched(&self, dir: &Path) -> Result<Vec<String>, Error> {
        let mut touched = Vec::new();
        for stamp in &self.source {
            let gone = self.is_consumed(&stamp.name) || !dir.join(&stamp.name).exists();
            if !gone && Stamp::of(dir, &stamp.name)?.modified != stamp.modified {
                touched.push(stamp.name.clone());
            }
        }
        Ok(touched)
    }

    /// Takes the times that the files of the source have now for theirs.
    pub(crate) fn accept_times(&mut self, dir: &Path) -> Result<(), Error> {
        for stamp in &mut self.source {
            if dir.join(&stamp.name).exists() {
                stamp.modified = Stamp::of(dir, &stamp.name)?.modified;
            }
        }
        Ok(())
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
        Ok(Self { name: name.into(), size: Bytes(found.len()), modified, sample: None, header: None })
    }

    /// With what is compared where times differ.
    fn sampled(dir: &Path, name: &str) -> Result<Self, Error> {
        let sample = Some(sample(&dir.join(name))?);
        Ok(Self { sample, ..Self::of(dir, name)? })
    }

    /// Whether the file at `path`, which has this stamp's size, begins and goes on as it did.
    fn is_like(&self, path: &Path) -> Result<bool, Error> {
        if let Some(json) = &self.header
            && header::read_json(path, self.size.get()).ok().as_ref() != Some(json)
        {
            return Ok(false);
        }
        // Version 1 has no sample; what was taken from the file is compared in full.
        Ok(match self.sample {
            Some(then) => sample(path)? == then,
            None => true,
        })
    }
}

/// The checksum of pieces spread over the file at `path`, or of all of it where it is small: other weights of the same
/// shape differ nearly everywhere.
fn sample(path: &Path) -> Result<Checksum, Error> {
    const PIECES: u64 = 64;
    const PIECE: u64 = 4096;
    let failed = |e| Error::io(path, "read it")(e);
    let (mut file, len) = open_file(path)?;
    let mut sum = Checksummer::new();
    let mut piece = Vec::with_capacity(PIECE as usize);
    // Whole where pieces would overlap; else the last piece ends where the file does.
    let starts: Vec<u64> = match len / PIECE {
        0..=PIECES => (0..len.div_ceil(PIECE)).map(|i| i * PIECE).collect(),
        _ => (0..PIECES).map(|i| ((len - PIECE) as f64 / (PIECES - 1) as f64 * i as f64) as u64).collect(),
    };
    for start in starts {
        piece.clear();
        file.seek(SeekFrom::Start(start)).map_err(failed)?;
        file.by_ref().take(PIECE).read_to_end(&mut piece).map_err(failed)?;
        sum.update(&piece);
    }
    Ok(sum.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        Journal {
            version: VERSION,
            plan: Checksum(7),
            source: vec![Stamp {
                name: "a.safetensors".into(),
                size: Bytes(9),
                modified: (1, 2),
                sample: Some(Checksum(5)),
                header: Some("{}".into()),
            }],
            files: vec!["b.safetensors".into()],
            finished: vec![PackedFile {
                name: "b.safetensors".into(),
                size: Bytes(3),
                xxh3_128: Checksum(1),
            }],
            _verified: false,
            consumed: Vec::new(),
        }
    }

    #[test]
    fn every_changed_bit_of_a_journal_is_found() {
        let path = Path::new(JOURNAL);
        let good = journal().to_bytes(path).unwrap();
        assert_eq!(Journal::parse(path, &good).unwrap(), journal());
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Journal::parse(path, &bytes).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(Journal::parse(path, &good[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn a_journal_of_the_first_version_is_read() {
        let text = r#"{"version":1,"plan":"00000000000000000000000000000007","source":[{"name":"a","size":9,"modified":[1,2],"header":null}],"files":["b"],"finished":[],"verified":true,"consumed":["a"]}"#;
        let journal = Journal::parse(Path::new(JOURNAL), text.as_bytes()).unwrap();
        assert!(journal.is_consumed("a") && journal.source[0].sample.is_none());
    }
}
