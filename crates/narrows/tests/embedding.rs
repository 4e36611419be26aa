//! What a program that embeds the engine relies on.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use narrows::{Bytes, Engine, Error, Model, Request, memory};

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo")
}

fn open() -> Model {
    Model::open(demo()).unwrap()
}

#[test]
fn a_plan_that_fits_means_a_first_prompt_that_fits() {
    let Err(Error::DoesNotFit { minimum, .. }) = Engine::builder().ram(Bytes(1)).plan(&open()) else {
        panic!("no model fits into a byte");
    };
    for ram in [minimum, minimum + Bytes::mib(3), minimum + Bytes::mib(8)] {
        let mut engine = Engine::builder().ram(ram).build(open()).unwrap();
        let done = engine
            .generate(&[Request::new("And the king").max_new_tokens(2)], |_| ControlFlow::Continue(()))
            .unwrap();
        assert_eq!(done.stats.new_tokens, 2);
        assert!(engine.peak_host_bytes() <= ram);
    }
    // Where text was ruled out its memory is not there, and that is said before anything is read.
    let builder = Engine::builder().without_text();
    let Err(Error::DoesNotFit { minimum: less, .. }) = builder.clone().ram(Bytes(1)).plan(&open()) else {
        panic!("no model fits into a byte");
    };
    assert!(less < minimum, "{less} {minimum}");
    let mut engine = builder.ram(less).build(open()).unwrap();
    let refused = engine.generate(&[Request::new("And the king")], |_| ControlFlow::Continue(()));
    assert!(matches!(refused, Err(Error::Staging(_))), "{refused:?}");
    let tokens = Request::new(vec![5, 6, 7]).max_new_tokens(2);
    engine.generate(&[tokens], |_| ControlFlow::Continue(())).unwrap();
}

/// Sixty-four prompts in the memory of one, of four, and of all: each says what it says alone.
#[test]
fn short_prompts_take_turns() {
    let prompts: Vec<String> = (0..64).map(|n| format!("Chapter {n}")).collect();
    let request = |prompt: &String| Request::new(prompt.as_str()).max_new_tokens(3 + prompt.len() % 3);
    let requests: Vec<_> = prompts.iter().map(request).collect();
    let mut alone = Engine::builder().build(open()).unwrap();
    let alone: Vec<_> = requests
        .iter()
        .map(|request| alone.generate(std::slice::from_ref(request), |_| ControlFlow::Continue(())).unwrap())
        .map(|mut done| done.completions.remove(0).tokens)
        .collect();
    let mut passes = Vec::new();
    for sequences in [1, 4, 64] {
        let builder = Engine::builder().sequences(sequences).positions(24);
        let mut engine = builder.build(open()).unwrap();
        let mut heard = vec![Vec::new(); prompts.len()];
        let done = engine
            .generate(&requests, |event| {
                heard[event.request].extend(event.token);
                ControlFlow::Continue(())
            })
            .unwrap();
        let tokens: Vec<_> = done.completions.into_iter().map(|completion| completion.tokens).collect();
        assert_eq!(tokens, alone, "{sequences} at a time");
        assert_eq!(heard, alone);
        passes.push(done.stats.passes);
    }
    assert!(passes[0] > 2 * passes[1] && passes[1] > 2 * passes[2], "{passes:?}");
    // The default settings serve them as well.
    let mut engine = Engine::builder().build(open()).unwrap();
    assert_eq!(engine.generate(&requests, |_| ControlFlow::Continue(())).unwrap().completions.len(), 64);
}

#[test]
fn one_that_is_too_long_is_refused_at_once() {
    let mut engine = Engine::builder().sequences(2).positions(16).build(open()).unwrap();
    let requests = [Request::new(vec![5; 8]).max_new_tokens(4), Request::new(vec![5; 8]).max_new_tokens(40)];
    let error = engine.generate(&requests, |_| panic!("nothing was to be computed")).unwrap_err();
    assert!(matches!(error, Error::BeyondWorkload { needed: 48, planned: 32 }), "{error}");
}

/// A callback that breaks ends also those that have not begun.
#[test]
fn cancelled_in_the_middle_of_a_queue() {
    let mut engine = Engine::builder().sequences(1).positions(16).build(open()).unwrap();
    let requests: Vec<_> = (0..5).map(|n| Request::new(vec![5, n]).max_new_tokens(4)).collect();
    let mut left = 6;
    let done = engine
        .generate(&requests, |_| {
            left -= 1;
            if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .unwrap();
    assert_eq!(done.completions.len(), 5);
    assert!(done.completions[4].tokens.is_empty());
    assert_eq!(done.completions[4].finish, narrows::Finish::Cancelled);
}

#[test]
fn a_cap_without_being_asked() {
    let plan = Engine::builder().plan(&open()).unwrap();
    match memory::available_memory() {
        Some(available) => assert!(plan.budget <= available, "{} of {available}", plan.budget),
        None => assert_eq!(plan.budget, Bytes(u64::MAX)),
    }
    assert_eq!(Engine::builder().ram(Bytes(u64::MAX)).plan(&open()).unwrap().budget, Bytes(u64::MAX));
}
