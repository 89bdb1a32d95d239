//! Makes a graph compute the needed channels only.

use super::channels::{Channels, Content, Kind, count, kind};
use std::collections::{BTreeMap, BTreeSet};
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::op::infer::InferError;
use vdnn_ir::op::{BinaryKind, ReduceKind};
use vdnn_ir::types::Dims;
use vdnn_ir::{DType, Graph, NodeId, Op, Stage, TensorType, ValueId};

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Done {
    /// Channels that are no longer computed.
    pub(super) channels: u64,
    /// Gathers at run time.
    pub(super) gathers: u64,
    /// Channels whose constants are now part of a bias, once per reader.
    pub(super) constants: u64,
}

/// The old types and facts of a graph that is being rewritten.
struct Rewrite<'g> {
    graph: &'g mut Graph,
    /// The graph as it was: shapes and facts are of this one.
    old: Graph,
    done: Done,
    /// Of a new or changed value: which channels of the old value it holds.
    holds: BTreeMap<ValueId, Vec<usize>>,
    /// Index lists, each once.
    lists: BTreeMap<Vec<usize>, ValueId>,
}

/// Rewrites for the needs that were found with these cuts.
pub(super) fn rewrite(
    graph: &mut Graph,
    channels: &mut Channels,
    cut: &BTreeSet<NodeId>,
) -> Result<Done, InferError> {
    let old = graph.clone();
    let mut this =
        Rewrite { graph, old, done: Done::default(), holds: BTreeMap::new(), lists: BTreeMap::new() };
    let order = this.old.order().to_vec();
    for id in order {
        if this.old.node(id).stage == Stage::Forward {
            this.node(channels, id, cut.contains(&id))?;
        }
    }
    Ok(this.done)
}

fn whole(list: &[usize], n: usize) -> bool {
    list.len() == n
}

