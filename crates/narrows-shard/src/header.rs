//! The header of a safetensors file: eight bytes of length, then JSON.
//!
//! The crate `safetensors` parses it and checks that the tensors tile the data section without a hole. In
//! front of it stand the checks it does not make: duplicate keys, and bounds on what absurd input may cost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use safetensors::tensor::Metadata;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::small::{changed, open_file, refuse_pointer};
use crate::unique::Unique;
use crate::{Bytes, Dtype, Encoding, Error, Tensor};

/// Tensors whose names begin so are padding in a shard, and never listed.
pub const FILLER_PREFIX: &str = "__filler__.";

/// The key under which a header keeps text about the file.
pub(crate) const METADATA: &str = "__metadata__";

/// The key of the metadata that says how the tensors of a shard are encoded: [`VERBATIM`], or a JSON object of the
/// tensors that are [`Encoded`], by name.
pub(crate) const ENCODINGS: &str = "narrows.encodings";

/// All tensors as their dtypes say.
pub(crate) const VERBATIM: &str = "verbatim";

/// What a header says about a tensor of bytes that hold quantised weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Encoded {
    pub(crate) encoding: Encoding,
    /// The length of a row, which its bytes do not tell where the last block is not full.
    pub(crate) cols: usize,
}

/// Bytes in front of the JSON: its length, as a little-endian u64.
pub(crate) const LENGTH_BYTES: usize = 8;

/// Bytes by which a file that only stands for another is told.
const START: usize = 64;

/// The limit of the safetensors format.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

// Bounds on what a header may cost in memory, far above what any model has.
const MAX_TENSORS: usize = 1 << 20;
const MAX_DIMS: usize = 32;

/// What the header of a safetensors file says.
#[derive(Debug)]
pub struct Header {
    /// The text under `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// The tensors, by name. Their `file` is 0.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Reads the header of a safetensors file from its first bytes, trusting none of them.
///
/// `start` holds at least the length and the JSON, `file_len` is the length of the whole file, and `path`
/// serves the error message.
///
/// # Errors
///
/// [`Error::Invalid`] if the header is not valid safetensors, or does not describe exactly a file of this
/// length.
pub fn parse_header(path: &Path, start: &[u8], file_len: u64) -> Result<Header, Error> {
    let json_len = json_len(path, start, file_len)?;
    let json = start.get(LENGTH_BYTES..LENGTH_BYTES + json_len).ok_or_else(|| {
        Error::invalid(path, format!("header cut short after {}", Bytes(start.len() as u64)))
    })?;
    parse_json(path, as_utf8(path, json)?, file_len)
}

fn as_utf8<'a>(path: &Path, json: &'a [u8]) -> Result<&'a str, Error> {
    std::str::from_utf8(json).map_err(|e| Error::invalid(path, format!("header is not UTF-8: {e}")))
}

/// Reads the JSON of a header; the rest of [`parse_header`].
pub(crate) fn parse_json(path: &Path, json: &str, file_len: u64) -> Result<Header, Error> {
    let invalid = |problem: String| Error::invalid(path, problem);
    let bad_json = |e: serde_json::Error| invalid(format!("bad header: {e}"));
    let guard: Guard = serde_json::from_str(json).map_err(bad_json)?;
    let parsed: Metadata = serde_json::from_str(json).map_err(bad_json)?;

    let data_start = (LENGTH_BYTES + json.len()) as u64;
    // Saturating: the offsets may reach up to the last integer, which no file does.
    let end = data_start.saturating_add(parsed.data_len() as u64);
    if end != file_len {
        let (said, has) = (Bytes(end), Bytes(file_len));
        let problem =
            format!("the header says {said} ({end} bytes), but the file has {has} ({file_len} bytes)");
        return Err(invalid(problem).with_hint("the download may be incomplete; download this file again"));
    }

    let mut tensors: BTreeMap<String, Tensor> = parsed
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (start, end) = info.data_offsets;
            let tensor = Tensor {
                dtype: info.dtype,
                encoding: Encoding::from_dtype(info.dtype),
                shape: info.shape.clone(),
                file: 0,
                range: data_start + start as u64..data_start + end as u64,
            };
            (name, tensor)
        })
        .collect();
    if let Some(text) = guard.metadata.get(ENCODINGS).filter(|text| *text != VERBATIM) {
        let Unique(encodings) = serde_json::from_str(text)
            .map_err(|e| invalid(format!("bad header: what it says under {ENCODINGS}: {e}")))?;
        for (name, encoded) in encodings {
            let as_said = tensors.get_mut(&name).is_some_and(|tensor| reinterpret(tensor, encoded));
            if !as_said {
                let Encoded { encoding, cols } = encoded;
                let problem = format!("no tensor {name:?} holds rows of {cols} weights in {encoding}");
                return Err(invalid(format!("bad header: {problem}, as it says under {ENCODINGS}")));
            }
        }
    }
    Ok(Header { metadata: guard.metadata, tensors })
}

