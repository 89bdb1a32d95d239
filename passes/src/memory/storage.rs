//! Storages: the sets of values that share bytes, and when those bytes are in use.
//!
//! A lifetime is a half-open interval of program-order positions: from the position that
//! defines the bytes to one past the last position that reads them. A transferred tensor is
//! read by the *done* half of its transfer, so it lives until compute has waited for the
//! copy; that makes intervals on the compute stream sound with several streams.

use super::LayoutError;
use super::stepped::{Part, Shape};
use smallvec::SmallVec;
use std::fmt;
use std::ops::Range;
use vdnn_ir::graph::{Def, Graph, NodeId, Stage, ValueId};
use vdnn_ir::id::{EntityId, PrimaryMap, SecondaryMap};
use vdnn_ir::packed::packed_type;
use vdnn_ir::rows::{Placement, placement};
use vdnn_ir::{Bytes, Node, Op, Space, TensorType};
use vdnn_plan::plan::ALIGNMENT;

vdnn_ir::define_id!(
    /// A storage: one byte range shared by one or more values.
    StorageId, "m"
);

/// What a storage holds; decides its treatment by the network-wide baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StorageKind {
    /// Parameters, optimizer state, literals and results of the setup program.
    Persistent,
    /// A caller-bound input.
    Input,
    /// Defined by the forward pass: feature maps, pool indices, batch statistics.
    Activation,
    /// A gradient (complete or a partial sum) that the optimizer reads.
    WeightGradient,
    /// Any other result of the backward pass.
    Gradient,
    /// Scratch of one node.
    Workspace,
    /// A copy in the host arena.
    HostCopy,
}

impl fmt::Display for StorageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Persistent => "persistent",
            Self::Input => "input",
            Self::Activation => "activation",
            Self::WeightGradient => "weight_gradient",
            Self::Gradient => "gradient",
            Self::Workspace => "workspace",
            Self::HostCopy => "host_copy",
        })
    }
}

/// One byte range of an arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Which arena.
    pub space: Space,
    /// Size, not aligned.
    pub bytes: Bytes,
    /// What it holds.
    pub kind: StorageKind,
    /// Program-order positions at which the bytes are in use, half-open.
    pub live: Range<u32>,
    /// If its bytes come into use one after the other (operands made in their concat), or are read
    /// last one after the other (slices): which when, in pages of [`ALIGNMENT`]. Empty if all
    /// are together.
    pub parts: Vec<Part>,
    /// True if the bytes must outlive the step: parameters and graph outputs.
    pub kept: bool,
    /// The values, in program order; empty for a workspace.
    pub values: SmallVec<[ValueId; 2]>,
    /// Offset in the arena, aligned; set by the layout.
    pub offset: Bytes,
}

impl Storage {
    /// The bytes with their times, in pages.
    pub(super) fn shape(&self) -> Shape {
        let Range { start: from, end: until } = self.live;
        let whole = Part { start: Bytes::ZERO, end: self.bytes.align_up(ALIGNMENT), from, until };
        Shape { parts: if self.parts.is_empty() { vec![whole] } else { self.parts.clone() } }
    }

    /// How many bytes, in pages, are in use at a position.
    pub(super) fn bytes_at(&self, position: u32) -> Bytes {
        self.shape().blocks().filter(|(_, live)| live.contains(&position)).map(|(bytes, _)| bytes).sum()
    }
}

/// Every storage of a graph.
#[derive(Clone, Debug)]
pub struct Storages {
    /// The storages.
    pub all: PrimaryMap<StorageId, Storage>,
    /// The storage of each value; `None` for values without bytes in an arena (dead ones
    /// and those only the setup program sees).
    pub of: SecondaryMap<ValueId, Option<StorageId>>,
    /// Where in its storage each value starts.
    pub within: SecondaryMap<ValueId, Bytes>,
    /// The workspace of each node that needs one.
    pub workspace: SecondaryMap<NodeId, Option<StorageId>>,
}

/// Disjoint sets of values that share bytes. The representative of a set has all of its bytes;
/// every other value starts somewhere within.
pub(crate) struct Sharing {
    parent: Vec<u32>,
    /// Where each value starts in its parent.
    start: Vec<Bytes>,
}

