//! Synthetic models: the shapes of well-known models with random weights, so that anyone can measure
//! without downloading anything.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::architecture::{Architecture, WeightSpec};
use crate::error::{Error, Result};

/// Bytes of weights that are made at a time.
const PIECE: usize = 4 << 20;

/// The shape of a model: what its config.json says. Weights are bf16.
#[derive(Clone, Debug)]
pub struct Synth {
    config: Value,
    architecture: Architecture,
}

/// Name, model type, layers, hidden, intermediate, heads, KV heads, vocabulary, positions, rope theta, experts.
type Shape =
    (&'static str, &'static str, usize, usize, usize, usize, usize, usize, usize, f64, Option<Mixture>);

/// Experts, experts per token, width of one, width of the shared one, whether their weights add up to one.
type Mixture = (usize, usize, usize, Option<usize>, bool);

/// As published in the config.json of each model.
const SHAPES: [Shape; 16] = [
    ("llama-1.1b", "llama", 22, 2048, 5632, 32, 4, 32_000, 2048, 1e4, None),
    ("llama-7b", "llama", 32, 4096, 11_008, 32, 32, 32_000, 4096, 1e4, None),
    ("llama-8b", "llama", 32, 4096, 14_336, 32, 8, 128_256, 8192, 5e5, None),
    ("llama-70b", "llama", 80, 8192, 28_672, 64, 8, 128_256, 8192, 5e5, None),
    ("llama-405b", "llama", 126, 16_384, 53_248, 128, 8, 128_256, 131_072, 5e5, None),
    ("mistral-7b", "mistral", 32, 4096, 14_336, 32, 8, 32_768, 32_768, 1e6, None),
    (
        "mixtral-8x7b",
        "mixtral",
        32,
        4096,
        14_336,
        32,
        8,
        32_000,
        32_768,
        1e6,
        Some((8, 2, 14_336, None, true)),
    ),
    (
        "mixtral-8x22b",
        "mixtral",
        56,
        6144,
        16_384,
        48,
        8,
        32_768,
        65_536,
        1e6,
        Some((8, 2, 16_384, None, true)),
    ),
    (
        "qwen2-57b-a14b",
        "qwen2_moe",
        28,
        3584,
        18_944,
        28,
        4,
        151_936,
        131_072,
        1e6,
        Some((64, 8, 2560, Some(20_480), false)),
    ),
    ("qwen2.5-7b", "qwen2", 28, 3584, 18_944, 28, 4, 152_064, 32_768, 1e6, None),
    ("qwen2.5-32b", "qwen2", 64, 5120, 27_648, 40, 8, 152_064, 32_768, 1e6, None),
    ("qwen2.5-72b", "qwen2", 80, 8192, 29_568, 64, 8, 152_064, 32_768, 1e6, None),
    ("qwen3-8b", "qwen3", 36, 4096, 12_288, 32, 8, 151_936, 40_960, 1e6, None),
    ("qwen3-32b", "qwen3", 64, 5120, 25_600, 64, 8, 151_936, 40_960, 1e6, None),
    (
        "qwen3-30b-a3b",
        "qwen3_moe",
        48,
        2048,
        6144,
        32,
        4,
        151_936,
        40_960,
        1e6,
        Some((128, 8, 768, None, true)),
    ),
    (
        "qwen3-235b-a22b",
        "qwen3_moe",
        94,
        4096,
        12_288,
        64,
        4,
        151_936,
        40_960,
        1e6,
        Some((128, 8, 1536, None, true)),
    ),
];