/// Makes a tensor of bytes one of weights, `[rows, cols]`; `false` if its shape is not that of such rows.
fn reinterpret(tensor: &mut Tensor, Encoded { encoding, cols }: Encoded) -> bool {
    let &[rows, row_bytes] = &tensor.shape[..] else { return false };
    if tensor.dtype != Dtype::U8
        || cols == 0
        || encoding.block().is_none()
        || encoding.row_bytes(cols) != Some(row_bytes)
    {
        return false;
    }
    tensor.encoding = Some(encoding);
    tensor.shape = vec![rows, cols];
    true
}

/// The JSON in the header of the file at `path`.
pub(crate) fn read_json(path: &Path, file_len: u64) -> Result<String, Error> {
    let cannot_read = |e: io::Error| Error::io(path, "read the header")(e);
    let (mut file, len) = open_file(path)?;
    if len != file_len {
        return Err(changed(path));
    }
    let mut start = Vec::new();
    file.by_ref().take(START as u64).read_to_end(&mut start).map_err(cannot_read)?;
    refuse_pointer(path, &start)?;
    // Checked against the file before anything of that size is allocated.
    let json_len = json_len(path, &start, file_len)?;
    let mut json = vec![0; json_len];
    let here = json_len.min(start.len() - LENGTH_BYTES);
    json[..here].copy_from_slice(&start[LENGTH_BYTES..][..here]);
    file.read_exact(&mut json[here..]).map_err(cannot_read)?;
    String::from_utf8(json).map_err(|e| Error::invalid(path, format!("header is not UTF-8: {e}")))
}

/// The length of the JSON, within the limit and within the file.
fn json_len(path: &Path, start: &[u8], file_len: u64) -> Result<usize, Error> {
    let invalid = |problem: String| Err(Error::invalid(path, problem));
    let Some(length) = start.first_chunk::<LENGTH_BYTES>() else {
        return invalid(format!("{} bytes are too few for a safetensors file", start.len()));
    };
    let len = u64::from_le_bytes(*length);
    if len > MAX_HEADER {
        let limit = Bytes(MAX_HEADER);
        return invalid(format!("not safetensors: a header of {} (the limit is {limit})", Bytes(len)));
    }
    match len.checked_add(LENGTH_BYTES as u64) {
        Some(end) if end <= file_len => Ok(len as usize),
        _ => invalid(format!(
            "the header takes {} ({len} bytes), but the file has {file_len} bytes in all",
            Bytes(len)
        )),
    }
}

/// Walks the header once, keeping little, to refuse what the safetensors crate lets pass.
struct Guard {
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Guard {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;

        impl<'de> Visitor<'de> for Walk {
            type Value = Guard;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Guard, A::Error> {
                let mut names = BTreeSet::new();
                let mut metadata = BTreeMap::new();
                while let Some(name) = entries.next_key::<String>()? {
                    if name == METADATA {
                        // `null` is as good as none.
                        let text: Option<Unique<String>> = entries.next_value()?;
                        metadata = text.map(|Unique(text)| text).unwrap_or_default();
                    } else {
                        entries.next_value::<Entry>()?;
                    }
                    if names.contains(&name) {
                        return Err(A::Error::custom(format_args!("the key {name:?} appears twice")));
                    }
                    names.insert(name);
                    if names.len() > MAX_TENSORS {
                        return Err(A::Error::custom(format_args!("more than {MAX_TENSORS} tensors")));
                    }
                }
                Ok(Guard { metadata })
            }
        }

        deserializer.deserialize_map(Walk)
    }
}

/// One tensor of the header, of which only the outline matters here.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "dtype")]
    _dtype: String,
    #[serde(rename = "shape")]
    _shape: Dims,
    #[serde(rename = "data_offsets")]
    _data_offsets: (u64, u64),
}

/// A shape of a sane number of dimensions.
struct Dims;

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;

        impl<'de> Visitor<'de> for Count {
            type Value = Dims;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a shape")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut dims: A) -> Result<Dims, A::Error> {
                let mut count = 0;
                while dims.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                    if count > MAX_DIMS {
                        return Err(A::Error::custom(format_args!(
                            "a shape of more than {MAX_DIMS} dimensions"
                        )));
                    }
                }
                Ok(Dims)
            }
        }

        deserializer.deserialize_seq(Count)
    }
}
