//! A model directory, opened: every weight of its architecture found and checked, nothing loaded yet.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use narrows_model::{Op, Part, Program, Role, WeightId, WeightSpec};
use narrows_shard::{Bytes, Dtype, Encoding, Layout, Reader, ShardLayout, Tensor, WeightFiles};

use crate::error::{Error, Result};
use crate::json;
use crate::made::{self, Made};
use crate::names;
use crate::quantisation::Quantisation;
use crate::synth::Synth;
use crate::text::Text;

/// Files beside the weights that belong to a model, copied into a pack: all that this crate reads, and some for others.
const SIDECARS: [&str; 16] = [
    "LICENSE",
    "LICENSE.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "qwen.tiktoken",
    "special_tokens_map.json",
    "tiktoken.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// A checkpoint or a pack whose weights are those of its architecture; or the description of one, which can be planned
/// with like any other.
#[derive(Debug)]
pub struct Model {
    source: Source,
    program: Arc<Program>,
    /// In the order of the program's, without a head that is the embedding table.
    weights: Vec<Located>,
    /// What a tokenizer takes, once it was asked for.
    text_memory: OnceLock<Bytes>,
}

/// Where the weights are.
#[derive(Debug)]
enum Source {
    /// In files.
    Files(Box<WeightFiles>),
    /// Nowhere: described only.
    Described(PathBuf),
    /// Made in memory when they are first asked for.
    Made { name: PathBuf, layout: made::Layout, made: OnceLock<Arc<Made>> },
}

/// What reads weights, a piece at a time.
pub(crate) enum WeightReader {
    Files(Reader),
    Made(Arc<Made>),
}

impl WeightReader {
    /// Fills `buf` with the bytes of `tensor` from `offset` on.
    pub(crate) fn read(&self, tensor: &Tensor, offset: u64, buf: &mut [u8]) -> Result<()> {
        match self {
            Self::Files(reader) => Ok(reader.read(tensor, offset, buf)?),
            Self::Made(made) => made.read(tensor.file, tensor.range.start + offset, buf),
        }
    }

    /// Closes its files until they are read again.
    pub(crate) fn release(&mut self) {
        if let Self::Files(reader) = self {
            reader.release();
        }
    }
}

/// A weight and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) spec: WeightSpec,
    pub(crate) tensor: Tensor,
    pub(crate) encoding: Encoding,
}

impl Located {
    fn bytes_as(&self, quantisation: &Quantisation) -> Bytes {
        quantisation.bytes(self.spec.role, &self.tensor.shape, self.tensor.bytes())
    }
}

impl Model {
    /// What names, shapes and places of weights take in memory at most, with what is made of them: of a mixture with tens
    /// of thousands of matrices tens of MiB. What they take of an ordinary model is part of the program's own.
    pub(crate) fn table_bytes(&self) -> Bytes {
        // Measured with 1,600 to 37,000 tensors, while headers are parsed: a header's text, its tables, the weights found
        // in it, the tiles of the plan and what reads them.
        const EACH: usize = 1100;
        const OF_A_NAME: usize = 4;
        const ORDINARY: Bytes = Bytes::mib(1);
        let bytes: usize = self.weights.iter().map(|weight| EACH + OF_A_NAME * weight.spec.name.len()).sum();
        Bytes(bytes as u64).saturating_sub(ORDINARY)
    }

    /// What the tokenizer beside the weights takes once it is read: [`Text::memory_of`], which walks over a file of many
    /// MiB, once for all plans.
    pub(crate) fn text_memory(&self) -> Result<Bytes> {
        if let Some(bytes) = self.text_memory.get() {
            return Ok(*bytes);
        }
        let bytes = if self.is_made() { Bytes(0) } else { Text::memory_of(self.dir())? };
        Ok(*self.text_memory.get_or_init(|| bytes))
    }

