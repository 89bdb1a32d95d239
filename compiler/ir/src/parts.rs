//! What a fused op means: the ops it is made of, in order.
//!
//! Kernel sets that have no fused kernel run the parts, on temporary tensors; so the parts
//! are the one definition of the result, down to its bits on the CPU.

use crate::graph::NodeSpec;
use crate::kernel::{KernelError, Kernels, Operand, TensorMut};
use crate::op::infer::infer;
use crate::op::pyramid::PartOperand;
use crate::op::{BinaryKind, Op, SliceAttrs, StepOperand, UnaryKind};
use crate::tensor::Tensor;
use crate::types::{DType, TensorType};
use crate::{Graph, ValueId};

/// The graph of a fused op: its inputs are the op's operands in order, its outputs the op's
/// results in order. `None` if the op is not a fused one, or not of these operands.
pub fn parts(op: &Op, inputs: &[&TensorType], n_outputs: usize) -> Option<Graph> {
    if !is_fused(op) {
        return None;
    }
    let mut p = Parts { graph: Graph::new("parts") };
    let x: Vec<ValueId> =
        inputs.iter().enumerate().map(|(i, ty)| p.graph.add_input(format!("x{i}"), (*ty).clone())).collect();
    let results = p.expand(op, &x, n_outputs)?;
    for (i, value) in results.into_iter().enumerate() {
        p.graph.outputs.push(crate::Output { name: format!("y{i}"), value });
    }
    Some(p.graph)
}

/// True for the ops that are made of others.
pub fn is_fused(op: &Op) -> bool {
    matches!(
        op,
        Op::BatchNormInferRelu { .. }
            | Op::BatchNormApplyRelu { .. }
            | Op::BatchNormTrainReluJoined { .. }
            | Op::BatchNormReluGradJoined { .. }
            | Op::BatchNormTrainRelu { .. }
            | Op::BatchNormReluGrad { .. }
            | Op::AddSlice(_)
            | Op::ConvEpilogue { .. }
            | Op::SparseInputConv { .. }
            | Op::Pyramid(_)
            | Op::Elementwise(_)
    )
}

struct Parts {
    graph: Graph,
}

impl Parts {
    fn add(&mut self, op: Op, inputs: &[ValueId], n_outputs: usize) -> Option<Vec<ValueId>> {
        let spec = NodeSpec::forward("part").outputs(n_outputs);
        let node = self.graph.add(op, inputs, spec).ok()?;
        Some(self.graph.node(node).outputs.to_vec())
    }

    fn one(&mut self, op: Op, inputs: &[ValueId]) -> Option<ValueId> {
        self.add(op, inputs, 1).map(|v| v[0])
    }

    /// Pieces joined along the channels.
    fn joined(&mut self, pieces: &[ValueId]) -> Option<ValueId> {
        match pieces {
            &[lone] => Some(lone),
            _ => self.one(Op::Concat { axis: 1 }, pieces),
        }
    }

