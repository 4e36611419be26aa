//! Goldens of many families on CUDA, under the software driver.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, missing_docs, reason = "a test may")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use narrows::{Carving, Device, Engine, Model, Prompt, Request, ScoreInput, Workload};
use narrows_softgpu::{SoftGpu, skip_or_fail};
use safetensors::SafeTensors;

const TEST: &str = "the_error_of_every_family_is_at_most_twice_that_of_transformers_in_bf16";

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/families")
}

fn root_mean_square(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value * value, n + 1));
    (sum / f64::from(n.max(1))).sqrt()
}

fn logits(engine: &mut Engine, ids: &[Vec<u32>]) -> Vec<f32> {
    let inputs: Vec<_> = ids.iter().map(|tokens| ScoreInput::new(tokens, 0..tokens.len())).collect();
    let mut logits = Vec::new();
    engine
        .score(&inputs, |_, _, row| {
            logits.extend_from_slice(row);
            Ok(())
        })
        .unwrap();
    logits
}

fn greedy(engine: &mut Engine, ids: &[Vec<u32>], n: usize) -> Vec<Vec<u32>> {
    let requests: Vec<_> = ids
        .iter()
        .map(|ids| Request::new(Prompt::Tokens(ids.clone())).max_new_tokens(n).ignore_eos(true))
        .collect();
    let done = engine.generate(&requests, |_| ControlFlow::Continue(())).unwrap();
    done.completions.into_iter().map(|completion| completion.tokens).collect()
}

/// Says how far off the logits of a family are, and that what comes next is the same whether the tokens before come as
/// a prompt or one by one, as far as rounding leaves no choice.
///
/// Of mixtures only that they compute numbers: a row that goes to another expert because of a rounding is another
/// computation, and not a less precise one. What their parts compute is the same in dense families.
fn check(dir: &Path) -> String {
    let bytes = std::fs::read(dir.join("expected.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f64> {
        let bytes = tensors.tensor(name).unwrap().data().as_chunks::<4>().0;
        bytes.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
    };
    let tensor = tensors.tensor("input_ids").unwrap();
    let ids: Vec<u32> =
        tensor.data().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    let ids: Vec<Vec<u32>> = ids.chunks(tensor.shape()[1]).map(<[u32]>::to_vec).collect();
    // Ranges apart, so that the driver sees an access beyond any of them.
    let builder = Engine::builder().device(Some(Device::open(0).unwrap())).carving(Carving::Apart);
    let builder = builder.workload(Workload::new(4, 512, 256, 256));
    let mut engine = builder.build(Model::open(dir).unwrap()).unwrap();

    let (ours, exact) = (logits(&mut engine, &ids), floats("logits"));
    assert_eq!(ours.len(), exact.len());
    assert!(ours.iter().all(|logit| logit.is_finite()));
    let new = greedy(&mut engine, &ids, 4);
    if engine.model().program().routers().next().is_some() {
        return "a mixture".to_owned();
    }
    let off = |other: &[f64]| root_mean_square(exact.iter().zip(other).map(|(a, b)| a - b));
    let error = off(&ours.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
    let limit = 2.0 * off(&floats("logits_bf16"));
    assert!(error <= limit, "{error:.2e} of {limit:.2e}");
    for (prompt, new) in ids.iter().zip(new) {
        let whole = [prompt, &new[..3]].concat();
        let rows = logits(&mut engine, std::slice::from_ref(&whole));
        let vocab = rows.len() / whole.len();
        for (row, token) in rows.chunks(vocab).skip(prompt.len() - 1).zip(&new) {
            let best = row.iter().copied().fold(f32::MIN, f32::max);
            let behind = f64::from(best - row[*token as usize]);
            assert!(behind <= 4.0 * limit, "token {token} is {behind} behind the best");
        }
    }
    format!("{error:.2e} of {limit:.2e}")
}

#[test]
fn the_error_of_every_family_is_at_most_twice_that_of_transformers_in_bf16() {
    if !SoftGpu::inside() {
        if skip_or_fail() {
            // With matrix units for bf16, and without.
            for arch in [(7, 5), (9, 0)] {
                let gpu = SoftGpu::new().unwrap().vram(64 << 20).seed(1).arch(arch.0, arch.1);
                let finished = gpu.rerun(TEST).unwrap();
                finished.assert_clean();
            }
        }
        return;
    }
    let mut dirs: Vec<_> =
        std::fs::read_dir(families()).unwrap().map(|entry| entry.unwrap().path()).collect();
    dirs.sort();
    assert!(dirs.len() >= 47, "{dirs:?}");
    let mut wrong = Vec::new();
    for dir in dirs {
        let name = dir.file_name().unwrap().to_string_lossy().into_owned();
        match std::panic::catch_unwind(|| check(&dir)) {
            Ok(how) => println!("{name}: {how}"),
            Err(_) => wrong.push(name),
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
