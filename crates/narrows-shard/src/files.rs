//! The weight files of a model, and every tensor in them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::checkpoint;
use crate::header::{self, FILLER_PREFIX, Header};
use crate::pack::Journal;
use crate::positional::PositionalFile;
use crate::small::{changed, open_file, require_file};
use crate::verify::verify_file;
use crate::{Bytes, Dtype, Encoding, Error, Manifest};

/// The safetensors files of a checkpoint or pack, and every tensor in them.
///
/// All headers have been read and checked: a tensor that it lists is a range of a file that was long enough
/// when it was opened.
#[derive(Debug)]
pub struct WeightFiles {
    dir: PathBuf,
    manifest: Option<Manifest>,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Tensor>,
}

/// One safetensors file.
#[derive(Clone, Debug)]
pub struct WeightFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub len: Bytes,
    /// Whether an interrupted pack has consumed it, so that only its header is left.
    consumed: bool,
    /// When it was changed last, as it was when it was opened.
    modified: Option<SystemTime>,
}

impl WeightFile {
    fn new(path: PathBuf, len: u64, consumed: bool) -> Self {
        let modified = if consumed { None } else { modified(&path) };
        Self { path, len: Bytes(len), consumed, modified }
    }

    /// Its name in the directory.
    #[must_use]
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// A tensor: what it is, and where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// The element type as safetensors names it; `U8` where weights are quantised.
    pub dtype: Dtype,
    /// How its weights are stored; `None` for a dtype that we do not compute with.
    pub encoding: Option<Encoding>,
    /// Its dimensions, outermost first; empty for a scalar. Those of the weights, also where they are quantised.
    pub shape: Vec<usize>,
    /// Index into [`WeightFiles::files`].
    pub file: usize,
    /// Its bytes, as offsets from the start of the file.
    pub range: Range<u64>,
}

impl Tensor {
    /// The size of its data.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes(self.range.end - self.range.start)
    }
}

