//! Language models bigger than memory, to embed.
//!
//! [`Model::open`] reads a Hugging Face checkpoint or a pack and checks it; [`Engine::builder`] loads it;
//! [`Engine::generate`], [`Engine::session`], [`Engine::score`] and [`Engine::perplexity`] use it.
//!
//! ```no_run
//! use std::io::Write;
//! use std::ops::ControlFlow;
//!
//! use narrows::{Engine, Model, Prompt, Request};
//!
//! let model = Model::open("models/demo")?;
//! println!("{} of weights", model.weight_bytes());
//! let mut engine = Engine::builder().build(model)?;
//! let request = Request::new(Prompt::Text("And the king said unto".to_owned())).max_new_tokens(16);
//! let done = engine.generate(&[request], |event| {
//!     print!("{}", event.text);
//!     let _ = std::io::stdout().flush();
//!     ControlFlow::Continue(())
//! })?;
//! println!("\n{} tokens in {:?}", done.stats.new_tokens, done.stats.wall);
//! # Ok::<(), narrows::Error>(())
//! ```
//!
//! The crate has no global state, prints nothing and reads no environment variables. It knows no file layout
//! (`narrows-shard`) and no instruction set (`narrows-cpu`).
#![forbid(unsafe_code)]

mod architecture;
mod backend;
mod compute;
mod decoder;
mod device;
mod engine;
mod error;
mod generate;
mod generation_config;
mod json;
mod made;
mod measure;
mod model;
mod names;
mod perplexity;
mod plan;
mod quantisation;
mod routing;
mod sampling;
mod sequence;
mod synth;
mod text;
mod tiling;
mod weights;

pub use architecture::{
    Architecture, ExpertWeight, Experts, LayerWeight, Rope, RopeScaling, Weight, WeightSpec,
};
pub use device::{Device, Link};
pub use engine::{Context, Engine, EngineBuilder, Feed, ScoreInput};
pub use error::{Error, Result};
pub use generate::{Completion, Event, Finish, Generation, Prompt, Request, Session, Stats};
pub use generation_config::GenerationDefaults;
pub use model::Model;
pub use narrows_cpu::Isa;
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
