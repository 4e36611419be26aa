//! Rotary position embedding and the ways of stretching it.
//!
//! Formulas follow `modeling_rope_utils.py` of Hugging Face transformers, in float32 where it uses float32.

use std::borrow::Cow;
use std::f64::consts::PI;

use crate::error::{Error, Result};
use crate::fields::Fields;

/// A rotary embedding (Su et al., arXiv:2104.09864) over the first `dims` elements of each head.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base of the wavelengths.
    pub theta: f64,
    /// How it is stretched beyond the trained length.
    pub scaling: RopeScaling,
    /// Elements of a head that turn, from the first; the others stay.
    pub dims: usize,
    /// Which elements turn together.
    pub pairing: Pairing,
    /// Factor of cosine and sine that grows with the position: queries of long contexts are larger.
    pub temperature: Option<Temperature>,
    /// Angle per position, `[dims / 2]`, for lengths within the trained one.
    inverse_frequencies: Vec<f32>,
    /// Factor on cosine and sine.
    magnitude: f32,
}

/// Which elements of a head a rotary embedding turns together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `j` and `j + dims / 2`.
    Halves,
    /// `2 j` and `2 j + 1`.
    Neighbours,
}

/// `1 + beta * ln(1 + floor(position / trained))`
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// How fast it grows.
    pub beta: f64,
    /// Positions of pretraining.
    pub trained: usize,
}

/// What a family's rotary embedding is where the config says nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeDefaults {
    pub(crate) theta: f64,
    /// Share of a head that turns.
    pub(crate) partial: f64,
    pub(crate) pairing: Pairing,
    /// Queries may grow with their position.
    pub(crate) temperature: bool,
}

impl RopeDefaults {
    /// Whole heads, in halves, by that base.
    pub(crate) const fn theta(theta: f64) -> Self {
        Self { theta, partial: 1.0, pairing: Pairing::Halves, temperature: false }
    }
}

/// How a rotary embedding reaches beyond the length it was trained for.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by `factor` (position interpolation, arXiv:2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The base grows with the length of the sequence once it exceeds `trained` positions (dynamic NTK).
    Dynamic {
        /// How fast it grows.
        factor: f64,
        /// Positions up to which the base stays as it is.
        trained: usize,
    },
    /// Long wavelengths are stretched, short ones kept, a smooth band between (Llama 3.1).
    Llama3 {
        /// The stretch of long wavelengths.
        factor: f64,
        /// Wavelengths over `trained / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths under `trained / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions of pretraining.
        trained: usize,
    },
    /// The base is larger, at every length (`alpha` of Hunyuan).
    Alpha {
        /// How much longer wavelengths are.
        alpha: f64,
    },
    /// Each wavelength is stretched by a factor of its own, and by another one in sequences longer than `trained`
    /// (LongRoPE, arXiv:2402.13753).
    Long {
        /// Divisors of frequencies in sequences of up to `trained` positions.
        short: Vec<f32>,
        /// And in longer ones.
        long: Vec<f32>,
        /// Positions of pretraining.
        trained: usize,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
    /// YaRN (arXiv:2309.00071): interpolation and extrapolation mixed by dimension, attention sharpened.
    Yarn {
        /// The stretch.
        factor: f64,
        /// Positions of pretraining.
        trained: usize,
        /// Rotations above which a dimension is only extrapolated.
        beta_fast: f64,
        /// Rotations below which a dimension is only interpolated.
        beta_slow: f64,
        /// Whether the band's edges are rounded to whole dimensions.
        truncate: bool,
        /// Factor on cosine and sine.
        attention_factor: f64,
    },
}

