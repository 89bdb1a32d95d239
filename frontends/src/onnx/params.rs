//! Known tensors as values of the graph: parameters, literals and fills.

use super::constant::{Constant, Data, Elem, Origin};
use super::error::{Fail, invalid};
use super::import::{Importer, Item};
use bytes::Bytes as Buf;
use std::collections::HashMap;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::{DType, Dims, Op, ParamRole, TensorType, ValueId, WeightTensor, Weights};

/// What has been made, so that each thing is made once.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// The initial value of every parameter.
    pub weights: Weights,
    /// Trainable parameters by the name of their initializer.
    params: HashMap<String, ValueId>,
    /// Values of other float constants by address and shape; the constant is kept so that its
    /// address stays its own.
    literals: HashMap<(usize, Dims), (ValueId, Constant)>,
}

impl Importer<'_> {
    /// The item as a value of the graph: constants become parameters or literals.
    pub(super) fn value(&mut self, item: &Item) -> Result<ValueId, Fail> {
        match item {
            Item::Value(v) => Ok(*v),
            Item::Const(c) => match &c.origin {
                Some(origin) => Ok(self.parameter(c, origin)),
                None => self.literal(c),
            },
            Item::Sequence(_) => invalid("a sequence stands where a tensor is expected"),
            Item::Failed => Err(Fail::Reported),
        }
    }

    /// The item as a running statistic. Unlike weights, statistics are never shared: each
    /// batch normalisation updates its own.
    pub(super) fn statistic(&mut self, item: &Item, name: &str) -> Result<ValueId, Fail> {
        let Item::Const(c) = item else { return self.value(item) };
        if c.elem() != Elem::F32 {
            return invalid("a running statistic is not of a float type");
        }
        match &c.origin {
            Some(origin) => {
                let name = self.param_name(origin, name);
                Ok(self.new_param(&name, c, ParamRole::Statistic))
            }
            None => {
                let (name, c) = (self.unique_name(name), self.stored(c)?);
                Ok(self.new_param(&name, &c, ParamRole::Statistic))
            }
        }
    }

    /// The trainable parameter of an initializer: one, however often it is used.
    fn parameter(&mut self, c: &Constant, origin: &Origin) -> ValueId {
        if let Some(&p) = self.made.params.get(&origin.initializer) {
            return p;
        }
        let name = self.param_name(origin, &origin.alias);
        let id = self.new_param(&name, c, ParamRole::Trainable);
        self.made.params.insert(origin.initializer.clone(), id);
        id
    }

    /// The first free one of the initializer's name, the alias of this use, and a new name.
    fn param_name(&self, origin: &Origin, otherwise: &str) -> String {
        let free = |n: &&String| !self.made.weights.tensors.contains_key(n.as_str());
        let own = [&origin.initializer, &origin.alias].into_iter().find(free);
        own.cloned().unwrap_or_else(|| self.unique_name(otherwise))
    }

    fn new_param(&mut self, name: &str, c: &Constant, role: ParamRole) -> ValueId {
        let ty = TensorType::f32(c.dims.iter().copied());
        let data = match &c.data {
            Data::F32(data) => data.clone(),
            _ => Buf::new(),
        };
        self.made.weights.tensors.insert(name.to_owned(), WeightTensor { ty: ty.clone(), data });
        self.graph.add_param(name, ty, role)
    }

    /// A name that no parameter has and the model does not use.
    fn unique_name(&self, wish: &str) -> String {
        let taken = |name: &str| self.made.weights.tensors.contains_key(name) || self.is_name_of_model(name);
        let mut name = wish.to_owned();
        // Starting beyond what there is keeps making many such names linear.
        let mut n = self.made.weights.tensors.len();
        while name.is_empty() || taken(&name) {
            n += 1;
            name = format!("{wish}.{n}");
        }
        name
    }

    /// The constant with its elements written out, if they are uniform.
    fn stored(&mut self, c: &Constant) -> Result<Constant, Fail> {
        let Data::Uniform(x) = c.data else { return Ok(c.clone()) };
        self.budget.charge(&c.dims)?;
        Constant::collect(c.dims.clone(), x.elem(), (0..c.len()).map(|_| Ok(x)))
    }

    /// A literal, or for large tensors a fill or a frozen parameter.
    fn literal(&mut self, c: &Constant) -> Result<ValueId, Fail> {
        const SMALL: u64 = 64 << 10;
        let dtype = match c.elem() {
            Elem::F32 => DType::F32,
            Elem::I64 => DType::I64,
            Elem::Bool => DType::Bool,
        };
        let ty = TensorType::new(dtype, c.dims.clone());
        if ty.elements() == 0 {
            return Err(Fail::Unsupported(format!("a tensor without elements ({ty}) as a value")));
        }
        let small = ty.bytes().0 <= SMALL;
        if let (Data::Uniform(x), false, DType::F32) = (&c.data, small, dtype) {
            let fill = Op::Fill { value: x.as_f32().into(), dims: c.dims.clone() };
            return Ok(self.graph.add1(fill, &[], NodeSpec::forward("fill"))?);
        }
        let key = match &c.data {
            Data::F32(data) => Some((data.as_ptr() as usize, c.dims.clone())),
            _ => None,
        };
        if let Some((id, _)) = key.as_ref().and_then(|k| self.made.literals.get(k)) {
            return Ok(*id);
        }
        let c = self.stored(c)?;
        let id = match &c.data {
            Data::F32(data) if small => self.graph.add_const(ty, data.to_vec()),
            Data::F32(_) => {
                let name = self.unique_name("constant");
                self.new_param(&name, &c, ParamRole::Frozen)
            }
            Data::I64(v) if small => {
                self.graph.add_const(ty, v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
            }
            Data::Bool(v) if small => {
                self.graph.add_const(ty, v.iter().map(|&x| u8::from(x)).collect::<Vec<u8>>())
            }
            _ => return Err(Fail::Unsupported(format!("an integer constant of type {ty} is too large"))),
        };
        if let Some(key) = key {
            self.made.literals.insert(key, (id, c));
        }
        Ok(id)
    }
}
