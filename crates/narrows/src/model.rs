//! A model directory, opened: every weight of its architecture found and checked, nothing loaded yet.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use narrows_shard::{Bytes, Encoding, Layout, Reader, ShardLayout, Tensor, WeightFiles};

use crate::architecture::{Architecture, Weight, WeightSpec};
use crate::error::{Error, Result};
use crate::quantisation::Quantisation;

/// Files beside the weights that belong to a model, copied into a pack.
const SIDECARS: [&str; 14] = [
    "LICENSE",
    "LICENSE.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
];

/// A checkpoint or a pack whose weights are those of its architecture.
#[derive(Debug)]
pub struct Model {
    files: WeightFiles,
    architecture: Architecture,
    weights: Vec<Located>,
}

/// A weight and where it lies.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) weight: Weight,
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) encoding: Encoding,
}

impl Located {
    /// Whether it is no matrix that is cut into tiles.
    pub(crate) fn stays(&self) -> bool {
        self.tensor.shape.len() == 1 || self.weight.routes()
    }

    fn bytes_as(&self, quantisation: &Quantisation) -> Bytes {
        quantisation.bytes(self.weight, &self.tensor.shape, self.tensor.bytes())
    }
}

impl Model {
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
        let architecture = Architecture::read(dir)?;
        let files = open(dir)?;
        let mut weights = Vec::new();
        for spec in architecture.weights() {
            weights.extend(locate(&architecture, &files, spec)?);
        }
        let known: HashSet<&str> = weights.iter().map(|located| located.name.as_str()).collect();
        // Old Llama checkpoints carry the rotary frequencies, which are computed here.
        let unknown =
            files.tensors().find(|(name, _)| !known.contains(name) && !name.ends_with("rotary_emb.inv_freq"));
        if let Some((name, tensor)) = unknown {
            return Err(Error::unsupported(
                &files.files()[tensor.file].path,
                format!("tensor {name} in a {} model as its config describes it", architecture.family),
            ));
        }
        Ok(Self { files, architecture, weights })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.files.dir()
    }

    /// The architecture.
    #[must_use]
    pub const fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The files that hold the weights.
    #[must_use]
    pub const fn files(&self) -> &WeightFiles {
        &self.files
    }

    /// Every weight with its name, shape and place in the files, in the order in which a pass uses them.
    /// A head that uses the embedding table is not listed again.
    pub fn tensors(&self) -> impl Iterator<Item = (Weight, &str, &Tensor)> {
        self.weights.iter().map(|located| (located.weight, located.name.as_str(), &located.tensor))
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
        let experts = self.architecture.experts.as_ref();
        let (chosen, all) = experts.map_or((1, 1), |experts| (experts.per_token, experts.count));
        let (routed, walked): (Vec<_>, Vec<_>) =
            self.kept().partition(|located| matches!(located.weight, Weight::Expert(..)));
        let bytes = |of: Vec<&Located>| -> Bytes { of.iter().map(|one| one.tensor.bytes()).sum() };
        bytes(walked) + Bytes(bytes(routed).get() / all as u64 * chosen as u64)
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
        let experts = self.weights.iter().filter(|located| matches!(located.weight, Weight::Expert(..)));
        experts.map(|located| located.tensor.bytes()).sum()
    }

    fn kept(&self) -> impl Iterator<Item = &Located> {
        let tied = self.head().weight == Weight::Embedding;
        self.weights.iter().filter(move |located| located.weight != Weight::Embedding || tied)
    }

    pub(crate) fn located(&self) -> &[Located] {
        &self.weights
    }

    /// What is small and stays in memory, in float32: norms, biases and routers.
    pub(crate) fn vectors(&self) -> impl Iterator<Item = &Located> {
        self.weights.iter().filter(|located| located.stays())
    }

    /// Elements of each of [`Model::vectors`].
    pub(crate) fn vector_lens(&self) -> impl Iterator<Item = usize> {
        self.vectors().map(|located| located.tensor.shape.iter().product())
    }

    pub(crate) fn embedding(&self) -> &Located {
        &self.weights[0]
    }

    /// The head, which may be the embedding table.
    pub(crate) fn head(&self) -> &Located {
        match self.weights.last() {
            Some(last) if last.weight == Weight::Head => last,
            _ => self.embedding(),
        }
    }

    /// The files that hold the weights, by the numbers that tensors have for them.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.files.files().iter().map(|file| file.path.clone()).collect()
    }

    pub(crate) fn reader(&self) -> Result<Reader> {
        Ok(self.files.reader()?)
    }

    /// The shards that a pack of this model is made of: the embedding, every layer, the head.
    #[must_use]
    pub fn pack_layout(&self, quantisation: &Quantisation) -> Layout {
        let mut shards: Vec<ShardLayout> = Vec::new();
        for located in &self.weights {
            let shard = match located.weight {
                Weight::Embedding => "embedding".to_owned(),
                Weight::Layer(layer, _) | Weight::Expert(layer, ..) => format!("layer-{layer:05}"),
                Weight::FinalNorm | Weight::Head => "head".to_owned(),
            };
            match shards.last_mut() {
                Some(last) if last.name == shard => last.tensors.push(located.name.clone()),
                _ => shards.push(ShardLayout { name: shard, tensors: vec![located.name.clone()] }),
            }
        }
        let encodings = self
            .weights
            .iter()
            .filter_map(|l| Some((l.name.clone(), quantisation.of(l.weight, &l.tensor.shape)?)))
            .collect();
        Layout {
            architecture: self.architecture.family.to_owned(),
            shards,
            encodings,
            sidecars: SIDECARS.map(str::to_owned).to_vec(),
        }
    }
}

/// Finds the tensor of a weight; `None` for a head that is the embedding table.
fn locate(architecture: &Architecture, files: &WeightFiles, spec: WeightSpec) -> Result<Option<Located>> {
    let WeightSpec { weight, name, shape } = spec;
    let Some(tensor) = files.get(&name) else {
        // A head of its own wins over `tie_word_embeddings`, as in transformers 5.
        if weight == Weight::Head && architecture.tied_embeddings {
            return Ok(None);
        }
        return Err(Error::invalid(files.dir(), format!("tensor {name} is missing")));
    };
    let file = &files.files()[tensor.file].path;
    if tensor.shape != shape {
        return Err(Error::invalid(
            file,
            format!("tensor {name} has shape {:?}, config.json asks for {shape:?}", tensor.shape),
        ));
    }
    let Some(encoding) = tensor.encoding else {
        return Err(Error::unsupported(file, format!("dtype {:?} of tensor {name}", tensor.dtype)));
    };
    if encoding.block().is_some() && (matches!(weight, Weight::Embedding) || weight.routes()) {
        return Err(Error::unsupported(file, format!("tensor {name} in {encoding}")));
    }
    Ok(Some(Located { weight, name, tensor: tensor.clone(), encoding }))
}