impl Sharing {
    /// Values shared through views only ([`Op::views`]). Setup nodes run on the host at load
    /// and share nothing with the step.
    pub(crate) fn of_views(graph: &Graph) -> Self {
        let n = graph.value_bound();
        let mut s = Self { parent: (0..n as u32).collect(), start: vec![Bytes::ZERO; n] };
        for (_, node) in graph.nodes().filter(|(_, n)| n.stage != Stage::Setup) {
            for &(o, i) in node.op.views() {
                s.join(node.inputs[i], node.outputs[o]);
            }
        }
        s
    }

    /// Values shared through views, chosen in-place pairs and parameter updates, and with
    /// `rows` also through slices and concats in place.
    pub(crate) fn of_storage(graph: &Graph, rows: bool) -> Self {
        let mut s = Self::of_views(graph);
        for (_, node) in graph.nodes() {
            let placement = row_placement(graph, node);
            for &(o, i) in &node.inplace {
                let (input, output) = (node.inputs[i as usize], node.outputs[o as usize]);
                match &placement {
                    None => s.join(input, output),
                    Some(_) if !rows => {}
                    Some(Placement::ResultInOperand(at)) => s.join_at(input, output, *at),
                    Some(Placement::OperandsInResult(at)) => s.join_at(output, input, at[i as usize]),
                }
            }
        }
        for u in &graph.updates {
            s.join(u.param, u.value);
        }
        s
    }

    /// The representative of a value's set.
    pub(crate) fn find(&mut self, value: ValueId) -> ValueId {
        self.locate(value).0
    }

    /// The representative of a value's set, and where the value starts in its bytes.
    pub(crate) fn locate(&mut self, value: ValueId) -> (ValueId, Bytes) {
        let mut at = value.index();
        let mut start = Bytes::ZERO;
        while self.parent[at] as usize != at {
            let next = self.parent[at] as usize;
            // Halves the path.
            let further = self.start[next];
            self.start[at] += further;
            self.parent[at] = self.parent[next];
            start += self.start[at];
            at = self.parent[at] as usize;
        }
        (ValueId::from_index(at), start)
    }

    /// Makes the sets of two values one; the representative is that of `keep`.
    pub(crate) fn join(&mut self, keep: ValueId, other: ValueId) {
        self.join_at(keep, other, Bytes::ZERO);
    }

    /// Makes the sets of two values one; `other`, which must have all bytes of its set, starts
    /// at byte `at` of `keep`.
    pub(crate) fn join_at(&mut self, keep: ValueId, other: ValueId, at: Bytes) {
        let ((keep, start), other) = (self.locate(keep), self.find(other));
        if keep != other {
            self.parent[other.index()] = keep.0;
            self.start[other.index()] = start + at;
        }
    }
}

/// The placement of a slice or concat of rows that is part of the step.
pub(crate) fn row_placement(graph: &Graph, node: &Node) -> Option<Placement> {
    if node.stage == Stage::Setup || !matches!(node.op, Op::Slice(_) | Op::Concat { .. }) {
        return None;
    }
    let types: SmallVec<[&TensorType; 4]> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
    placement(&node.op, &types)
}

/// True if a node that is part of the step reads the value, or the graph names it.
fn used_by_step(graph: &Graph, named: &[bool], value: ValueId) -> bool {
    named[value.index()] || graph.value(value).users().iter().any(|&u| graph.node(u).stage != Stage::Setup)
}

/// Which values the graph names as outputs or updates, by value index.
fn named_values(graph: &Graph) -> Vec<bool> {
    let mut named = vec![false; graph.value_bound()];
    for o in &graph.outputs {
        named[o.value.index()] = true;
    }
    for u in &graph.updates {
        named[u.param.index()] = true;
        named[u.value.index()] = true;
    }
    named
}

/// The values that are written before the first step and live in the arena throughout:
/// parameters, literals and setup results, each only if the step reads it or the graph
/// names it. In value order.
pub(crate) fn persistent_values(graph: &Graph) -> Vec<ValueId> {
    let named = named_values(graph);
    let mut is_param = vec![false; graph.value_bound()];
    for &p in graph.params() {
        is_param[p.index()] = true;
    }
    graph
        .value_ids()
        .filter(|&v| match &graph.value(v).def {
            Def::Input => false,
            Def::Param(_) => is_param[v.index()] && used_by_step(graph, &named, v),
            Def::Const(_) => used_by_step(graph, &named, v),
            Def::Node { node, .. } => {
                graph.get_node(*node).is_some_and(|n| n.stage == Stage::Setup)
                    && used_by_step(graph, &named, v)
            }
        })
        .collect()
}

