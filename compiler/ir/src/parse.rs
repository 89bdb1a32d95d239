//! Reads the text form of a graph (see [`crate::print`]). Statements may stand in any
//! order; that of the nodes is the program order. Comments run from `;` to the line's end.
//!
//! Ids are those of the text and may be used before the line that defines them, so a
//! graph that breaks the verifier's rules can still be read and reported on. Memory is
//! bounded by the length of the text: so are the ids.

mod cursor;
#[cfg(test)]
mod tests;

use crate::graph::parts::{GraphParts, NodeParts, ValueParts};
use crate::graph::{Def, Graph, NodeId, Output, ParamRole, Stage, Update, ValueId};
use crate::id::EntityId;
use crate::op::Op;
use crate::op::infer::{check_size, infer};
use crate::phase::{Mode, Phase};
use crate::types::{Space, TensorType};
use crate::units::Bytes;
use cursor::{Cursor, Failure};
use smallvec::SmallVec;

/// Where and why a text is not a graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What was expected.
    pub message: String,
}

/// Reads a graph; ids are those of the text.
///
/// # Errors
/// The first place that does not parse; then the first reference to an undefined id or
/// node that breaks its op's shape rule.
pub fn parse_graph(text: &str) -> Result<Graph, ParseError> {
    let mut parser = Parser::new(text);
    parser.graph().and_then(|()| parser.finish()).map_err(|failure| {
        let before = &text[..failure.at];
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        ParseError {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: failure.message,
        }
    })
}

/// Where an operand, output or update was read, for errors found at the end.
type Use = (ValueId, usize);

