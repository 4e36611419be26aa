//! `narrows bench kernels`

use std::num::NonZeroUsize;

use narrows::{Synth, Weight};
use narrows_bench::kernels::{Operation, Settings, Shape, run};

use super::{Session, memory};
use crate::args::bench::BenchKernels;
use crate::args::{Device, Output};
use crate::failure::{Failure, Result};

pub(super) fn kernels(output: &Output, args: &BenchKernels) -> Result<()> {
    if let Device::Cuda(n) = args.device {
        // There or not, the kernels of a device have a bench of their own, on its own clock.
        let device = narrows::Device::open(n)?;
        return Err(Failure::Device(format!(
            "--device cuda:{n}: the kernels of {} are measured by `cargo bench -p narrows-kernels --bench kernels`",
            device.name()
        )));
    }
    let mut session = Session::begin(output)?;
    let names = match args.shape.iter().any(|name| name == "all") {
        true => Synth::names().map(str::to_owned).collect(),
        false => args.shape.clone(),
    };
    let settings = Settings {
        operations: if args.op.is_empty() { Operation::ALL.to_vec() } else { args.op.clone() },
        encodings: args.encoding.clone(),
        shapes: names.iter().map(|name| shape(name)).collect::<Result<_>>()?,
        rows: args.rows.clone(),
        positions: args.positions,
        runtime: args.runtime,
        loops: args.loops,
        threads: args.threads.map_or(session.machine.threads, NonZeroUsize::get),
        memory: memory(),
        spread: args.size,
    };
    let result = run(&settings, &mut |step| session.go_on(step));
    let report = session.results(result)?;
    let record = session.record(report.results, report.notes);
    session.end(&args.output, &record)
}

/// What the operations of a well-known model work on.
fn shape(name: &str) -> Result<Shape> {
    let synth = Synth::new(name, Some(1))?;
    let a = synth.architecture();
    let mut matrices = Vec::new();
    for spec in a.weights().filter(|spec| spec.weight != Weight::Embedding) {
        // Routers have a handful of rows, in float32, and take no time.
        if let [rows, cols] = spec.shape[..]
            && a.experts.as_ref().is_none_or(|experts| rows != experts.count && rows != 1)
            && !matrices.contains(&[rows, cols])
        {
            matrices.push([rows, cols]);
        }
    }
    Ok(Shape {
        matrices,
        hidden: a.hidden_size,
        intermediate: a.experts.as_ref().map_or(a.intermediate_size, |experts| experts.intermediate_size),
        heads: a.heads,
        kv_heads: a.kv_heads,
        head_dim: a.head_dim,
    })
}
