//! A program as text: what `narrows inspect --program` prints.

use std::fmt::{Display, Formatter, Result, Write as _};

use crate::program::{
    Activation, Experts, Make, NormKind, Normalise, Op, Program, Scoring, Value, VectorId, WeightId,
};
use crate::rope::Pairing;

impl Display for Program {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let d = &self.dims;
        writeln!(
            f,
            "{}: {} layers, hidden {}, vocabulary {}, {} weights{}",
            d.family,
            d.layers,
            d.hidden,
            d.vocab,
            self.weights.len(),
            if d.tied { ", head tied to the embedding" } else { "" }
        )?;
        for (index, rope) in self.ropes.iter().enumerate() {
            let pairs = if rope.pairing == Pairing::Neighbours { " of neighbours" } else { "" };
            writeln!(
                f,
                "rope {index}: theta {}, {} elements{pairs}, {:?}",
                rope.theta, rope.dims, rope.scaling
            )?;
        }
        let list = |f: &mut Formatter<'_>, ops: &[Op]| -> Result {
            for op in ops {
                let mut text = String::new();
                self.op(&mut text, op, "  ")?;
                f.write_str(&text)?;
            }
            Ok(())
        };
        writeln!(f, "begin")?;
        list(f, &self.prologue)?;
        // Layers that are alike are printed once.
        let texts = self.layers.iter().enumerate().map(|(layer, ops)| {
            let mut text = String::new();
            for op in ops {
                self.op(&mut text, op, "  ")?;
            }
            Ok(text.replace(&format!(".{layer}."), ".N."))
        });
        let texts = texts.collect::<std::result::Result<Vec<String>, std::fmt::Error>>()?;
        let mut from = 0;
        while from < texts.len() {
            let mut to = from + 1;
            while to < texts.len() && texts[to] == texts[from] {
                to += 1;
            }
            match to - from {
                1 => writeln!(f, "layer {from}")?,
                _ => writeln!(f, "layers {from} to {}", to - 1)?,
            }
            f.write_str(&texts[from])?;
            from = to;
        }
        writeln!(f, "end")?;
        list(f, &self.epilogue)
    }
}