/// Values the optimizer reads as a gradient, with the partial sums they are made of.
fn weight_gradients(graph: &Graph) -> Vec<bool> {
    let mut is = vec![false; graph.value_bound()];
    for (_, node) in graph.nodes().rev() {
        match &node.op {
            Op::SgdUpdate => Op::updates(&node.inputs).for_each(|[_, _, g]| is[g.index()] = true),
            op @ (Op::Binary(vdnn_ir::op::BinaryKind::Add) | Op::Reshape { .. } | Op::Elementwise(_))
                if !matches!(op, Op::Elementwise(program) if !program.is_sum())
                    && node.stage == Stage::Backward
                    && is[node.outputs[0].index()] =>
            {
                for &v in &node.inputs {
                    is[v.index()] = true;
                }
            }
            _ => {}
        }
    }
    is
}

/// Finds the storages of a graph and their lifetimes. Offsets are zero. Slices and concats in
/// place share a storage if `rows` says so; else they are copies.
///
/// # Errors
/// If two parameters would share bytes, or a size overflows.
pub fn storages(graph: &Graph, rows: bool) -> Result<Storages, LayoutError> {
    let n = u32::try_from(graph.order().len().max(1)).map_err(|_| LayoutError::TooLarge)?;
    let at = graph.positions();
    let mut sharing = Sharing::of_storage(graph, rows);
    let weight_gradient = weight_gradients(graph);
    let mut out = Storages {
        all: PrimaryMap::new(),
        of: SecondaryMap::with_default(None),
        within: SecondaryMap::with_default(Bytes::ZERO),
        workspace: SecondaryMap::with_default(None),
    };
    let mut by_root: Vec<Option<StorageId>> = vec![None; graph.value_bound()];

    for &v in &persistent_values(graph) {
        let root = sharing.find(v);
        if let Some(other) = by_root[root.index()] {
            let other = out.all[other].values[0];
            return Err(LayoutError::SharedParams {
                first: describe(graph, other),
                second: describe(graph, v),
            });
        }
        let s = new_storage(graph, v, StorageKind::Persistent, 0..n, true);
        let id = out.all.push(s);
        by_root[root.index()] = Some(id);
        out.of[v] = Some(id);
    }
    let mut add = |out: &mut Storages, v: ValueId, kind: StorageKind, live: Range<u32>| {
        let (owner, start) = sharing.locate(v);
        let root = owner.index();
        out.within[v] = start;
        let id = match by_root[root] {
            Some(id) => {
                let s = &mut out.all[id];
                if s.kind != StorageKind::Persistent {
                    s.live.start = s.live.start.min(live.start);
                    s.live.end = s.live.end.max(live.end);
                    // A partial sum accumulated in place is one storage with the full sum.
                    if kind == StorageKind::WeightGradient && s.kind == StorageKind::Gradient {
                        s.kind = kind;
                    }
                }
                s.values.push(v);
                id
            }
            None => {
                let mut storage = new_storage(graph, v, kind, live, false);
                storage.bytes = bytes(graph, owner);
                let id = out.all.push(storage);
                by_root[root] = Some(id);
                id
            }
        };
        out.of[v] = Some(id);
    };
    let last_use = |v: ValueId| {
        let users = graph.value(v).users().iter();
        users
            .filter(|&&u| !matches!(graph.node(u).op, Op::Reshape { .. }))
            .map(|&u| at[u.index()] + 1)
            .max()
            .unwrap_or(0)
    };
    for &v in graph.inputs() {
        add(&mut out, v, StorageKind::Input, 0..last_use(v).max(1));
    }
    for (id, node) in graph.nodes().filter(|(_, n)| n.stage != Stage::Setup) {
        let p = at[id.index()];
        for &v in &node.outputs {
            let kind = if graph.value(v).space == Space::Host {
                StorageKind::HostCopy
            } else if node.stage == Stage::Forward {
                StorageKind::Activation
            } else if weight_gradient[v.index()] {
                StorageKind::WeightGradient
            } else {
                StorageKind::Gradient
            };
            // A view neither writes nor reads; its bytes are in use when its readers run.
            let live = match node.op {
                Op::Reshape { .. } => p..last_use(v).max(p),
                _ => p..last_use(v).max(p + 1),
            };
            add(&mut out, v, kind, live);
        }
        if node.workspace > Bytes::ZERO {
            let storage = Storage {
                space: Space::Device,
                bytes: node.workspace,
                kind: StorageKind::Workspace,
                live: p..p + 1,
                parts: Vec::new(),
                kept: false,
                values: SmallVec::new(),
                offset: Bytes::ZERO,
            };
            out.workspace[id] = Some(out.all.push(storage));
        }
    }
    for o in &graph.outputs {
        if let Some(id) = out.of[o.value] {
            let s = &mut out.all[id];
            s.live.end = n;
            s.kept = true;
        }
    }
    for s in out.all.values_mut().filter(|s| s.space == Space::Device) {
        s.parts = parts(graph, s, &out.within, &at, &last_use);
    }
    Ok(out)
}

