//! `narrows bench kernels`

use std::num::NonZeroUsize;

use narrows::Synth;
use narrows::program::Role;
use narrows_bench::kernels::{Loaded, Operation, Settings, Shape, run};
use narrows_bench::pcie;

use super::{Session, memory};
use crate::args::bench::BenchKernels;
use crate::args::{Device, Output};
use crate::failure::{Failure, Result};
use crate::output::say;

pub(super) fn kernels(output: &Output, args: &BenchKernels) -> Result<()> {
    let device = open(output, args.device)?;
    if device.is_some() && args.threads.is_some() {
        return Err(Failure::Usage("--threads: no thread computes, a device does".to_owned()));
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
        memory: match &device {
            Some(device) => device.device().free().map_err(narrows_bench::Error::from)?,
            None => memory(),
        },
        spread: args.size,
    };
    let result = run(&settings, device.as_ref(), &mut |step| session.go_on(step));
    let report = session.results(result)?;
    if let Some(device) = &device {
        session.machine.gpu = Some(pcie::gpu(device.device())?);
    }
    let record = session.record(report.results, report.notes);
    session.end(&args.output, &record)
}

/// The device that was asked for; by itself the first that is no driver's imitation of one.
fn open(output: &Output, which: Device) -> Result<Option<Loaded>> {
    let device = match which {
        Device::Cpu => return Ok(None),
        Device::Cuda(ordinal) => Loaded::open(ordinal)?,
        Device::Auto => {
            let why = match Loaded::open(0) {
                Ok(loaded) => match loaded.device().require_gpu() {
                    Ok(()) => return Ok(Some(said(output, loaded))),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            say(output, &format!("device: cpu ({why})"));
            return Ok(None);
        }
    };
    Ok(Some(said(output, device)))
}

fn said(output: &Output, loaded: Loaded) -> Loaded {
    let device = loaded.device();
    say(output, &format!("device: cuda:{} {}", device.ordinal(), device.name()));
    loaded
}

/// What the operations of a well-known model work on.
fn shape(name: &str) -> Result<Shape> {
    let synth = Synth::new(name, Some(1))?;
    let program = synth.program();
    let d = &program.dims;
    let mut matrices = Vec::new();
    for spec in program.weights.iter().filter(|spec| !matches!(spec.role, Role::Embedding | Role::Vector)) {
        if let [rows, cols] = spec.shape[..]
            && !matrices.contains(&[rows, cols])
        {
            matrices.push([rows, cols]);
        }
    }
    let expert = program.weights.iter().find(|spec| spec.role == Role::Expert);
    Ok(Shape {
        matrices,
        hidden: d.hidden,
        intermediate: expert.map_or(d.intermediate, |spec| spec.shape[0]),
        heads: d.heads,
        kv_heads: d.kv_heads,
        head_dim: d.head_dim,
        vocabulary: d.vocab,
        experts: program.routers().next().map(|route| (route.count, route.per_token)),
    })
}
