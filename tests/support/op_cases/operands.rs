//! Random shapes, and elements that keep away from where an op has no derivative.

use super::Generator;
use crate::arbitrary::Rng;
use vdnn_ir::{Tensor, TensorType};

/// Distance of operands from points without a derivative; far more than the step.
pub(super) const MARGIN: f64 = 0.05;

/// An operand and its elements.
#[derive(Clone, Debug)]
pub enum Operand {
    /// An f32 tensor in the graph.
    Real {
        /// Its type.
        ty: TensorType,
        /// Its elements.
        data: Vec<f64>,
        /// The op gives it no gradient although the result depends on it.
        constant: bool,
    },
    /// Labels, a step number.
    Integer(Tensor),
}

impl Operand {
    /// Its type in the graph.
    pub fn ty(&self) -> TensorType {
        match self {
            Self::Real { ty, .. } => ty.clone(),
            Self::Integer(t) => t.ty().clone(),
        }
    }
}

impl Generator {
    /// `rank` extents of at most `most`.
    pub(super) fn dims(&mut self, rank: u64, most: u64) -> Vec<u64> {
        (0..rank).map(|_| self.rng.range(1, most)).collect()
    }

    /// A shape that broadcasts to `dims`: without some leading ones, with extents of 1.
    pub(super) fn narrower(&mut self, dims: &[u64]) -> Vec<u64> {
        let missing = if self.rng.one_in(2) { self.rng.range(0, dims.len() as u64) as usize } else { 0 };
        dims[missing..].iter().map(|&d| if self.rng.one_in(3) { 1 } else { d }).collect()
    }

    /// Heads or tails.
    pub(super) fn flag(&mut self) -> bool {
        self.rng.one_in(2)
    }

    /// An operand of these elements.
    pub(super) fn with(&mut self, dims: &[u64], mut element: impl FnMut(&mut Rng) -> f64) -> Operand {
        let ty = TensorType::f32(dims.iter().copied());
        let data = (0..ty.elements()).map(|_| element(&mut self.rng)).collect();
        Operand::Real { ty, data, constant: false }
    }

    /// Any numbers in [-2, 2).
    pub(super) fn any(&mut self, dims: &[u64]) -> Operand {
        self.with(dims, |rng| 2.0 * f64::from(rng.unit()))
    }

    /// Numbers in [0.4, 2.4).
    pub(super) fn positive(&mut self, dims: &[u64]) -> Operand {
        self.with(dims, |rng| f64::from(rng.unit()) + 1.4)
    }

    /// Numbers between -3 and 3, none near the ascending `kinks`, on every side of them.
    pub(super) fn away(&mut self, dims: &[u64], kinks: &[f64]) -> Operand {
        let mut ends = vec![-3.0];
        ends.extend(kinks.iter().filter(|k| k.abs() < 2.9));
        ends.push(3.0);
        self.with(dims, |rng| {
            let i = rng.range(0, ends.len() as u64 - 2) as usize;
            let (lo, hi) = (ends[i] + MARGIN, ends[i + 1] - MARGIN);
            lo + (hi - lo) * (f64::from(rng.unit()) + 1.0) / 2.0
        })
    }

    /// Numbers that all differ, by 0.2 at least.
    pub(super) fn distinct(&mut self, dims: &[u64]) -> Operand {
        let n: u64 = dims.iter().product();
        let mut data: Vec<f64> = (0..n).map(|i| (i as f64 - n as f64 / 2.0) * 0.2).collect();
        for i in (1..data.len()).rev() {
            data.swap(i, self.rng.range(0, i as u64) as usize);
        }
        Operand::Real { ty: TensorType::f32(dims.iter().copied()), data, constant: false }
    }

    /// Multiples of 0.4 plus `offset`: elements of two operands with different offsets are
    /// never equal.
    pub(super) fn lattice(&mut self, dims: &[u64], offset: f64) -> Operand {
        self.with(dims, |rng| rng.range(0, 8) as f64 * 0.4 - 1.6 + offset)
    }

    /// Few different numbers, among them both zeros, infinities and NaN.
    pub(super) fn ties(&mut self, dims: &[u64]) -> Operand {
        let rare = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::NEG_INFINITY];
        self.with(dims, |rng| match rng.range(0, 63) as usize {
            i @ 0..4 => rare[i],
            i @ 4..12 => [0.0, -0.0][i % 2],
            i => (i % 5) as f64 * 0.5 - 1.5,
        })
    }

    /// An operand that the result depends on and that has no gradient.
    pub(super) fn constant(&mut self, dims: &[u64]) -> Operand {
        let mut operand = self.positive(dims);
        if let Operand::Real { constant, .. } = &mut operand {
            *constant = true;
        }
        operand
    }
}
