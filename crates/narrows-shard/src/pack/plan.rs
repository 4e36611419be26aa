//! What a pack will consist of, to the byte, worked out before anything is written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use safetensors::tensor::TensorInfo;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Layout, ShardLayout, is_reserved};
use crate::checkpoint::is_plain_name;
use crate::checksum::Checksummer;
use crate::header::{ENCODINGS, Encoded, FILLER_PREFIX, LENGTH_BYTES, MAX_HEADER, METADATA, VERBATIM};
use crate::small::require_file;
use crate::{Bytes, Checksum, Dtype, Encoding, Error, Tensor, WeightFiles};

/// The data section starts at a multiple of this: the sector of every disk in use.
const DATA_ALIGNMENT: usize = 4096;
/// Every tensor starts at a multiple of this: what a copy to a GPU wants.
const TENSOR_ALIGNMENT: u64 = 256;

pub(crate) struct Plan {
    pub(crate) architecture: String,
    /// Whether any tensor is quantised.
    pub(crate) encoded: bool,
    pub(crate) shards: Vec<Shard>,
    pub(crate) sidecars: Vec<Sidecar>,
    /// Equal for two plans only if they write the same names and headers.
    pub(crate) fingerprint: Checksum,
}

/// A file of the pack.
#[derive(Clone, Copy)]
pub(crate) enum PlannedFile<'a> {
    Sidecar(&'a Sidecar),
    Shard(&'a Shard),
}

impl<'a> PlannedFile<'a> {
    pub(crate) fn name(self) -> &'a str {
        match self {
            Self::Sidecar(sidecar) => &sidecar.name,
            Self::Shard(shard) => &shard.name,
        }
    }

    pub(crate) fn size(self) -> Bytes {
        match self {
            Self::Sidecar(sidecar) => sidecar.size,
            Self::Shard(shard) => shard.size,
        }
    }
}

/// A safetensors file to be written.
pub(crate) struct Shard {
    pub(crate) name: String,
    pub(crate) size: Bytes,
    /// Everything in front of the data section.
    pub(crate) header: Vec<u8>,
    /// Whether any of its tensors is quantised.
    encoded: bool,
    pub(crate) tensors: Vec<PlacedTensor>,
}

/// A tensor of the source and its place in the shard.
pub(crate) struct PlacedTensor {
    pub(crate) name: String,
    /// Zeros in front of it.
    pub(crate) gap: u64,
    pub(crate) tensor: Tensor,
    /// What it is quantised to; `None` if it is copied.
    pub(crate) quantise: Option<Quantise>,
}

/// A matrix to be quantised.
#[derive(Clone, Copy)]
pub(crate) struct Quantise {
    pub(crate) from: Encoding,
    pub(crate) to: Encoding,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Of one row in `from`.
    pub(crate) from_bytes: usize,
    /// Of one row in `to`.
    pub(crate) to_bytes: usize,
}

impl Quantise {
    /// How `tensor` becomes one in `to`; `None` if that is what it is.
    fn new(name: &str, tensor: &Tensor, to: Encoding) -> Result<Option<Self>, String> {
        let Some(from) = tensor.encoding else {
            return Err(format!("{name} is {}, which cannot be quantised", tensor.dtype));
        };
        if from == to {
            return Ok(None);
        }
        if from.block().is_some() {
            return Err(format!("{name} is in {from} already; pack the checkpoint it was made from as {to}"));
        }
        let sizes = match tensor.shape[..] {
            [rows, cols] if cols > 0 => {
                from.row_bytes(cols).zip(to.row_bytes(cols)).map(|bytes| (rows, cols, bytes))
            }
            _ => None,
        };
        match sizes {
            Some((rows, cols, (from_bytes, to_bytes))) if to.block().is_some() => {
                Ok(Some(Self { from, to, rows, cols, from_bytes, to_bytes }))
            }
            _ => Err(format!("{name}, {from} of shape {:?}, cannot become {to}", tensor.shape)),
        }
    }
}

/// A file to be copied as it is.
pub(crate) struct Sidecar {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) size: Bytes,
}

impl Plan {
    pub(crate) fn new(source: &WeightFiles, layout: &Layout) -> Result<Self, Error> {
        let bad_layout =
            |problem: String| Error::invalid(source.dir(), format!("cannot be packed: {problem}"));
        if layout.shards.is_empty() {
            return Err(bad_layout("the layout has no shards".into()));
        }

        let mut taken = BTreeSet::new();
        let mut take_name = |name: &str| {
            // Lower case, because some file systems hold `A` and `a` for the same name.
            if is_plain_name(name) && !is_reserved(name) && taken.insert(name.to_lowercase()) {
                Ok(())
            } else {
                Err(bad_layout(format!("{name:?} cannot name a file of the pack, or does twice")))
            }
        };
        let mut used = BTreeSet::new();
        let mut shards = Vec::new();
        for shard in &layout.shards {
            for name in &shard.tensors {
                if !used.insert(name) {
                    return Err(bad_layout(format!("the layout has the tensor {name:?} twice")));
                }
            }
            let shard = Shard::new(source, shard, &layout.encodings).map_err(bad_layout)?;
            take_name(&shard.name)?;
            shards.push(shard);
        }
        if let Some(name) = layout.encodings.keys().find(|name| !used.contains(name)) {
            return Err(bad_layout(format!("it is to quantise {name:?}, which is in no shard")));
        }

        let mut sidecars = Vec::new();
        for name in &layout.sidecars {
            take_name(name)?;
            let path = source.dir().join(name);
            if path.symlink_metadata().is_ok() {
                let size = Bytes(require_file(&path)?);
                sidecars.push(Sidecar { name: name.clone(), path, size });
            }
        }

        let architecture = layout.architecture.clone();
        let fingerprint = fingerprint(&architecture, &shards, &sidecars);
        let encoded = shards.iter().any(|shard| shard.encoded);
        Ok(Self { architecture, encoded, shards, sidecars, fingerprint })
    }

