//! Operations that look at one element at a time: activation functions, factors, caps.

use crate::error::{check_len, check_rows};
use crate::simd::{Kernel, Simd};
use crate::softmax::{sigmoid, silu, tanh};
use crate::{Cpu, Error};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`
    Silu,
    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`: `gelu_pytorch_tanh` of Hugging Face's `activations.py`.
    GeluTanh,
    /// `max(x, 0)^2`
    Relu2,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
}

impl Cpu {
    /// `out = act(gate) * up`, or `act(gate)`, element by element (Shazeer 2020, arXiv:2002.05202).
    ///
    /// # Errors
    /// [`Error::Length`] where the lengths differ.
    pub fn activate(
        &self,
        function: Activation,
        gate: &[f32],
        up: Option<&[f32]>,
        out: &mut [f32],
    ) -> Result<(), Error> {
        check_len("the gate", gate.len(), out.len())?;
        if let Some(up) = up {
            check_len("the factor of a gate", up.len(), out.len())?;
        }
        self.for_rows(out, 1, 16, |first, out| {
            let gate = &gate[first..][..out.len()];
            let up = up.map(|up| &up[first..][..out.len()]);
            match function {
                Activation::Silu => self.run(Activate { gate, up, out, function: silu }),
                Activation::GeluTanh => self.run(Activate { gate, up, out, function: gelu_tanh }),
                Activation::Relu2 => self.run(Activate { gate, up, out, function: relu_2 }),
                Activation::Sigmoid => self.run(Activate { gate, up, out, function: sigmoid }),
            }
        });
        Ok(())
    }

    /// `x *= factor`, element by element.
    pub fn scale(&self, factor: f32, x: &mut [f32]) {
        self.for_rows(x, 1, 1, |_, x| self.run(Map { x, function: |x| x * factor }));
    }

    /// `x = cap * tanh(x / cap)`, element by element.
    pub fn softcap(&self, cap: f32, x: &mut [f32]) {
        self.for_rows(x, 1, 16, |_, x| self.run(Map { x, function: |x| cap * tanh(x / cap) }));
    }

    /// Every element to `-limit..=limit`; NaN stays NaN.
    pub fn clamp(&self, limit: f32, x: &mut [f32]) {
        let clamp = |x: f32| {
            let x = if x > limit { limit } else { x };
            if x < -limit { -limit } else { x }
        };
        self.for_rows(x, 1, 1, |_, x| self.run(Map { x, function: clamp }));
    }

    /// `x *= factors` for each row of `x`, `[n, factors.len()]`.
    ///
    /// # Errors
    /// [`Error::Ragged`] where `x` is not whole rows, [`Error::Zero`] where there are no factors.
    pub fn multiply(&self, factors: &[f32], x: &mut [f32]) -> Result<(), Error> {
        check_rows("what is multiplied", x.len(), factors.len())?;
        self.for_rows(x, factors.len(), 1, |_, x| {
            for row in x.chunks_exact_mut(factors.len()) {
                for (x, factor) in row.iter_mut().zip(factors) {
                    *x *= factor;
                }
            }
        });
        Ok(())
    }
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const FACTOR: f32 = 0.797_884_6;
    0.5 * x * (1.0 + tanh(FACTOR * (x + 0.044_715 * x * x * x)))
}

#[inline(always)]
fn relu_2(x: f32) -> f32 {
    // NaN fails the comparison and goes through.
    let positive = if x < 0.0 { 0.0 } else { x };
    positive * positive
}

struct Activate<'a, F> {
    gate: &'a [f32],
    up: Option<&'a [f32]>,
    out: &'a mut [f32],
    function: F,
}

impl<F: Fn(f32) -> f32> Kernel for Activate<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        match self.up {
            Some(up) => {
                for ((out, gate), up) in self.out.iter_mut().zip(self.gate).zip(up) {
                    *out = (self.function)(*gate) * up;
                }
            }
            None => {
                for (out, gate) in self.out.iter_mut().zip(self.gate) {
                    *out = (self.function)(*gate);
                }
            }
        }
    }
}

struct Map<'a, F> {
    x: &'a mut [f32],
    function: F,
}

impl<F: Fn(f32) -> f32> Kernel for Map<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for x in self.x {
            *x = (self.function)(*x);
        }
    }
}
