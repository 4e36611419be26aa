//! Synthetic models: the shapes of well-known models with random weights, so that anyone can measure
//! without downloading anything.

use std::sync::Arc;

use narrows_model::{Program, WeightSpec};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde_json::Value;

use crate::error::{Error, Result};

/// Bytes of weights that are made at a time.
const PIECE: usize = 4 << 20;

/// The shape of a model: what its config.json says. Weights are bf16.
#[derive(Clone, Debug)]
pub struct Synth {
    config: Value,
    program: Arc<Program>,
}

/// Embeds the config.json of each shape.
macro_rules! shapes {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../shapes/", $name, ".json")))),*]
    };
}

/// As published in the config.json of each model.
const SHAPES: [(&str, &str); 16] = shapes![
    "llama-1.1b",
    "llama-7b",
    "llama-8b",
    "llama-70b",
    "llama-405b",
    "mistral-7b",
    "mixtral-8x7b",
    "mixtral-8x22b",
    "qwen2-57b-a14b",
    "qwen2.5-7b",
    "qwen2.5-32b",
    "qwen2.5-72b",
    "qwen3-8b",
    "qwen3-32b",
    "qwen3-30b-a3b",
    "qwen3-235b-a22b",
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
        let Some((_, text)) = SHAPES.iter().find(|shape| shape.0 == name) else {
            let known: Vec<_> = Self::names().collect();
            return Err(Error::Request(format!("no shape is called {name} (known: {})", known.join(", "))));
        };
        let mut config: Value =
            serde_json::from_str(text).map_err(|_| Error::Internal("a shape is no JSON"))?;
        if let Some(layers) = layers {
            config["num_hidden_layers"] = layers.into();
        }
        let program = Program::parse("config.json".as_ref(), config.to_string().as_bytes())?;
        Ok(Self { config, program: Arc::new(program) })
    }

    /// The config.json.
    #[must_use]
    pub const fn config(&self) -> &Value {
        &self.config
    }

    /// What a model of the shape computes.
    #[must_use]
    pub fn program(&self) -> Arc<Program> {
        Arc::clone(&self.program)
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
            assert_eq!(synth.program().dims.layers, 2);
        }
        let parameters = |name| -> usize {
            let synth = Synth::new(name, None).unwrap();
            synth.program().weights.iter().map(WeightSpec::len).sum()
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
        let spec =
            synth.program().weights.iter().find(|spec| spec.name.ends_with("k_proj.weight")).unwrap().clone();
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
            role: narrows_model::Role::Head,
            part: narrows_model::Part::Head,
            expert: None,
            within: None,
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