impl WeightFiles {
    /// Opens the pack or checkpoint in `dir`.
    ///
    /// A pack is a directory with `narrows.json`, whose sidecars are compared with their checksums; a checkpoint has `model.safetensors` or else
    /// `model.safetensors.index.json` and the files that it names.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if there are no weights, [`Error::Invalid`] if any header, length or index is not
    /// as it should be, [`Error::Checksum`] if a sidecar of a pack has changed, [`Error::Io`] if something cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        match Manifest::read(dir)? {
            Some(manifest) => Self::open_pack(dir, manifest),
            None => Self::open_checkpoint(dir),
        }
    }

    fn open_pack(dir: &Path, manifest: Manifest) -> Result<Self, Error> {
        let mut weights = Self::empty(dir);
        for shard in &manifest.shards {
            let path = dir.join(&shard.name);
            let len = existing_file(&path, crate::MANIFEST)?;
            if Bytes(len) != shard.size {
                let size = shard.size.get();
                let problem = format!("the manifest says {size} bytes, but the file has {len}");
                return Err(Error::invalid(&path, problem));
            }
            let header = read_header(&path, len)?;
            if let Some((name, other)) =
                header.tensors.keys().find_map(|name| Some((name, weights.get(name)?)))
            {
                let other = weights.files[other.file].path.display();
                return Err(Error::invalid(&path, format!("holds the tensor {name:?}, as does {other}")));
            }
            weights.add(WeightFile::new(path, len, false), header);
        }
        for sidecar in &manifest.sidecars {
            verify_file(dir, sidecar, &mut |_| Ok(()))?;
        }
        weights.manifest = Some(manifest);
        Ok(weights)
    }

    fn open_checkpoint(dir: &Path) -> Result<Self, Error> {
        let found = checkpoint::find(dir)?;
        let mut weights = Self::empty(dir);
        for name in &found.files {
            let path = dir.join(name);
            let len = existing_file(&path, found.named_by)?;
            let header = read_header(&path, len)?;
            weights.add(WeightFile::new(path, len, false), header);
        }
        Ok(weights)
    }

    /// The checkpoint in `dir` as it was when `journal` began, though some of its files are gone.
    pub(crate) fn open_journaled(dir: &Path, journal: &Journal) -> Result<Self, Error> {
        let mut weights = Self::empty(dir);
        for stamp in &journal.source {
            // A sidecar has no header.
            let Some(json) = &stamp.header else { continue };
            let path = dir.join(&stamp.name);
            let header = header::parse_json(&path, json, stamp.size.get())?;
            let consumed = journal.is_consumed(&stamp.name);
            weights.add(WeightFile::new(path, stamp.size.get(), consumed), header);
        }
        Ok(weights)
    }

    fn empty(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), manifest: None, files: Vec::new(), tensors: BTreeMap::new() }
    }

    /// Adds a file. Of tensors with one name in several files the last counts, as in transformers, whatever an index says.
    fn add(&mut self, weight_file: WeightFile, header: Header) {
        let file = self.files.len();
        let tensors = header.tensors.into_iter().filter(|(name, _)| !name.starts_with(FILLER_PREFIX));
        self.tensors.extend(tensors.map(|(name, tensor)| (name, Tensor { file, ..tensor })));
        self.files.push(weight_file);
    }

    /// Lists a tensor as others, `parts` with their shapes, which lie in its bytes one after the other.
    ///
    /// For checkpoints that call a tensor by another name than the caller does, or keep several in one.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if there is no such tensor, if it is quantised or of a dtype that we do not compute with, if the
    /// parts are not all of it, or if there is a tensor with the name of a part.
    pub fn divide(&mut self, name: &str, parts: Vec<(String, Vec<usize>)>) -> Result<(), Error> {
        let Some(whole) = self.tensors.remove(name) else {
            return Err(Error::invalid(&self.dir, format!("there is no tensor {name:?}")));
        };
        let path = &self.files[whole.file].path;
        let misfit = || Error::invalid(path, format!("the tensor {name:?} cannot be divided into its parts"));
        if let Some((part, _)) = parts.iter().find(|(part, _)| self.tensors.contains_key(part)) {
            return Err(Error::invalid(
                path,
                format!("holds {name:?}, which is {part:?}, and that is there too"),
            ));
        }
        if let [(to, shape)] = &parts[..]
            && *shape == whole.shape
        {
            self.tensors.insert(to.clone(), whole);
            return Ok(());
        }
        let plain = whole.encoding.filter(|encoding| encoding.block().is_none()).ok_or_else(misfit)?;
        let mut start = whole.range.start;
        for (part, shape) in parts {
            let weights = shape.iter().try_fold(1_usize, |product, dim| product.checked_mul(*dim));
            let bytes = weights.and_then(|weights| plain.row_bytes(weights)).ok_or_else(misfit)?;
            let end =
                start.checked_add(bytes as u64).filter(|end| *end <= whole.range.end).ok_or_else(misfit)?;
            self.tensors.insert(part, Tensor { shape, range: start..end, ..whole.clone() });
            start = end;
        }
        if start == whole.range.end { Ok(()) } else { Err(misfit()) }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The manifest, if this is a pack.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The files, in the order of their names (checkpoint) or of the manifest (pack).
    #[must_use]
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Every tensor, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The size of all tensors together.
    #[must_use]
    pub fn total_bytes(&self) -> Bytes {
        self.tensors.values().map(Tensor::bytes).sum()
    }

    /// Whether all files are what they were when they were opened, by their sizes and times: who has read them since has
    /// then read one model.
    ///
    /// # Errors
    ///
    /// [`Error::Changed`] if one is not.
    pub fn unchanged(&self) -> Result<(), Error> {
        // A file that was deleted is still what an open file of it reads.
        let changed = |file: &&WeightFile| {
            let Ok(found) = std::fs::metadata(&file.path) else { return false };
            !file.consumed && (Bytes(found.len()) != file.len || modified(&file.path) != file.modified)
        };
        match self.files.iter().find(changed) {
            Some(file) => Err(Error::Changed { path: file.path.clone() }),
            None => Ok(()),
        }
    }

    /// What reads the files. Each is opened when something of it is read first.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if one cannot be looked at, [`Error::Invalid`] if its length is no longer what it was.
    pub fn reader(&self) -> Result<Reader, Error> {
        let look = |weight_file: &WeightFile| {
            let WeightFile { path, len, consumed, .. } = weight_file;
            if !consumed && Bytes(require_file(path)?) != *len {
                return Err(changed(path));
            }
            Ok(OpenFile { path: path.clone(), len: *len, gone: *consumed, file: OnceLock::new() })
        };
        let files = self.files.iter().map(look).collect::<Result<_, _>>()?;
        Ok(Reader { files })
    }
}

