//! Graph and layout to plan: one command list over up to three streams, one of them of compute
//! ([`crate::streams`] makes more of it).
//!
//! Compute nodes become launches in program order. A transfer's *start* records where
//! compute is, lets the copy stream wait for that and issues the copy; its *done* lets compute
//! wait for the copy. Reshapes become nothing: their readers see the same bytes under
//! another type. Every transient storage is freed at the end of its life.

mod terms;

pub use terms::{ExpectedTerms, expected_terms};

use crate::memory::storage::{self, StorageKind};
use crate::memory::{Layout, StorageId};
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use terms::PersistentNames;
use vdnn_ir::graph::{Def, Graph, Node, NodeId, Stage, ValueId};
use vdnn_ir::id::{EntityId, PrimaryMap, SecondaryMap};
use vdnn_ir::packed::packed_type;
use vdnn_ir::{Bytes, DType, Op, ParamRole, Space, TensorType};
use vdnn_plan::plan::{Predicted, SetupLoad};
use vdnn_plan::{
    Arena, Binding, BufId, Buffer, Command, CopyForm, EventId, Header, Output, Param, ParamSource, Plan,
    SetupId, SetupOp, StreamId, StreamKind,
};

/// What a plan says besides what graph and layout determine.
#[derive(Clone, Debug)]
pub struct LowerOptions {
    /// Provenance.
    pub header: Header,
    /// Limit of the device arena, if one was given; not enforced here.
    pub device_budget: Option<Bytes>,
    /// Limit of the host arena, if one was given; not enforced here.
    pub host_budget: Option<Bytes>,
}

/// Why a graph and a layout make no plan: in every case a bug of an earlier pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// A value that the step touches has no bytes.
    #[error("{value} of node `{node}` has no place in the layout")]
    NoPlace {
        /// The value.
        value: ValueId,
        /// The node that touches it.
        node: String,
    },
    /// An output or parameter has no expected term.
    #[error("no expected term for `{0}`")]
    NoTerm(String),
    /// A setup node depends on something that is not known at load.
    #[error("setup node `{node}` reads {value}, which is not known at load")]
    SetupDepends {
        /// The value.
        value: ValueId,
        /// The node.
        node: String,
    },
}

/// Makes the plan of a scheduled graph. `expected` must come from the same model before
/// offloading ([`expected_terms`]). Predictions other than the lower bound are left zero.
///
/// # Errors
/// If layout, terms and graph do not belong together.
pub fn lower(
    graph: &Graph,
    layout: &Layout,
    expected: &ExpectedTerms,
    options: &LowerOptions,
) -> Result<Plan, LowerError> {
    let mut l = Lowering {
        graph,
        layout,
        names: PersistentNames::new(graph),
        buffers: PrimaryMap::new(),
        buf_of: SecondaryMap::with_default(None),
        streams: vec![StreamKind::Compute],
        events: 0,
        commands: Vec::with_capacity(2 * graph.order().len()),
        copied: BTreeMap::new(),
    };
    let setup = SetupProgram::new(graph)?;
    let params = l.params(expected, &setup)?;
    let inputs = graph
        .inputs()
        .iter()
        .map(|&v| Ok(Binding { name: graph.value(v).name.clone(), buf: l.buf(v, "input")? }))
        .collect::<Result<_, LowerError>>()?;
    l.commands()?;
    let outputs = graph
        .outputs
        .iter()
        .map(|o| {
            let expect = *expected.outputs.get(&o.name).ok_or_else(|| LowerError::NoTerm(o.name.clone()))?;
            Ok(Output { name: o.name.clone(), buf: l.buf(o.value, "output")?, expect })
        })
        .collect::<Result<_, LowerError>>()?;
    Ok(Plan {
        header: options.header.clone(),
        device: Arena { bytes: layout.device_bytes, budget: options.device_budget },
        host: Arena { bytes: layout.host_bytes, budget: options.host_budget },
        streams: l.streams,
        n_events: l.events,
        buffers: l.buffers,
        inputs,
        outputs,
        params,
        setup_loads: setup.loads,
        setup: setup.ops,
        commands: l.commands,
        predicted: Predicted { lower_bound: layout.lower_bound, ..Predicted::default() },
    })
}

/// Where a parameter's first content comes from.
fn source(graph: &Graph, v: ValueId, setup: &SetupProgram) -> ParamSource {
    match &graph.value(v).def {
        Def::Const(bytes) => ParamSource::Inline(bytes.to_vec()),
        Def::Param(ParamRole::Momentum) => ParamSource::Zero,
        Def::Param(_) | Def::Input => ParamSource::Initializer,
        Def::Node { .. } => match setup.id_of[v] {
            Some(id) => ParamSource::Setup(id),
            None => ParamSource::Zero,
        },
    }
}