impl Rewrite<'_> {
    /// Where to put what `id` needs.
    fn position(&self, id: NodeId) -> usize {
        self.graph.order().iter().position(|&n| n == id).unwrap_or(0)
    }

    fn add(&mut self, id: NodeId, op: Op, inputs: &[ValueId], stage: Stage) -> Result<ValueId, InferError> {
        let name = format!("{}/sparsify", self.graph.node(id).name);
        let spec = NodeSpec { name, stage, origin: None, n_outputs: 1 };
        let at = self.position(id);
        let new = self.graph.insert(at, op, inputs, spec)?;
        Ok(self.graph.node(new).outputs[0])
    }

    fn list(&mut self, indices: &[usize]) -> ValueId {
        if let Some(&v) = self.lists.get(indices) {
            return v;
        }
        let bytes: Vec<u8> = indices.iter().flat_map(|&i| (i as i32).to_le_bytes()).collect();
        let v = self.graph.add_const(TensorType::new(DType::I32, [indices.len() as u64]), bytes);
        self.lists.insert(indices.to_vec(), v);
        v
    }

    fn gather(
        &mut self,
        id: NodeId,
        x: ValueId,
        axis: u64,
        indices: &[usize],
        stage: Stage,
    ) -> Result<ValueId, InferError> {
        if whole(indices, self.graph.ty(x).dims[axis as usize] as usize) {
            return Ok(x);
        }
        let list = self.list(indices);
        self.add(id, Op::Gather { axis }, &[x, list], stage)
    }

    /// The channels that a value of the new graph holds.
    fn held(&self, v: ValueId) -> Vec<usize> {
        match self.holds.get(&v) {
            Some(list) => list.clone(),
            None => (0..count(self.graph, v).unwrap_or(0)).collect(),
        }
    }

    /// A value reduced to these channels.
    fn only(&mut self, id: NodeId, v: ValueId, wanted: &[usize]) -> Result<ValueId, InferError> {
        let held = self.held(v);
        if held == wanted {
            return Ok(v);
        }
        let at: Vec<usize> = wanted.iter().filter_map(|c| held.binary_search(c).ok()).collect();
        let new = self.gather(id, v, 1, &at, Stage::Forward)?;
        self.holds.insert(new, wanted.to_vec());
        self.done.gathers += 1;
        Ok(new)
    }

    fn node(&mut self, channels: &mut Channels, id: NodeId, cut: bool) -> Result<(), InferError> {
        let old = self.old.node(id).clone();
        // Operands may have been replaced already.
        let now = self.graph.node(id).inputs.clone();
        let Some(&result) = old.outputs.first() else { return Ok(()) };
        let y = channels.kept(&self.old, result);
        let all = count(&self.old, result).unwrap_or(0);
        let shrunk = now.iter().any(|v| self.holds.contains_key(v));
        if !shrunk && !cut && whole(&y, all) {
            return Ok(());
        }
        if y.is_empty() && all > 0 {
            // Nobody reads it any more: it goes with the dead nodes.
            self.done.channels += if has_channels_of_its_own(&old.op) { all as u64 } else { 0 };
            return Ok(());
        }
        let mut op = old.op.clone();
        let mut inputs: Vec<ValueId> = now.to_vec();
        match kind(&self.old, &old) {
            Kind::Conv | Kind::Dense => {
                if cut {
                    let mut wanted = channels.wanted(&self.old, &old);
                    if wanted.is_empty() {
                        wanted.extend(channels.kept(&self.old, old.inputs[0]).first());
                    }
                    inputs[0] = self.only(id, inputs[0], &wanted)?;
                }
                self.filters(channels, id, &mut inputs, &y)?;
            }
            Kind::Depthwise => {
                for input in &mut inputs[1..] {
                    *input = self.gather(id, *input, 0, &y, Stage::Setup)?;
                }
                if let Op::Conv(a) = &mut op {
                    a.groups = y.len() as u64;
                }
            }
            Kind::Tied => {
                if cut {
                    inputs[0] = self.only(id, inputs[0], &y)?;
                }
                if let Op::BatchNormInfer { .. } = op {
                    for input in &mut inputs[1..] {
                        *input = self.gather(id, *input, 0, &y, Stage::Setup)?;
                    }
                }
                if let Op::Reshape { dims } = &mut op {
                    dims[1] = y.len() as u64;
                }
            }
            Kind::Concat => {
                let pieces = old.inputs.iter().zip(&now);
                let there = pieces.filter(|(v, _)| !channels.kept(&self.old, **v).is_empty());
                inputs = there.map(|(_, now)| *now).collect();
            }
            Kind::Opaque => return Ok(()),
        }
        if !whole(&y, all) && has_channels_of_its_own(&op) {
            self.done.channels += (all - y.len()) as u64;
        }
        let spec = NodeSpec { name: old.name.clone(), stage: old.stage, origin: old.origin, n_outputs: 1 };
        let at = self.position(id);
        let new = self.graph.insert(at, op, &inputs, spec)?;
        let to = self.graph.node(new).outputs[0];
        let hint = self.graph.value(result).name.clone();
        self.graph.set_name(to, hint);
        self.graph.replace_all_uses(result, to);
        self.graph.remove(id);
        if !whole(&y, all) {
            self.holds.insert(to, y);
        }
        Ok(())
    }

    /// Cuts weights and bias of a convolution or product to the filters `y` and to the channels
    /// that its operand holds; constants that it does not read become part of the bias.
    fn filters(
        &mut self,
        channels: &mut Channels,
        id: NodeId,
        inputs: &mut Vec<ValueId>,
        y: &[usize],
    ) -> Result<(), InferError> {
        let old = self.old.node(id).clone();
        let held = self.held(inputs[0]);
        let total = count(&self.old, old.inputs[0]).unwrap_or(0);
        let rows = self.gather(id, inputs[1], 0, y, Stage::Setup)?;
        if let Some(bias) = inputs.get_mut(2) {
            *bias = self.gather(id, *bias, 0, y, Stage::Setup)?;
        }
        let constant = |c: usize| match channels.content(old.inputs[0], c) {
            Content::Value(k) if k != 0.0 => Some(k),
            _ => None,
        };
        let gone: Vec<(usize, f32)> = (0..total)
            .filter(|c| held.binary_search(c).is_err())
            .filter_map(|c| constant(c).map(|k| (c, k)))
            .collect();
        if !gone.is_empty() && matches!(old.op, Op::Conv(_)) {
            self.done.constants += gone.len() as u64;
            let at: Vec<usize> = gone.iter().map(|g| g.0).collect();
            let values: Vec<f32> = gone.iter().map(|g| g.1).collect();
            let part = self.gather(id, rows, 1, &at, Stage::Setup)?;
            let spatial: Dims = (2..self.graph.ty(part).rank() as u64).collect();
            let sum = |axes: Dims| Op::Reduce { kind: ReduceKind::Sum, axes, keepdims: false };
            let taps = self.add(id, sum(spatial), &[part], Stage::Setup)?;
            let factors = self.graph.add_const_f32([1, values.len() as u64], &values);
            let scaled = self.add(id, Op::Binary(BinaryKind::Mul), &[taps, factors], Stage::Setup)?;
            let more = self.add(id, sum(Dims::from_slice(&[1])), &[scaled], Stage::Setup)?;
            match inputs.get_mut(2) {
                Some(bias) => {
                    *bias = self.add(id, Op::Binary(BinaryKind::Add), &[*bias, more], Stage::Setup)?;
                }
                None => inputs.push(more),
            }
        }
        inputs[1] = self.gather(id, rows, 1, &held, Stage::Setup)?;
        Ok(())
    }
}

/// True if fewer channels of a result are counted as removed, and not as those of an operand.
fn has_channels_of_its_own(op: &Op) -> bool {
    !matches!(op, Op::Unary(_) | Op::Concat { .. } | Op::Reshape { .. })
}