    fn expand(&mut self, op: &Op, x: &[ValueId], n_outputs: usize) -> Option<Vec<ValueId>> {
        match op {
            Op::ConvEpilogue { conv, relu } => {
                let mut y = self.one(Op::Conv(conv.clone()), x.get(..3)?)?;
                if let Some(&r) = x.get(3) {
                    y = self.one(Op::Binary(BinaryKind::Add), &[y, r])?;
                }
                if *relu {
                    y = self.one(Op::Unary(UnaryKind::Relu), &[y])?;
                }
                Some(vec![y])
            }
            Op::SparseInputConv { conv, relu } => {
                let &[image, w, ref rest @ ..] = x else { return None };
                let &[c, _, m] = self.graph.ty(w).dims.as_slice() else { return None };
                let dims = [c].iter().chain(&conv.kernel).chain(&[m]).copied().collect();
                let w = self.one(Op::Reshape { dims }, &[w])?;
                let w = self.one(Op::Transpose { perm: [3, 0, 1, 2].into_iter().collect() }, &[w])?;
                let mut operands = vec![image, w];
                operands.extend(rest.first());
                let mut y = self.one(Op::Conv(conv.clone()), &operands)?;
                if let Some(&r) = rest.get(1) {
                    y = self.one(Op::Binary(BinaryKind::Add), &[y, r])?;
                }
                if *relu {
                    y = self.one(Op::Unary(UnaryKind::Relu), &[y])?;
                }
                Some(vec![y])
            }
            Op::Pyramid(pyramid) => {
                let narrow = self.graph.ty(*x.first()?).dtype == DType::BF16;
                let mut made = Vec::new();
                for (op, operands) in pyramid.ops(narrow) {
                    let of = |o: &PartOperand| match o {
                        PartOperand::Input(i) => x.get(*i).copied(),
                        PartOperand::Part(i) => made.get(*i).copied(),
                    };
                    let operands = operands.iter().map(of).collect::<Option<Vec<_>>>()?;
                    made.push(self.one(op, &operands)?);
                }
                made.pop().map(|y| vec![y])
            }
            Op::Elementwise(program) => {
                let mut made = Vec::new();
                for step in &program.steps {
                    let of = |o: &StepOperand| match *o {
                        StepOperand::X(i) => x.get(usize::from(i)).copied(),
                        StepOperand::T(i) => made.get(usize::from(i)).copied(),
                    };
                    let operands = step.operands().iter().map(of).collect::<Option<Vec<_>>>()?;
                    made.push(self.one(step.op(), &operands)?);
                }
                made.pop().map(|y| vec![y])
            }
            Op::BatchNormInferRelu { eps } => {
                let &[scale, bias, mean, var, ref pieces @ ..] = x else { return None };
                let whole = self.joined(pieces)?;
                // Inference knows no momentum.
                let op = Op::BatchNormInfer { eps: *eps, momentum: 0.0.into() };
                let y = self.one(op, &[whole, scale, bias, mean, var])?;
                Some(vec![self.one(Op::Unary(UnaryKind::Relu), &[y])?])
            }
            Op::BatchNormApplyRelu { eps } => {
                let &[scale, bias, mean, invstd, ref pieces @ ..] = x else { return None };
                let whole = self.joined(pieces)?;
                // The statistics again, in full precision: what was left of them is rounded. The
                // running ones are moot.
                let op = Op::BatchNormTrain { eps: *eps, momentum: 0.0.into() };
                let y = self.add(op, &[whole, scale, bias, mean, invstd], 5)?[0];
                Some(vec![self.one(Op::Unary(UnaryKind::Relu), &[y])?])
            }
            Op::BatchNormTrainReluJoined { eps, momentum, .. } => {
                let &[scale, bias, mean, var, ..] = x else { return None };
                // In full precision: what is known of the statistics is rounded.
                let whole = self.joined(x.get(op.first_joined()?..)?)?;
                let op = Op::BatchNormTrainRelu { eps: *eps, momentum: *momentum };
                self.expand(&op, &[whole, scale, bias, mean, var], n_outputs)
            }
            Op::BatchNormReluGradJoined { eps, added } => {
                let &[dy, scale, bias, mean, invstd, ref rest @ ..] = x else { return None };
                let (g, pieces) = if *added { rest.split_at_checked(1)? } else { (&[][..], rest) };
                let whole = self.joined(pieces)?;
                let op = Op::BatchNormReluGrad { eps: *eps };
                let mut out = self.expand(&op, &[dy, whole, scale, bias, mean, invstd], n_outputs)?;
                if let &[g] = g {
                    let lens = self.graph.ty(dy).dims.clone();
                    let slice = SliceAttrs {
                        starts: lens.iter().map(|_| 0).collect(),
                        steps: lens.iter().map(|_| 1).collect(),
                        lens,
                    };
                    out[0] = self.expand(&Op::AddSlice(slice), &[out[0], g], 1)?[0];
                }
                Some(out)
            }
            Op::AddSlice(slice) => {
                let &[a, from] = x else { return None };
                let part = self.one(Op::Slice(slice.clone()), &[from])?;
                Some(vec![self.one(Op::Binary(BinaryKind::Add), &[a, part])?])
            }
            Op::BatchNormTrainRelu { eps, momentum } => {
                let op = Op::BatchNormTrain { eps: *eps, momentum: *momentum };
                let mut out = self.add(op, x.get(..5)?, 5)?;
                if let Some(&r) = x.get(5) {
                    out[0] = self.one(Op::Binary(BinaryKind::Add), &[out[0], r])?;
                }
                out[0] = self.one(Op::Unary(UnaryKind::Relu), &[out[0]])?;
                Some(out)
            }
            Op::BatchNormReluGrad { eps } => {
                let &[dy, input, scale, bias, mean, invstd, ref rest @ ..] = x else { return None };
                let gate = match rest.first() {
                    Some(&y) => y,
                    None => {
                        // The forward pass again, for its signs: the running statistics are moot.
                        let op = Op::BatchNormTrain { eps: *eps, momentum: 0.0.into() };
                        self.add(op, &[input, scale, bias, mean, invstd], 5)?[0]
                    }
                };
                // A ReLU's gradient asks for the sign of its output only, which is its input's.
                let gated = self.one(Op::UnaryGrad(UnaryKind::Relu), &[dy, gate])?;
                let mut out = self.add(Op::BatchNormGrad, &[gated, input, scale, mean, invstd], 3)?;
                if n_outputs > 3 {
                    out.push(gated);
                }
                Some(out)
            }
            _ => None,
        }
    }
}

