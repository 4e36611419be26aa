//! The names that checkpoints have for weights.
//!
//! Hugging Face transformers loads more than the names under which it saves a model today: `model.` may be missing or
//! doubled, tied weights may be stored as the head alone, the mixture of a layer may be called otherwise, and all its
//! experts may be one tensor. What is found under another name is listed under the one that the architecture has for it,
//! so that nothing behind this module knows of it, and a pack has one spelling.

use std::collections::BTreeMap;

use narrows_model::{Program, Role, Slice};
use narrows_shard::WeightFiles;

use crate::error::{Error, Result};

/// Of `conversion_mapping.py` of transformers: what Mixtral calls a mixture, and what all families do by now.
const MIXTURES: [&str; 2] = [".block_sparse_moe.", ".mlp."];

/// Weights that one tensor holds together: where each begins, its name and shape.
type Parts = Vec<(usize, String, Vec<usize>)>;

/// Lists weights that `files` has under other names under those of the program.
pub(crate) fn adopt(program: &Program, files: &mut WeightFiles) -> Result<()> {
    let mut together: BTreeMap<String, Parts> = BTreeMap::new();
    for spec in &program.weights {
        if files.get(&spec.name).is_some() {
            continue;
        }
        let found = other_names(&spec.name).find(|name| files.get(name).is_some());
        let found = match spec.role {
            Role::Embedding if found.is_none() && program.dims.tied => {
                let head = program.weights[program.head.0].name.clone();
                let others: Vec<_> = other_names(&head).collect();
                std::iter::once(head).chain(others).find(|name| files.get(name).is_some())
            }
            _ => found,
        };
        if let Some(name) = found {
            let shape = files.get(&name).map(|tensor| tensor.shape.clone()).unwrap_or_default();
            files.divide(&name, vec![(spec.name.clone(), shape)])?;
        } else if let Some(slice) = &spec.within {
            let whole = std::iter::once(slice.name.clone())
                .chain(other_names(&slice.name))
                .find(|name| files.get(name).is_some_and(|tensor| tensor.shape == slice.shape));
            let Some(whole) = whole else {
                refuse_transposed(files, slice)?;
                continue;
            };
            let part = (slice.start, spec.name.clone(), spec.shape.clone());
            together.entry(whole).or_default().push(part);
        }
    }
    for (whole, mut parts) in together {
        parts.sort();
        files.divide(&whole, parts.into_iter().map(|(_, name, shape)| (name, shape)).collect())?;
    }
    Ok(())
}

/// Refuses experts that are stored with inputs as rows, by their name, rather than to miss them by another.
fn refuse_transposed(files: &WeightFiles, slice: &Slice) -> Result<()> {
    let transposed = [slice.shape[0], slice.shape[2], slice.shape[1]];
    let names = std::iter::once(slice.name.clone()).chain(other_names(&slice.name));
    let found = names.filter_map(|name| files.get(&name).map(|tensor| (name, tensor)));
    match found.into_iter().find(|(_, tensor)| tensor.shape == transposed) {
        Some((name, tensor)) => Err(Error::unsupported(
            &files.files()[tensor.file].path,
            format!("tensor {name} of shape {:?}, experts with their inputs as rows,", tensor.shape),
        )),
        None => Ok(()),
    }
}

/// What else a checkpoint may call the weight `name`.
fn other_names(name: &str) -> impl Iterator<Item = String> {
    let [old, new] = MIXTURES;
    let renamed = name.contains(old).then(|| name.replace(old, new));
    let spellings: Vec<_> = std::iter::once(name.to_owned()).chain(renamed).collect();
    let own = name.to_owned();
    spellings
        .into_iter()
        .flat_map(|name| {
            let bare = name.strip_prefix("model.").map(str::to_owned);
            let doubled = format!("model.{name}");
            // Of text models inside multimodal ones.
            let inside = bare.as_ref().map(|bare| format!("model.language_model.{bare}"));
            let before = format!("language_model.{name}");
            std::iter::once(name).chain(bare).chain([doubled]).chain(inside).chain([before])
        })
        .filter(move |name| *name != own)
}
