//! From a program to what a backend runs: which values share memory, in which encodings they are made, and which
//! additions become part of the norm behind them.

use std::collections::HashMap;
use std::sync::Arc;

use narrows_model::{Norm, NormKind, Op, Program, Rows, Value, WeightId};
use narrows_shard::Encoding;

/// A program that a backend can run.
#[derive(Clone, Debug)]
pub(crate) struct Lowered {
    pub(crate) program: Arc<Program>,
    pub(crate) prologue: Vec<Op>,
    pub(crate) layers: Vec<Vec<Op>>,
    pub(crate) epilogue: Vec<Op>,
    /// By [`Value`].
    pub(crate) values: Vec<Placed>,
    pub(crate) buffers: Vec<Buffer>,
    /// Elements of the widest operand that a product takes in another encoding than it is made in.
    pub(crate) cast: usize,
    /// By layer: the norm whose result its router takes, if that is a norm of the residual stream.
    pub(crate) before_router: Vec<Option<Norm>>,
}

/// Where a value is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Placed {
    pub(crate) width: usize,
    pub(crate) rows: Rows,
    pub(crate) buffer: usize,
    /// How it is made.
    pub(crate) encoding: Encoding,
}

/// Memory that values share which are never needed at the same time, `[rows, width]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Buffer {
    pub(crate) width: usize,
    /// Its rows are those whose logits are wanted.
    pub(crate) wanted: bool,
}

impl Lowered {
    /// For a backend that computes in float32 throughout.
    pub(crate) fn in_float(program: Arc<Program>) -> Self {
        Self::new(program, |_| Encoding::F32, false)
    }

    /// For a backend whose products take operands in the encoding that `operand` says of a matrix, and which adds and norms
    /// as one.
    pub(crate) fn for_device(program: Arc<Program>, operand: impl Fn(WeightId) -> Encoding) -> Self {
        Self::new(program, operand, true)
    }

    fn new(program: Arc<Program>, operand: impl Fn(WeightId) -> Encoding, fuse: bool) -> Self {
        let encodings = encodings(&program, &operand);
        let cast = program.ops().filter_map(|op| match op {
            Op::Linear(linear) if operand(linear.weight) != encodings[linear.from.0] => {
                Some(program.values[linear.from.0].width)
            }
            _ => None,
        });
        let cast = cast.max().unwrap_or(0);
        let (mut prologue, mut layers, mut epilogue) =
            (program.prologue.clone(), program.layers.clone(), program.epilogue.clone());
        if fuse {
            let mut lists: Vec<&mut Vec<Op>> = Vec::with_capacity(layers.len() + 2);
            lists.push(&mut prologue);
            lists.extend(&mut layers);
            lists.push(&mut epilogue);
            fuse_additions(&mut lists);
        }
        let before_router = layers.iter().map(|ops| norm_of_router(ops)).collect();
        let (places, buffers) = place(&program, &prologue, &layers, &epilogue);
        let values = program.values.iter().zip(places).zip(encodings);
        let values = values
            .map(|((spec, buffer), encoding)| Placed { width: spec.width, rows: spec.rows, buffer, encoding })
            .collect();
        Self { program, prologue, layers, epilogue, values, buffers, cast, before_router }
    }

    /// Elements of buffers, for each row of a step and for each of those whose logits are wanted.
    pub(crate) fn widths(&self) -> (usize, usize) {
        let sum = |wanted: bool| {
            self.buffers.iter().filter(|buffer| buffer.wanted == wanted).map(|buffer| buffer.width).sum()
        };
        (sum(false), sum(true))
    }
}

/// The encoding that each value is made in: that of the products that take it, where nothing else does and they agree.
fn encodings(program: &Program, operand: &impl Fn(WeightId) -> Encoding) -> Vec<Encoding> {
    let mut wanted: Vec<Option<Encoding>> = vec![None; program.values.len()];
    let mut want = |value: Value, encoding: Encoding| {
        let wanted = &mut wanted[value.0];
        *wanted = Some(if wanted.is_none_or(|other| other == encoding) { encoding } else { Encoding::F32 });
    };
    // What experts take of a value is made as the value is.
    let mut taken = HashMap::new();
    for op in program.ops() {
        match op {
            Op::Linear(linear) => {
                let from = taken.get(&linear.from).copied().unwrap_or(linear.from);
                want(from, operand(linear.weight));
            }
            Op::Experts(experts) => {
                taken.insert(experts.taken, experts.from);
                want(experts.made, Encoding::F32);
                want(experts.to, Encoding::F32);
            }
            op => reads(op).into_iter().for_each(|value| want(value, Encoding::F32)),
        }
        // Results in place, and of operations that make nothing but float32.
        match op {
            Op::Norm(norm) if norm.from != norm.to && norm.heads == 1 && norm.kind == NormKind::Rms => {}
            Op::Attend(_) | Op::Activate(_) => {}
            op => writes(op).into_iter().for_each(|value| want(value, Encoding::F32)),
        }
    }
    for (taken, from) in taken {
        wanted[taken.0] = wanted[from.0];
    }
    wanted.into_iter().map(|encoding| encoding.unwrap_or(Encoding::F32)).collect()
}

