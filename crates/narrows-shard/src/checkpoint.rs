//! Finding the weight files of a Hugging Face checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use crate::small::read_small_file;
use crate::unique::Unique;
use crate::{Bytes, Error};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Far above any checkpoint; a bound on open files.
const MAX_FILES: usize = 10_000;
const MAX_INDEX: Bytes = Bytes(100_000_000);

/// The weight files of a checkpoint directory.
pub(crate) struct Checkpoint {
    /// Names, in order; each a plain name.
    pub(crate) files: Vec<String>,
    /// The file that says so.
    pub(crate) named_by: &'static str,
}

/// Finds `model.safetensors`, or the files that `model.safetensors.index.json` names.
pub(crate) fn find(dir: &Path) -> Result<Checkpoint, Error> {
    if dir.join(SINGLE).symlink_metadata().is_ok() {
        return Ok(Checkpoint { files: vec![SINGLE.into()], named_by: SINGLE });
    }
    let path = dir.join(INDEX);
    match read_index(&path)? {
        Some(index) => {
            let files: BTreeSet<String> = index.into_values().collect();
            Ok(Checkpoint { files: files.into_iter().collect(), named_by: INDEX })
        }
        None => Err(no_weights(dir)),
    }
}

/// The index at `path`; `None` if there is none.
fn read_index(path: &Path) -> Result<Option<BTreeMap<String, String>>, Error> {
    read_small_file(path, MAX_INDEX)?.map(|bytes| parse_index(path, &bytes)).transpose()
}

/// Reads a `model.safetensors.index.json`: which file holds which tensor.
///
/// The file names are plain names, so that joined to a directory they stay in it. `path` serves the error
/// message.
///
/// # Errors
///
/// [`Error::Invalid`] if the text is no such index.
pub fn parse_index(path: &Path, json: &[u8]) -> Result<BTreeMap<String, String>, Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: Unique<String>,
    }

    let invalid = |problem: String| Error::invalid(path, problem);
    // serde would also take an array for a struct.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(invalid("bad index: not a JSON object".into()));
    }
    let index: Index = serde_json::from_slice(json).map_err(|e| invalid(format!("bad index: {e}")))?;
    let Unique(weight_map) = index.weight_map;
    if weight_map.is_empty() {
        return Err(invalid("bad index: weight_map is empty".into()));
    }
    let files: BTreeSet<&String> = weight_map.values().collect();
    if files.len() > MAX_FILES {
        return Err(invalid(format!("bad index: names more than {MAX_FILES} files")));
    }
    if let Some(name) = files.into_iter().find(|name| !is_plain_name(name)) {
        return Err(invalid(format!("bad index: {name:?} is not a file name")));
    }
    Ok(weight_map)
}

/// Whether `name` names an entry of the directory it is joined to, on every operating system.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
        && !name.contains(['/', '\\', ':'])
        && !name.contains(char::is_control)
}

/// Says what is there instead of the weights.
fn no_weights(dir: &Path) -> Error {
    match fs::metadata(dir) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Error::not_found(dir, "is a file, not the directory of a model"),
        Err(_) => return Error::not_found(dir, "no such directory"),
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => return Error::io(dir, "list it")(e),
    };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let other = names.filter(|name| is_other_weights(name)).min();
    match other {
        Some(name) => Error::not_found(dir, format!("the weights are not safetensors, but {name:?}"))
            .with_hint("look for a safetensors version of this model, or convert it"),
        None => Error::not_found(dir, format!("no weights here: neither {SINGLE} nor {INDEX}")),
    }
}

fn is_other_weights(name: &str) -> bool {
    let ends = |ending: &str| name.ends_with(ending);
    (name.starts_with("pytorch_model") && ends(".bin")) || ends(".gguf") || ends(".pth") || ends(".pt")
}
