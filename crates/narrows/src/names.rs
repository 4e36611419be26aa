//! The names that checkpoints have for weights.
//!
//! Hugging Face transformers loads more than the names under which it saves a model today: `model.` may be missing or
//! doubled, tied weights may be stored as the head alone, the mixture of a layer may be called otherwise, and all its
//! experts may be one tensor. What is found under another name is listed under the one that the architecture has for it,
//! so that nothing behind this module knows of it, and a pack has one spelling.

use narrows_shard::WeightFiles;

use crate::architecture::{Architecture, ExpertWeight, Weight, WeightSpec};
use crate::error::Result;

/// Of `conversion_mapping.py` of transformers: what Mixtral calls a mixture, and what all families do by now.
const MIXTURES: [&str; 2] = [".block_sparse_moe.", ".mlp."];

/// Lists weights that `files` has under other names under those of the architecture.
pub(crate) fn adopt(architecture: &Architecture, files: &mut WeightFiles) -> Result<()> {
    let specs: Vec<_> = architecture.weights().collect();
    for (i, spec) in specs.iter().enumerate() {
        if matches!(spec.weight, Weight::Expert(_, 0, ExpertWeight::GateProj))
            && files.get(&spec.name).is_none()
        {
            divide_experts(architecture, files, &specs[i..])?;
        }
        if files.get(&spec.name).is_some() {
            continue;
        }
        let found = other_names(&spec.name).find(|name| files.get(name).is_some());
        let found = match spec.weight {
            Weight::Embedding if found.is_none() && architecture.tied_embeddings => {
                let head = "lm_head.weight";
                std::iter::once(head.to_owned())
                    .chain(other_names(head))
                    .find(|name| files.get(name).is_some())
            }
            _ => found,
        };
        if let Some(name) = found {
            let shape = files.get(&name).map(|tensor| tensor.shape.clone()).unwrap_or_default();
            files.divide(&name, vec![(spec.name.clone(), shape)])?;
        }
    }
    Ok(())
}

/// Finds the experts of a layer in two tensors: `[experts, gate and up, hidden]` and `[experts, hidden, down]`. `specs` begin
/// with the first weight of its first expert.
fn divide_experts(architecture: &Architecture, files: &mut WeightFiles, specs: &[WeightSpec]) -> Result<()> {
    let Some(WeightSpec { weight: Weight::Expert(layer, ..), name, .. }) = specs.first() else {
        return Ok(());
    };
    let Some(mixture) = architecture.experts_of(*layer) else { return Ok(()) };
    let Some((prefix, _)) = name.split_once("experts.") else { return Ok(()) };
    let (count, hidden, width) = (mixture.count, architecture.hidden_size, mixture.intermediate_size);
    let of_layer = specs.iter().map_while(|spec| match spec.weight {
        Weight::Expert(of, _, weight) if of == *layer => Some((weight == ExpertWeight::DownProj, spec)),
        _ => None,
    });
    for (name, shape, down) in
        [("gate_up_proj", [count, 2 * width, hidden], false), ("down_proj", [count, hidden, width], true)]
    {
        let name = format!("{prefix}experts.{name}");
        let found = std::iter::once(name.clone())
            .chain(other_names(&name))
            .find(|name| files.get(name).is_some_and(|tensor| tensor.shape == shape));
        if let Some(name) = found {
            let parts = of_layer.clone().filter(|(is_down, _)| *is_down == down);
            files.divide(&name, parts.map(|(_, spec)| (spec.name.clone(), spec.shape.clone())).collect())?;
        }
    }
    Ok(())
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
            std::iter::once(name).chain(bare).chain([doubled])
        })
        .filter(move |name| *name != own)
}