/// Values whose bytes are looked at together at most, for the time it takes.
const MEMBERS: usize = 1024;

/// When the pages of a storage are in use: each from the first value that has bytes of it to the
/// last use of one.
fn parts(
    graph: &Graph,
    s: &Storage,
    within: &SecondaryMap<ValueId, Bytes>,
    at: &[u32],
    last_use: &dyn Fn(ValueId) -> u32,
) -> Vec<Part> {
    let size = |v: ValueId| bytes(graph, v);
    let shared = s.values.iter().any(|&v| size(v) != s.bytes);
    if s.kind == StorageKind::Persistent || !shared || s.values.len() > MEMBERS {
        return Vec::new();
    }
    let members: Vec<Part> = s
        .values
        .iter()
        .map(|&v| {
            let from = graph.def_node(v).map_or(0, |node| at[node.index()]);
            Part {
                start: Bytes(within[v].0 / ALIGNMENT * ALIGNMENT),
                end: (within[v] + size(v)).align_up(ALIGNMENT),
                from,
                until: if s.kept { s.live.end } else { last_use(v).max(from + 1) },
            }
        })
        .collect();
    let mut bounds: Vec<Bytes> = members.iter().flat_map(|m| [m.start, m.end]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let mut parts: Vec<Part> = Vec::new();
    for pair in bounds.windows(2) {
        let meeting = || members.iter().filter(|m| m.start < pair[1] && pair[0] < m.end);
        let from = meeting().map(|m| m.from).min().unwrap_or(s.live.start);
        let until = meeting().map(|m| m.until).max().unwrap_or(s.live.end);
        match parts.last_mut() {
            Some(last) if (last.from, last.until) == (from, until) => last.end = pair[1],
            _ => parts.push(Part { start: pair[0], end: pair[1], from, until }),
        }
    }
    if parts.len() > 1 { parts } else { Vec::new() }
}

/// Bytes that a value takes: of one that is packed, enough for one without zeros.
pub(crate) fn bytes(graph: &Graph, v: ValueId) -> Bytes {
    let ty = graph.ty(v);
    if graph.is_packed(v) { packed_type(ty).bytes() } else { ty.bytes() }
}

fn new_storage(graph: &Graph, v: ValueId, kind: StorageKind, live: Range<u32>, kept: bool) -> Storage {
    Storage {
        space: graph.value(v).space,
        bytes: bytes(graph, v),
        kind,
        live,
        parts: Vec::new(),
        kept,
        values: SmallVec::from_slice(&[v]),
        offset: Bytes::ZERO,
    }
}

/// A name for people: the value's, else its defining node's, else its id.
pub(crate) fn describe(graph: &Graph, v: ValueId) -> String {
    let value = graph.value(v);
    if !value.name.is_empty() {
        return value.name.clone();
    }
    match &value.def {
        Def::Node { node, index } => match graph.get_node(*node) {
            Some(n) if n.outputs.len() == 1 => n.name.clone(),
            Some(n) => format!("{}#{index}", n.name),
            None => v.to_string(),
        },
        _ => v.to_string(),
    }
}
