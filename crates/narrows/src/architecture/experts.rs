//! Mixtures of experts: layers that have many MLPs, of which a router chooses a few for each row.

use super::family::Family;
use crate::error::Result;
use crate::json::Fields;

/// The experts of a model.
///
/// A router gives each row of a layer a probability for each expert: the softmax over all of them. The row goes to the
/// `per_token` most probable, and their results are added up, weighted by their probabilities. (A softmax over the
/// chosen alone, as the Mixtral paper has it, is the same as probabilities that are made to add up to one.)
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// Experts in each layer that has some.
    pub count: usize,
    /// How many of them a row goes to.
    pub per_token: usize,
    /// Width of each expert's gated MLP.
    pub intermediate_size: usize,
    /// Whether the probabilities of the chosen are made to add up to one.
    pub normalised: bool,
    /// Width of the MLP that every row goes to besides, weighted by a sigmoid of its own.
    pub shared_intermediate_size: Option<usize>,
    /// By layer: whether it has experts.
    pub layers: Vec<bool>,
    /// Names of the weights, in each layer.
    pub(super) names: &'static Names,
}

/// What a family calls the weights of a mixture.
#[derive(Debug, PartialEq)]
pub(super) struct Names {
    pub(super) router: &'static str,
    /// Before the number of an expert.
    pub(super) expert: &'static str,
    /// Gate, up and down projection, behind it.
    pub(super) projections: [&'static str; 3],
}

const QWEN_NAMES: Names = Names {
    router: "mlp.gate.weight",
    expert: "mlp.experts.",
    projections: ["gate_proj.weight", "up_proj.weight", "down_proj.weight"],
};

/// The facts in which families with experts differ. Defaults are those of their config classes.
#[derive(Debug)]
pub(super) struct ExpertFamily {
    names: Names,
    default_count: usize,
    default_per_token: usize,
    /// The key of the width of an expert, and its default; `None`: that of the family's MLP.
    intermediate: (&'static str, Option<usize>),
    /// The same of the shared expert, if the family has one.
    shared: Option<(&'static str, usize)>,
    /// Whether probabilities always add up to one; otherwise the config has a switch for it.
    always_normalised: bool,
    /// Whether the config may say which layers have experts.
    chosen_layers: bool,
}

pub(super) const MIXTRAL: ExpertFamily = ExpertFamily {
    names: Names {
        router: "block_sparse_moe.gate.weight",
        expert: "block_sparse_moe.experts.",
        projections: ["w1.weight", "w3.weight", "w2.weight"],
    },
    default_count: 8,
    default_per_token: 2,
    intermediate: ("intermediate_size", None),
    shared: None,
    always_normalised: true,
    chosen_layers: false,
};

pub(super) const QWEN2_MOE: ExpertFamily = ExpertFamily {
    names: QWEN_NAMES,
    default_count: 60,
    default_per_token: 4,
    intermediate: ("moe_intermediate_size", Some(1408)),
    shared: Some(("shared_expert_intermediate_size", 5632)),
    always_normalised: false,
    chosen_layers: true,
};

pub(super) const QWEN3_MOE: ExpertFamily = ExpertFamily {
    default_count: 128,
    default_per_token: 8,
    intermediate: ("moe_intermediate_size", Some(768)),
    shared: None,
    ..QWEN2_MOE
};

/// More experts than this are mistakes or attacks: several times the largest models known.
const MOST_EXPERTS: usize = 1 << 12;

/// And so are more of them in all layers together.
const MOST_IN_ALL: usize = 1 << 17;

impl Experts {
    /// The experts that a config names; none where its family or itself has none.
    pub(super) fn from_config(
        config: &Fields,
        family: &'static Family,
        layers: usize,
    ) -> Result<Option<Self>> {
        const COUNTS: [&str; 2] = ["num_local_experts", "num_experts"];
        let default_width = family.defaults.intermediate_size;
        let Some(family) = family.experts else {
            for key in COUNTS {
                super::refuse_unless_neutral(config, key)?;
            }
            return Ok(None);
        };
        // Transformers takes either name, and writes one or the other, depending on its version.
        let count = match (config.usize(COUNTS[0])?, config.usize(COUNTS[1])?) {
            (Some(a), Some(b)) if a != b => {
                return Err(config.invalid(COUNTS[1], &format!("{b}, but {} is {a}", COUNTS[0])));
            }
            (one, other) => one.or(other).unwrap_or(family.default_count),
        };
        if count > MOST_EXPERTS || count.saturating_mul(layers) > MOST_IN_ALL {
            return Err(
                config.invalid(COUNTS[0], &format!("{count} in {layers} layers is more than allowed"))
            );
        }
        let per_token = config.usize("num_experts_per_tok")?.unwrap_or(family.default_per_token);
        if count > 0 && !(1..=count).contains(&per_token) {
            return Err(config.invalid("num_experts_per_tok", &format!("{per_token} of {count} experts")));
        }
        let width = |key: &str, default: usize| match config.usize(key)?.unwrap_or(default) {
            width @ 1..=super::limit::INTERMEDIATE => Ok(width),
            width => Err(config.invalid(key, &format!("{width} is not a size"))),
        };
        let layers = family.layers(config, layers, count)?;
        if !layers.contains(&true) {
            return Ok(None);
        }
        let (key, default) = family.intermediate;
        Ok(Some(Self {
            count,
            per_token,
            intermediate_size: width(key, default.unwrap_or(default_width))?,
            normalised: family.always_normalised || config.bool("norm_topk_prob")?.unwrap_or(false),
            shared_intermediate_size: family.shared.map(|(key, default)| width(key, default)).transpose()?,
            layers,
            names: &family.names,
        }))
    }
}

impl ExpertFamily {
    /// By layer: whether it has experts.
    fn layers(&self, config: &Fields, layers: usize, count: usize) -> Result<Vec<bool>> {
        if !self.chosen_layers {
            return Ok(vec![count > 0; layers]);
        }
        let step = config.usize("decoder_sparse_step")?.unwrap_or(1);
        if step == 0 {
            return Err(config.invalid("decoder_sparse_step", "0 is not a step"));
        }
        let mut sparse: Vec<bool> = (1..=layers).map(|n| count > 0 && n.is_multiple_of(step)).collect();
        for dense in config.array("mlp_only_layers")?.into_iter().flatten() {
            let layer = dense.as_u64().and_then(|layer| usize::try_from(layer).ok());
            let layer = layer.ok_or_else(|| config.invalid("mlp_only_layers", "not a list of layers"))?;
            // Like transformers, which only asks whether a layer is listed.
            if let Some(sparse) = sparse.get_mut(layer) {
                *sparse = false;
            }
        }
        Ok(sparse)
    }
}
