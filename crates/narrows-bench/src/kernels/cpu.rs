//! The operations of `narrows-cpu`.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use narrows_cpu::{Activation, AttentionRow, Cpu, KvView, Matrix, RowsMut};
use narrows_shard::Encoding;
use narrows_staging::{Arena, ArenaOptions, Budget, Region};

use super::{Backend, Case, Kind, Measured, Operation, Roof, Settings, too_large};
use crate::host;
use crate::io::Step;
use crate::{Error, Result};

/// The processor, and memory that weights are in.
pub(super) struct Host {
    cpu: Cpu,
    weights: Region,
}

/// Does a case for the n-th time.
type Call<'a> = Box<dyn FnMut(usize) -> std::result::Result<(), narrows_cpu::Error> + 'a>;

impl Host {
    /// Measures the roof, and takes the memory.
    pub(super) fn open(
        settings: &Settings,
        go_on: &mut dyn FnMut(&Step) -> ControlFlow<()>,
    ) -> Result<(Self, Roof)> {
        let report = host::run(
            &host::Settings {
                tests: vec![host::Test::Read, host::Test::Flops],
                threads: vec![settings.threads],
                pages: vec![host::Pages::Huge],
                size: settings.spread,
                runtime: settings.runtime.max(Duration::from_millis(20)),
                loops: settings.loops.max(3),
                memory: settings.memory,
            },
            go_on,
        )?;
        let cpu = Cpu::new(settings.threads).map_err(refused)?;
        let budget = Budget::new(settings.spread);
        let options = ArenaOptions { huge_pages: true, ..ArenaOptions::default() };
        let mut weights = Arena::new(&budget, "weights to measure with", settings.spread, options)?
            .carve(settings.spread.get() as usize)?;
        // Numbers that are normal in every encoding; pages never written to would all be one.
        weights.as_mut_slice().fill(0x3c);
        Ok((Self { cpu, weights }, Roof::of(report.results, report.notes)))
    }
}

impl Backend for Host {
    fn name(&self) -> String {
        "cpu".to_owned()
    }

    fn kind(&self) -> Kind {
        Kind::Cpu
    }

    fn measure(&mut self, case: &Case, settings: &Settings) -> Result<Measured> {
        let mut call = call(case, &self.cpu, self.weights.as_slice())?;
        // Pages of the operands are in place, threads awake.
        call(0).map_err(refused)?;
        let mut seconds = Vec::new();
        let mut index = 1;
        for _ in 0..settings.loops {
            let (start, mut calls) = (Instant::now(), 0.0);
            while calls == 0.0 || start.elapsed() < settings.runtime {
                call(index).map_err(refused)?;
                index += 1;
                calls += 1.0;
            }
            seconds.push(start.elapsed().as_secs_f64() / calls);
        }
        // The gate is written anew for each call: see there.
        let filled = if case.operation == Operation::Swiglu { 4 * case.rows * case.width() } else { 0 };
        let cold = matches!(case.operation, Operation::Linear | Operation::Dequantise | Operation::Attention);
        Ok(Measured { more_bytes: filled as f64, cold, seconds })
    }
}

fn refused(error: narrows_cpu::Error) -> Error {
    Error::Settings(error.to_string())
}