impl Rope {
    /// From `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4), for layers of `kind`
    /// where these have different ones.
    pub(crate) fn read(
        config: &Fields,
        head_dim: usize,
        max_positions: usize,
        defaults: RopeDefaults,
        kind: Option<&str>,
    ) -> Result<Self> {
        // An empty object is as good as none, as it is in Python.
        let given = |key| Ok::<_, Error>(config.object(key)?.filter(|fields| fields.keys().next().is_some()));
        let parameters = match given("rope_scaling")? {
            Some(fields) => Some(fields),
            None => given("rope_parameters")?,
        };
        if config.is_null("rope_theta") {
            return Err(config.invalid("rope_theta", "null is no base of a rotary embedding"));
        }
        let outside = config.f64("partial_rotary_factor")?;
        config.note("original_max_position_embeddings");
        let rotated = |fields: &Fields, part: Option<f64>| {
            let part = part.or(outside).unwrap_or(defaults.partial);
            // As Python's int() cuts it.
            let dims = (head_dim as f64 * part) as usize;
            match part > 0.0 && part <= 1.0 && dims >= 2 && dims.is_multiple_of(2) {
                true => Ok(dims),
                false => Err(fields.invalid(
                    "partial_rotary_factor",
                    &format!("{part} of heads of {head_dim} is no even number of elements"),
                )),
            }
        };
        let Some(fields) = parameters else {
            let theta = config.f64("rope_theta")?.unwrap_or(defaults.theta);
            let dims = rotated(config, None)?;
            let rope = Self::new(theta, RopeScaling::None, dims, defaults.pairing);
            return rope.ok_or_else(|| out_of_range(config));
        };
        let nested = fields.keys().find(|key| key.ends_with("_attention")).map(str::to_owned);
        let fields = match (nested, kind) {
            (None, _) => fields,
            (Some(_), Some(kind)) => fields.object(kind)?.ok_or_else(|| fields.invalid(kind, "missing"))?,
            (Some(nested), None) => {
                return Err(fields.unsupported(&nested, "(a rotary embedding per kind of layer)"));
            }
        };
        let dims = rotated(&fields, fields.f64("partial_rotary_factor")?)?;
        // Three streams of positions, which are one in a text; and what only some ways of stretching ask for.
        for key in [
            "mrope_section",
            "mrope_interleaved",
            "type",
            "rope_type",
            "finetuned",
            "factor",
            "truncate",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "low_freq_factor",
            "high_freq_factor",
        ] {
            fields.note(key);
        }
        let theta = match fields.f64("rope_theta")? {
            Some(theta) => theta,
            None => config.f64("rope_theta")?.unwrap_or(defaults.theta),
        };
        // The first configs with scaling wrote `type`.
        let kind = match fields.str("rope_type")? {
            Some(kind) => Some(kind),
            None => fields.str("type")?,
        };
        let need = |key: &str| fields.f64(key)?.ok_or_else(|| fields.invalid(key, "missing"));
        let trained = || -> Result<usize> {
            let length = match config.usize("original_max_position_embeddings")? {
                Some(length) => Some(length),
                None => fields.usize("original_max_position_embeddings")?,
            };
            Ok(length.unwrap_or(max_positions))
        };
        let scaling = match kind {
            None | Some("default" | "mrope") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: need("factor")? },
            Some("dynamic") if fields.f64("alpha")?.is_some_and(|alpha| alpha != 0.0) => {
                RopeScaling::Alpha { alpha: need("alpha")? }
            }
            Some("dynamic") => RopeScaling::Dynamic { factor: need("factor")?, trained: max_positions },
            Some("llama3") => RopeScaling::Llama3 {
                factor: need("factor")?,
                low_freq_factor: need("low_freq_factor")?,
                high_freq_factor: need("high_freq_factor")?,
                trained: trained()?,
            },
            Some("yarn") => {
                let trained = trained()?;
                let factor = need("factor")?;
                let attention_factor = match fields.f64("attention_factor")? {
                    Some(given) => given,
                    None => yarn_attention_factor(
                        factor,
                        fields.f64("mscale")?.unwrap_or(0.0),
                        fields.f64("mscale_all_dim")?.unwrap_or(0.0),
                    ),
                };
                let or_default = |key: &str, default: f64| -> Result<f64> {
                    Ok(fields.f64(key)?.filter(|&value| value != 0.0).unwrap_or(default))
                };
                RopeScaling::Yarn {
                    factor,
                    trained,
                    beta_fast: or_default("beta_fast", 32.0)?,
                    beta_slow: or_default("beta_slow", 1.0)?,
                    truncate: fields.bool("truncate")?.unwrap_or(true),
                    attention_factor,
                }
            }
            Some("longrope" | "su") => {
                let trained = trained()?;
                let factors = |key: &str| -> Result<Vec<f32>> {
                    let list = fields.array(key)?.ok_or_else(|| fields.invalid(key, "missing"))?;
                    let factors = list.iter().map(|factor| factor.as_f64().map(|factor| factor as f32));
                    let factors: Option<Vec<_>> = factors.collect();
                    match factors.filter(|factors| factors.len() == dims / 2) {
                        Some(factors) if factors.iter().all(|factor| *factor > 0.0) => Ok(factors),
                        _ => {
                            Err(fields.invalid(key, &format!("not a list of {} positive numbers", dims / 2)))
                        }
                    }
                };
                let stretch = match fields.f64("factor")? {
                    Some(factor) => factor,
                    None => max_positions as f64 / trained.max(1) as f64,
                };
                let attention_factor = match fields.f64("attention_factor")? {
                    Some(given) => given,
                    None if stretch <= 1.0 => 1.0,
                    None => (1.0 + stretch.ln() / (trained as f64).ln()).sqrt(),
                };
                RopeScaling::Long {
                    short: factors("short_factor")?,
                    long: factors("long_factor")?,
                    trained,
                    attention_factor,
                }
            }
            Some(other) => return Err(fields.unsupported("rope_type", &format!("\"{other}\""))),
        };
        let rope = Self::new(theta, scaling, dims, defaults.pairing).ok_or_else(|| out_of_range(&fields))?;
        let beta = if defaults.temperature { fields.f64("llama_4_scaling_beta")? } else { None };
        let temperature = match beta.filter(|beta| *beta != 0.0) {
            Some(beta) if beta.is_finite() => Some(Temperature { beta, trained: trained()? }),
            Some(_) => return Err(out_of_range(&fields)),
            None => None,
        };
        Ok(Self { temperature, ..rope })
    }

    /// The same embedding, not stretched.
    pub(crate) fn unstretched(&self) -> Self {
        Self::new(self.theta, RopeScaling::None, self.dims, self.pairing).unwrap_or_else(|| self.clone())
    }

    /// One that is not stretched; `None` where `theta` is no base.
    pub(crate) fn plain(theta: f64, dims: usize, pairing: Pairing) -> Option<Self> {
        Self::new(theta, RopeScaling::None, dims, pairing)
    }

    /// `None` where the parameters lead to angles that are not numbers.
    fn new(theta: f64, scaling: RopeScaling, dims: usize, pairing: Pairing) -> Option<Self> {
        let (inverse_frequencies, magnitude) = match &scaling {
            RopeScaling::None | RopeScaling::Dynamic { .. } => (plain(theta, dims), 1.0),
            RopeScaling::Linear { factor } => {
                (plain(theta, dims).iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            RopeScaling::Alpha { alpha } => (plain(stretched_base(theta, dims, *alpha), dims), 1.0),
            RopeScaling::Long { short, attention_factor, .. } => {
                (divided(theta, dims, short), *attention_factor as f32)
            }
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, trained } => {
                (llama3(theta, dims, factor, low_freq_factor, high_freq_factor, trained), 1.0)
            }
            &RopeScaling::Yarn { factor, trained, beta_fast, beta_slow, truncate, attention_factor } => {
                let band = yarn_band(theta, dims, trained, beta_fast, beta_slow, truncate);
                (yarn(theta, dims, factor, band), attention_factor as f32)
            }
        };
        let sane = theta > 1.0
            && theta.is_finite()
            && magnitude.is_finite()
            && inverse_frequencies.iter().all(|f| f.is_finite() && *f >= 0.0)
            && !matches!(scaling, RopeScaling::Dynamic { factor, .. } if !(factor >= 1.0 && factor.is_finite()));
        let temperature = None;
        sane.then_some(Self { theta, scaling, dims, pairing, temperature, inverse_frequencies, magnitude })
    }

    /// Positions that the model serves, given the config's `max_position_embeddings`; `None`: any number.
    pub(crate) fn max_positions(&self, configured: usize) -> Option<usize> {
        let stretched = |factor: f64, trained: usize| configured.max((factor * trained as f64) as usize);
        match self.scaling {
            RopeScaling::None
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Alpha { .. }
            | RopeScaling::Long { .. } => Some(configured),
            // Models stretched after training often keep the old length in their config.
            RopeScaling::Linear { factor } => Some(stretched(factor, configured)),
            RopeScaling::Yarn { factor, trained, .. } => Some(stretched(factor, trained)),
            RopeScaling::Dynamic { .. } => None,
        }
    }

    /// Whether keys cached at one length of the sequence would be rotated differently at another.
    #[must_use]
    pub const fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::Long { .. })
    }

    /// The length beyond which keys of all positions are turned otherwise, where there is one.
    #[must_use]
    pub const fn switches_at(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::Long { trained, .. } => Some(trained),
            _ => None,
        }
    }

    /// Angle per position for a sequence of `length` positions, `[dims / 2]`.
    #[must_use]
    pub fn inverse_frequencies(&self, length: usize) -> Cow<'_, [f32]> {
        match &self.scaling {
            &RopeScaling::Dynamic { factor, trained } if length > trained => {
                let growth = factor * length as f64 / trained as f64 - (factor - 1.0);
                Cow::Owned(plain(stretched_base(self.theta, self.dims, growth), self.dims))
            }
            RopeScaling::Long { long, trained, .. } if length > *trained => {
                Cow::Owned(divided(self.theta, self.dims, long))
            }
            _ => Cow::Borrowed(&self.inverse_frequencies),
        }
    }

    /// Cosine and sine of the angles at `position`, each `[dims / 2]`, given the frequencies of the
    /// sequence's length.
    pub fn angles(&self, frequencies: &[f32], position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((f, c), s) in frequencies.iter().zip(cos).zip(sin) {
            // The angle is rounded to float32, as in the reference; its cosine need not lose more.
            let angle = f64::from(position as f32 * f);
            *c = angle.cos() as f32 * self.magnitude;
            *s = angle.sin() as f32 * self.magnitude;
        }
    }

    /// The factor of cosine and sine at `position`, where there is one.
    #[must_use]
    pub fn factor(&self, position: usize) -> Option<f32> {
        let Temperature { beta, trained } = self.temperature?;
        Some((1.0 + beta * (1.0 + (position / trained.max(1)) as f64).ln()) as f32)
    }
}

