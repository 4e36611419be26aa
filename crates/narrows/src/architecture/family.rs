//! The model families: the few facts in which relatives of Llama differ.
//!
//! A new family is one more entry of [`FAMILIES`]. Defaults are those of the family's config class in Hugging
//! Face transformers (`configuration_*.py`), since a config.json may leave out whatever equals them.

use super::experts::{ExpertFamily, MIXTRAL, QWEN2_MOE, QWEN3_MOE};
use crate::error::{Error, Result};
use crate::json::Fields;

/// Whether a bias is there.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bias {
    Never,
    Always,
    /// The config has a switch of that name, off where it is absent.
    Configured(&'static str),
    /// The config has a switch of that name, on where it is absent.
    UnlessConfigured(&'static str),
}

impl Bias {
    pub(super) fn resolve(self, config: &Fields) -> Result<bool> {
        match self {
            Self::Never => Ok(false),
            Self::Always => Ok(true),
            Self::Configured(key) => Ok(config.bool(key)?.unwrap_or(false)),
            Self::UnlessConfigured(key) => Ok(config.bool(key)?.unwrap_or(true)),
        }
    }
}

/// How a family decides which layers attend through a sliding window.
#[derive(Clone, Copy, Debug)]
enum Windows {
    /// No layer does, whatever the config says.
    None,
    /// Every layer does where `sliding_window` is a number (this one where the key is absent).
    All(Option<usize>),
    /// Every layer does, with `use_sliding_window`.
    AllSwitched,
    /// As `Switched`, but where there are no `layer_types` it is every other layer below `max_window_layers`.
    Alternating,
    /// Layers named `sliding_attention` in `layer_types`, else those from `max_window_layers` on; only
    /// with `use_sliding_window`.
    Switched,
}

/// The facts of a family.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) model_type: &'static str,
    /// The class name in `architectures`: anything else of this model type is not a plain causal decoder.
    class: &'static str,
    pub(super) qkv_bias: Bias,
    pub(super) o_bias: Bias,
    pub(super) mlp_bias: Bias,
    pub(super) qk_norm: bool,
    windows: Windows,
    /// How the family mixes experts, if it does.
    pub(super) experts: Option<&'static ExpertFamily>,
    pub(super) defaults: Defaults,
}

/// The values of keys that a config leaves out.
#[derive(Debug)]
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// `None`: as many as query heads.
    pub(super) kv_heads: Option<usize>,
    /// `None`: hidden size over heads.
    pub(super) head_dim: Option<usize>,
    pub(super) max_positions: usize,
    pub(super) rope_theta: f64,
    pub(super) norm_eps: f64,
    pub(super) eos_token_id: Option<u32>,
}

/// What Llama is; the others say how they differ.
const LLAMA: Family = Family {
    model_type: "llama",
    class: "LlamaForCausalLM",
    qkv_bias: Bias::Configured("attention_bias"),
    o_bias: Bias::Configured("attention_bias"),
    mlp_bias: Bias::Configured("mlp_bias"),
    qk_norm: false,
    windows: Windows::None,
    experts: None,
    defaults: LLAMA_DEFAULTS,
};

const LLAMA_DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    rope_theta: 10_000.0,
    norm_eps: 1e-6,
    eos_token_id: Some(2),
};

const MISTRAL_DEFAULTS: Defaults =
    Defaults { intermediate_size: 14_336, kv_heads: Some(8), max_positions: 131_072, ..LLAMA_DEFAULTS };

const QWEN_DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    kv_heads: Some(32),
    max_positions: 32_768,
    eos_token_id: None,
    ..LLAMA_DEFAULTS
};

const QWEN_MOE_DEFAULTS: Defaults = Defaults { hidden_size: 2048, layers: 24, ..QWEN_DEFAULTS };

