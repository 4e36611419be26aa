//! Work that is given up between two steps, and goes on afterwards with the same bits.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use narrows::{Engine, Error, Finish, Model, Prompt, Request, ScoreInput, Workload};

#[test]
fn a_prompt_is_given_up_between_two_steps() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/checkpoints/llama");
    let workload = Workload::new(1, 64, 4, 4);
    let builder = Engine::builder().chunk(NonZeroUsize::new(4)).workload(workload);
    let mut engine = builder.build(Model::open(dir).unwrap()).unwrap();
    let layers = engine.model().program().dims.layers;
    let prompt: Vec<u32> = (1..41).collect();
    let request = Request::new(Prompt::Tokens(prompt.clone())).max_new_tokens(4).ignore_eos(true);
    let whole = engine.generate(std::slice::from_ref(&request), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((whole.stats.passes, whole.completions[0].finish), (10 + 3, Finish::Length));

    let cancel = Arc::new(AtomicBool::new(false));
    engine.cancel_on(Arc::clone(&cancel));
    let (raise, mut seen) = (Arc::clone(&cancel), 0);
    engine.on_layer(move |_| {
        seen += 1;
        // In the third pass.
        if seen == 2 * layers + 1 {
            raise.store(true, Ordering::Relaxed);
        }
    });
    let given_up = engine.generate(std::slice::from_ref(&request), |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((given_up.stats.passes, given_up.completions[0].finish), (3, Finish::Cancelled));
    assert!(given_up.completions[0].tokens.is_empty());
    let score = [ScoreInput::new(&prompt, 0..40)];
    assert!(matches!(engine.score(&score, |_, _, _| Ok(())), Err(Error::Cancelled)));

    cancel.store(false, Ordering::Relaxed);
    let again = engine.generate(&[request], |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(again.completions[0].tokens, whole.completions[0].tokens);
}