struct Lowering<'a> {
    graph: &'a Graph,
    layout: &'a Layout,
    names: PersistentNames,
    buffers: PrimaryMap<BufId, Buffer>,
    buf_of: SecondaryMap<ValueId, Option<BufId>>,
    streams: Vec<StreamKind>,
    events: u32,
    commands: Vec<Command>,
    /// The event after each copy, by the value its *start* defined.
    copied: BTreeMap<ValueId, EventId>,
}

const COMPUTE: StreamId = StreamId(0);

/// Bytes that nobody reads any more.
#[derive(Clone, Copy)]
struct Freed {
    storage: StorageId,
    /// From the start of the storage.
    start: Bytes,
    bytes: Bytes,
}

impl Lowering<'_> {
    fn params(&mut self, expected: &ExpectedTerms, setup: &SetupProgram) -> Result<Vec<Param>, LowerError> {
        let all: Vec<(ValueId, String)> = self.names.iter().map(|(v, n)| (v, n.to_owned())).collect();
        let param = |(v, name): (ValueId, String)| {
            let role = match &self.graph.value(v).def {
                Def::Param(role) => *role,
                _ => ParamRole::Frozen,
            };
            let expect = *expected.params.get(&name).ok_or_else(|| LowerError::NoTerm(name.clone()))?;
            let source = source(self.graph, v, setup);
            Ok(Param { buf: self.buf(v, "parameter")?, name, role, source, expect })
        };
        all.into_iter().map(param).collect()
    }

    /// The buffer of a value: its storage's bytes under its own type.
    fn buf(&mut self, v: ValueId, node: &str) -> Result<BufId, LowerError> {
        if let Some(buf) = self.buf_of[v] {
            return Ok(buf);
        }
        let (space, offset) =
            self.layout.place(v).ok_or_else(|| LowerError::NoPlace { value: v, node: node.to_owned() })?;
        let name = match self.names.get(v) {
            Some(name) => name.to_owned(),
            None => storage::describe(self.graph, v),
        };
        let ty = self.graph.ty(v);
        let ty = if self.graph.is_packed(v) { packed_type(ty) } else { ty.clone() };
        let buf = self.buffers.push(Buffer { space, offset, ty, name });
        self.buf_of[v] = Some(buf);
        Ok(buf)
    }

    fn stream(&mut self, kind: StreamKind) -> StreamId {
        let at = self.streams.iter().position(|&k| k == kind).unwrap_or_else(|| {
            self.streams.push(kind);
            self.streams.len() - 1
        });
        StreamId::from_index(at)
    }

    fn record(&mut self, stream: StreamId) -> EventId {
        let event = EventId(self.events);
        self.events += 1;
        self.commands.push(Command::Record { stream, event });
        event
    }

    fn commands(&mut self) -> Result<(), LowerError> {
        let graph = self.graph;
        let ends = self.ends();
        for (p, (id, node)) in graph.nodes().enumerate() {
            match node.op {
                _ if node.stage == Stage::Setup => {}
                Op::Reshape { .. } => {}
                Op::OffloadStart => self.start(node, StreamKind::D2h)?,
                Op::PrefetchStart => self.start(node, StreamKind::H2d)?,
                Op::OffloadDone | Op::PrefetchDone => {
                    if let Some(&event) = self.copied.get(&node.inputs[0]) {
                        self.commands.push(Command::Wait { stream: COMPUTE, event });
                    }
                }
                _ => self.launch(id, node)?,
            }
            for &dead in &ends[p] {
                self.free(dead, &node.name)?;
            }
        }
        Ok(())
    }

    /// The bytes whose life ends after each position: storages, or what values have of those that
    /// end part by part. Those that outlive the step and workspaces (whose content is undefined
    /// anyway) are never freed.
    fn ends(&self) -> Vec<Vec<Freed>> {
        let mut ends = vec![Vec::new(); self.graph.order().len()];
        let mut end = |until: u32, freed: Freed| {
            if let Some(list) = (until as usize).checked_sub(1).and_then(|p| ends.get_mut(p)) {
                list.push(freed);
            }
        };
        for (storage, s) in self.layout.storages.iter() {
            if s.kept || s.kind == StorageKind::Workspace {
                continue;
            }
            if s.parts.iter().all(|part| part.until == s.live.end) {
                end(s.live.end, Freed { storage, start: Bytes::ZERO, bytes: s.bytes });
                continue;
            }
            let ranges: BTreeSet<(Bytes, Bytes)> =
                s.values.iter().map(|&v| (self.layout.within[v], storage::bytes(self.graph, v))).collect();
            for (start, bytes) in ranges {
                let mut parts = s.parts.iter().filter(|p| p.start < start + bytes && start < p.end);
                // Of what ends part by part, others may have a part already.
                if let Some(until) = parts.next().map(|p| p.until)
                    && parts.all(|p| p.until == until)
                {
                    end(until, Freed { storage, start, bytes });
                }
            }
        }
        ends
    }

    fn free(&mut self, freed: Freed, node: &str) -> Result<(), LowerError> {
        // Of the values that have these bytes, one that a command used is preferred so that no
        // buffer is made just to be freed.
        let storage = &self.layout.storages[freed.storage];
        let has = |v: &&ValueId| {
            storage::bytes(self.graph, **v) == freed.bytes && self.layout.within[**v] == freed.start
        };
        let used = storage.values.iter().rev().filter(has).find_map(|&v| self.buf_of[v]);
        let buf = match (used, storage.values.iter().find(has)) {
            (Some(buf), _) => buf,
            (None, Some(&v)) => self.buf(v, node)?,
            (None, None) => return Ok(()),
        };
        self.commands.push(Command::Free { stream: COMPUTE, buf });
        Ok(())
    }

    /// The first half of a transfer: the copy stream follows compute, then copies.
    fn start(&mut self, node: &Node, kind: StreamKind) -> Result<(), LowerError> {
        let src = self.buf(node.inputs[0], &node.name)?;
        let dst = self.buf(node.outputs[0], &node.name)?;
        let form = match kind {
            StreamKind::D2h if self.graph.is_packed(node.outputs[0]) => CopyForm::Pack,
            StreamKind::H2d if self.graph.is_packed(node.inputs[0]) => CopyForm::Unpack,
            _ => CopyForm::Plain,
        };
        let stream = self.stream(kind);
        let ready = self.record(COMPUTE);
        self.commands.push(Command::Wait { stream, event: ready });
        self.commands.push(Command::Copy { stream, form, src, dst });
        let copied = self.record(stream);
        self.copied.insert(node.outputs[0], copied);
        Ok(())
    }

    fn launch(&mut self, id: NodeId, node: &Node) -> Result<(), LowerError> {
        let inputs = node.inputs.iter().map(|&v| self.buf(v, &node.name)).collect::<Result<_, _>>()?;
        let outputs = node.outputs.iter().map(|&v| self.buf(v, &node.name)).collect::<Result<_, _>>()?;
        let workspace = self.layout.workspace_of[id].map(|storage| {
            self.buffers.push(Buffer {
                space: Space::Device,
                offset: self.layout.storages[storage].offset,
                ty: TensorType::new(DType::U8, [node.workspace.0]),
                name: format!("workspace of {}", node.name),
            })
        });
        self.commands.push(Command::Launch {
            stream: COMPUTE,
            op: node.op.clone(),
            inputs,
            outputs,
            workspace,
            algo: node.algo.clone(),
            stage: node.stage,
            node: id,
            name: node.name.clone(),
        });
        Ok(())
    }
}

