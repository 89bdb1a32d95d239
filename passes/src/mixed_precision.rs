//! Mixed precision (Micikevicius et al., *Mixed Precision Training*, ICLR 2018) with bf16, whose
//! range is that of f32, so that no loss needs to be scaled: feature maps and their gradients are
//! bf16; weights, the optimizer's state, statistics, losses and whatever the caller reads or
//! writes stay f32.
//!
//! Convolutions, products, pools, normalisations and their gradients take bf16; softmax, losses
//! and updates f32. Every other op computes on bf16 if an operand is bf16, or if all that read its
//! results want bf16, and never if it depends on parameters alone. Casts stand at the borders: of
//! a weight once per step, of what never changes once at load.

use crate::conversion;
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use std::collections::{BTreeMap, BTreeSet};
use vdnn_ir::op::PyramidUse;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::{DType, Def, Graph, NodeId, Op, Phase, Stage, Tensor, ValueId};

/// Brings a joint graph of f32 into mixed precision. Runs after autodiff, whose rules then know
/// one type, and before fusion and layouts, which see through no cast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MixedPrecision;

impl Pass for MixedPrecision {
    fn name(&self) -> &'static str {
        "mixed-precision"
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Joint
    }

    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let outputs: Vec<DType> = graph.outputs.iter().map(|o| graph.ty(o.value).dtype).collect();
        let (data, wanted) = (from_inputs(graph), wanted(graph));
        let mut run = Run { graph, data, wanted, made: BTreeMap::new(), casts: 0 };
        for id in run.graph.order().to_vec() {
            run.node(id).map_err(|error| PassError::Infer { pass: self.name(), error })?;
        }
        run.results(&outputs).map_err(|error| PassError::Infer { pass: self.name(), error })?;
        let casts = run.casts;
        Ok(Outcome { changed: casts > 0, stats: Stats::from([("casts", casts)]) })
    }
}

/// What an op computes an operand of real numbers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    Bf16,
    F32,
    /// As the other operands are, or as the readers of the result want it.
    Either,
}

/// What an op wants its operand `i` in.
fn want(op: &Op, i: usize) -> Want {
    let data = |is_data: bool| if is_data { Want::Bf16 } else { Want::F32 };
    match op {
        Op::Gemm { .. } | Op::MatMul { .. } => data(i < 2),
        // cuDNN 9.19 has engines that return NaN for three dimensions with uneven padding.
        Op::Conv(conv)
        | Op::ConvEpilogue { conv, .. }
        | Op::ConvDgrad { conv, .. }
        | Op::ConvWgrad { conv, .. }
            if conv.kernel.len() > 2 =>
        {
            Want::F32
        }
        Op::Conv(_)
        | Op::ConvEpilogue { .. }
        | Op::ConvDgrad { .. }
        | Op::ConvWgrad { .. }
        | Op::MaxPool(_)
        | Op::MaxPoolGrad { .. }
        | Op::AvgPool { .. }
        | Op::AvgPoolGrad { .. }
        | Op::Lrn(_)
        | Op::LrnGrad(_) => Want::Bf16,
        // As of a convolution, or of a product.
        Op::SparseConv { conv, form: SparseForm::BlockBf16 | SparseForm::TwoFourBf16, .. } => {
            data(i != 2 || !conv.kernel.is_empty())
        }
        Op::BatchNormInfer { .. } | Op::BatchNormTrain { .. } => data(i == 0),
        Op::Pyramid(pyramid) => data(pyramid.uses().get(i) != Some(&PyramidUse::Bias)),
        Op::BatchNormInferRelu { .. }
        | Op::BatchNormApplyRelu { .. }
        | Op::BatchNormTrainReluJoined { .. } => data(op.first_joined().is_some_and(|first| i >= first)),
        Op::BatchNormReluGradJoined { .. } => data(i == 0 || i >= 5),
        Op::BatchNormTrainRelu { .. } => data(i == 0 || i == 5),
        Op::BatchNormGrad | Op::BatchNormInferGrad { .. } => data(i < 2),
        Op::BatchNormReluGrad { .. } => data(i < 2 || i == 6),
        Op::Softmax { .. }
        | Op::SoftmaxGrad { .. }
        | Op::LogSoftmax { .. }
        | Op::LogSoftmaxGrad { .. }
        | Op::SoftmaxCrossEntropy { .. }
        | Op::SoftmaxCrossEntropyGrad { .. }
        | Op::NegativeLogLikelihood { .. }
        | Op::NegativeLogLikelihoodGrad { .. }
        | Op::PackSparse { .. }
        | Op::SparseConv { .. }
        | Op::SparseInputConv { .. }
        | Op::SgdUpdate => Want::F32,
        Op::Unary(_)
        | Op::UnaryGrad(_)
        | Op::Binary(_)
        | Op::Elementwise(_)
        | Op::Reduce { .. }
        | Op::Concat { .. }
        | Op::Split { .. }
        | Op::Slice(_)
        | Op::AddSlice(_)
        | Op::SliceGrad { .. }
        | Op::Pad { .. }
        | Op::Reshape { .. }
        | Op::Relayout { .. }
        | Op::Cast { .. }
        | Op::Gather { .. }
        | Op::Transpose { .. }
        | Op::Expand { .. }
        | Op::Dropout { .. }
        | Op::Fill { .. }
        | Op::OffloadStart
        | Op::OffloadDone
        | Op::PrefetchStart
        | Op::PrefetchDone => Want::Either,
    }
}

