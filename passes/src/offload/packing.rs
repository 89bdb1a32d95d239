//! Which offloaded tensors are worth packing.

use vdnn_cost::{CopyDir, CostModel};
use vdnn_ir::Op;
use vdnn_ir::graph::{Graph, ValueId};
use vdnn_ir::op::UnaryKind;
use vdnn_ir::packed::can_pack;

/// True for a tensor that a ReLU made, if both its copies are predicted to be shorter packed.
pub(super) fn pays(graph: &Graph, value: ValueId, cost: &CostModel) -> bool {
    let ty = graph.ty(value);
    let rectified = graph.def_node(value).is_some_and(|id| {
        let op = &graph.node(id).op;
        matches!(op, Op::Elementwise(program) if program.ends_in_relu())
            || matches!(
                op,
                Op::Unary(UnaryKind::Relu)
                    | Op::ConvEpilogue { relu: true, .. }
                    | Op::BatchNormTrainRelu { .. }
                    | Op::BatchNormTrainReluJoined { .. }
            )
    });
    rectified
        && can_pack(ty)
        && [CopyDir::D2h, CopyDir::H2d]
            .into_iter()
            .all(|dir| cost.packed_copy(dir, ty) < cost.copy(dir, ty.bytes()))
}