/// The part of the graph that runs once on the host at load.
struct SetupProgram {
    loads: Vec<SetupLoad>,
    ops: Vec<SetupOp>,
    id_of: SecondaryMap<ValueId, Option<SetupId>>,
}

impl SetupProgram {
    fn new(graph: &Graph) -> Result<Self, LowerError> {
        let mut this = Self { loads: Vec::new(), ops: Vec::new(), id_of: SecondaryMap::with_default(None) };
        let nodes = || graph.nodes().filter(|(_, n)| n.stage == Stage::Setup).map(|(_, n)| n);
        let mut next = 0;
        let mut fresh = || {
            next += 1;
            SetupId(next - 1)
        };
        for node in nodes() {
            for &v in &node.inputs {
                let (source, name) = match &graph.value(v).def {
                    Def::Param(ParamRole::Momentum) | Def::Input => {
                        return Err(LowerError::SetupDepends { value: v, node: node.name.clone() });
                    }
                    Def::Param(_) => (ParamSource::Initializer, graph.value(v).name.clone()),
                    Def::Const(bytes) => (ParamSource::Inline(bytes.to_vec()), String::new()),
                    Def::Node { .. } => continue,
                };
                if this.id_of[v].is_none() {
                    let id = fresh();
                    this.id_of[v] = Some(id);
                    this.loads.push(SetupLoad { id, ty: graph.ty(v).clone(), source, name });
                }
            }
        }
        for node in nodes() {
            let mut inputs = SmallVec::new();
            for &v in &node.inputs {
                let id = this.id_of[v];
                inputs
                    .push(id.ok_or_else(|| LowerError::SetupDepends { value: v, node: node.name.clone() })?);
            }
            let mut outputs = SmallVec::new();
            for &v in &node.outputs {
                let id = fresh();
                this.id_of[v] = Some(id);
                outputs.push((id, graph.ty(v).clone()));
            }
            this.ops.push(SetupOp { op: node.op.clone(), inputs, outputs });
        }
        Ok(this)
    }
}

#[cfg(test)]
mod tests;