impl Program {
    fn name(&self, value: Value) -> &'static str {
        self.values[value.0].name
    }

    fn weight(&self, weight: WeightId) -> String {
        let spec = &self.weights[weight.0];
        let shape: Vec<_> = spec.shape.iter().map(ToString::to_string).collect();
        format!("{} [{}]", spec.name, shape.join(", "))
    }

    fn vector(&self, vector: VectorId) -> String {
        let spec = &self.vectors[vector.0];
        let first = spec.parts.first().map_or(String::new(), |(weight, range)| {
            let whole = range.len() == self.weights[weight.0].len() || spec.make == Make::InverseRowNorms;
            let part = if whole { String::new() } else { format!("[{}..{}]", range.start, range.end) };
            format!("{}{part}", self.weights[weight.0].name)
        });
        let more = match spec.parts.len() {
            0 | 1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        match spec.make {
            Make::Plain => format!("{first}{more}"),
            Make::PlusOne => format!("1 + {first}{more}"),
            Make::InverseRowNorms => format!("1 / |rows of {first}|"),
        }
    }

    /// One operation, in a line or, of experts, several.
    fn op(&self, out: &mut String, op: &Op, indent: &str) -> Result {
        let name = |value: Value| self.name(value);
        out.write_str(indent)?;
        match op {
            Op::Embed { to } => writeln!(out, "{} = rows of {}", name(*to), self.weight(WeightId(0))),
            Op::Norm(norm) => {
                let kind = if norm.kind == NormKind::Rms { "rms_norm" } else { "layer_norm" };
                let heads = if norm.heads > 1 { format!(" by {} heads", norm.heads) } else { String::new() };
                let bias = norm.bias.map_or(String::new(), |bias| format!(" + {}", self.vector(bias)));
                let (to, from, weight) = (name(norm.to), name(norm.from), self.vector(norm.weight));
                writeln!(out, "{to} = {kind}({from}, {:e}){heads} * {weight}{bias}", norm.eps)
            }
            Op::Linear(linear) => {
                let to: Vec<_> = linear.to.iter().map(|output| name(output.value)).collect();
                let mut names = to.clone();
                names.dedup();
                // Grouped rows go round and round.
                let to = match names.len() > 3 {
                    true => format!("{} by {} groups", names[..3].join(", "), names.len() / 3),
                    false => names.join(", "),
                };
                writeln!(out, "{to} = {} {}", self.weight(linear.weight), name(linear.from))
            }
            Op::Bias { vector, to } => writeln!(out, "{} += {}", name(*to), self.vector(*vector)),
            Op::Rotate(rotate) => writeln!(
                out,
                "{} = rope {} of {} heads of {}",
                name(rotate.value),
                rotate.rope.0,
                rotate.heads,
                rotate.head_dim
            ),
            Op::Attend(a) => {
                let mut how = format!("scale {}", a.scale);
                if let Some(cap) = a.softcap {
                    write!(how, ", softcap {cap}")?;
                }
                if let Some(window) = a.window {
                    write!(how, ", window {window}")?;
                }
                if a.alibi {
                    how += ", alibi";
                }
                let (to, q, k, v) = (name(a.to), name(a.q), name(a.k), name(a.v));
                writeln!(
                    out,
                    "{to} = attention({q}, {k}, {v}): {} heads on {} of {}, {how}",
                    a.heads, a.kv_heads, a.head_dim
                )
            }
            Op::Activate(a) => {
                let function = match a.kind {
                    Activation::Silu => "silu",
                    Activation::GeluTanh => "gelu_tanh",
                    Activation::Relu2 => "relu_squared",
                    Activation::Sigmoid => "sigmoid",
                };
                let up = a.up.map_or(String::new(), |up| format!(" * {}", name(up)));
                writeln!(out, "{} = {function}({}){up}", name(a.to), name(a.gate))
            }
            Op::Add { from, to } => writeln!(out, "{} += {}", name(*to), name(*from)),
            Op::Scale { value, factor } => writeln!(out, "{} *= {factor}", name(*value)),
            Op::Softcap { value, cap } => {
                writeln!(out, "{0} = {cap} * tanh({0} / {cap})", name(*value))
            }
            Op::Clamp { value, limit } => writeln!(out, "{} to -{limit} to {limit}", name(*value)),
            Op::Multiply { value, vector } => writeln!(out, "{} *= {}", name(*value), self.vector(*vector)),
            Op::Wanted { from, to } => writeln!(out, "{} = wanted rows of {}", name(*to), name(*from)),
            Op::Route(route) => {
                let score = match route.scoring {
                    Scoring::Softmax => "softmax".to_owned(),
                    Scoring::Sigmoid => "sigmoid".to_owned(),
                    Scoring::SparseMixer(jitter) => format!("sparse mixer {jitter}"),
                };
                let mut how = format!("{} of {} experts by {score}", route.per_token, route.count);
                if let Some(correction) = route.correction {
                    write!(how, " + {}", self.vector(correction))?;
                }
                if let Some(groups) = route.groups {
                    write!(how, " in {} of {} groups", groups.chosen, groups.count)?;
                }
                match route.normalise {
                    Normalise::No => {}
                    Normalise::Sum => how += ", by their sum",
                    Normalise::SumAnd(more) => write!(how, ", by their sum and {more:e}")?,
                    Normalise::SumAtLeast(least) => write!(how, ", by their sum of {least:e} at least")?,
                }
                if route.scale != 1.0 {
                    write!(how, ", times {}", route.scale)?;
                }
                writeln!(out, "route {} by {}: {how}", name(route.from), self.vector(route.router))
            }
            Op::Zero { to } => writeln!(out, "{} = 0", name(*to)),
            Op::AddShared { from, to } => writeln!(out, "{} += shared weight * {}", name(*to), name(*from)),
            Op::Experts(experts) => self.experts(out, experts, indent),
        }
    }

    fn experts(&self, out: &mut String, experts: &Experts, indent: &str) -> Result {
        let name = |value: Value| self.name(value);
        let (to, from) = (name(experts.to), name(experts.from));
        writeln!(out, "{to} += weight * {} of each chosen of {}:", name(experts.made), experts.count)?;
        let inner = format!("{indent}  ");
        writeln!(out, "{inner}{} = its rows of {from}", name(experts.taken))?;
        for op in &experts.body {
            self.op(out, op, &inner)?;
        }
        Ok(())
    }
}
