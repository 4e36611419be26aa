//! An outside program that generates text, as cargo builds it unasked: without optimisation.

use std::ops::ControlFlow;

use narrows::{Bytes, Engine, Error, Model, Request, Sampling};

fn main() {
    let demo = std::env::args().nth(1).expect("the path of models/demo");
    generate(&demo);
    // The thread of a server has 2 MiB of stack, where the main thread has 8.
    std::thread::spawn(move || generate(&demo)).join().unwrap();
}

fn generate(demo: &str) {
    let open = || Model::open(demo).unwrap();
    // As little memory as the plan says is enough, for the tokenizer too.
    let Err(Error::DoesNotFit { minimum, .. }) = Engine::builder().ram(Bytes(1)).plan(&open()) else {
        panic!("no model fits into a byte");
    };
    let builder = Engine::builder().ram(minimum);
    let plan = builder.plan(&open()).unwrap();
    let speeds = builder.measure(&open(), &plan, None).unwrap();
    let mut engine = builder.speeds(speeds).build(open()).unwrap();
    let mut heard = String::new();
    let request = Request::new("And the king said unto").max_new_tokens(12);
    let done = engine.generate(&[request], |event| {
        heard.push_str(event.text);
        ControlFlow::Continue(())
    });
    let text = done.unwrap().completions.remove(0).text.unwrap();
    assert_eq!(text, heard);
    assert_eq!(text, EXPECTED);

    // More rows than a matrix-vector product takes, several sequences, and a draw.
    let mut engine = Engine::builder().sequences(3).positions(64).build(open()).unwrap();
    let long = "And it came to pass in those days that the king of all the land went up to the city. ".repeat(2);
    let requests = [Request::new(long), Request::new("In the beginning"), Request::new(vec![5, 6, 7])]
        .map(|request| request.max_new_tokens(3).sampling(Sampling::drawn(1.0, 7)));
    let done = engine.generate(&requests, |_| ControlFlow::Continue(())).unwrap();
    assert!(done.completions.iter().all(|completion| !completion.tokens.is_empty()));
}

const EXPECTED: &str = " him, I have heard a voice of the LORD, and";