fn call<'a>(case: &Case, cpu: &'a Cpu, weights: &'a [u8]) -> Result<Call<'a>> {
    let (rows, encoding) = (case.rows, case.encoding);
    let len = case.weights().ok_or_else(|| too_large(case))?;
    // The n-th copy of the weights.
    let copy = move |n: usize| {
        let copies = (weights.len() / len.max(1)).max(1);
        &weights[n % copies * len..][..len]
    };
    Ok(match (case.operation, &case.shape[..]) {
        (Operation::Linear, &[out, cols]) => {
            let (x, mut y) = (vec![0.5; rows * cols], vec![0.0; rows * out]);
            Box::new(move |n| {
                let matrix = Matrix::new(encoding, out, cols, copy(n))?;
                cpu.linear(matrix, &x, RowsMut::new(&mut y, out, 0)?)
            })
        }
        (Operation::Dequantise, &[out, cols]) => {
            let mut to = vec![0; 2 * out * cols];
            Box::new(move |n| {
                cpu.dequantise(Matrix::new(encoding, out, cols, copy(n))?, Encoding::Bf16, &mut to)
            })
        }
        (Operation::Attention, &[heads, kv_heads, head_dim, positions]) => {
            let width = heads * head_dim;
            let (q, mut out) = (vec![0.01; rows * width], vec![0.0; rows * width]);
            Box::new(move |n| {
                let (keys, values) = copy(n).split_at(len / 2);
                let kv = KvView { encoding, keys, values, capacity: positions, kv_heads, head_dim };
                // The rows of a chunk are the last positions, and each sees those up to its own.
                let first = positions - rows;
                let rows: Vec<_> =
                    (0..rows).map(|row| AttentionRow { kv, position: first + row, window: None }).collect();
                cpu.attention(&q, &rows, heads, (head_dim as f32).powf(-0.5).into(), &mut out)
            })
        }
        (Operation::RmsNorm, &[width]) => {
            let (x, weight, mut out) = (vec![0.5; rows * width], vec![1.0; width], vec![0.0; rows * width]);
            Box::new(move |_| cpu.rms_norm(black_box(&x), &weight, 1e-5, &mut out))
        }
        (Operation::HeadNorm, &[heads, head_dim]) => {
            // Normalised once they stay as they are.
            let (mut x, weight) = (vec![0.5; rows * heads * head_dim], vec![1.0; head_dim]);
            Box::new(move |_| cpu.rms_norm_in_place(black_box(&mut x), &weight, 1e-5))
        }
        (Operation::Rope, &[heads, head_dim]) => {
            let mut x = vec![0.5; rows * heads * head_dim];
            // Angles of zero, so that nothing grows however often it is rotated.
            let (cos, sin) = (vec![1.0; rows * head_dim / 2], vec![0.0; rows * head_dim / 2]);
            Box::new(move |_| cpu.rope(black_box(&mut x), heads, head_dim, &cos, &sin))
        }
        (Operation::Swiglu, &[width]) => {
            let (gate, up) = (vec![1.0; rows * width], vec![1.4; rows * width]);
            let mut out = vec![0.0; rows * width];
            Box::new(move |_| cpu.activate(Activation::Silu, black_box(&gate), Some(&up), &mut out))
        }
        (Operation::Add, &[width]) => {
            let (x, mut y) = (vec![0.0; rows * width], vec![1.0; rows * width]);
            Box::new(move |_| cpu.add(black_box(&x), &mut y))
        }
        (Operation::GatherRows, &[width]) => {
            let (x, mut out) = (vec![0.5; 2 * rows * width], vec![0.0; rows * width]);
            let named: Vec<u32> = (0..rows as u32).map(|row| 2 * row).collect();
            Box::new(move |_| cpu.gather_rows(black_box(&x), width, &named, &mut out))
        }
        (Operation::ScatterAdd, &[width]) => {
            let (y, mut out) = (vec![0.0; rows * width], vec![1.0; 2 * rows * width]);
            let named: Vec<u32> = (0..rows as u32).map(|row| 2 * row).collect();
            let weights = vec![0.5; rows];
            Box::new(move |_| cpu.scatter_add(black_box(&y), width, &named, &weights, &mut out))
        }
        (Operation::Argmax, &[width]) => {
            let logits = vec![0.5; rows * width];
            Box::new(move |_| {
                logits.chunks_exact(width).try_for_each(|row| {
                    black_box(cpu.argmax(black_box(row))?);
                    Ok(())
                })
            })
        }
        _ => return Err(too_large(case)),
    })
}
