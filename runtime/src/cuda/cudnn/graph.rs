//! Operation graphs: a convolution, and what is done to its result before it is stored.

use super::api::Session;
use super::desc::{AttrType, Desc, Kind, Target, attr};
use super::problem::{Direction, Problem, Shape};
use crate::cuda::error::CudaError;
use std::rc::Rc;

/// `CUDNN_DATA_FLOAT`.
pub(super) const FLOAT: i32 = 0;
/// `CUDNN_DATA_BFLOAT16`.
const BFLOAT16: i32 = 9;
/// `CUDNN_CROSS_CORRELATION`.
pub(super) const CROSS_CORRELATION: i32 = 1;
/// `CUDNN_POINTWISE_ADD`.
const ADD: i32 = 0;
/// `CUDNN_POINTWISE_RELU_FWD`.
const RELU: i32 = 100;
/// Every address is a multiple of this many bytes; arenas give more.
pub(super) const ALIGNMENT: i64 = 16;

/// Unique ids of the tensors of a graph.
pub(super) mod uid {
    pub(in crate::cuda::cudnn) const X: i64 = 1;
    pub(in crate::cuda::cudnn) const W: i64 = 2;
    pub(in crate::cuda::cudnn) const Y: i64 = 3;
    pub(in crate::cuda::cudnn) const BIAS: i64 = 4;
    pub(in crate::cuda::cudnn) const RESIDUAL: i64 = 5;
    /// The first of the results before the last; they exist inside the engine alone.
    pub(in crate::cuda::cudnn) const INNER: i64 = 6;
}

/// A finalized operation graph with the descriptors it was made of.
#[derive(Debug)]
pub(super) struct Graph {
    pub desc: Desc,
    _parts: Vec<Desc>,
}

/// A tensor in memory, or one that exists inside the engine alone, which then is f32.
fn tensor(
    session: &Rc<Session>,
    shape: &Shape,
    id: i64,
    narrow: bool,
    is_virtual: bool,
) -> Result<Desc, CudaError> {
    let ty = if narrow && !is_virtual { BFLOAT16 } else { FLOAT };
    let d = Desc::new(session, Kind::Tensor)?;
    d.set_enum(attr::TENSOR_DATA_TYPE, AttrType::DataType, ty)?;
    d.set_i64(attr::TENSOR_DIMENSIONS, &shape.dims)?;
    d.set_i64(attr::TENSOR_STRIDES, &shape.strides)?;
    d.set_i64(attr::TENSOR_UNIQUE_ID, &[id])?;
    d.set_i64(attr::TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT])?;
    if is_virtual {
        d.set_bool(attr::TENSOR_IS_VIRTUAL, true)?;
    }
    d.finalize()
}

/// The graph of a problem: one convolution, and its epilogue as pointwise operations.
pub(super) fn build(target: &Target, problem: &Problem) -> Result<Graph, CudaError> {
    let session = &target.session;
    let conv = Desc::new(session, Kind::Convolution)?;
    conv.set_enum(attr::CONV_COMP_TYPE, AttrType::DataType, FLOAT)?;
    conv.set_enum(attr::CONV_MODE, AttrType::ConvolutionMode, CROSS_CORRELATION)?;
    conv.set_i64(attr::CONV_SPATIAL_DIMS, &[problem.strides.len() as i64])?;
    conv.set_i64(attr::CONV_PRE_PADDINGS, &problem.before)?;
    conv.set_i64(attr::CONV_POST_PADDINGS, &problem.after)?;
    conv.set_i64(attr::CONV_DILATIONS, &problem.dilations)?;
    conv.set_i64(attr::CONV_STRIDES, &problem.strides)?;
    let conv = conv.finalize()?;

    let x = tensor(session, &problem.x, uid::X, problem.narrow, false)?;
    let w = tensor(session, &problem.w, uid::W, problem.narrow, false)?;
    // The epilogue: each step with its other operand. The residual comes before the bias: that
    // is the order all fused engines know (`cudnnConvolutionBiasActivationForward` has it too),
    // with the other there is none.
    let mut steps = Vec::new();
    if problem.residual {
        let other = tensor(session, &problem.y, uid::RESIDUAL, problem.narrow, false)?;
        steps.push((ADD, Some(other)));
    }
    if problem.bias {
        let bias = tensor(session, &problem.bias_shape(), uid::BIAS, problem.narrow, false)?;
        steps.push((ADD, Some(bias)));
    }
    if problem.relu {
        steps.push((RELU, None));
    }
    // Result of the convolution, then of each step; the last is stored.
    let mut results = Vec::new();
    for i in 0..steps.len() {
        results.push(tensor(session, &problem.y, uid::INNER + i as i64, problem.narrow, true)?);
    }
    results.push(tensor(session, &problem.y, uid::Y, problem.narrow, false)?);

    let (kind, base) = match problem.dir {
        Direction::Fprop => (Kind::OperationConvFprop, attr::FPROP),
        Direction::Dgrad => (Kind::OperationConvDgrad, attr::DGRAD),
        Direction::Wgrad => (Kind::OperationConvWgrad, attr::WGRAD),
    };
    let op = Desc::new(session, kind)?;
    op.set_f32(base, 1.0)?;
    op.set_f32(base + 1, if problem.accumulate { 1.0 } else { 0.0 })?;
    op.set_descs(base + 2, &[&conv])?;
    op.set_descs(base + 3, &[&w])?;
    op.set_descs(base + 4, &[&x])?;
    op.set_descs(base + 5, &[&results[0]])?;
    let op = op.finalize()?;

    let mut parts = vec![conv, x, w];
    let mut ops = vec![op];
    for (i, (mode, other)) in steps.iter().enumerate() {
        let pointwise = Desc::new(session, Kind::Pointwise)?;
        pointwise.set_enum(attr::POINTWISE_MODE, AttrType::PointwiseMode, *mode)?;
        pointwise.set_enum(attr::POINTWISE_MATH_PREC, AttrType::DataType, FLOAT)?;
        let pointwise = pointwise.finalize()?;
        let op = Desc::new(session, Kind::OperationPointwise)?;
        op.set_descs(attr::OP_POINTWISE_DESC, &[&pointwise])?;
        op.set_descs(attr::OP_POINTWISE_X, &[&results[i]])?;
        op.set_descs(attr::OP_POINTWISE_Y, &[&results[i + 1]])?;
        if let Some(other) = other {
            op.set_descs(attr::OP_POINTWISE_B, &[other])?;
            op.set_f32(attr::OP_POINTWISE_ALPHA1, 1.0)?;
            op.set_f32(attr::OP_POINTWISE_ALPHA2, 1.0)?;
        }
        ops.push(op.finalize()?);
        parts.push(pointwise);
    }
    parts.extend(steps.into_iter().filter_map(|(_, other)| other));
    parts.extend(results);

    let desc = Desc::new(session, Kind::OperationGraph)?;
    desc.set_descs(attr::GRAPH_OPS, &ops.iter().collect::<Vec<_>>())?;
    target.bind(&desc, Some(attr::GRAPH_HANDLE), None)?;
    let desc = desc.finalize()?;
    parts.extend(ops);
    Ok(Graph { desc, _parts: parts })
}
