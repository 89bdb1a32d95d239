//! Memory layouts: makes images and filters channels-last where the device's matrix units
//! want them so, with conversions where an op or the outside world is row-major.
//!
//! Filters are stored that way in the arena, so a step converts only its input images and
//! what leaves the convolutional part.

use crate::conversion;
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use std::collections::{BTreeMap, BTreeSet};
use vdnn_ir::op::infer::{InferError, takes_channels_last};
use vdnn_ir::{Def, Graph, Layout, NodeId, Op, Phase, Stage, Tensor, ValueId};

/// Brings a joint graph into channels-last layout. Runs after autodiff, whose rules then need
/// not know of layouts, and before anything is priced or placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChannelsLast;

impl Pass for ChannelsLast {
    fn name(&self) -> &'static str {
        "channels-last"
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Joint
    }

    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let mut run = Run { graph, made: BTreeMap::new(), conversions: 0 };
        run.params();
        for id in run.graph.order().to_vec() {
            run.node(id).map_err(|error| PassError::Infer { pass: self.name(), error })?;
        }
        run.results().map_err(|error| PassError::Infer { pass: self.name(), error })?;
        let conversions = run.conversions;
        let stats = Stats::from([("conversions", conversions)]);
        Ok(Outcome { changed: conversions > 0, stats })
    }
}

struct Run<'a> {
    graph: &'a mut Graph,
    /// Conversions made, by what they convert and for which stage.
    made: BTreeMap<(ValueId, Layout, bool), ValueId>,
    conversions: u64,
}

impl Run<'_> {
    /// Parameters that only channels-last ops read are stored so; a weight and its momentum,
    /// which one update writes in place, both or neither.
    fn params(&mut self) {
        let mut chosen: BTreeSet<ValueId> = BTreeSet::new();
        for &v in self.graph.params() {
            let value = self.graph.value(v);
            let all = value.users().iter().all(|&u| {
                let node = self.graph.node(u);
                node.stage != Stage::Setup && takes_channels_last(&node.op)
            });
            let named = self.graph.outputs.iter().any(|o| o.value == v);
            if value.ty.rank() == 4 && all && !named {
                chosen.insert(v);
            }
        }
        for (_, node) in self.graph.nodes().filter(|(_, n)| n.op == Op::SgdUpdate) {
            for [w, v, _] in Op::updates(&node.inputs) {
                if !(chosen.contains(&w) && chosen.contains(&v)) {
                    chosen.retain(|x| *x != w && *x != v);
                }
            }
        }
        for v in chosen {
            self.graph.set_param_layout(v, Layout::ChannelsLast);
        }
    }

    fn node(&mut self, id: NodeId) -> Result<(), InferError> {
        let node = self.graph.node(id);
        // Setup runs once, in host memory, on row-major tensors.
        let takes = node.stage != Stage::Setup && takes_channels_last(&node.op);
        let layout = match node.op {
            // In place, so whatever the weight is in.
            Op::SgdUpdate => self.graph.ty(node.inputs[0]).layout,
            _ if takes => Layout::ChannelsLast,
            _ => Layout::RowMajor,
        };
        let operands = node.inputs.clone();
        let mut inputs = operands.clone();
        for v in &mut inputs {
            *v = self.in_layout(*v, layout, id)?;
        }
        if inputs != operands || inputs.iter().any(|&v| self.graph.ty(v).layout == Layout::ChannelsLast) {
            self.graph.set_inputs_and_infer(id, &inputs)?;
        }
        Ok(())
    }

    /// What the caller reads is row-major.
    fn results(&mut self) -> Result<(), InferError> {
        for i in 0..self.graph.outputs.len() {
            let v = self.graph.outputs[i].value;
            if self.graph.ty(v).layout != Layout::RowMajor {
                let at = self.graph.order().len();
                self.graph.outputs[i].value = self.convert(v, Layout::RowMajor, at, false)?;
            }
        }
        Ok(())
    }

    /// The value in a layout, converted in front of `reader` if it is not.
    fn in_layout(&mut self, v: ValueId, layout: Layout, reader: NodeId) -> Result<ValueId, InferError> {
        let value = self.graph.value(v);
        if value.ty.rank() != 4 || value.ty.layout == layout {
            return Ok(v);
        }
        if let Def::Const(bytes) = &value.def {
            let literal = Tensor::from_bytes(value.ty.clone(), bytes).map(|t| t.to_layout(layout));
            let literal =
                literal.ok_or_else(|| InferError(format!("a literal of another size than {}", value.ty)))?;
            return Ok(self.graph.add_const(literal.ty().clone(), literal.bytes()));
        }
        // What only depends on weights is converted once, at load.
        let setup = self.graph.is_static(v);
        if let Some(&made) = self.made.get(&(v, layout, setup)) {
            return Ok(made);
        }
        // In front of the first reader, or of the first node if it is a setup node.
        let at = conversion::place(self.graph, v, reader, setup);
        let made = self.convert(v, layout, at, setup)?;
        self.made.insert((v, layout, setup), made);
        Ok(made)
    }

    fn convert(&mut self, v: ValueId, to: Layout, at: usize, setup: bool) -> Result<ValueId, InferError> {
        let what = if to == Layout::ChannelsLast { "channels-last" } else { "row-major" };
        let y = conversion::insert(self.graph, Op::Relayout { to }, what, v, at, setup)?;
        self.conversions += 1;
        Ok(y)
    }
}