/// An addition right before a norm of its sum becomes part of it, also where a layer ends between them.
fn fuse_additions(lists: &mut [&mut Vec<Op>]) {
    for at in 0..lists.len() {
        let (before, rest) = lists.split_at_mut(at);
        let ops = &mut *rest[0];
        let mut index = 0;
        while index < ops.len() {
            let previous = match index {
                0 => before.last().and_then(|list| list.last()),
                _ => ops.get(index - 1),
            };
            if let (Some(&Op::Add { from, to }), Op::Norm(norm)) = (previous, &ops[index])
                && norm.from == to
                && norm.to != to
                && norm.heads == 1
                && norm.kind == NormKind::Rms
                && norm.add.is_none()
            {
                if let Op::Norm(norm) = &mut ops[index] {
                    norm.add = Some(from);
                }
                if index == 0 {
                    if let Some(list) = before.last_mut() {
                        list.pop();
                    }
                } else {
                    ops.remove(index - 1);
                    index -= 1;
                }
            }
            index += 1;
        }
    }
}

/// The norm right before a layer's router.
fn norm_of_router(ops: &[Op]) -> Option<Norm> {
    ops.windows(2).find_map(|pair| match pair {
        [Op::Norm(norm), Op::Route(route)] if norm.to == route.from && norm.from == Value(0) => {
            Some(Norm { add: None, ..norm.clone() })
        }
        _ => None,
    })
}

/// Values that an operation reads, those of the body of experts left out.
pub(crate) fn reads(op: &Op) -> Vec<Value> {
    match op {
        Op::Embed { .. } | Op::Zero { .. } => vec![],
        Op::Norm(norm) => std::iter::once(norm.from).chain(norm.add).collect(),
        Op::Linear(linear) => vec![linear.from],
        Op::Bias { to, .. } => vec![*to],
        Op::Rotate(rotate) => vec![rotate.value],
        Op::Attend(a) => vec![a.q, a.k, a.v],
        Op::Activate(a) => std::iter::once(a.gate).chain(a.up).collect(),
        Op::Add { from, to } | Op::AddShared { from, to } => vec![*from, *to],
        Op::Scale { value, .. }
        | Op::Softcap { value, .. }
        | Op::Clamp { value, .. }
        | Op::Multiply { value, .. } => vec![*value],
        Op::Wanted { from, .. } => vec![*from],
        Op::Route(route) => vec![route.from],
        Op::Experts(experts) => vec![experts.from, experts.to],
    }
}

/// Values that an operation writes.
pub(crate) fn writes(op: &Op) -> Vec<Value> {
    match op {
        Op::Embed { to }
        | Op::Zero { to }
        | Op::Bias { to, .. }
        | Op::Add { to, .. }
        | Op::AddShared { to, .. }
        | Op::Wanted { to, .. } => vec![*to],
        Op::Norm(norm) => {
            // A norm that adds changes its operand, too.
            std::iter::once(norm.to).chain(norm.add.map(|_| norm.from)).collect()
        }
        Op::Linear(linear) => linear.to.iter().map(|output| output.value).collect(),
        Op::Rotate(rotate) => vec![rotate.value],
        Op::Attend(a) => vec![a.to],
        Op::Activate(a) => vec![a.to],
        Op::Scale { value, .. }
        | Op::Softcap { value, .. }
        | Op::Clamp { value, .. }
        | Op::Multiply { value, .. } => vec![*value],
        Op::Route(route) => vec![route.scores],
        Op::Experts(experts) => vec![experts.taken, experts.to],
    }
}

/// Gives each value a buffer for as long as it is needed.
fn place(
    program: &Program,
    prologue: &[Op],
    layers: &[Vec<Op>],
    epilogue: &[Op],
) -> (Vec<usize>, Vec<Buffer>) {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; program.values.len()];
    let mut time = 0;
    let mut touch = |value: Value, at: usize| {
        let life = lives[value.0].get_or_insert((at, at));
        life.1 = life.1.max(at);
    };
    for op in prologue.iter().chain(layers.iter().flatten()).chain(epilogue) {
        time += 1;
        reads(op).into_iter().chain(writes(op)).for_each(|value| touch(value, time));
        if let Op::Experts(experts) = op {
            // The body runs once for each expert.
            for op in &experts.body {
                time += 1;
                reads(op).into_iter().chain(writes(op)).for_each(|value| touch(value, time));
            }
            time += 1;
            for value in [experts.from, experts.taken, experts.made, experts.to] {
                touch(value, time);
            }
        }
    }
    // The residual stream and the logits outlive their operations.
    touch(Value(0), time);
    touch(program.logits, time + 1);
    let mut order: Vec<usize> = (0..lives.len()).filter(|value| lives[*value].is_some()).collect();
    order.sort_by_key(|value| lives[*value]);
    let mut places = vec![0; lives.len()];
    let mut buffers: Vec<Buffer> = Vec::new();
    // When each buffer is free again.
    let mut free_after: Vec<usize> = Vec::new();
    for value in order {
        let Some((first, last)) = lives[value] else { continue };
        let spec = &program.values[value];
        let wanted = spec.rows == Rows::Wanted;
        let fits = |buffer: &Buffer| (buffer.width < spec.width, buffer.width.abs_diff(spec.width));
        let free = (0..buffers.len())
            .filter(|buffer| free_after[*buffer] < first && buffers[*buffer].wanted == wanted)
            .min_by_key(|buffer| fits(&buffers[*buffer]));
        let buffer = free.unwrap_or_else(|| {
            buffers.push(Buffer { width: 0, wanted });
            free_after.push(0);
            buffers.len() - 1
        });
        buffers[buffer].width = buffers[buffer].width.max(spec.width);
        free_after[buffer] = last;
        places[value] = buffer;
    }
    (places, buffers)
}
