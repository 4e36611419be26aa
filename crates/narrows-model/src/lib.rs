//! Model families as programs.
//!
//! A family is a function that writes the operations of its layers, once, when a model is opened: see `families`. What
//! comes of it is a [`Program`]: the order of its operations is the order of the pass, of the pack and of the stream.
//! Decoders, plans, measurements and reports read it; they know no family.
//!
//! The crate knows no memory, no weight file, no backend and no thread.
#![forbid(unsafe_code)]

mod builder;
mod config;
mod error;
mod families;
mod fields;
mod print;
mod program;
pub mod reference;
mod rope;

use std::path::Path;

pub use error::{Error, Result};
pub use families::known;
pub use fields::Fields;
pub use program::*;
pub use rope::{Pairing, Rope, RopeScaling, Temperature};

impl Program {
    /// The program of the model that a `config.json` describes, which is called `path` in errors.
    ///
    /// # Errors
    /// A value cannot be true, or the model needs something that is not computed here; the message names the key.
    pub fn parse(path: &Path, config: &[u8]) -> Result<Self> {
        Self::of(&Fields::parse(path, config)?)
    }

    /// The program of the model that a config describes.
    ///
    /// # Errors
    /// As [`Program::parse`].
    pub fn of(config: &Fields) -> Result<Self> {
        families::program(config)
    }
}
