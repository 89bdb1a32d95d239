//! Several compute streams: branches of an inference that leave most of the device idle run side
//! by side.
//!
//! Three steps, none of which the others trust. [`assign`] gives every node a *lane* by list
//! scheduling (Graham, *Bounds on multiprocessing timing anomalies*, 1969) in program order. The
//! layout then keeps bytes until every later node is ordered after their last use
//! ([`Lanes`] and [`crate::memory::layout_on`]), so that reuse of memory orders nothing that data
//! does not. [`spread`] moves the launches of the finished plan to their streams and orders
//! whatever touches the same bytes by events: a plan is free of races whatever the lanes and the
//! layout are, which only decide how much runs at once.

mod live;
mod order;
mod spread;
#[cfg(test)]
mod tests;

pub(crate) use live::extend;
pub use spread::{Spread, spread};

use crate::offload::policy::view_root;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use vdnn_cost::{CostModel, PPM};
use vdnn_ir::graph::{Graph, Node, NodeId, Stage};
use vdnn_ir::id::SecondaryMap;
use vdnn_ir::{Nanos, Op, TensorType};

/// Most compute streams of a plan.
pub const MAX_STREAMS: u32 = 4;

/// How many compute streams a plan of an inference may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streams {
    /// As many as are predicted to pay, at most [`MAX_STREAMS`].
    Auto,
    /// Up to so many, whatever is predicted: 1 to [`MAX_STREAMS`].
    Count(u32),
}

impl Streams {
    /// Numbers above 1 to try.
    pub fn candidates(self) -> RangeInclusive<u32> {
        match self {
            Self::Auto => 2..=MAX_STREAMS,
            Self::Count(n) => n.max(2)..=n,
        }
    }
}

impl fmt::Display for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Count(n) => write!(f, "{n}"),
        }
    }
}

impl FromStr for Streams {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s.parse() {
            _ if s == "auto" => Ok(Self::Auto),
            Ok(n) if (1..=MAX_STREAMS).contains(&n) => Ok(Self::Count(n)),
            _ => Err(format!("`{s}` is no number of streams; choose auto or 1 to {MAX_STREAMS}")),
        }
    }
}

/// A kernel that fills more of the device than this, in millionths, gains nothing beside others.
const FULL: u64 = PPM / 10 * 9;

/// Which compute stream each node runs on.
#[derive(Clone, Debug)]
pub struct Lanes {
    of: SecondaryMap<NodeId, u32>,
    count: u32,
}

impl Lanes {
    /// Everything on one stream.
    pub fn single() -> Self {
        Self { of: SecondaryMap::with_default(0), count: 1 }
    }

    /// These nodes on these lanes, all others on lane 0.
    pub fn from_nodes(nodes: impl IntoIterator<Item = (NodeId, u32)>) -> Self {
        let mut lanes = Self::single();
        for (node, lane) in nodes {
            lanes.of[node] = lane;
            lanes.count = lanes.count.max(lane + 1);
        }
        lanes
    }

    /// Number of lanes, at least 1.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The lane of a node.
    pub fn of(&self, node: NodeId) -> u32 {
        self.of[node]
    }
}

/// True if a node is launched on a compute stream.
fn runs(node: &Node) -> bool {
    node.stage != Stage::Setup && !matches!(node.op, Op::Reshape { .. })
}

/// Gives the nodes of a scheduled graph at most `limit` lanes: each the one on which it can start
/// first if all lanes ran at full speed, a lane that its operands come from another than costing
/// the wait ([`CostModel::wait`]). Kernels that fill the device stay on the lane of their last
/// operand. A graph with transfers keeps one lane.
pub fn assign(graph: &Graph, cost: &CostModel, limit: u32) -> Lanes {
    let mut lanes = Lanes::single();
    let limit = limit.clamp(1, MAX_STREAMS);
    if limit == 1 || graph.nodes().any(|(_, n)| n.op.is_transfer()) {
        return lanes;
    }
    let mut done: SecondaryMap<NodeId, Nanos> = SecondaryMap::with_default(Nanos::ZERO);
    let mut free = vec![Nanos::ZERO; limit as usize];
    for (id, node) in graph.nodes().filter(|(_, n)| runs(n)) {
        let inputs: Vec<&TensorType> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
        let outputs: Vec<&TensorType> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
        let time = cost.launch(&node.op, &inputs, &outputs, node.algo.as_ref());
        let operands = || {
            let defs = node.inputs.iter().filter_map(|&v| graph.def_node(view_root(graph, v)));
            defs.filter(|&def| graph.node(def).stage != Stage::Setup)
        };
        let start = |lane: u32| {
            let ready = operands().map(|def| {
                let wait = if lanes.of[def] == lane { Nanos::ZERO } else { cost.wait() };
                done[def].saturating_add(wait)
            });
            ready.max().unwrap_or_default().max(free[lane as usize])
        };
        let full = cost.occupancy(&node.op, &inputs, &outputs, node.algo.as_ref()) > FULL;
        let last = operands().max_by_key(|&def| done[def]).map_or(0, |def| lanes.of[def]);
        let lane =
            if full { last } else { (0..limit).min_by_key(|&l| (start(l), l != last, l)).unwrap_or(0) };
        let end = start(lane).saturating_add(time);
        done[id] = end;
        free[lane as usize] = end;
        lanes.of[id] = lane;
        lanes.count = lanes.count.max(lane + 1);
    }
    lanes
}
