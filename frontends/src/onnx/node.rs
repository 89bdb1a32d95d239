//! One node as its operator's importer sees it: resolved operands and checked attributes.

use super::error::{Fail, Site, invalid};
use super::import::Item;
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, GraphProto, NodeProto, SparseTensorProto, TensorProto};
use std::cell::RefCell;
use vdnn_ir::Dims;

/// A node with its operands. Every attribute must be asked for by the importer: one that is
/// not would be ignored silently, so it is an error (see [`Node::unread`]).
pub(super) struct Node<'m> {
    pub proto: &'m NodeProto,
    /// Version of the node's domain.
    pub opset: i64,
    /// The node's name, or that of its first output.
    pub name: String,
    /// Operands; `None` where an optional one is left out.
    pub inputs: Vec<Option<Item>>,
    /// Per output, whether anything reads it.
    pub used: Vec<bool>,
    read: RefCell<Vec<&'static str>>,
}

/// The name a node is known by.
pub(super) fn display_name(proto: &NodeProto) -> &str {
    match proto.name() {
        "" => proto.output.iter().find(|o| !o.is_empty()).map_or("", String::as_str),
        name => name,
    }
}

/// `ai.onnx` for the default domain.
pub(super) fn domain_name(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

/// Where a node is, for messages.
pub(super) fn site(proto: &NodeProto, opset: i64) -> Site {
    Site {
        node: display_name(proto).to_owned(),
        op: proto.op_type().to_owned(),
        domain: domain_name(proto.domain()).to_owned(),
        opset,
    }
}

impl<'m> Node<'m> {
    pub(super) fn new(proto: &'m NodeProto, opset: i64, inputs: Vec<Option<Item>>, used: Vec<bool>) -> Self {
        let name = display_name(proto).to_owned();
        Self { proto, opset, name, inputs, used, read: RefCell::default() }
    }

    pub(super) fn input(&self, i: usize) -> Result<&Item, Fail> {
        match self.optional(i) {
            Some(item) => Ok(item),
            None => invalid(format!("input {i} is missing")),
        }
    }
    pub(super) fn optional(&self, i: usize) -> Option<&Item> {
        self.inputs.get(i).and_then(Option::as_ref)
    }
    /// Checks the number of operands.
    pub(super) fn arity(&self, least: usize, most: usize) -> Result<(), Fail> {
        let n = self.inputs.len();
        if n > most || n < least {
            return invalid(format!("it has {n} inputs where {least} to {most} are expected"));
        }
        Ok(())
    }
    /// True if output `i` exists and something reads it.
    pub(super) fn output_used(&self, i: usize) -> bool {
        self.used.get(i).copied().unwrap_or(false)
    }

    // ---- attributes ------------------------------------------------------------------

    fn find(&self, name: &'static str, ty: AttributeType) -> Result<Option<&'m AttributeProto>, Fail> {
        self.read.borrow_mut().push(name);
        let Some(a) = self.proto.attribute.iter().find(|a| a.name() == name) else { return Ok(None) };
        if !a.ref_attr_name().is_empty() {
            return invalid(format!("attribute {name} refers to a function's attribute"));
        }
        // Files from before IR version 2 do not name the type.
        if a.r#type.is_some() && a.r#type() != ty && a.r#type() != AttributeType::Undefined {
            return invalid(format!(
                "attribute {name} is of type {}, not {}",
                a.r#type().as_str_name(),
                ty.as_str_name()
            ));
        }
        Ok(Some(a))
    }
    pub(super) fn int(&self, name: &'static str) -> Result<Option<i64>, Fail> {
        Ok(self.find(name, AttributeType::Int)?.map(AttributeProto::i))
    }
    pub(super) fn int_or(&self, name: &'static str, default: i64) -> Result<i64, Fail> {
        Ok(self.int(name)?.unwrap_or(default))
    }
    /// A 0/1 attribute.
    pub(super) fn flag(&self, name: &'static str, default: bool) -> Result<bool, Fail> {
        match self.int(name)? {
            None => Ok(default),
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(x) => invalid(format!("attribute {name} is {x}, not 0 or 1")),
        }
    }
    pub(super) fn float(&self, name: &'static str) -> Result<Option<f32>, Fail> {
        Ok(self.find(name, AttributeType::Float)?.map(AttributeProto::f))
    }
    pub(super) fn float_or(&self, name: &'static str, default: f32) -> Result<f32, Fail> {
        Ok(self.float(name)?.unwrap_or(default))
    }
    pub(super) fn floats(&self, name: &'static str) -> Result<Option<&'m [f32]>, Fail> {
        Ok(self.find(name, AttributeType::Floats)?.map(|a| a.floats.as_slice()))
    }
    pub(super) fn ints(&self, name: &'static str) -> Result<Option<&'m [i64]>, Fail> {
        Ok(self.find(name, AttributeType::Ints)?.map(|a| a.ints.as_slice()))
    }
    pub(super) fn string(&self, name: &'static str) -> Result<Option<&'m str>, Fail> {
        match self.find(name, AttributeType::String)? {
            None => Ok(None),
            Some(a) => match std::str::from_utf8(a.s()) {
                Ok(s) => Ok(Some(s)),
                Err(_) => invalid(format!("attribute {name} is not text")),
            },
        }
    }
    pub(super) fn tensor(&self, name: &'static str) -> Result<Option<&'m TensorProto>, Fail> {
        Ok(self.find(name, AttributeType::Tensor)?.and_then(|a| a.t.as_ref()))
    }
    pub(super) fn sparse_tensor(&self, name: &'static str) -> Result<Option<&'m SparseTensorProto>, Fail> {
        Ok(self.find(name, AttributeType::SparseTensor)?.and_then(|a| a.sparse_tensor.as_ref()))
    }
    pub(super) fn graph(&self, name: &'static str) -> Result<&'m GraphProto, Fail> {
        match self.find(name, AttributeType::Graph)?.and_then(|a| a.g.as_ref()) {
            Some(g) => Ok(g),
            None => invalid(format!("attribute {name} is missing")),
        }
    }
    /// A list of `n` integers in `least..=2^31-1`, or `n` times `default` if absent.
    pub(super) fn extents(
        &self,
        name: &'static str,
        n: usize,
        least: u64,
        default: u64,
    ) -> Result<Dims, Fail> {
        match self.ints(name)? {
            None => Ok(Dims::from_elem(default, n)),
            Some(list) if list.len() == n => list.iter().map(|&x| extent(name, x, least)).collect(),
            Some(list) => {
                invalid(format!("attribute {name} has {} entries where {n} are expected", list.len()))
            }
        }
    }
    /// An attribute that nothing has asked for.
    pub(super) fn unread(&self) -> Option<&'m str> {
        let read = self.read.borrow();
        self.proto.attribute.iter().map(AttributeProto::name).find(|a| !read.contains(a))
    }
    /// Counts an attribute as read that has no meaning for the result.
    pub(super) fn ignore(&self, name: &'static str) {
        self.read.borrow_mut().push(name);
    }
}

/// An attribute value in `least..=2^31-1`.
pub(super) fn extent(name: &str, value: i64, least: u64) -> Result<u64, Fail> {
    match u64::try_from(value) {
        Ok(x) if x >= least && x <= i32::MAX as u64 => Ok(x),
        _ => invalid(format!("attribute {name} has the value {value}, outside {least}..={}", i32::MAX)),
    }
}