    /// Files beside the weights that belong to a model: a pack has those of them that its manifest lists, and no others
    /// are read from its directory.
    pub const SIDECARS: &'static [&'static str] = &SIDECARS;

    /// Opens a Hugging Face checkpoint directory or a pack and checks every tensor against the config.
    ///
    /// # Errors
    /// Something is missing, malformed, contradictory or not supported; the message names file and item.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir.as_ref(), WeightFiles::open)
    }

    /// Opens a model in order to pack it into `out`: a source that an interrupted pack with
    /// `--consume-source` has already freed in part still opens.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_for_pack(dir: &Path, out: &Path) -> Result<Self> {
        Self::open_with(dir, |dir| narrows_shard::open_source(dir, out))
    }

    fn open_with(
        dir: &Path,
        open: impl FnOnce(&Path) -> std::result::Result<WeightFiles, narrows_shard::Error>,
    ) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::Missing { path: dir.to_owned(), what: "no such model directory".to_owned() });
        }
        // The config first: what is not supported is refused by name, whatever the weights are.
        let program = read_program(dir)?;
        let mut files = open(dir)?;
        names::adopt(&program, &mut files)?;
        let mut weights = Vec::new();
        for (id, spec) in program.weights.iter().enumerate() {
            weights.extend(locate(&program, &files, WeightId(id), spec)?);
        }
        let known: HashSet<&str> = weights.iter().map(|located| located.spec.name.as_str()).collect();
        let skipped = |name: &str| program.skipped.iter().any(|beginning| name.starts_with(beginning));
        let unknown = files
            .tensors()
            .find(|(name, tensor)| !known.contains(name) && !skipped(name) && !means_nothing(name, tensor));
        if let Some((name, tensor)) = unknown {
            return Err(Error::unsupported(
                &files.files()[tensor.file].path,
                format!("tensor {name} in a {} model as its config describes it", program.dims.family),
            ));
        }
        Ok(Self {
            source: Source::Files(Box::new(files)),
            program: Arc::new(program),
            weights,
            text_memory: OnceLock::new(),
        })
    }

    /// A model of a well-known shape, packed as `quantisation` says, without files: its weights are random, and made in
    /// memory when somebody reads them.
    ///
    /// # Errors
    /// A weight is too large for this machine to number its bytes, or cannot be stored so.
    pub fn of_shape(name: &str, synth: &Synth, quantisation: &Quantisation) -> Result<Self> {
        let program = synth.program();
        let mut layout = made::Layout::default();
        let locate = |spec: &WeightSpec| {
            let encoding = quantisation.of(spec.role).unwrap_or(Encoding::Bf16);
            let tensor = layout.add(spec, encoding)?;
            Ok(Located { spec: spec.clone(), tensor, encoding })
        };
        let weights = program.weights.iter().map(locate).collect::<Result<_>>()?;
        let source = Source::Made { name: PathBuf::from(name), layout, made: OnceLock::new() };
        Ok(Self { source, program, weights, text_memory: OnceLock::new() })
    }

    /// What a pack of this model would be: a description to plan with, of which nothing can be read. What is quantised
    /// already stays as it is.
    ///
    /// # Errors
    /// A weight is too large for this machine to number its bytes.
    pub fn packed_as(&self, quantisation: &Quantisation) -> Result<Self> {
        let mut layout = made::Layout::default();
        let pack = |located: &Located| {
            let Located { spec, tensor, encoding } = located;
            let to = quantisation.of(spec.role).filter(|_| encoding.block().is_none());
            let encoding = to.unwrap_or(*encoding);
            let described = layout.add(spec, encoding)?;
            let dtype = if to.is_some() { described.dtype } else { tensor.dtype };
            Ok(Located { spec: spec.clone(), tensor: Tensor { dtype, ..described }, encoding })
        };
        let weights = self.weights.iter().map(pack).collect::<Result<_>>()?;
        let source = Source::Described(self.dir().to_owned());
        Ok(Self { source, program: Arc::clone(&self.program), weights, text_memory: OnceLock::new() })
    }

    /// The directory; the name of a shape that has none.
    #[must_use]
    pub fn dir(&self) -> &Path {
        match &self.source {
            Source::Files(files) => files.dir(),
            Source::Described(name) | Source::Made { name, .. } => name,
        }
    }

    /// What the model computes.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    pub(crate) fn shared_program(&self) -> Arc<Program> {
        Arc::clone(&self.program)
    }

    /// A weight of the program; the head may be the embedding table.
    pub(crate) fn weight(&self, id: WeightId) -> Result<&Located> {
        // All are there but a head that is the embedding table.
        let at = match self.weights.len() < self.program.weights.len() {
            true if id == self.program.head => 0,
            true if id > self.program.head => id.0 - 1,
            _ => id.0,
        };
        self.weights.get(at).ok_or(Error::Internal("a weight of another model"))
    }

    /// The files that hold the weights.
    ///
    /// # Errors
    /// [`Error::NoFiles`] for a model that is only described.
    pub fn files(&self) -> Result<&WeightFiles> {
        match &self.source {
            Source::Files(files) => Ok(files),
            Source::Described(name) | Source::Made { name, .. } => {
                Err(Error::NoFiles { model: name.clone() })
            }
        }
    }

    /// Whether the files are still those that were opened, by their sizes and times.
    ///
    /// # Errors
    /// [`narrows_shard::Error::Changed`] if one was written to since.
    pub fn unchanged(&self) -> Result<()> {
        match &self.source {
            Source::Files(files) => Ok(files.unchanged()?),
            Source::Described(_) | Source::Made { .. } => Ok(()),
        }
    }

    /// Whether weights are made in memory, so that no disk has a part in what reading them takes.
    #[must_use]
    pub const fn is_made(&self) -> bool {
        matches!(self.source, Source::Made { .. })
    }

    /// Every weight and its place in the files, in the order in which a pass uses them. A head that uses the embedding
    /// table is not listed again.
    pub fn tensors(&self) -> impl Iterator<Item = (&WeightSpec, &Tensor)> {
        self.weights.iter().map(|located| (&located.spec, &located.tensor))
    }

    /// Size of all weights.
    #[must_use]
    pub fn weight_bytes(&self) -> Bytes {
        self.weight_bytes_as(&Quantisation::default())
    }

    /// What [`Model::weight_bytes`] would be of a pack of this model.
    #[must_use]
    pub fn weight_bytes_as(&self, quantisation: &Quantisation) -> Bytes {
        self.weights.iter().map(|located| located.bytes_as(quantisation)).sum()
    }

    /// Size of the weights that a pass of one row reads: all but an embedding table of its own, of which a pass
    /// needs only the rows of its tokens, and but the experts that the row is not routed to.
    #[must_use]
    pub fn pass_bytes(&self) -> Bytes {
        let walked: Bytes =
            self.kept().filter(|one| one.spec.role != Role::Expert).map(|one| one.tensor.bytes()).sum();
        walked + self.demanded_bytes(1)
    }

    /// Size of the experts that a pass of one row of each of `sequences` needs, if each row may go to any expert alike.
    pub(crate) fn demanded_bytes(&self, sequences: usize) -> Bytes {
        let of_layer = |op: &Op| {
            let Op::Experts(experts) = op else { return 0 };
            let weights = experts.first.0..experts.first.0 + experts.count * experts.each;
            let bytes: u64 =
                weights.filter_map(|id| Some(self.weight(WeightId(id)).ok()?.tensor.bytes().get())).sum();
            let chosen = self.program.router(experts.layer).map_or(1, |route| route.per_token) as u64;
            if sequences == 1 {
                return bytes / experts.count as u64 * chosen;
            }
            let missed_by_one = 1.0 - chosen as f64 / experts.count as f64;
            (bytes as f64 * (1.0 - missed_by_one.powf(sequences.max(1) as f64))) as u64
        };
        Bytes(self.program.ops().map(of_layer).sum())
    }

    /// Size of the weights that a machine that keeps everything in memory holds, in a pack of this model: all but an
    /// embedding table of its own.
    #[must_use]
    pub fn kept_bytes_as(&self, quantisation: &Quantisation) -> Bytes {
        self.kept().map(|located| located.bytes_as(quantisation)).sum()
    }

    /// Size of all experts.
    #[must_use]
    pub fn expert_bytes(&self) -> Bytes {
        let experts = self.weights.iter().filter(|located| located.spec.role == Role::Expert);
        experts.map(|located| located.tensor.bytes()).sum()
    }

    fn kept(&self) -> impl Iterator<Item = &Located> {
        let tied = self.weights.len() < self.program.weights.len();
        self.weights.iter().filter(move |located| located.spec.role != Role::Embedding || tied)
    }

    /// The encoding of what a matrix is multiplied with.
    pub(crate) fn operand(&self, id: WeightId) -> Encoding {
        self.weight(id).map_or(Encoding::F32, |located| located.encoding.operand())
    }

    /// Elements of each vector of the program: what stays in memory in float32, norms, biases and routers.
    pub(crate) fn vector_lens(&self) -> impl Iterator<Item = usize> {
        self.program.vectors.iter().map(|vector| self.program.vector_len(vector))
    }

    pub(crate) fn embedding(&self) -> &Located {
        &self.weights[0]
    }

    /// The files that hold the weights, by the numbers that tensors have for them.
    pub(crate) fn paths(&self) -> Result<Vec<PathBuf>> {
        Ok(self.files()?.files().iter().map(|file| file.path.clone()).collect())
    }

    pub(crate) fn reader(&self) -> Result<WeightReader> {
        match self.made()? {
            Some(made) => Ok(WeightReader::Made(made)),
            None => Ok(WeightReader::Files(self.files()?.reader()?)),
        }
    }

    /// The weights that are in memory, if they are not in files.
    pub(crate) fn made(&self) -> Result<Option<Arc<Made>>> {
        let Source::Made { layout, made, .. } = &self.source else { return Ok(None) };
        if let Some(made) = made.get() {
            return Ok(Some(Arc::clone(made)));
        }
        let new = Arc::new(layout.make()?);
        Ok(Some(Arc::clone(made.get_or_init(|| new))))
    }

    /// The shards that a pack of this model is made of: the embedding, every layer, the head.
    #[must_use]
    pub fn pack_layout(&self, quantisation: &Quantisation) -> Layout {
        let mut shards: Vec<ShardLayout> = Vec::new();
        for located in &self.weights {
            let shard = match located.spec.part {
                Part::Embedding => "embedding".to_owned(),
                Part::Layer(layer) => format!("layer-{layer:05}"),
                Part::Head => "head".to_owned(),
            };
            let name = located.spec.name.clone();
            match shards.last_mut() {
                Some(last) if last.name == shard => last.tensors.push(name),
                _ => shards.push(ShardLayout { name: shard, tensors: vec![name] }),
            }
        }
        let encodings = self
            .weights
            .iter()
            .filter_map(|l| Some((l.spec.name.clone(), quantisation.of(l.spec.role)?)))
            .collect();
        Layout {
            architecture: self.program.dims.family.to_owned(),
            shards,
            encodings,
            sidecars: SIDECARS.map(str::to_owned).to_vec(),
        }
    }
}

