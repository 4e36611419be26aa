//! Language models bigger than memory, to embed.
//!
//! [`Model::open`] reads a Hugging Face checkpoint or a pack and checks it; [`Engine::builder`] loads it;
//! [`Engine::generate`], [`Engine::session`], [`Engine::score`] and [`Engine::perplexity`] use it.
//!
//! ```no_run
//! use std::io::Write;
//! use std::ops::ControlFlow;
//!
//! use narrows::{Engine, Model, Request};
//!
//! let model = Model::open("models/demo")?;
//! println!("{} of weights", model.weight_bytes());
//! let mut engine = Engine::builder().build(model)?;
//! let request = Request::new("And the king said unto").max_new_tokens(16);
//! let done = engine.generate(&[request], |event| {
//!     print!("{}", event.text);
//!     let _ = std::io::stdout().flush();
//!     ControlFlow::Continue(())
//! })?;
//! println!("\n{} tokens in {:?}", done.stats.new_tokens, done.stats.wall);
//! # Ok::<(), narrows::Error>(())
//! ```
//!
//! # Embedding
//!
//! - **Memory.** [`EngineBuilder::ram`] is a hard cap; without it the cap is 80 % of what is available
//!   ([`memory::automatic`]). [`EngineBuilder::plan`] says before anything is loaded whether a model fits, and
//!   [`Error::DoesNotFit`] the smallest cap that works. A plan that fits has memory for the tokenizer, unless
//!   [`EngineBuilder::without_text`] says that prompts are token ids.
//! - **Requests.** Memory for [`EngineBuilder::sequences`] of [`EngineBuilder::positions`] each is set aside. More
//!   requests than that take turns; one that is longer is refused ([`Error::BeyondWorkload`]) before anything is
//!   computed.
//! - **Deadlines and cancelling.** The callback of [`Engine::generate`] ends all texts by breaking.
//! - **Threads.** An [`Engine`] is `Send`; it computes on threads of its own and on the caller's. No frame needs more
//!   than 300 KiB of a stack, also without optimisation.
//! - **Speed in a debug build.** Cargo's dev profile does not optimise dependencies, and kernels without
//!   optimisation are some hundred times slower. The embedding program's `Cargo.toml` changes that:
//!
//!   ```toml
//!   [profile.dev.package."*"]
//!   opt-level = 2
//!   ```
//!
//! `examples/embed.rs` is a whole program. To stream tensors of another engine, `narrows-stream` is enough.
//!
//! The crate has no global state, prints nothing and reads no environment variables. It knows no file layout
//! (`narrows-shard`) and no instruction set (`narrows-cpu`).
#![forbid(unsafe_code)]

mod backend;
mod compute;
mod decoder;
mod device;
mod engine;
mod error;
mod generate;
mod generation_config;
mod json;
mod lower;
mod made;
mod measure;
pub mod memory;
mod model;
mod names;
mod perplexity;
mod plan;
mod quantisation;
mod routing;
mod sampling;
mod sequence;
mod state;
mod synth;
mod text;
mod tiling;
mod weights;

pub use device::{AssumedDevice, Device, Link};
pub use engine::{Context, Engine, EngineBuilder, Feed, ScoreInput};
pub use error::{Error, Result};
pub use generate::{Completion, Event, Finish, Generation, Prompt, Request, Session, Stats};
pub use generation_config::GenerationDefaults;
pub use model::Model;
pub use narrows_cpu::Isa;
pub use narrows_model::{self as program, Program};
pub use narrows_shard::{Bytes, Encoding};
pub use narrows_staging::IoMode;
pub use narrows_staging::device::Carving;
pub use narrows_stream::{Need, Plan as TierPlan, Speed, StageStats, Stats as StreamStats};
pub use perplexity::Perplexity;
pub use plan::{Bound, DevicePlan, Plan, Speeds, Workload};
pub use quantisation::Quantisation;
pub use sampling::Sampling;
pub use synth::Synth;
pub use text::{ChatOptions, ChatTemplate, Message, Text};