/// The files of a [`WeightFiles`], as far as they were needed open.
pub struct Reader {
    files: Vec<OpenFile>,
}

struct OpenFile {
    path: PathBuf,
    len: Bytes,
    gone: bool,
    file: OnceLock<PositionalFile>,
}

impl OpenFile {
    fn get(&self) -> Result<&PositionalFile, Error> {
        if self.gone {
            return Err(Error::not_found(&self.path, "consumed by a pack that is not finished"));
        }
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let (file, len) = open_file(&self.path)?;
        if Bytes(len) != self.len {
            return Err(changed(&self.path));
        }
        Ok(self.file.get_or_init(|| PositionalFile::new(file)))
    }
}

impl Reader {
    /// Fills `buf` with the bytes of `tensor` from `offset` on. It has no cursor, so many may read at once.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if that is not within the tensor, [`Error::Io`] if the bytes cannot be read.
    pub fn read(&self, tensor: &Tensor, offset: u64, buf: &mut [u8]) -> Result<(), Error> {
        let Some(opened) = self.files.get(tensor.file) else {
            return Err(Error::invalid(Path::new(""), format!("there is no weight file {}", tensor.file)));
        };
        let path = &opened.path;
        let len = buf.len() as u64;
        let size = tensor.range.end.saturating_sub(tensor.range.start);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            let problem = format!("read of {len} bytes at {offset} in a tensor of {size} bytes");
            return Err(Error::invalid(path, problem));
        }
        let file = opened.get()?;
        let start = tensor.range.start + offset;
        file.read_exact_at(buf, start)
            .map_err(|e| Error::io(path, format!("read {len} bytes at offset {start}"))(e))
    }

    /// Closes all files; what is read afterwards opens them again.
    pub fn release(&mut self) {
        for opened in &mut self.files {
            opened.file = OnceLock::new();
        }
    }
}

impl Reader {
    /// The file that holds `tensor`.
    pub(crate) fn path(&self, tensor: &Tensor) -> Option<&Path> {
        self.files.get(tensor.file).map(|opened| opened.path.as_path())
    }

    /// Closes a file, which after it is deleted is what gives its space back.
    pub(crate) fn close(&mut self, file: usize) {
        if let Some(opened) = self.files.get_mut(file) {
            opened.gone = true;
            opened.file = OnceLock::new();
        }
    }

    /// Asks the kernel to start reading this part of `tensor`.
    pub(crate) fn will_need(&self, tensor: &Tensor, offset: u64, len: u64) {
        // A hint: whoever reads says what is wrong.
        if let Some(Ok(file)) = self.files.get(tensor.file).map(OpenFile::get) {
            file.will_need(tensor.range.start + offset, len);
        }
    }
}

/// The length of a file that must be there because `named_by` says so.
fn existing_file(path: &Path, named_by: &str) -> Result<u64, Error> {
    match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::not_found(path, format!("missing, though {named_by} names it"))
                .with_hint("the download may be incomplete; download the model again"))
        }
        _ => require_file(path),
    }
}

/// When a file was changed last, where the system says.
fn modified(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).ok()?.modified().ok()
}

fn read_header(path: &Path, len: u64) -> Result<Header, Error> {
    header::parse_json(path, &header::read_json(path, len)?, len)
}
