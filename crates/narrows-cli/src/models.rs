//! MODEL on the command line: a directory, a file in one, a name in the Hugging Face cache, or an address of the hub.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Result};

/// The directory of the model that `given` names.
///
/// # Errors
/// There is no such model (exit code 3), or it is of a kind that is not read here (4).
pub(crate) fn locate(given: &Path) -> Result<PathBuf> {
    let dir = directory(given)?;
    recognised(&dir).map(|()| dir)
}

/// The same for the checkpoint that a pack in `out` is made from. Where that pack has begun, its source was a model,
/// of which `--consume-source` may have left other files than weights.
///
/// # Errors
/// As [`locate`].
pub(crate) fn locate_source(given: &Path, out: &Path) -> Result<PathBuf> {
    if !PACKED.iter().any(|name| out.join(name).is_file()) {
        return locate(given);
    }
    match given.parent().filter(|dir| extension(given) == "safetensors" && dir.join("config.json").exists()) {
        // The file that was named is consumed.
        Some(dir) if !given.exists() => Ok(dir.to_owned()),
        _ => directory(given),
    }
}

/// Files of a pack, of which one is there from the beginning to the end of its making, the other afterwards.
const PACKED: [&str; 2] = ["narrows.journal", narrows_shard::MANIFEST];

/// The directory that `given` names, whatever is in it.
fn directory(given: &Path) -> Result<PathBuf> {
    match std::fs::metadata(given) {
        Ok(meta) if meta.is_dir() => Ok(snapshot(given, "main").unwrap_or_else(|| given.to_owned())),
        Ok(_) => beside(given),
        Err(_) => {
            let name = given.to_str().and_then(hub_name);
            name.as_ref()
                .and_then(|name| cached(name))
                .ok_or_else(|| Failure::NoModel { path: given.to_owned(), hint: missing_hint(given, name) })
        }
    }
}

/// A file that stands for its directory.
fn beside(file: &Path) -> Result<PathBuf> {
    let not = |what: &str, hint: &str| Failure::NotAModel {
        path: file.to_owned(),
        what: what.to_owned(),
        hint: hint.to_owned(),
    };
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match extension(file) {
        "safetensors" if dir.join("config.json").exists() => Ok(dir.to_owned()),
        "safetensors" => {
            Err(not("weights without a config.json beside them", "a model is a directory that holds both"))
        }
        "gguf" => Err(not(GGUF.0, GGUF.1)),
        "bin" | "pt" | "pth" => Err(not(PICKLE.0, PICKLE.1)),
        "json" if dir.join("config.json").exists() => Ok(dir.to_owned()),
        _ => Err(not("a file; a model is a directory", "name the directory that holds config.json")),
    }
}

const GGUF: (&str, &str) = (
    "a GGUF file is not supported: narrows reads safetensors",
    "use the model's original repository, which has safetensors; `narrows pack --quant nf4` makes it as small",
);

const PICKLE: (&str, &str) = (
    "pickled weights are not supported: narrows reads safetensors",
    "python3 -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('DIR').save_pretrained('OUT')\" \
     converts them",
);

/// Refuses a directory that holds something else than a model in safetensors, by what it holds.
fn recognised(dir: &Path) -> Result<()> {
    let not = |(what, hint): (&str, &str)| {
        Err(Failure::NotAModel { path: dir.to_owned(), what: what.to_owned(), hint: hint.to_owned() })
    };
    let names: Vec<PathBuf> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(PathBuf::from(entry.ok()?.file_name())))
        .collect();
    let has = |wanted: &str| names.iter().any(|name| extension(name) == wanted);
    let named = |wanted: &str| names.iter().any(|name| name == Path::new(wanted));
    if named("adapter_config.json") && !named("config.json") {
        let base = adapter_base(&dir.join("adapter_config.json"));
        let what = format!("a LoRA adapter (adapter_config.json){base}, not a model");
        return not((&what, "merge it into its base model and save that, or run the base model"));
    }
    if has("safetensors") || PACKED.iter().any(|name| named(name)) {
        return Ok(());
    }
    if has("gguf") {
        return not(GGUF);
    }
    if has("bin") || has("pt") || has("pth") {
        return not(PICKLE);
    }
    Ok(())
}

