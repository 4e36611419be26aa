//! The decoder on whatever computes: the one place where backends are told apart at run time.

use narrows_stream::{Monitor, Stats};

use crate::backend::{Backend as _, CpuBackend, CudaBackend};
use crate::decoder::{Decoder, Segment};
use crate::error::Result;
use crate::sequence::Cache;

/// A decoder on the CPU or on a CUDA device.
pub(crate) enum Compute {
    /// The processor.
    Cpu(Box<Decoder<CpuBackend>>),
    /// A device.
    Cuda(Box<Decoder<CudaBackend>>),
}

/// Does the same with the decoder, whichever it is.
macro_rules! either {
    ($compute:expr, $decoder:ident => $do:expr) => {
        match $compute {
            Compute::Cpu($decoder) => $do,
            Compute::Cuda($decoder) => $do,
        }
    };
}

impl Compute {
    /// See [`Decoder::step`].
    pub(crate) fn step(&mut self, segments: &mut [Segment<'_>]) -> Result<&mut [f32]> {
        either!(self, decoder => decoder.step(segments))
    }

    /// See [`Decoder::on_layer`].
    pub(crate) fn on_layer(&mut self, hook: Box<dyn FnMut(usize) + Send>) {
        either!(self, decoder => decoder.on_layer(hook));
    }

    /// Payload read outside the stream.
    pub(crate) fn bytes_read(&self) -> u64 {
        either!(self, decoder => decoder.weights().bytes_read())
    }

    /// What the stream of weights did so far.
    pub(crate) fn stats(&self) -> Stats {
        either!(self, decoder => decoder.weights().stream().stats())
    }

    /// A window into the stream of weights.
    pub(crate) fn monitor(&self) -> Monitor {
        either!(self, decoder => decoder.weights().stream().monitor())
    }

    /// A KV cache with room for nothing.
    pub(crate) fn cache(&self) -> Cache {
        either!(self, decoder => decoder.backend().cache())
    }
}
