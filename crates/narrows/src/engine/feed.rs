//! Tokens that are given and not drawn: what benches time.

use narrows_shard::Bytes;

use super::Engine;
use crate::decoder::Segment;
use crate::error::{Error, Result};
use crate::sequence::Sequence;

/// A sequence that grows by the tokens that it is given. Nothing is tokenised, nothing sampled.
#[derive(Debug)]
pub struct Feed<'e> {
    engine: &'e mut Engine,
    sequence: Sequence,
}

impl Engine {
    /// An empty sequence with room for `positions`.
    ///
    /// # Errors
    /// There is no memory for it in the plan.
    pub fn feed(&mut self, positions: usize) -> Result<Feed<'_>> {
        let sequence = self.sequence(positions, 0)?;
        Ok(Feed { engine: self, sequence })
    }

    /// Rows that a step computes at most.
    #[must_use]
    pub const fn chunk(&self) -> usize {
        self.chunk
    }

    /// Size of the keys and values of one position.
    #[must_use]
    pub const fn position_bytes(&self) -> Bytes {
        self.position_bytes
    }
}

impl Feed<'_> {
    /// Computes `tokens`, in as many steps as they need, and returns the logits of the last, `[vocab]`.
    ///
    /// # Errors
    /// [`Error::Request`] for no token, one outside the vocabulary, or more than there is room for; else as for any
    /// step.
    pub fn push(&mut self, tokens: &[u32]) -> Result<&[f32]> {
        self.engine.check_prompt(tokens)?;
        let room = self.sequence.capacity() - self.sequence.len();
        if tokens.len() > room {
            return Err(Error::Request(format!("{} tokens where there is room for {room}", tokens.len())));
        }
        self.sequence.announce(self.sequence.len() + tokens.len());
        let (last, before) = match tokens.chunks(self.engine.chunk).next_back() {
            Some(last) => (last, &tokens[..tokens.len() - last.len()]),
            None => (tokens, &tokens[..0]),
        };
        for tokens in before.chunks(self.engine.chunk) {
            self.engine.decoder.step(&mut [Segment {
                sequence: &mut self.sequence,
                tokens,
                wanted: 0..0,
            }])?;
        }
        let wanted = last.len() - 1..last.len();
        let segment = Segment { sequence: &mut self.sequence, tokens: last, wanted };
        Ok(self.engine.decoder.step(&mut [segment])?)
    }

    /// Forgets every position from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.sequence.truncate(len);
    }

    /// What computes.
    #[must_use]
    pub const fn engine(&self) -> &Engine {
        self.engine
    }
}
