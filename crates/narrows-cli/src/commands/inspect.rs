//! `narrows inspect`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use narrows::program::{Part, RopeScaling};
use narrows::{Bytes, Model};
use schemars::JsonSchema;
use serde::Serialize;

use super::{SCHEMA_VERSION, deviation};
use crate::amounts::parameters;
use crate::args::{Inspect, Output};
use crate::failure::Result;
use crate::models::locate;
use crate::output::{write, write_json};

#[derive(JsonSchema, Serialize)]
pub(super) struct Report<'a> {
    schema_version: u32,
    family: &'a str,
    packed: bool,
    parameters: u64,
    bytes: u64,
    bytes_per_pass: u64,
    bytes_by_encoding: BTreeMap<String, u64>,
    embedding_bytes: u64,
    layer_bytes: Vec<u64>,
    head_bytes: u64,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    max_positions: Option<usize>,
    sliding_windows: Vec<Option<usize>>,
    /// Of the first layers that have a rotary embedding; absent where none has.
    rope_theta: Option<f64>,
    /// Absent where positions are not scaled.
    rope_scaling: Option<ScalingReport>,
    tensors: Option<Vec<TensorReport<'a>>>,
    /// The operations of a pass, as text.
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<deviation::Report>,
}

/// How positions beyond those of training are scaled, in the words of config.json.
#[derive(JsonSchema, Serialize)]
#[serde(tag = "rope_type", rename_all = "lowercase")]
enum ScalingReport {
    Linear {
        factor: f64,
    },
    Dynamic {
        factor: f64,
        original_max_position_embeddings: usize,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    #[serde(rename = "dynamic-alpha")]
    Alpha {
        alpha: f64,
    },
    Longrope {
        short_factor: Vec<f32>,
        long_factor: Vec<f32>,
        original_max_position_embeddings: usize,
        attention_factor: f64,
    },
    Yarn {
        factor: f64,
        original_max_position_embeddings: usize,
        beta_fast: f64,
        beta_slow: f64,
        truncate: bool,
        attention_factor: f64,
    },
}

impl ScalingReport {
    fn of(scaling: &RopeScaling) -> Option<Self> {
        Some(match *scaling {
            RopeScaling::Alpha { alpha } => Self::Alpha { alpha },
            RopeScaling::Long { ref short, ref long, trained, attention_factor } => Self::Longrope {
                short_factor: short.clone(),
                long_factor: long.clone(),
                original_max_position_embeddings: trained,
                attention_factor,
            },
            RopeScaling::None => return None,
            RopeScaling::Linear { factor } => Self::Linear { factor },
            RopeScaling::Dynamic { factor, trained } => {
                Self::Dynamic { factor, original_max_position_embeddings: trained }
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, trained } => Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: trained,
            },
            RopeScaling::Yarn { factor, trained, beta_fast, beta_slow, truncate, attention_factor } => {
                Self::Yarn {
                    factor,
                    original_max_position_embeddings: trained,
                    beta_fast,
                    beta_slow,
                    truncate,
                    attention_factor,
                }
            }
        })
    }

    /// `llama3 by 8`.
    fn line(&self) -> String {
        let (name, factor) = match self {
            Self::Alpha { alpha } => ("alpha", alpha),
            Self::Longrope { attention_factor, .. } => ("longrope", attention_factor),
            Self::Linear { factor } => ("linear", factor),
            Self::Dynamic { factor, .. } => ("dynamic", factor),
            Self::Llama3 { factor, .. } => ("llama3", factor),
            Self::Yarn { factor, .. } => ("yarn", factor),
        };
        format!("{name} by {factor}")
    }
}

#[derive(JsonSchema, Serialize)]
struct TensorReport<'a> {
    name: &'a str,
    encoding: String,
    shape: &'a [usize],
    file: String,
    offset: u64,
    bytes: u64,
}

pub(crate) fn inspect(output: &Output, args: &Inspect) -> Result<()> {
    let model = Model::open(locate(&args.model)?)?;
    let mut report = report(&model, args)?;
    if let Some(source) = &args.error {
        let source = source.as_deref().map(locate).transpose()?;
        report.error = Some(deviation::measure(output, &model, source.as_deref())?);
    }
    if output.json { write_json(&report) } else { write(&table(&report)) }
}