/// Whether a tensor that the architecture does not use can be left out without changing a result.
fn means_nothing(name: &str, tensor: &Tensor) -> bool {
    // Old checkpoints carry the rotary frequencies and their tables, which are computed here.
    let table = ["rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached"];
    if table.iter().any(|suffix| name.ends_with(suffix)) {
        return true;
    }
    // Buffers and counters: no weight of any family is in these, and a tensor of that name would be one.
    let counts = matches!(
        tensor.dtype,
        Dtype::BOOL
            | Dtype::U8
            | Dtype::I8
            | Dtype::U16
            | Dtype::I16
            | Dtype::U32
            | Dtype::I32
            | Dtype::U64
            | Dtype::I64
            | Dtype::F64
    );
    counts && tensor.encoding.is_none() && !name.ends_with(".weight") && !name.ends_with(".bias")
}

/// The program of the model in a directory.
fn read_program(dir: &Path) -> Result<Program> {
    let path = dir.join("config.json");
    let config = json::read_fields(&path)?.ok_or_else(|| Error::Missing {
        path,
        what: "not found; a model directory holds a config.json".to_owned(),
    })?;
    Ok(Program::of(&config)?)
}

/// Finds the tensor of a weight; `None` for a head that is the embedding table.
fn locate(
    program: &Program,
    files: &WeightFiles,
    id: WeightId,
    spec: &WeightSpec,
) -> Result<Option<Located>> {
    let WeightSpec { name, shape, role, .. } = spec;
    let Some(tensor) = files.get(name) else {
        // A head of its own wins over `tie_word_embeddings`, as in transformers 5.
        if id == program.head && program.dims.tied {
            return Ok(None);
        }
        return Err(Error::invalid(files.dir(), format!("tensor {name} is missing")));
    };
    let file = &files.files()[tensor.file].path;
    if tensor.shape != *shape {
        return Err(Error::invalid(
            file,
            format!("tensor {name} has shape {:?}, config.json asks for {shape:?}", tensor.shape),
        ));
    }
    let Some(encoding) = tensor.encoding else {
        return Err(Error::unsupported(file, format!("dtype {:?} of tensor {name}", tensor.dtype)));
    };
    if encoding.block().is_some() && matches!(role, Role::Embedding | Role::Vector) {
        return Err(Error::unsupported(file, format!("tensor {name} in {encoding}")));
    }
    Ok(Some(Located { spec: spec.clone(), tensor: tensor.clone(), encoding }))
}
