//! The exponential, and what is built on it.
//!
//! Plain code without branches, which the compiler vectorises for the instruction set of the kernel that it
//! is inlined into. Nothing is fused, so the results are the same on all of them.

/// Scores that [`Softmax::push`] takes at a time.
pub(crate) const SCORES: usize = 64;

/// `e^x` within two units in the last place; 0 and infinity beyond the range of `f32`.
///
/// `x = n ln 2 + r` with an integer `n`, and a polynomial for `e^r` (the coefficients of Cephes' `expf`,
/// Moshier 1992).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: a number near it has no bits left for a fraction, so adding it rounds to an integer.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts, the first so short that its product with `n` is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // Beyond these the result is 0 or infinity anyway. NaN fails both comparisons and goes through.
    let x = if x < -110.0 { -110.0 } else { x };
    let x = if x > 100.0 { 100.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + coefficient;
    }
    let p = p * r * r + r + 1.0;
    // 2^n in two factors, since n reaches beyond the exponents of `f32` on both sides.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

/// `2^n` for an exponent that `f32` has.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// `x * sigmoid(x)`, as torch computes it.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent within three units in the last place.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    // Near zero the series, where the other form would take the difference of equals; its next term is below a
    // quarter of a unit.
    let square = x * x;
    let mut series = 1_382.0 / 155_925.0;
    series = -series * square + 62.0 / 2_835.0;
    for coefficient in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0] {
        series = series * square + coefficient;
    }
    let series = x + x * (series * square);
    // Of the size alone: the difference of a number beyond one would be rounded more coarsely.
    let far = (1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0)).copysign(x);
    if square < 0.1225 { series } else { far }
}

/// A softmax over scores that come block by block (Milakov and Gimelshein 2018, arXiv:1805.02867).
#[derive(Clone, Copy)]
pub(crate) struct Softmax {
    max: f32,
    sum: f32,
}

impl Softmax {
    pub(crate) const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// Replaces the first `len` of `scores` by the exponentials of `scale * score`, relative to the greatest
    /// so far, and the rest by zeros; returns the factor that corrects what was summed up with the
    /// exponentials of earlier blocks.
    #[inline(always)]
    pub(crate) fn push(&mut self, scores: &mut [f32; SCORES], len: usize, scale: f32) -> f32 {
        for (i, score) in scores.iter_mut().enumerate() {
            *score = if i < len { *score * scale } else { f32::NEG_INFINITY };
        }
        let greatest = fold(scores, |a, b| if b > a { b } else { a });
        let max = if greatest > self.max { greatest } else { self.max };
        for score in scores.iter_mut() {
            *score = exp(*score - max);
        }
        let correction = exp(self.max - max);
        self.sum = self.sum * correction + fold(scores, |a, b| a + b);
        self.max = max;
        correction
    }

    /// The sum of all exponentials, relative to the greatest.
    #[inline(always)]
    pub(crate) fn sum(&self) -> f32 {
        self.sum
    }
}

/// Folds in halves: always in the same order, and vectorised without the compiler's leave to reorder.
#[inline(always)]
fn fold(scores: &[f32; SCORES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = *scores;
    let mut width = SCORES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        let mut x = -87.3_f32;
        while x < 88.7 {
            let (got, want) = (exp(x), f64::from(x).exp());
            let ulp = f64::from((want as f32).next_up() - want as f32);
            assert!((f64::from(got) - want).abs() <= 2.0 * ulp, "exp({x}) = {got}, not {want}");
            x += 0.001_7;
        }
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(-1e30), 0.0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan() && exp(-f32::NAN).is_nan());
        // Subnormal results, to their own precision.
        assert!((f64::from(exp(-100.0)) - (-100.0_f64).exp()).abs() < 1.5e-45);
    }

    #[test]
    fn tanh_is_within_three_ulp() {
        let mut x = -10.0_f32;
        while x < 10.0 {
            let (got, want) = (tanh(x), f64::from(x).tanh());
            let ulp = f64::from((want.abs() as f32).next_up() - want.abs() as f32);
            assert!((f64::from(got) - want).abs() <= 3.0 * ulp, "tanh({x}) = {got}, not {want}");
            x += 0.000_37;
        }
        assert_eq!((tanh(200.0), tanh(-200.0), tanh(0.0)), (1.0, -1.0, 0.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn silu_at_the_ends() {
        assert_eq!(silu(0.0), 0.0);
        assert_eq!(silu(200.0), 200.0);
        assert_eq!(silu(-200.0), 0.0);
        assert!(silu(f32::NAN).is_nan());
    }
}
