//! How many entries packed weights need room for, through what folding and removal do to weights.

use super::Facts;
use vdnn_ir::graph::Def;
use vdnn_ir::op::BinaryKind;
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::sparse::blocks::{BLOCK, BlockShape};
use vdnn_ir::{Graph, Op, ValueId};

/// Nodes that are looked through.
const DEPTH: u32 = 16;

/// A bound of the entries in this form of a static value's weights, which are `[C, M]` if they are
/// `turned`; `None` if nothing is known, or if they are not of this form.
pub(super) fn entries(
    graph: &Graph,
    facts: &Facts,
    (v, turned): (ValueId, bool),
    form: SparseForm,
) -> Option<u64> {
    if form.is_csr() {
        return nonzeros(graph, facts, v, DEPTH);
    }
    let mut dims = graph.ty(v).dims.clone();
    if turned {
        dims.reverse();
    }
    let most = form.most(&dims)?;
    let pattern = Pattern::of(graph, facts, v, DEPTH)?;
    match form {
        SparseForm::TwoFourBf16 => pattern.two_four[usize::from(turned)].then_some(most),
        _ => Some(pattern.blocks()?.min(most)),
    }
}

/// The operand that has the zeros of a value that a node computes.
fn source(graph: &Graph, op: &Op, inputs: &[ValueId], v: ValueId) -> Option<ValueId> {
    let x = *inputs.first()?;
    match op {
        Op::Reshape { .. } | Op::Transpose { .. } | Op::Gather { .. } | Op::Cast { .. } => Some(x),
        Op::Binary(BinaryKind::Mul | BinaryKind::Div) if graph.ty(x).dims == graph.ty(v).dims => Some(x),
        _ => None,
    }
}

/// A bound of the elements of a static value that are not zero.
fn nonzeros(graph: &Graph, facts: &Facts, v: ValueId, depth: u32) -> Option<u64> {
    let most = graph.ty(v).elements();
    let found = match graph.value(v).def {
        Def::Node { node, .. } => {
            let node = graph.node(node);
            let x = source(graph, &node.op, &node.inputs, v).filter(|_| depth > 0)?;
            nonzeros(graph, facts, x, depth - 1)?
        }
        _ => facts.get(graph, v)?.nonzeros,
    };
    Some(found.min(most))
}

/// Where a matrix `[M, C]` of windows has zeros.
struct Pattern {
    shape: BlockShape,
    /// Of each window whether it holds anything else, row by row.
    alive: Option<Vec<bool>>,
    /// Blocks, where nothing has moved.
    blocks: Option<u64>,
    /// As of [`ParamFacts`](super::ParamFacts).
    two_four: [bool; 2],
}

impl Pattern {
    fn of(graph: &Graph, facts: &Facts, v: ValueId, depth: u32) -> Option<Self> {
        let dims = &graph.ty(v).dims;
        let shape = BlockShape::of(dims)?;
        let Def::Node { node, .. } = graph.value(v).def else {
            let facts = facts.get(graph, v)?;
            return Some(Self {
                shape,
                alive: facts.alive().map(<[bool]>::to_vec),
                blocks: Some(facts.blocks),
                two_four: facts.two_four,
            });
        };
        let node = graph.node(node);
        let x = source(graph, &node.op, &node.inputs, v).filter(|_| depth > 0)?;
        let from = Self::of(graph, facts, x, depth - 1)?;
        let (rows, columns) = (shape.filters, shape.channels);
        match &node.op {
            Op::Reshape { .. } if shape != from.shape => None,
            Op::Transpose { perm } if perm.as_slice() == [1, 0] => {
                let turn = |a: &Vec<bool>| {
                    (0..rows * columns).map(|i| a[i % columns * rows + i / columns]).collect()
                };
                let [along, across] = from.two_four;
                let alive = from.alive.as_ref().map(turn);
                Some(Self { shape, alive, blocks: from.blocks, two_four: [across, along] })
            }
            Op::Transpose { .. } => None,
            Op::Gather { axis } => {
                // What is taken along the other axis leaves every four as they were.
                let two_four = [0, 1].map(|i| from.two_four[i] && *axis == i as u64);
                let Def::Const(bytes) = &graph.value(*node.inputs.get(1)?).def else { return None };
                let word = |c: &[u8]| Some(u32::from_le_bytes(c.try_into().ok()?) as usize);
                let list: Vec<usize> = bytes.chunks_exact(4).map(word).collect::<Option<_>>()?;
                let (old, Some(alive)) = (from.shape, from.alive) else {
                    return Some(Self { shape, alive: None, blocks: None, two_four });
                };
                let at = |m: usize, c: usize| match axis {
                    0 => Some((*list.get(m)?, c)),
                    1 => Some((m, *list.get(c)?)),
                    _ => None,
                };
                let get = |i: usize| {
                    let (m, c) = at(i / columns, i % columns)?;
                    alive.get(m * old.channels + c).copied()
                };
                let alive = (0..rows * columns).map(get).collect::<Option<_>>()?;
                Some(Self { shape, alive: Some(alive), blocks: None, two_four })
            }
            _ => Some(Self { shape, ..from }),
        }
    }

    fn blocks(&self) -> Option<u64> {
        let of_windows = self.alive.as_ref().map(|alive| {
            let across = self.shape.channels.div_ceil(BLOCK);
            let mut found = vec![false; self.shape.groups() * across];
            for i in (0..alive.len()).filter(|&i| alive[i]) {
                found[i / self.shape.channels / BLOCK * across + i % self.shape.channels / BLOCK] = true;
            }
            found.iter().filter(|f| **f).count() as u64 * self.shape.taps as u64
        });
        self.blocks.into_iter().chain(of_windows).min()
    }
}
