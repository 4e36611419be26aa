//! A program that embeds the engine: a cap on memory, a few prompts together, text as it comes, a deadline.
//!
//! ```text
//! cargo run --release -p narrows --example embed -- MODEL [RAM-IN-MIB]
//! ```
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use narrows::{Bytes, Engine, Model, Request, Sampling};

const PROMPTS: [&str; 3] = ["And the king said unto", "In the beginning", "Blessed is the man"];

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let model = Model::open(args.next().as_deref().unwrap_or("models/demo"))?;
    let ram = args.next().map(|mib| mib.parse()).transpose()?.map(Bytes::mib);

    // Nothing is read or allocated before `build`; the plan says what will be.
    let builder = Engine::builder().ram(ram).sequences(PROMPTS.len()).positions(64);
    let plan = builder.plan(&model)?;
    let (total, cap) = (plan.stream.total(), plan.budget);
    println!("{total} of {cap}, about {:.4} s a token, bound by {}", plan.seconds_per_token(), plan.bound());

    let mut engine = builder.build(model)?;
    let requests =
        PROMPTS.map(|prompt| Request::new(prompt).max_new_tokens(16).sampling(Sampling::drawn(0.7, 1)));
    let deadline = Instant::now() + Duration::from_secs(60);
    let done = engine.generate(&requests, |event| {
        println!("{}: {:?}", event.request, event.text);
        if Instant::now() < deadline { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;

    for (prompt, completion) in PROMPTS.iter().zip(&done.completions) {
        let text = completion.text.as_deref().unwrap_or_default();
        println!("{prompt}{text} [{}]", completion.finish.name());
    }
    println!("{} passes, peak {} of {cap}", done.stats.passes, engine.peak_host_bytes());
    Ok(())
}