/// Executes a fused op by its parts. Returns `None` for other ops, which are left to the
/// kernels.
pub fn through_parts(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[Operand<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Option<Result<(), KernelError>> {
    if !is_fused(op) {
        return None;
    }
    Some(run(kernels, op, inputs, outputs))
}

fn run(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[Operand<'_>],
    outputs: &mut [TensorMut<'_>],
) -> Result<(), KernelError> {
    let misfit = |why: &str| KernelError::BadData(format!("{op}: {why}"));
    let mut owned = Vec::new();
    for operand in inputs {
        let (ty, bytes): (&TensorType, &[u8]) = match operand {
            Operand::Ref(t) => (t.ty, t.bytes),
            Operand::InPlace(o) => {
                outputs.get(*o).map(|t| (t.ty, &*t.bytes)).ok_or_else(|| misfit("no such output"))?
            }
        };
        owned
            .push(Tensor::from_bytes(ty.clone(), bytes).ok_or_else(|| misfit("an operand of another size"))?);
    }
    // Shapes are those of f32 tensors whatever the elements in memory are.
    let narrow: Vec<TensorType> = owned.iter().map(|t| as_f32(t.ty())).collect();
    let types: Vec<&TensorType> = narrow.iter().collect();
    infer(op, &types, outputs.len()).map_err(|e| KernelError::BadData(e.0))?;
    let graph = parts(op, &types, outputs.len()).ok_or_else(|| misfit("no parts of these operands"))?;
    let wide = owned.iter().any(|t| t.ty().dtype == DType::F64);
    let mut values: Vec<Option<Tensor>> = vec![None; graph.value_bound()];
    for (&v, tensor) in graph.inputs().iter().zip(owned) {
        values[crate::id::EntityId::index(v)] = Some(tensor);
    }
    for (_, node) in graph.nodes() {
        let mut results: Vec<Tensor> = node
            .outputs
            .iter()
            .map(|&v| {
                let ty = graph.ty(v).clone();
                Tensor::zeros(if wide { TensorType { dtype: DType::F64, ..ty } } else { ty })
            })
            .collect();
        let types: Vec<TensorType> = results.iter().map(|t| t.ty().clone()).collect();
        let operands: Vec<Operand<'_>> = node
            .inputs
            .iter()
            .map(|&v| values[crate::id::EntityId::index(v)].as_ref().map(|t| Operand::Ref(t.view())))
            .collect::<Option<_>>()
            .ok_or_else(|| misfit("a part reads what no part wrote"))?;
        let mut slots: Vec<TensorMut<'_>> =
            results.iter_mut().zip(&types).map(|(t, ty)| TensorMut { ty, bytes: t.bytes_mut() }).collect();
        kernels.launch(&node.op, &operands, &mut slots)?;
        for (&v, tensor) in node.outputs.iter().zip(results) {
            values[crate::id::EntityId::index(v)] = Some(tensor);
        }
    }
    for (result, output) in graph.outputs.iter().zip(outputs) {
        let value = values[crate::id::EntityId::index(result.value)].as_ref();
        let value = value.filter(|t| t.bytes().len() == output.bytes.len());
        output.bytes.copy_from_slice(value.ok_or_else(|| misfit("a result of another size"))?.bytes());
    }
    Ok(())
}

fn as_f32(ty: &TensorType) -> TensorType {
    let dtype = if ty.dtype == DType::F64 { DType::F32 } else { ty.dtype };
    TensorType { dtype, ..ty.clone() }
}