fn report<'a>(model: &'a Model, args: &Inspect) -> Result<Report<'a>> {
    let program = model.program();
    let d = &program.dims;
    let mut layer_bytes = vec![0; program.layers.len()];
    let (mut embedding_bytes, mut head_bytes, mut parameters) = (0, 0, 0);
    let mut bytes_by_encoding = BTreeMap::new();
    let mut tensors = Vec::new();
    for (spec, tensor) in model.tensors() {
        let bytes = tensor.range.end - tensor.range.start;
        parameters += tensor.shape.iter().product::<usize>() as u64;
        match spec.part {
            Part::Embedding => embedding_bytes += bytes,
            Part::Layer(layer) => layer_bytes[layer] += bytes,
            Part::Head => head_bytes += bytes,
        }
        let encoding = tensor.encoding.map(|e| e.to_string()).unwrap_or_default();
        *bytes_by_encoding.entry(encoding.clone()).or_default() += bytes;
        let file = &model.files()?.files()[tensor.file].path;
        tensors.push(TensorReport {
            name: &spec.name,
            encoding,
            shape: &tensor.shape,
            file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            offset: tensor.range.start,
            bytes,
        });
    }
    Ok(Report {
        schema_version: SCHEMA_VERSION,
        family: d.family,
        packed: model.files()?.manifest().is_some(),
        parameters,
        bytes: model.weight_bytes().get(),
        bytes_per_pass: model.pass_bytes().get(),
        bytes_by_encoding,
        embedding_bytes,
        layer_bytes,
        head_bytes,
        vocab_size: d.vocab,
        hidden_size: d.hidden,
        intermediate_size: d.intermediate,
        layers: d.layers,
        heads: d.heads,
        kv_heads: d.kv_heads,
        head_dim: d.head_dim,
        max_positions: d.max_positions,
        sliding_windows: program.attentions().map(|attention| attention.window).collect(),
        rope_theta: program.ropes.first().map(|rope| rope.theta),
        rope_scaling: program.ropes.iter().find_map(|rope| ScalingReport::of(&rope.scaling)),
        tensors: args.tensors.then_some(tensors),
        program: args.program.then(|| program.to_string()),
        error: None,
    })
}

fn table(r: &Report<'_>) -> String {
    let mut t = String::new();
    let form = if r.packed { "pack" } else { "checkpoint" };
    let encodings: Vec<_> =
        r.bytes_by_encoding.iter().map(|(name, bytes)| format!("{name} {}", Bytes(*bytes))).collect();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(t, "{name:<12} {value}");
    };
    line("model", format!("{} ({form})", r.family));
    line("parameters", parameters(r.parameters));
    line("weights", format!("{} ({})", Bytes(r.bytes), encodings.join(", ")));
    line("per pass", Bytes(r.bytes_per_pass).to_string());
    line("embedding", format!("{}, vocabulary {}", Bytes(r.embedding_bytes), r.vocab_size));
    let layers = match (r.layer_bytes.iter().min(), r.layer_bytes.iter().max()) {
        (Some(min), Some(max)) if min != max => format!("{} to {}", Bytes(*min), Bytes(*max)),
        (Some(min), _) => Bytes(*min).to_string(),
        _ => String::new(),
    };
    line("layers", format!("{} x {layers}, hidden {}, MLP {}", r.layers, r.hidden_size, r.intermediate_size));
    line("head", Bytes(r.head_bytes).to_string());
    line("attention", format!("{} heads, {} of keys and values, {} wide", r.heads, r.kv_heads, r.head_dim));
    let windowed = r.sliding_windows.iter().flatten().count();
    if let Some(window) = r.sliding_windows.iter().flatten().next() {
        line("window", format!("{window} positions in {windowed} of {} layers", r.layers));
    }
    let scaling =
        r.rope_scaling.as_ref().map_or(String::new(), |scaling| format!(", scaling {}", scaling.line()));
    if let Some(theta) = r.rope_theta {
        line("rope", format!("theta {theta}{scaling}"));
    }
    line("context", r.max_positions.map_or_else(|| "any length".to_owned(), |n| format!("{n} positions")));
    if let Some(program) = &r.program {
        t += "\n";
        t += program;
    }
    if let Some(tensors) = &r.tensors {
        for tensor in tensors {
            let _ = writeln!(
                t,
                "{:<52} {:<5} {:<16} {:>10}  {} at {}",
                tensor.name,
                tensor.encoding,
                format!("{:?}", tensor.shape),
                Bytes(tensor.bytes).to_string(),
                tensor.file,
                tensor.offset
            );
        }
    }
    if let Some(error) = &r.error {
        t += &deviation::table(error);
    }
    t
}