impl Synth {
    /// The names of all shapes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SHAPES.iter().map(|shape| shape.0)
    }

    /// A shape by name, with `layers` in place of its own number of layers.
    ///
    /// # Errors
    /// There is no such shape, or `layers` is zero or absurd.
    pub fn new(name: &str, layers: Option<usize>) -> Result<Self> {
        let Some(&(
            _,
            kind,
            own_layers,
            hidden,
            intermediate,
            heads,
            kv_heads,
            vocab,
            positions,
            theta,
            mixture,
        )) = SHAPES.iter().find(|shape| shape.0 == name)
        else {
            let known: Vec<_> = Self::names().collect();
            return Err(Error::Request(format!("no shape is called {name} (known: {})", known.join(", "))));
        };
        let capital = |word: &str| format!("{}{}", word[..1].to_uppercase(), &word[1..]);
        let class = kind.split('_').map(capital).collect::<String>() + "ForCausalLM";
        let head_dim = if kind.starts_with("qwen3") { 128 } else { hidden / heads };
        let mut config = json!({
            "architectures": [class],
            "model_type": kind,
            "hidden_size": hidden,
            "intermediate_size": intermediate,
            "num_hidden_layers": layers.unwrap_or(own_layers),
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "vocab_size": vocab,
            "max_position_embeddings": positions,
            "rms_norm_eps": 1e-5,
            "rope_theta": theta,
            "sliding_window": null,
            "hidden_act": "silu",
            "tie_word_embeddings": false,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        });
        if let Some((count, per_token, width, shared, normalised)) = mixture {
            let count_key = if kind == "mixtral" { "num_local_experts" } else { "num_experts" };
            let facts = [
                (count_key, json!(count)),
                ("num_experts_per_tok", json!(per_token)),
                ("moe_intermediate_size", json!(width)),
                ("shared_expert_intermediate_size", json!(shared)),
                ("norm_topk_prob", json!(normalised)),
            ];
            for (key, value) in facts {
                config[key] = value;
            }
        }
        let architecture = Architecture::parse("config.json".as_ref(), config.to_string().as_bytes())?;
        Ok(Self { config, architecture })
    }

    /// The config.json.
    #[must_use]
    pub const fn config(&self) -> &Value {
        &self.config
    }

    /// The architecture.
    #[must_use]
    pub const fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The weights of `spec` in bf16, the same for every number of layers.
    ///
    /// Matrices are scaled by the square root of their columns, as initialised models are, so that
    /// activations keep their size through any number of layers.
    #[must_use]
    pub fn weights(spec: &WeightSpec, seed: u64) -> Vec<u8> {
        let mut all = Vec::with_capacity(2 * spec.shape.iter().product::<usize>());
        let collected: std::result::Result<(), std::convert::Infallible> =
            Self::each_piece(spec, seed, |piece| {
                all.extend_from_slice(piece);
                Ok(())
            });
        match collected {
            Ok(()) => all,
        }
    }

    /// Hands the bytes of [`Synth::weights`] to `each` piece by piece, of at most 4 MiB.
    ///
    /// # Errors
    /// The first that `each` returns; it is not called again.
    pub fn each_piece<E>(
        spec: &WeightSpec,
        seed: u64,
        mut each: impl FnMut(&[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        // Magnitudes are uniform within a power of two: sign and mantissa are random bits.
        let exponent = match spec.shape[..] {
            [_, cols] => -((cols as f64).sqrt() * 1.5).log2().ceil() as i32,
            _ if spec.name.ends_with("bias") => -6,
            _ => 0,
        };
        let exponent = u16::try_from(127 + exponent).unwrap_or(0) << 7;
        // Norms stay positive.
        let random = if spec.shape.len() == 2 || spec.name.ends_with("bias") { 0x807f } else { 0x007f };
        let mut key = [0; 32];
        for (chunk, byte) in seed.to_le_bytes().iter().chain(spec.name.as_bytes()).enumerate() {
            key[chunk % 32] ^= byte.rotate_left((chunk / 32) as u32);
        }
        let mut rng = ChaCha8Rng::from_seed(key);
        let mut left = 2 * spec.shape.iter().product::<usize>();
        let mut bytes = vec![0; left.min(PIECE)];
        while left > 0 {
            let piece = &mut bytes[..left.min(PIECE)];
            rng.fill_bytes(piece);
            for weight in piece.as_chunks_mut::<2>().0 {
                *weight = (u16::from_le_bytes(*weight) & random | exponent).to_le_bytes();
            }
            each(piece)?;
            left -= piece.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_is_a_model() {
        for name in Synth::names() {
            let synth = Synth::new(name, Some(2)).unwrap();
            assert_eq!(synth.architecture().layers, 2);
        }
        let parameters = |name| -> usize {
            let synth = Synth::new(name, None).unwrap();
            synth.architecture().weights().map(|spec| spec.shape.iter().product::<usize>()).sum()
        };
        assert_eq!(parameters("llama-8b"), 8_030_261_248);
        assert_eq!(parameters("llama-70b"), 70_553_706_496);
        assert_eq!(parameters("llama-405b"), 405_853_388_800);
        assert_eq!(parameters("mixtral-8x7b"), 46_702_792_704);
        assert_eq!(parameters("qwen3-30b-a3b"), 30_532_122_624);
        assert_eq!(parameters("qwen3-235b-a22b"), 235_093_634_560);
        assert!(Synth::new("llama-9b", None).is_err() && Synth::new("llama-8b", Some(0)).is_err());
    }

    #[test]
    fn weights_are_centred_and_of_the_right_size() {
        let synth = Synth::new("llama-1.1b", Some(1)).unwrap();
        let spec = synth.architecture().weights().find(|spec| spec.name.ends_with("k_proj.weight")).unwrap();
        let bytes = Synth::weights(&spec, 7);
        let values: Vec<f32> = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16))
            .collect();
        assert_eq!(values.len(), 256 * 2048);
        let mean = values.iter().sum::<f32>() / values.len() as f32;
        let deviation = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
        let wanted = (2048_f32).sqrt().recip();
        assert!(mean.abs() < wanted / 100.0 && deviation / wanted > 0.5 && deviation / wanted < 2.0);
        assert_ne!(bytes, Synth::weights(&spec, 8));
    }

    /// In pieces they are the bytes that the generator gives at once, and no piece is larger than is told.
    #[test]
    fn pieces_are_the_whole() {
        let spec = WeightSpec {
            weight: crate::architecture::Weight::Head,
            name: "x.weight".into(),
            shape: vec![1500, 2049],
        };
        let (mut pieces, mut most) = (Vec::new(), 0);
        Synth::each_piece::<()>(&spec, 7, |piece| {
            most = most.max(piece.len());
            pieces.extend_from_slice(piece);
            Ok(())
        })
        .unwrap();
        assert!(pieces.len() == 2 * 1500 * 2049 && most == PIECE);
        let mut key = [0; 32];
        for (i, byte) in 7_u64.to_le_bytes().iter().chain(b"x.weight").enumerate() {
            key[i] ^= byte;
        }
        let mut whole = vec![0; pieces.len()];
        ChaCha8Rng::from_seed(key).fill_bytes(&mut whole);
        // What of the low bytes is left as it was drawn.
        let drawn = |bytes: &[u8]| bytes.iter().step_by(2).map(|byte| byte & 0x7f).collect::<Vec<_>>();
        assert!(drawn(&pieces) == drawn(&whole));
        let mut calls = 0;
        let ended = Synth::each_piece(&spec, 7, |_| {
            calls += 1;
            Err("full")
        });
        assert_eq!((ended, calls), (Err("full"), 1));
    }
}