struct Parser<'a> {
    cx: Cursor<'a>,
    /// Ids must be below this.
    id_limit: usize,
    values: Vec<Option<ValueParts>>,
    nodes: Vec<Option<NodeParts>>,
    order: Vec<NodeId>,
    inputs: Vec<ValueId>,
    params: Vec<ValueId>,
    outputs: Vec<Output>,
    updates: Vec<Update>,
    uses: Vec<Use>,
    origins: Vec<(NodeId, usize)>,
    /// Where each node of `order` stands.
    places: Vec<usize>,
    header: (String, Phase, Mode),
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            cx: Cursor::new(text),
            // A printed entity takes more than 30 characters, so this leaves room for as
            // many dead ids without letting a short text allocate much.
            id_limit: text.len().saturating_add(4096).min(u32::MAX as usize),
            values: Vec::new(),
            nodes: Vec::new(),
            order: Vec::new(),
            inputs: Vec::new(),
            params: Vec::new(),
            outputs: Vec::new(),
            updates: Vec::new(),
            uses: Vec::new(),
            origins: Vec::new(),
            places: Vec::new(),
            header: (String::new(), Phase::Imported, Mode::Infer),
        }
    }

    fn graph(&mut self) -> Result<(), Failure> {
        self.cx.keyword("graph")?;
        let name = self.cx.string()?;
        self.cx.keyword("phase")?;
        self.cx.symbol('=')?;
        let phase = self.cx.named::<Phase>()?;
        self.cx.keyword("mode")?;
        self.cx.symbol('=')?;
        let mode = self.cx.named::<Mode>()?;
        self.header = (name, phase, mode);
        if self.cx.take_word("values") {
            let bound = self.bound()?;
            self.values.resize_with(bound, || None);
        }
        if self.cx.take_word("nodes") {
            let bound = self.bound()?;
            self.nodes.resize_with(bound, || None);
        }
        self.cx.symbol('{')?;
        while !self.cx.take_symbol('}') {
            self.statement()?;
        }
        self.cx.end()
    }

    fn bound(&mut self) -> Result<usize, Failure> {
        self.cx.symbol('=')?;
        let at = self.cx.at();
        let n = self.cx.number()?;
        match usize::try_from(n) {
            Ok(n) if n <= self.id_limit => Ok(n),
            _ => Err(Failure::new(at, format!("expected a bound of at most {}, found {n}", self.id_limit))),
        }
    }

    fn statement(&mut self) -> Result<(), Failure> {
        let at = self.cx.at();
        match self.cx.peek_word() {
            "input" => {
                self.cx.word();
                let (id, name, place) = self.external()?;
                let ty = self.ty()?;
                self.define(id, place, ty, Space::Device, Def::Input, name)?;
                self.inputs.push(id);
            }
            "param" => {
                self.cx.word();
                let (id, name, place) = self.external()?;
                let role = self.cx.named::<ParamRole>()?;
                let ty = self.ty()?;
                self.define(id, place, ty, Space::Device, Def::Param(role), name)?;
                self.params.push(id);
            }
            "const" => {
                self.cx.word();
                self.constant()?;
            }
            "output" => {
                self.cx.word();
                let name = self.cx.string()?;
                self.cx.symbol('=')?;
                let value = self.operand()?;
                self.outputs.push(Output { name, value });
            }
            "update" => {
                self.cx.word();
                let param = self.operand()?;
                self.cx.symbol('=')?;
                let value = self.operand()?;
                self.updates.push(Update { param, value });
            }
            word if word.starts_with('n') => self.node()?,
            _ => {
                let expected = "expected input, param, const, a node such as `n0:`, output, update or `}`";
                return Err(Failure::new(at, format!("{expected}, found {}", self.cx.found())));
            }
        }
        Ok(())
    }

    fn value_id(&mut self) -> Result<ValueId, Failure> {
        let at = self.cx.at();
        self.cx.symbol('%')?;
        let n = self.cx.number()?;
        match usize::try_from(n) {
            Ok(n) if n < self.id_limit => Ok(ValueId::from_index(n)),
            _ => Err(Failure::new(at, format!("expected an id below {}, found %{n}", self.id_limit))),
        }
    }

    fn node_id(&mut self) -> Result<NodeId, Failure> {
        let at = self.cx.at();
        let word = self.cx.word();
        let n = word.strip_prefix('n').filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        match n.and_then(|d| d.parse::<usize>().ok()) {
            Some(n) if n < self.id_limit => Ok(NodeId::from_index(n)),
            _ => Err(Failure::new(
                at,
                format!("expected a node id such as n0, below n{}, found `{word}`", self.id_limit),
            )),
        }
    }

    fn operand(&mut self) -> Result<ValueId, Failure> {
        let at = self.cx.at();
        let id = self.value_id()?;
        self.uses.push((id, at));
        Ok(id)
    }

    fn external(&mut self) -> Result<(ValueId, String, usize), Failure> {
        let place = self.cx.at();
        let id = self.value_id()?;
        Ok((id, self.cx.string()?, place))
    }

    fn ty(&mut self) -> Result<TensorType, Failure> {
        self.cx.symbol(':')?;
        let at = self.cx.at();
        let ty: TensorType = self.cx.type_text()?.parse().map_err(|e| Failure::new(at, e))?;
        check_size(&ty).map_err(|e| Failure::new(at, e.0))?;
        Ok(ty)
    }

    /// `%3 "hint" : f32[2] host`, from the id on.
    fn typed(&mut self) -> Result<(ValueId, usize, String, TensorType, Space), Failure> {
        let place = self.cx.at();
        let id = self.value_id()?;
        let name = if self.cx.peek_symbol('"') { self.cx.string()? } else { String::new() };
        let ty = self.ty()?;
        let space = if self.cx.take_word("host") { Space::Host } else { Space::Device };
        Ok((id, place, name, ty, space))
    }

    fn define(
        &mut self,
        id: ValueId,
        place: usize,
        ty: TensorType,
        space: Space,
        def: Def,
        name: String,
    ) -> Result<(), Failure> {
        if self.values.len() <= id.index() {
            self.values.resize_with(id.index() + 1, || None);
        }
        let slot = &mut self.values[id.index()];
        if slot.is_some() {
            return Err(Failure::new(place, format!("expected a new id, but {id} is defined twice")));
        }
        *slot = Some(ValueParts { ty, space, def, name });
        Ok(())
    }

    fn constant(&mut self) -> Result<(), Failure> {
        let (id, place, name, ty, space) = self.typed()?;
        self.cx.symbol('=')?;
        let at = self.cx.at();
        let bytes = self.cx.hex()?;
        if bytes.len() as u64 != ty.bytes().0 {
            let want = ty.bytes().0;
            return Err(Failure::new(at, format!("expected {want} bytes for {ty}, found {}", bytes.len())));
        }
        self.define(id, place, ty, space, Def::Const(bytes.into()), name)
    }

    fn node(&mut self) -> Result<(), Failure> {
        let place = self.cx.at();
        let id = self.node_id()?;
        self.cx.symbol(':')?;
        let mut outputs = SmallVec::new();
        loop {
            let (value, at, name, ty, space) = self.typed()?;
            let def = Def::Node { node: id, index: outputs.len() as u32 };
            self.define(value, at, ty, space, def, name)?;
            outputs.push(value);
            if !self.cx.take_symbol(',') {
                break;
            }
        }
        self.cx.symbol('=')?;
        let at = self.cx.at();
        let op: Op = self.cx.op_text()?.parse().map_err(|e| Failure::new(at, e))?;
        self.cx.symbol('(')?;
        let mut inputs = SmallVec::new();
        if !self.cx.take_symbol(')') {
            loop {
                inputs.push(self.operand()?);
                if !self.cx.take_symbol(',') {
                    break;
                }
            }
            self.cx.symbol(')')?;
        }
        let stage = self.cx.named::<Stage>()?;
        let name = self.cx.string()?;
        let mut node = NodeParts {
            op,
            inputs,
            outputs,
            name,
            stage,
            origin: None,
            algo: None,
            workspace: Bytes::ZERO,
            inplace: SmallVec::new(),
            packed: false,
        };
        if self.cx.take_word("origin") {
            self.cx.symbol('=')?;
            let at = self.cx.at();
            let origin = self.node_id()?;
            self.origins.push((origin, at));
            node.origin = Some(origin);
        }
        if self.cx.take_word("algo") {
            self.cx.symbol('=')?;
            node.algo = Some(self.cx.algo()?);
        }
        if self.cx.take_word("workspace") {
            self.cx.symbol('=')?;
            node.workspace = Bytes(self.cx.number()?);
        }
        if self.cx.take_word("inplace") {
            self.cx.symbol('=')?;
            loop {
                let output = self.cx.number_u32()?;
                self.cx.symbol(':')?;
                node.inplace.push((output, self.cx.number_u32()?));
                if !self.cx.take_symbol(',') {
                    break;
                }
            }
        }
        node.packed = self.cx.take_word("packed");
        if self.nodes.len() <= id.index() {
            self.nodes.resize_with(id.index() + 1, || None);
        }
        let slot = &mut self.nodes[id.index()];
        if slot.is_some() {
            return Err(Failure::new(place, format!("expected a new id, but {id} is defined twice")));
        }
        *slot = Some(node);
        self.order.push(id);
        self.places.push(place);
        Ok(())
    }

    /// Resolves references and checks the shape rules.
    fn finish(self) -> Result<Graph, Failure> {
        for &(id, at) in &self.uses {
            if self.values.get(id.index()).is_none_or(Option::is_none) {
                return Err(Failure::new(at, format!("expected a defined value, but nothing defines {id}")));
            }
        }
        let bound = self.nodes.len();
        for &(origin, at) in &self.origins {
            // The forward node may have been removed since, so only the bound is checked.
            if origin.index() >= bound {
                return Err(Failure::new(at, format!("expected a node id below n{bound}, found {origin}")));
            }
        }
        let ty = |v: ValueId| self.values[v.index()].as_ref().map(|v| &v.ty);
        for (&id, &at) in self.order.iter().zip(&self.places) {
            let Some(node) = &self.nodes[id.index()] else { continue };
            let inputs: SmallVec<[&TensorType; 4]> = node.inputs.iter().filter_map(|&v| ty(v)).collect();
            let types = infer(&node.op, &inputs, node.outputs.len())
                .map_err(|e| Failure::new(at, format!("{id}: {e}")))?;
            let outputs = node.outputs.iter().filter_map(|&v| ty(v));
            if !outputs.eq(types.iter()) {
                let types: Vec<String> = types.iter().map(ToString::to_string).collect();
                return Err(Failure::new(
                    at,
                    format!("{id}: expected outputs of type {} by the rule of its op", types.join(", ")),
                ));
            }
        }
        let (name, phase, mode) = self.header;
        Ok(Graph::from_parts(GraphParts {
            name,
            phase,
            mode,
            values: self.values,
            nodes: self.nodes,
            order: self.order,
            inputs: self.inputs,
            params: self.params,
            outputs: self.outputs,
            updates: self.updates,
        }))
    }
}