    /// Every file in the order of writing; the manifest apart.
    pub(crate) fn files(&self) -> impl Iterator<Item = PlannedFile<'_>> {
        self.sidecars.iter().map(PlannedFile::Sidecar).chain(self.shards.iter().map(PlannedFile::Shard))
    }
}

fn fingerprint(architecture: &str, shards: &[Shard], sidecars: &[Sidecar]) -> Checksum {
    let mut sum = Checksummer::new();
    let mut field = |bytes: &[u8]| {
        sum.update(&(bytes.len() as u64).to_le_bytes());
        sum.update(bytes);
    };
    field(architecture.as_bytes());
    for shard in shards {
        field(shard.name.as_bytes());
        field(&shard.header);
    }
    for sidecar in sidecars {
        field(sidecar.name.as_bytes());
    }
    sum.finish()
}

impl Shard {
    fn new(
        source: &WeightFiles,
        layout: &ShardLayout,
        quantised: &BTreeMap<String, Encoding>,
    ) -> Result<Self, String> {
        let name = format!("{}.safetensors", layout.name);
        let overflow = || format!("{name} would be too big");

        let mut tensors = Vec::new();
        let mut infos = Vec::new();
        let mut encodings = BTreeMap::new();
        let mut end = 0u64;
        for tensor_name in &layout.tensors {
            let tensor =
                source.get(tensor_name).ok_or_else(|| format!("it has no tensor {tensor_name:?}"))?;
            let start = end.checked_next_multiple_of(TENSOR_ALIGNMENT).ok_or_else(overflow)?;
            let gap = start - end;
            if gap > 0 {
                let filler = format!("{FILLER_PREFIX}{}.{}", layout.name, infos.len() - tensors.len());
                infos.push((filler, info(Dtype::U8, vec![gap as usize], end, start).ok_or_else(overflow)?));
            }
            let quantise = match quantised.get(tensor_name) {
                Some(&to) => Quantise::new(tensor_name, tensor, to)?,
                None => None,
            };
            let bytes = match quantise {
                Some(q) => (q.rows as u64).checked_mul(q.to_bytes as u64).ok_or_else(overflow)?,
                None => tensor.bytes().get(),
            };
            end = start.checked_add(bytes).ok_or_else(overflow)?;
            let encoding = quantise.map(|q| q.to).or(tensor.encoding.filter(|e| e.block().is_some()));
            let placed = match (encoding, &tensor.shape[..]) {
                (Some(encoding), &[rows, cols]) => {
                    encodings.insert(tensor_name.as_str(), Encoded { encoding, cols });
                    let row_bytes = encoding.row_bytes(cols).ok_or_else(overflow)?;
                    info(Dtype::U8, vec![rows, row_bytes], start, end)
                }
                _ => info(tensor.dtype, tensor.shape.clone(), start, end),
            };
            infos.push((tensor_name.clone(), placed.ok_or_else(overflow)?));
            let (name, tensor) = (tensor_name.clone(), tensor.clone());
            tensors.push(PlacedTensor { name, gap, tensor, quantise });
        }

        let header = header_bytes(&infos, &encodings).ok_or_else(overflow)?;
        let size = Bytes(end.checked_add(header.len() as u64).ok_or_else(overflow)?);
        Ok(Self { name, size, header, encoded: !encodings.is_empty(), tensors })
    }
}

fn info(dtype: Dtype, shape: Vec<usize>, start: u64, end: u64) -> Option<TensorInfo> {
    Some(TensorInfo { dtype, shape, data_offsets: (start.try_into().ok()?, end.try_into().ok()?) })
}

/// Length, JSON and spaces up to the data section.
fn header_bytes(tensors: &[(String, TensorInfo)], encodings: &BTreeMap<&str, Encoded>) -> Option<Vec<u8>> {
    let (encodings, version) = match encodings.is_empty() {
        true => (VERBATIM.to_owned(), "1"),
        false => (serde_json::to_string(encodings).ok()?, "2"),
    };
    let metadata = BTreeMap::from([
        // Other loaders look for this key to learn whose tensors these are.
        ("format", "pt"),
        (ENCODINGS, encodings.as_str()),
        ("narrows.version", version),
    ]);
    let mut bytes = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut bytes, &HeaderJson { metadata, tensors }).ok()?;
    bytes.resize(bytes.len().next_multiple_of(DATA_ALIGNMENT), b' ');
    let json_len = (bytes.len() - LENGTH_BYTES) as u64;
    bytes[..LENGTH_BYTES].copy_from_slice(&json_len.to_le_bytes());
    (json_len <= MAX_HEADER).then_some(bytes)
}

/// The header in the order given; the safetensors crate keeps its metadata in a hash map, whose order changes
/// from run to run.
struct HeaderJson<'a> {
    metadata: BTreeMap<&'a str, &'a str>,
    tensors: &'a [(String, TensorInfo)],
}

impl Serialize for HeaderJson<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.tensors.len()))?;
        map.serialize_entry(METADATA, &self.metadata)?;
        for (name, info) in self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}
