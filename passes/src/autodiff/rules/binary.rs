//! Gradients of the two-operand elementwise ops.

use super::super::sweep::{Forward, Sweep};
use super::dy;
use crate::pass::PassError;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Op, Real, ValueId};

/// A rule that knows its operands; broadcasting is undone when a gradient is contributed.
struct Rule<'r, 'g> {
    s: &'r mut Sweep<'g>,
    at: &'r Forward,
    dy: ValueId,
    a: ValueId,
    b: ValueId,
}

/// Add and Sub read nothing; Mul the other operand; Div b and y; Pow a, b and y; Max, Min,
/// PRelu and Gate what decides the branch.
pub(super) fn binary(s: &mut Sweep<'_>, at: &Forward, kind: BinaryKind) -> Result<(), PassError> {
    let dy = dy(s, at)?;
    let (a, b) = (at.inputs[0], at.inputs[1]);
    let mut r = Rule { s, at, dy, a, b };
    match kind {
        BinaryKind::Add => {
            r.to(a, dy)?;
            r.to(b, dy)
        }
        BinaryKind::Sub => {
            r.to(a, dy)?;
            r.negated_to(b, dy)
        }
        BinaryKind::Mul => r.mul(),
        BinaryKind::Div => r.div(),
        BinaryKind::Pow => r.pow(),
        BinaryKind::Max => r.choice(b, a),
        BinaryKind::Min => r.choice(a, b),
        BinaryKind::PRelu => r.prelu(),
        BinaryKind::Gate => {
            let da = r.emit(BinaryKind::Gate, dy, b)?;
            r.to(a, da)
        }
    }
}

impl Rule<'_, '_> {
    fn emit(&mut self, kind: BinaryKind, a: ValueId, b: ValueId) -> Result<ValueId, PassError> {
        self.s.emit(self.at, Op::Binary(kind), &[a, b], "grad")
    }
    fn unary(&mut self, kind: UnaryKind, x: ValueId) -> Result<ValueId, PassError> {
        self.s.emit(self.at, Op::Unary(kind), &[x], "grad")
    }
    /// Contributes `gradient`, summed to the operand's shape.
    fn to(&mut self, operand: ValueId, gradient: ValueId) -> Result<(), PassError> {
        if !self.s.needs(operand) {
            return Ok(());
        }
        let dims = self.s.dims(operand);
        let g = self.s.unbroadcast(self.at, gradient, &dims, "grad")?;
        self.s.contribute(self.at, operand, g)
    }
    /// Contributes `-gradient`, negated after the sum, where it is small.
    fn negated_to(&mut self, operand: ValueId, gradient: ValueId) -> Result<(), PassError> {
        if !self.s.needs(operand) {
            return Ok(());
        }
        let dims = self.s.dims(operand);
        let g = self.s.unbroadcast(self.at, gradient, &dims, "grad")?;
        let g = self.unary(UnaryKind::Neg, g)?;
        self.s.contribute(self.at, operand, g)
    }

    fn mul(&mut self) -> Result<(), PassError> {
        let (a, b, dy) = (self.a, self.b, self.dy);
        if self.s.needs(b) {
            let db = self.emit(BinaryKind::Mul, dy, a)?;
            self.to(b, db)?;
        }
        if self.s.needs(a) {
            let da = self.emit(BinaryKind::Mul, dy, b)?;
            self.to(a, da)?;
        }
        Ok(())
    }

    /// `da = dy / b`, `db = -da * y`.
    fn div(&mut self) -> Result<(), PassError> {
        let (a, b) = (self.a, self.b);
        let quotient = self.emit(BinaryKind::Div, self.dy, b)?;
        if self.s.needs(b) {
            let db = self.emit(BinaryKind::Mul, quotient, self.at.outputs[0])?;
            self.negated_to(b, db)?;
        }
        self.to(a, quotient)
    }

    /// `da = dy * b * a^(b-1)`, `db = dy * y * ln a` where `a > 0`, else 0.
    fn pow(&mut self) -> Result<(), PassError> {
        let (a, b, dy) = (self.a, self.b, self.dy);
        if self.s.needs(b) {
            let log = self.unary(UnaryKind::Log, a)?;
            let log = self.emit(BinaryKind::Gate, log, a)?;
            let slope = self.emit(BinaryKind::Mul, self.at.outputs[0], log)?;
            let db = self.emit(BinaryKind::Mul, dy, slope)?;
            self.to(b, db)?;
        }
        if self.s.needs(a) {
            let less_one = self.unary(UnaryKind::Affine { scale: Real(1.0), shift: Real(-1.0) }, b)?;
            let power = self.emit(BinaryKind::Pow, a, less_one)?;
            let slope = self.emit(BinaryKind::Mul, power, b)?;
            let da = self.emit(BinaryKind::Mul, dy, slope)?;
            self.to(a, da)?;
        }
        Ok(())
    }

    /// Max and Min: b's share of dy is where `larger > smaller` says that b won; a takes the
    /// rest, ties included, so the shares always add up to dy.
    fn choice(&mut self, larger: ValueId, smaller: ValueId) -> Result<(), PassError> {
        let (a, b, dy) = (self.a, self.b, self.dy);
        let margin = self.emit(BinaryKind::Sub, larger, smaller)?;
        let db = self.emit(BinaryKind::Gate, dy, margin)?;
        if self.s.needs(a) {
            let da = self.emit(BinaryKind::Sub, dy, db)?;
            self.to(a, da)?;
        }
        self.to(b, db)
    }

    /// The part of dy where a is negative meets the slope; the rest passes.
    fn prelu(&mut self) -> Result<(), PassError> {
        let (a, slope, dy) = (self.a, self.b, self.dy);
        let minus_a = self.unary(UnaryKind::Neg, a)?;
        let below = self.emit(BinaryKind::Gate, dy, minus_a)?;
        if self.s.needs(slope) {
            let db = self.emit(BinaryKind::Mul, below, a)?;
            self.to(slope, db)?;
        }
        if self.s.needs(a) {
            let above = self.emit(BinaryKind::Sub, dy, below)?;
            let scaled = self.emit(BinaryKind::Mul, below, slope)?;
            let da = self.emit(BinaryKind::Add, above, scaled)?;
            self.to(a, da)?;
        }
        Ok(())
    }
}
