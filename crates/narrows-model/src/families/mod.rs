//! The families: each a function that writes the program of its models.
//!
//! A family is one line of [`FAMILIES`] and a function. Facts are from the code of Hugging Face transformers
//! (`modeling_*.py`, `configuration_*.py`) or, where it has none, from the code published with the model.

mod block;
mod fused;
mod llama;
mod mixtures;
mod norms;
mod qwen;
mod remote;
mod wrappers;

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::program::Program;

/// A model type and what writes its program.
pub(crate) struct Family {
    /// `model_type` of the config.
    pub(crate) model_type: &'static str,
    /// Classes in `architectures`: another one of this model type is not a plain causal decoder.
    pub(crate) classes: &'static [&'static str],
    /// Writes the program. The text is what the names of all tensors begin with.
    pub(crate) program: Write,
}

type Write = fn(&Fields, &str) -> Result<Program>;

const fn family(model_type: &'static str, classes: &'static [&'static str], program: Write) -> Family {
    Family { model_type, classes, program }
}

const FAMILIES: &[Family] = &[
    family("afmoe", &["AfmoeForCausalLM"], mixtures::afmoe),
    family("arcee", &["ArceeForCausalLM"], llama::arcee),
    family("baichuan", &["BaichuanForCausalLM", "BaiChuanForCausalLM"], remote::baichuan),
    family("chatglm", &["ChatGLMModel", "ChatGLMForConditionalGeneration"], remote::chatglm),
    family("cohere", &["CohereForCausalLM"], norms::cohere),
    family("cohere2", &["Cohere2ForCausalLM"], norms::cohere2),
    family("cohere2_moe", &["Cohere2MoeForCausalLM"], norms::cohere2_moe),
    family("dots1", &["Dots1ForCausalLM"], mixtures::dots1),
    family("ernie4_5", &["Ernie4_5ForCausalLM"], llama::ernie4_5),
    family("ernie4_5_moe", &["Ernie4_5_MoeForCausalLM"], mixtures::ernie4_5_moe),
    family("exaone4", &["Exaone4ForCausalLM"], norms::exaone4),
    family("exaone_moe", &["ExaoneMoeForCausalLM"], mixtures::exaone_moe),
    family("gemma", &["GemmaForCausalLM"], norms::gemma),
    family("gemma2", &["Gemma2ForCausalLM"], norms::gemma2),
    family("gemma3_text", &["Gemma3ForCausalLM"], norms::gemma3),
    family("glm", &["GlmForCausalLM"], fused::glm),
    family("glm4", &["Glm4ForCausalLM"], fused::glm4),
    family("glm4_moe", &["Glm4MoeForCausalLM"], mixtures::glm4_moe),
    family("granite", &["GraniteForCausalLM"], norms::granite),
    family("granitemoe", &["GraniteMoeForCausalLM"], norms::granite_moe),
    family("hunyuan_v1_dense", &["HunYuanDenseV1ForCausalLM"], llama::hunyuan_dense),
    family("hunyuan_v1_moe", &["HunYuanMoEV1ForCausalLM"], mixtures::hunyuan_moe),
    family("hy_v3", &["HYV3ForCausalLM"], mixtures::hy_v3),
    family("internlm", &["InternLMForCausalLM", "LlamaForCausalLM"], llama::internlm),
    family("internlm2", &["InternLM2ForCausalLM"], remote::internlm2),
    family("internlm3", &["InternLM3ForCausalLM", "LlamaForCausalLM"], llama::internlm3),
    family("llama", &["LlamaForCausalLM"], llama::llama),
    family("minimax_m2", &["MiniMaxM2ForCausalLM"], mixtures::minimax_m2),
    family("ministral3", &["Ministral3ForCausalLM"], llama::ministral3),
    family("mistral", &["MistralForCausalLM"], llama::mistral),
    family("mixtral", &["MixtralForCausalLM"], mixtures::mixtral),
    family("nemotron", &["NemotronForCausalLM"], fused::nemotron),
    family("olmo2", &["Olmo2ForCausalLM"], norms::olmo2),
    family("olmo3", &["Olmo3ForCausalLM"], norms::olmo3),
    family("olmoe", &["OlmoeForCausalLM"], mixtures::olmoe),
    family("phi", &["PhiForCausalLM"], fused::phi),
    family("phi3", &["Phi3ForCausalLM"], fused::phi3),
    family("phimoe", &["PhimoeForCausalLM", "PhiMoEForCausalLM"], mixtures::phimoe),
    family("qwen", &["QWenLMHeadModel"], remote::qwen1),
    family("qwen2", &["Qwen2ForCausalLM"], qwen::qwen2),
    family("qwen2_moe", &["Qwen2MoeForCausalLM"], qwen::qwen2_moe),
    family("qwen3", &["Qwen3ForCausalLM"], qwen::qwen3),
    family("qwen3_moe", &["Qwen3MoeForCausalLM"], qwen::qwen3_moe),
    family("seed_oss", &["SeedOssForCausalLM"], llama::seed_oss),
    family("smollm3", &["SmolLM3ForCausalLM"], llama::smollm3),
    family("stablelm", &["StableLmForCausalLM", "StableLMEpochForCausalLM"], fused::stablelm),
    family("starcoder2", &["Starcoder2ForCausalLM"], fused::starcoder2),
    family("vaultgemma", &["VaultGemmaForCausalLM"], norms::vaultgemma),
];

/// Model types of all families.
pub fn known() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.model_type)
}

/// The program of the model that a config describes.
pub(crate) fn program(config: &Fields) -> Result<Program> {
    if let Some(wrapper) = wrappers::of(config)? {
        return wrapper.program(config);
    }
    let family = of(config)?;
    if let Some(quantization) = config.object("quantization_config")? {
        let method = quantization.str("quant_method")?.unwrap_or("an unnamed method").to_owned();
        return Err(config.unsupported("quantization_config", &format!("({method})")));
    }
    (family.program)(config, "")
}

/// The family that a config names.
fn of(config: &Fields) -> Result<&'static Family> {
    let model_type = config.str("model_type")?;
    let class = match config.array("architectures")? {
        Some(list) => match list.as_slice() {
            [] => None,
            [one] => {
                Some(one.as_str().ok_or_else(|| config.invalid("architectures", "not a list of names"))?)
            }
            _ => return Err(config.unsupported("architectures", "naming several classes")),
        },
        None => None,
    };
    // `LlamaModel`: the decoder without its head, which is tied or stored beside it.
    let is_class = |family: &Family, class: &str| {
        family.classes.iter().any(|own| class == *own || class == own.replace("ForCausalLM", "Model"))
    };
    let found = FAMILIES.iter().find(|family| match (model_type, class) {
        (Some(model_type), _) => model_type == family.model_type,
        // InternLM's files may name Llama's class; a config without a model type that does is Llama's.
        (None, Some(class)) => is_class(family, class) && !family.model_type.starts_with("internlm"),
        (None, None) => false,
    });
    let Some(family) = found else {
        let Some(name) = model_type.or(class) else {
            return Err(config.invalid("model_type", "missing"));
        };
        let known: Vec<_> = known().collect();
        let what = format!("model_type \"{name}\" (known: {})", known.join(", "));
        return Err(Error::unsupported(config.path(), what));
    };
    match class {
        Some(class) if !is_class(family, class) => {
            Err(Error::unsupported(config.path(), format!("architecture \"{class}\"")))
        }
        _ => Ok(family),
    }
}
