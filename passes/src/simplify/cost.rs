//! What extraction minimises: memory traffic, then launches, then what training keeps.

use vdnn_ir::op::SavedOperand;
use vdnn_ir::op::work::traffic;
use vdnn_ir::{Op, TensorType};

/// Price of one node, in bytes of traffic. No measurement: only comparisons between ways to
/// compute the same value count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cost(pub u64);

impl Cost {
    pub fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Traffic that one more launch is worth: a few microseconds at the bandwidth of a GPU, and
/// large enough that of two ways with equal traffic the one with fewer nodes wins.
const LAUNCH: u64 = 1 << 20;

/// A view moves nothing, but none is better than one.
const VIEW: u64 = 16;

/// Between equals, prefer the op whose gradient reads its output: then its input can die.
const SAVES_INPUT: u64 = 1;

/// The price of `op`.
pub(super) fn of(op: &Op, inputs: &[&TensorType], output: &TensorType) -> Cost {
    if !op.views().is_empty() {
        return Cost(VIEW);
    }
    let saved = match op {
        Op::Unary(kind) if kind.saves() == SavedOperand::X => SAVES_INPUT,
        _ => 0,
    };
    Cost(traffic(op, inputs, &[output]).0.saturating_add(LAUNCH + saved))
}
