//! Concats made of earlier ones: `concat(a, b, c)` after `p = concat(a, b)` is `concat(p, c)`.
//!
//! Every layer of a DenseNet reads all layers before it, so exporters write quadratically many
//! operands. Each of them would get a slice of every later gradient, and a sum; nested, a concat
//! sends back two slices, and sums run along the chain.

use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::{Graph, NodeId, Op, Phase, Stage, ValueId};

/// Nests the concats of a graph to train.
///
/// Counter: `nested`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NestConcats;

impl Pass for NestConcats {
    fn name(&self) -> &'static str {
        "nest-concats"
    }
    fn requires(&self) -> Phase {
        Phase::Simplified
    }
    fn produces(&self) -> Phase {
        Phase::Simplified
    }
    fn run(&self, graph: &mut Graph, _cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        // What is joined already, by axis and operands.
        let mut joined: BTreeMap<(u64, Operands), ValueId> = BTreeMap::new();
        let mut nested = 0;
        let order: Vec<NodeId> = graph.order().to_vec();
        for (position, id) in order.into_iter().enumerate() {
            let node = graph.node(id);
            let Op::Concat { axis } = node.op else { continue };
            let (inputs, y) = (node.inputs.iter().copied().collect::<Operands>(), node.outputs[0]);
            let prefix = |n: usize| (axis, Operands::from_slice(&inputs[..n]));
            let longest = (2..inputs.len()).rev().find_map(|n| Some((n, *joined.get(&prefix(n))?)));
            let mut value = y;
            if let Some((n, front)) = longest {
                let spec = NodeSpec { stage: Stage::Forward, ..NodeSpec::forward(node.name.clone()) };
                let operands: Operands = std::iter::once(front).chain(inputs[n..].iter().copied()).collect();
                let new = graph
                    .insert(position, Op::Concat { axis }, &operands, spec)
                    .map_err(|error| PassError::Infer { pass: self.name(), error })?;
                value = graph.node(new).outputs[0];
                graph.replace_all_uses(y, value);
                graph.remove(id);
                nested += 1;
            }
            joined.insert((axis, inputs), value);
        }
        Ok(Outcome { changed: nested > 0, stats: Stats::from([("nested", nested)]) })
    }
}

type Operands = SmallVec<[ValueId; 8]>;