/// Values that depend on what a step is given.
fn from_inputs(graph: &Graph) -> BTreeSet<ValueId> {
    let mut data: BTreeSet<ValueId> = graph.inputs().iter().copied().collect();
    for (_, node) in graph.nodes() {
        if node.inputs.iter().any(|v| data.contains(v)) {
            data.extend(node.outputs.iter().copied());
        }
    }
    data
}

/// Values that are read, and in bf16 by all readers.
fn wanted(graph: &Graph) -> BTreeSet<ValueId> {
    let kept: BTreeSet<ValueId> =
        graph.outputs.iter().map(|o| o.value).chain(graph.updates.iter().map(|u| u.value)).collect();
    let mut wanted = BTreeSet::new();
    for &id in graph.order().iter().rev() {
        for &v in &graph.node(id).outputs {
            let users = graph.value(v).users();
            let all = users.iter().all(|&user| {
                let reader = graph.node(user);
                let operands = reader.inputs.iter().enumerate().filter(|&(_, &operand)| operand == v);
                operands.into_iter().all(|(i, _)| match want(&reader.op, i) {
                    Want::Bf16 => true,
                    Want::F32 => false,
                    // A sum is f32 whatever it sums.
                    Want::Either => {
                        let reduces = matches!(reader.op, Op::Reduce { .. });
                        !reduces && reader.outputs.iter().all(|y| wanted.contains(y))
                    }
                })
            });
            if all && !users.is_empty() && !kept.contains(&v) {
                wanted.insert(v);
            }
        }
    }
    wanted
}

struct Run<'a> {
    graph: &'a mut Graph,
    data: BTreeSet<ValueId>,
    wanted: BTreeSet<ValueId>,
    /// Casts made, by what they cast and for which stage.
    made: BTreeMap<(ValueId, bool), ValueId>,
    casts: u64,
}

impl Run<'_> {
    fn node(&mut self, id: NodeId) -> Result<(), InferError> {
        let node = self.graph.node(id);
        // Setup runs once, on parameters.
        if node.stage == Stage::Setup || matches!(node.op, Op::Cast { .. }) {
            return Ok(());
        }
        let op = node.op.clone();
        let operands = node.inputs.clone();
        let narrow = self.is_narrow(id);
        let mut inputs = operands.clone();
        for (i, v) in inputs.iter_mut().enumerate() {
            let to = match want(&op, i) {
                Want::Bf16 => DType::BF16,
                Want::F32 => DType::F32,
                Want::Either if narrow => DType::BF16,
                Want::Either => DType::F32,
            };
            *v = self.cast(*v, to, id)?;
        }
        if inputs != operands || inputs.iter().any(|&v| self.graph.ty(v).dtype == DType::BF16) {
            self.graph.set_inputs_and_infer(id, &inputs)?;
        }
        Ok(())
    }

    /// Whether an op that takes both types computes on bf16.
    fn is_narrow(&self, id: NodeId) -> bool {
        let node = self.graph.node(id);
        let real = |v: &&ValueId| matches!(self.graph.ty(**v).dtype, DType::F32 | DType::BF16);
        let mut data = node.inputs.iter().filter(real).filter(|v| self.data.contains(v)).peekable();
        if data.peek().is_none() {
            return false;
        }
        let is_image = |v: &ValueId| self.graph.value(*v).def == Def::Input && self.graph.ty(*v).rank() > 0;
        data.any(|v| self.graph.ty(*v).dtype == DType::BF16 || is_image(v))
            || node.outputs.iter().all(|y| self.wanted.contains(y))
    }

    /// What the caller reads has the type it had.
    fn results(&mut self, types: &[DType]) -> Result<(), InferError> {
        for (i, &to) in types.iter().enumerate() {
            let v = self.graph.outputs[i].value;
            if self.graph.ty(v).dtype != to {
                let at = self.graph.order().len();
                self.graph.outputs[i].value = self.convert(v, to, at, false)?;
            }
        }
        Ok(())
    }

    /// A value as `to` if it is f32 or bf16, cast in front of `reader` if it is not that already.
    fn cast(&mut self, v: ValueId, to: DType, reader: NodeId) -> Result<ValueId, InferError> {
        let value = self.graph.value(v);
        if !matches!(value.ty.dtype, DType::F32 | DType::BF16) || value.ty.dtype == to {
            return Ok(v);
        }
        if let Def::Const(bytes) = &value.def {
            let literal = Tensor::from_bytes(value.ty.clone(), bytes).and_then(|t| t.to_dtype(to));
            let literal =
                literal.ok_or_else(|| InferError(format!("a literal of another size than {}", value.ty)))?;
            return Ok(self.graph.add_const(literal.ty().clone(), literal.bytes()));
        }
        // A cast back gives the wider value only if nothing was lost, so casts are not undone.
        let setup = self.graph.is_static(v);
        if let Some(&made) = self.made.get(&(v, setup)) {
            return Ok(made);
        }
        // In front of the first reader; what never changes, at load, behind what makes it.
        let at = conversion::place(self.graph, v, reader, setup);
        let made = self.convert(v, to, at, setup)?;
        self.made.insert((v, setup), made);
        Ok(made)
    }

    fn convert(&mut self, v: ValueId, to: DType, at: usize, setup: bool) -> Result<ValueId, InferError> {
        let y = conversion::insert(self.graph, Op::Cast { to }, &to.to_string(), v, at, setup)?;
        self.casts += 1;
        if self.data.contains(&v) {
            self.data.insert(y);
        }
        Ok(y)
    }
}
