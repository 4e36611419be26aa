//! Multimodal checkpoints: the text model inside, under `text_config` and names of its own; the rest is left alone.

use super::{FAMILIES, Family};
use crate::error::Result;
use crate::fields::Fields;
use crate::program::Program;

/// A model type that holds a text model.
#[derive(Debug)]
pub(super) struct Wrapper {
    model_type: &'static str,
    /// Model types of the text model; the first where the config does not say.
    texts: &'static [&'static str],
    /// Beginnings of names of tensors of other parts.
    skipped: &'static [&'static str],
}

const WRAPPERS: [Wrapper; 6] = [
    Wrapper {
        model_type: "gemma3",
        texts: &["gemma3_text"],
        skipped: &[
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ],
    },
    Wrapper {
        model_type: "mistral3",
        texts: &["mistral", "ministral3"],
        skipped: &[
            "vision_tower.",
            "multi_modal_projector.",
            "model.vision_tower.",
            "model.multi_modal_projector.",
        ],
    },
    Wrapper { model_type: "qwen2_vl", texts: &["qwen2"], skipped: &["visual.", "model.visual."] },
    Wrapper { model_type: "qwen2_5_vl", texts: &["qwen2"], skipped: &["visual.", "model.visual."] },
    Wrapper { model_type: "qwen3_vl", texts: &["qwen3"], skipped: &["model.visual.", "visual."] },
    Wrapper { model_type: "qwen3_vl_moe", texts: &["qwen3_moe"], skipped: &["model.visual.", "visual."] },
];

/// The wrapper that a config names.
pub(super) fn of(config: &Fields) -> Result<Option<&'static Wrapper>> {
    let model_type = config.str("model_type")?;
    Ok(WRAPPERS.iter().find(|wrapper| Some(wrapper.model_type) == model_type))
}

impl Wrapper {
    /// The program of the text model.
    pub(super) fn program(&self, config: &Fields) -> Result<Program> {
        // Older configs of Qwen have the text model's keys beside those of the vision tower.
        let text = config.object("text_config")?.unwrap_or_else(|| config.clone());
        let text = text.with_outer(config, &["tie_word_embeddings"], &["vocab_size", "eos_token_id"]);
        let family = self.family(&text)?;
        for key in [
            "vision_config",
            "audio_config",
            "projector_hidden_act",
            "vision_feature_layer",
            "spatial_merge_size",
            "multimodal_projector_bias",
            "mm_tokens_per_image",
            "text_config",
            "rope_scaling",
        ] {
            config.note(key);
        }
        let mut program = (family.program)(&text, "")?;
        program.skipped.extend(self.skipped.iter().map(|name| (*name).to_owned()));
        Ok(program)
    }

    fn family(&self, text: &Fields) -> Result<&'static Family> {
        let named = text.str("model_type")?;
        // `qwen2_5_vl_text` is Qwen 2.
        let known = |name: &str| self.texts.iter().copied().find(|text| *text == name);
        let name = match named {
            None => Some(self.texts[0]),
            Some(name) if name == self.model_type || name == format!("{}_text", self.model_type) => {
                Some(self.texts[0])
            }
            Some(name) => known(name),
        };
        let family = FAMILIES.iter().find(|family| Some(family.model_type) == name);
        family.ok_or_else(|| {
            text.unsupported(
                "model_type",
                &format!("\"{}\" in {}", named.unwrap_or_default(), self.model_type),
            )
        })
    }
}