fn out_of_range(fields: &Fields) -> Error {
    Error::invalid(fields.path(), "the rotary embedding's parameters give no usable angles")
}

/// `theta^(2i / dim)`, `[dim / 2]`.
fn wavelengths(theta: f64, dim: usize) -> impl Iterator<Item = f32> {
    (0..dim / 2).map(move |i| theta.powf(f64::from((2 * i) as f32 / dim as f32)) as f32)
}

fn plain(theta: f64, dim: usize) -> Vec<f32> {
    wavelengths(theta, dim).map(|w| 1.0 / w).collect()
}

/// A base by which the longest wavelength grows `growth` times.
fn stretched_base(theta: f64, dims: usize, growth: f64) -> f64 {
    let dims = dims as f64;
    // A head of two dimensions has one frequency, which no base changes.
    if dims > 2.0 { theta * growth.powf(dims / (dims - 2.0)) } else { theta }
}

fn divided(theta: f64, dims: usize, factors: &[f32]) -> Vec<f32> {
    wavelengths(theta, dims).zip(factors).map(|(wavelength, factor)| 1.0 / (factor * wavelength)).collect()
}

fn llama3(theta: f64, dim: usize, factor: f64, low: f64, high: f64, trained: usize) -> Vec<f32> {
    let trained = trained as f32;
    let (factor, low, high) = (factor as f32, low as f32, high as f32);
    plain(theta, dim)
        .into_iter()
        .map(|f| {
            let wavelength = 2.0 * PI as f32 / f;
            if wavelength < trained / high {
                f
            } else if wavelength > trained / low {
                f / factor
            } else {
                let smooth = (trained / wavelength - low) / (high - low);
                (1.0 - smooth) * f / factor + smooth * f
            }
        })
        .collect()
}

/// The scale of attention that YaRN proposes, with DeepSeek's variant where both mscales are given.
fn yarn_attention_factor(factor: f64, mscale: f64, mscale_all_dim: f64) -> f64 {
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    if mscale != 0.0 && mscale_all_dim != 0.0 { scale(mscale) / scale(mscale_all_dim) } else { scale(1.0) }
}

/// The dimensions between which YaRN goes over from extrapolation to interpolation.
fn yarn_band(theta: f64, dim: usize, trained: usize, fast: f64, slow: f64, truncate: bool) -> (f32, f32) {
    let dimension =
        |rotations: f64| dim as f64 * (trained as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln());
    let (mut low, mut high) = (dimension(fast), dimension(slow));
    if truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
    if low == high {
        high += 0.001;
    }
    (low as f32, high as f32)
}

fn yarn(theta: f64, dim: usize, factor: f64, (low, high): (f32, f32)) -> Vec<f32> {
    wavelengths(theta, dim)
        .enumerate()
        .map(|(i, wavelength)| {
            let extrapolated = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / (factor as f32 * wavelength) * (1.0 - extrapolated) + 1.0 / wavelength * extrapolated
        })
        .collect()
}