const FAMILIES: [Family; 7] = [
    LLAMA,
    Family {
        model_type: "mistral",
        class: "MistralForCausalLM",
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::All(Some(4096)),
        defaults: MISTRAL_DEFAULTS,
        ..LLAMA
    },
    Family {
        model_type: "mixtral",
        class: "MixtralForCausalLM",
        qkv_bias: Bias::Never,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::All(None),
        experts: Some(&MIXTRAL),
        defaults: Defaults { rope_theta: 1_000_000.0, norm_eps: 1e-5, ..MISTRAL_DEFAULTS },
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        class: "Qwen2ForCausalLM",
        qkv_bias: Bias::Always,
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::Switched,
        defaults: QWEN_DEFAULTS,
        ..LLAMA
    },
    Family {
        model_type: "qwen3",
        class: "Qwen3ForCausalLM",
        mlp_bias: Bias::Never,
        qk_norm: true,
        windows: Windows::Switched,
        defaults: Defaults { head_dim: Some(128), ..QWEN_DEFAULTS },
        ..LLAMA
    },
    Family {
        model_type: "qwen2_moe",
        class: "Qwen2MoeForCausalLM",
        qkv_bias: Bias::UnlessConfigured("qkv_bias"),
        o_bias: Bias::Never,
        mlp_bias: Bias::Never,
        windows: Windows::Alternating,
        experts: Some(&QWEN2_MOE),
        defaults: Defaults { intermediate_size: 5632, heads: 16, kv_heads: Some(16), ..QWEN_MOE_DEFAULTS },
        ..LLAMA
    },
    Family {
        model_type: "qwen3_moe",
        class: "Qwen3MoeForCausalLM",
        mlp_bias: Bias::Never,
        qk_norm: true,
        windows: Windows::AllSwitched,
        experts: Some(&QWEN3_MOE),
        defaults: Defaults { intermediate_size: 6144, kv_heads: Some(4), ..QWEN_MOE_DEFAULTS },
        ..LLAMA
    },
];

impl Family {
    /// The family that a config names.
    pub(super) fn of(config: &Fields) -> Result<&'static Self> {
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
        let found = FAMILIES.iter().find(|family| match (model_type, class) {
            (Some(model_type), _) => model_type == family.model_type,
            (None, Some(class)) => {
                class == family.class || class == family.class.replace("ForCausalLM", "Model")
            }
            (None, None) => false,
        });
        let Some(family) = found else {
            let Some(name) = model_type.or(class) else {
                return Err(config.invalid("model_type", "missing"));
            };
            let known: Vec<_> = FAMILIES.iter().map(|family| family.model_type).collect();
            return Err(Error::unsupported(
                config.path(),
                format!("model_type \"{name}\" (known: {})", known.join(", ")),
            ));
        };
        match class {
            // `LlamaModel`: the decoder without its head, which is tied or stored beside it.
            Some(class) if class != family.class && class != family.class.replace("ForCausalLM", "Model") => {
                Err(Error::unsupported(config.path(), format!("architecture \"{class}\"")))
            }
            _ => Ok(family),
        }
    }

    /// Per layer: the sliding window, if it attends through one.
    pub(super) fn windows(&self, config: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
        const DEFAULT_WINDOW: usize = 4096;
        let window = |default: Option<usize>| -> Result<Option<usize>> {
            match config.usize("sliding_window")? {
                Some(0) => Err(config.invalid("sliding_window", "0 is not a window")),
                Some(n) => Ok(Some(n)),
                // `null` says that there is none; an absent key means the class default.
                None if config.is_null("sliding_window") => Ok(None),
                None => Ok(default),
            }
        };
        let switched = || match config.bool("use_sliding_window")? {
            Some(true) => window(Some(DEFAULT_WINDOW)),
            _ => Ok(None),
        };
        match self.windows {
            Windows::None => Ok(vec![None; layers]),
            Windows::AllSwitched => Ok(vec![switched()?; layers]),
            Windows::All(default) => {
                if config.get("layer_types").is_some() {
                    return Err(config.unsupported("layer_types", "in this kind of model"));
                }
                Ok(vec![window(default)?; layers])
            }
            Windows::Switched | Windows::Alternating => {
                let window = switched()?;
                let Some(types) = config.array("layer_types")? else {
                    let limit = config.usize("max_window_layers")?.unwrap_or(28);
                    let slides = |layer: usize| match self.windows {
                        Windows::Alternating => layer < limit && layer.is_multiple_of(2),
                        _ => layer >= limit,
                    };
                    return Ok((0..layers).map(|layer| window.filter(|_| slides(layer))).collect());
                };
                if types.len() != layers {
                    return Err(config
                        .invalid("layer_types", &format!("{} entries for {layers} layers", types.len())));
                }
                types
                    .iter()
                    .map(|kind| match (kind.as_str(), window) {
                        (Some("full_attention"), _) => Ok(None),
                        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
                        (Some("sliding_attention"), None) => {
                            Err(config.invalid("layer_types", "sliding_attention without a sliding_window"))
                        }
                        _ => Err(config.unsupported("layer_types", &kind.to_string())),
                    })
                    .collect()
            }
        }
    }
}