/// ` of BASE`, if the adapter names it.
fn adapter_base(config: &Path) -> String {
    const MOST: u64 = 1 << 20;
    let small = std::fs::metadata(config).is_ok_and(|meta| meta.is_file() && meta.len() <= MOST);
    let text = if small { std::fs::read(config).unwrap_or_default() } else { Vec::new() };
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    json.get("base_model_name_or_path")
        .and_then(|name| name.as_str())
        .map_or(String::new(), |name| format!(" of {}", name.chars().take(200).collect::<String>()))
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(OsStr::to_str).unwrap_or_default()
}

/// `org/name` of a hub name or address.
fn hub_name(text: &str) -> Option<String> {
    const HUBS: [&str; 4] =
        ["https://huggingface.co/", "http://huggingface.co/", "https://hf.co/", "huggingface.co/"];
    let address = HUBS.iter().find_map(|hub| text.strip_prefix(hub));
    let mut parts = address.unwrap_or(text).trim_end_matches('/').split('/');
    let (org, name) = (parts.next()?, parts.next()?);
    // What follows a name is a page of the repository in an address, and a file's path elsewhere.
    if address.is_none() && parts.next().is_some() {
        return None;
    }
    let word = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    (word(org) && word(name)).then(|| format!("{org}/{name}"))
}

/// The folder of the Hugging Face cache, by the variables that huggingface_hub reads.
pub(crate) fn cache() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("HF_HUB_CACHE")
        .or_else(|| var("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(var("HF_HOME")?.join("hub")))
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("huggingface/hub")))
        .or_else(|| Some(var("HOME")?.join(".cache/huggingface/hub")))
}

/// The snapshot of a model in the cache.
fn cached(name: &str) -> Option<PathBuf> {
    snapshot(&repository(&cache()?, name), "main")
}

/// The folder of a model in a cache.
pub(crate) fn repository(cache: &Path, name: &str) -> PathBuf {
    cache.join(format!("models--{}", name.replace('/', "--")))
}

/// The snapshot of a repository of the cache to which `reference` points, else the only one.
fn snapshot(repository: &Path, reference: &str) -> Option<PathBuf> {
    let snapshots = repository.join("snapshots");
    if !snapshots.is_dir() || repository.join("config.json").exists() {
        return None;
    }
    let path = repository.join("refs").join(reference);
    let short = std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() < 256);
    let revision = if short { std::fs::read_to_string(path).ok() } else { None };
    let named = revision.map(|revision| snapshots.join(revision.trim()));
    named.filter(|dir| dir.parent() == Some(&*snapshots) && dir.is_dir()).or_else(|| {
        let mut all = std::fs::read_dir(&snapshots).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        all.next().filter(|dir| dir.is_dir() && all.next().is_none())
    })
}

fn missing_hint(given: &Path, name: Option<String>) -> String {
    if let Some(shape) = given.to_str().filter(|name| narrows::Synth::names().any(|shape| shape == *name)) {
        return format!("{shape} is a shape, for `narrows plan {shape}`; a model is a directory");
    }
    const MODEL: &str = "a model is a directory with config.json and safetensors, or a pack";
    match name {
        Some(name) => {
            let place = cache().map_or(String::new(), |cache| format!(" ({})", cache.display()));
            format!("{name} is not in the Hugging Face cache{place}; `hf download {name}` puts it there")
        }
        None if given.components().count() > 1 => MODEL.to_owned(),
        None => {
            let shapes: Vec<_> = narrows::Synth::names().collect();
            format!("{MODEL}; shapes, for `narrows plan`, are {}", shapes.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_of_the_hub() {
        for (text, name) in [
            ("meta-llama/Llama-3.1-8B", Some("meta-llama/Llama-3.1-8B")),
            ("https://huggingface.co/org/name", Some("org/name")),
            ("https://huggingface.co/org/name/tree/main", Some("org/name")),
            ("models/demo/x", None),
            ("../org", None),
            ("/org/name", None),
            ("org/", None),
            ("name", None),
        ] {
            assert_eq!(hub_name(text).as_deref(), name, "{text}");
        }
    }
}
