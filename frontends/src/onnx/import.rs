//! ONNX models to graphs.
//!
//! A name of the model stands either for a value of the graph under construction or for a
//! tensor known at import. Operators on known tensors are computed on the spot, so the shape
//! arithmetic that exporters write disappears once the batch is bound. Float initializers of
//! rank 1 and more are parameters and stay out of this: training may change them.

use super::constant::{Budget, Constant, Elem, Origin, Scalar};
use super::error::{Fail, ImportError, ImportErrors, invalid};
use super::external::ExternalFiles;
use super::model::{self, Model};
use super::node::{Node, domain_name, site};
use super::params::Made;
use super::proto::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto};
use super::sparse::{self, Room};
use super::{inputs, mmap, ops, tensor};
use bytes::Bytes as Buf;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vdnn_ir::graph::NodeSpec;
use vdnn_ir::{DType, Dims, Graph, Op, Output, TensorType, ValueId, Weights};

/// What the file leaves open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportOptions {
    /// Value of the batch dimension (the first one of the inputs) if the file leaves it open,
    /// 1 by default; must agree with a file that fixes it.
    pub batch: Option<u64>,
    /// Values of the file's other symbolic dimensions, by name.
    pub dims: BTreeMap<String, u64>,
    /// Import for training: dropout stays in the graph instead of becoming the identity.
    pub training: bool,
}

/// An imported model.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The forward graph, in the imported phase and inference mode.
    pub graph: Graph,
    /// The initial value of every parameter of `graph`.
    pub weights: Weights,
    /// The batch the graph is made for: the first extent of the first input.
    pub batch: u64,
    /// The model's file, then those of its external data that were read; empty if the model
    /// did not come from a file.
    pub files: Vec<PathBuf>,
    /// What the user should know although the import succeeded.
    pub warnings: Vec<String>,
}

/// Imports a model from a file; f32 weights stay slices of the mapped files.
///
/// # Errors
/// Everything that is wrong with or unsupported in the model.
pub fn import_file(path: &Path, options: &ImportOptions) -> Result<Imported, ImportErrors> {
    let with_file = |mut e: ImportErrors| {
        e.file = Some(path.to_owned());
        e
    };
    let bytes = mmap::map(path)
        .map_err(|e| ImportErrors::one(ImportError::Read { path: path.to_owned(), reason: e.to_string() }))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut imported = import_bytes(bytes, Some(folder), options).map_err(with_file)?;
    imported.files.insert(0, path.to_owned());
    Ok(imported)
}

/// Imports a model from memory; external data is looked for in `base_dir`, and refused
/// without one.
///
/// # Errors
/// As [`import_file`].
pub fn import_bytes(
    bytes: Buf,
    base_dir: Option<&Path>,
    options: &ImportOptions,
) -> Result<Imported, ImportErrors> {
    import_decoded(&Model::decode(bytes).map_err(ImportErrors::one)?, base_dir, options)
}

/// Imports a model that is already decoded, such as one just made.
///
/// Subgraphs are imported by recursion; the decoder bounds their nesting, a model made by
/// other means must do so itself.
///
/// # Errors
/// As [`import_file`].
pub fn import_model(
    model: ModelProto,
    base_dir: Option<&Path>,
    options: &ImportOptions,
) -> Result<Imported, ImportErrors> {
    import_decoded(&Model::check(model).map_err(ImportErrors::one)?, base_dir, options)
}

fn import_decoded(
    model: &Model,
    base_dir: Option<&Path>,
    options: &ImportOptions,
) -> Result<Imported, ImportErrors> {
    let Some(graph) = &model.proto.graph else {
        return Err(ImportErrors::one(ImportError::Format("it holds no graph".into())));
    };
    let mut cx = Importer::new(model, graph, base_dir, options);
    match cx.import_model(graph) {
        Ok(batch) if cx.errors.is_empty() => Ok(cx.finish(batch)),
        Ok(_) => Err(ImportErrors { file: None, errors: cx.errors }),
        Err(e) => {
            cx.errors.push(e);
            Err(ImportErrors { file: None, errors: cx.errors })
        }
    }
}

/// What a name of the model stands for.
#[derive(Clone, Debug)]
pub(super) enum Item {
    /// A value of the graph.
    Value(ValueId),
    /// A tensor known at import.
    Const(Constant),
    /// A sequence whose length is known.
    Sequence(Arc<[Item]>),
    /// The result of a node that could not be imported; the reason has been reported.
    Failed,
}

/// Names of one (sub)graph.
#[derive(Debug, Default)]
struct Scope<'m> {
    items: HashMap<&'m str, Item>,
    initializers: HashMap<&'m str, Initializer<'m>>,
}

/// An initializer that nobody has read yet.
#[derive(Clone, Copy, Debug)]
enum Initializer<'m> {
    Dense(&'m TensorProto),
    Sparse(&'m SparseTensorProto),
}

/// The state of one import.
pub(super) struct Importer<'m> {
    pub graph: Graph,
    pub budget: Budget,
    pub options: &'m ImportOptions,
    pub external: ExternalFiles,
    /// What sparse tensors may still take.
    pub room: Room,
    pub warnings: Vec<String>,
    model: &'m Model,
    scopes: Vec<Scope<'m>>,
    errors: Vec<ImportError>,
    /// Parameters and literals made so far.
    pub made: Made,
    step: Option<ValueId>,
}

impl<'m> Importer<'m> {
    fn new(
        model: &'m Model,
        graph: &GraphProto,
        base_dir: Option<&Path>,
        options: &'m ImportOptions,
    ) -> Self {
        Self {
            graph: Graph::new(if graph.name().is_empty() { "model" } else { graph.name() }),
            budget: Budget::new(),
            options,
            external: ExternalFiles::new(base_dir),
            room: Room::new(),
            warnings: Vec::new(),
            model,
            scopes: Vec::new(),
            errors: Vec::new(),
            made: Made::default(),
            step: None,
        }
    }

    fn import_model(&mut self, graph: &'m GraphProto) -> Result<u64, ImportError> {
        if graph.output.is_empty() {
            return Err(ImportError::Graph("the graph has no outputs".into()));
        }
        if !self.model.proto.training_info.is_empty() {
            self.warnings.push("the file's own training information is ignored".into());
        }
        let names = graph.input.iter().map(|i| i.name()).chain(sparse::initializer_names(graph));
        if let Some(name) = names.into_iter().find(|n| n.starts_with("vdnnc.")) {
            return Err(ImportError::Graph(format!(
                "`{name}`: names that start with `vdnnc.` are reserved; rename it"
            )));
        }
        let bound = match inputs::bind(graph, self.options, &mut self.warnings) {
            Ok(bound) => bound,
            Err(mut errors) => {
                let last = errors.pop();
                self.errors.append(&mut errors);
                self.report_unknown_operators(graph);
                return Err(last.unwrap_or_else(|| ImportError::Graph("the inputs cannot be bound".into())));
            }
        };
        let mut scope = Scope::default();
        for (name, ty) in bound.inputs {
            scope.items.insert(name, Item::Value(self.graph.add_input(name, ty)));
        }
        let results = self.import_body(graph, scope)?;
        for (info, item) in graph.output.iter().zip(results) {
            match self.value(&item) {
                Ok(value) => {
                    if self.graph.value(value).name.is_empty() {
                        self.graph.set_name(value, info.name());
                    }
                    self.graph.outputs.push(Output { name: info.name().to_owned(), value });
                }
                Err(Fail::Reported) => {}
                Err(Fail::Invalid(reason) | Fail::Unsupported(reason)) => {
                    self.errors.push(ImportError::Graph(format!("output `{}`: {reason}", info.name())));
                }
            }
        }
        Ok(bound.batch)
    }

    fn finish(mut self, batch: u64) -> Imported {
        self.graph.remove_dead_nodes();
        self.graph.remove_dead_params();
        let graph = self.graph;
        let kept: HashSet<&str> = graph.params().iter().map(|&p| graph.value(p).name.as_str()).collect();
        self.made.weights.tensors.retain(|name, _| kept.contains(name.as_str()));
        let files = self.external.files().cloned().collect();
        Imported { batch, weights: self.made.weights, files, warnings: self.warnings, graph }
    }

    /// Imports the needed nodes of a graph and returns what its outputs stand for.
    fn import_body(&mut self, graph: &'m GraphProto, mut scope: Scope<'m>) -> Result<Vec<Item>, ImportError> {
        let body = model::analyse(graph)?;
        let dense = graph.initializer.iter().map(|t| (t.name(), Initializer::Dense(t)));
        let sparse = graph.sparse_initializer.iter().map(|s| (sparse::name(s), Initializer::Sparse(s)));
        scope.initializers = dense.chain(sparse).collect();
        self.scopes.push(scope);
        for node in &body.order {
            let results = self.import_node(node, &body.read);
            for (i, name) in node.output.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
                let item = results.get(i).cloned().unwrap_or(Item::Failed);
                if let Item::Value(v) = item
                    && self.graph.value(v).name.is_empty()
                {
                    self.graph.set_name(v, name);
                }
                self.bind(name, item);
            }
        }
        let results = graph
            .output
            .iter()
            .map(|o| match self.resolve(o.name()) {
                Ok(item) => item,
                Err(reason) => {
                    self.errors.push(reason);
                    Item::Failed
                }
            })
            .collect();
        self.scopes.pop();
        Ok(results)
    }

    fn bind(&mut self, name: &'m str, item: Item) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.items.insert(name, item);
        }
    }

    /// What a name stands for, seen from the innermost scope; initializers are read when
    /// first used.
    fn resolve(&mut self, name: &str) -> Result<Item, ImportError> {
        for depth in (0..self.scopes.len()).rev() {
            if let Some(item) = self.scopes[depth].items.get(name) {
                return Ok(item.clone());
            }
            let Some((&key, &proto)) = self.scopes[depth].initializers.get_key_value(name) else { continue };
            let loaded = match proto {
                Initializer::Dense(t) => tensor::decode(t, &mut self.external),
                Initializer::Sparse(s) => self.decode_sparse(s),
            };
            let item = match &loaded {
                Ok(c) => Item::Const(with_origin(c.clone(), name, depth)),
                Err(_) => Item::Failed,
            };
            self.scopes[depth].items.insert(key, item.clone());
            return match loaded {
                Ok(_) => Ok(item),
                Err(reason) => Err(ImportError::Initializer { name: name.to_owned(), reason }),
            };
        }
        Err(ImportError::Graph(format!("`{name}` is used but nothing defines it")))
    }

    /// Reads a sparse tensor as a dense one.
    pub(super) fn decode_sparse(&mut self, sparse: &SparseTensorProto) -> Result<Constant, String> {
        let dense = sparse::to_dense(sparse, &mut self.external, &mut self.room)?;
        tensor::decode(&dense, &mut self.external)
    }

    /// Imports one node; results that could not be made are `Failed`.
    fn import_node(&mut self, proto: &'m NodeProto, read: &HashSet<&str>) -> Vec<Item> {
        let domain = domain_name(proto.domain());
        let opset = self.model.opsets.get(domain).copied().unwrap_or(0);
        let failed = vec![Item::Failed; proto.output.len()];

        let operator = match self.find_operator(proto, domain, opset) {
            Ok(operator) => operator,
            Err(fail) => {
                self.errors.extend(fail.at(site(proto, opset)));
                return failed;
            }
        };
        let mut operands = Vec::with_capacity(proto.input.len());
        for name in &proto.input {
            operands.push(match name.as_str() {
                "" => None,
                name => match self.resolve(name) {
                    Ok(item) => Some(item),
                    Err(error) => {
                        self.errors.push(match error {
                            ImportError::Graph(reason) => {
                                ImportError::Invalid { site: site(proto, opset), reason }
                            }
                            other => other,
                        });
                        Some(Item::Failed)
                    }
                },
            });
        }
        if operands.iter().any(|o| matches!(o, Some(Item::Failed))) {
            return failed;
        }
        let used = proto.output.iter().map(|o| read.contains(o.as_str())).collect();
        let node = Node::new(proto, opset, operands, used);
        let result = operator(self, &node).and_then(|items| check_results(&node, items));
        result.unwrap_or_else(|fail| {
            self.errors.extend(fail.at(site(proto, opset)));
            failed
        })
    }

    fn find_operator(&self, proto: &NodeProto, domain: &str, opset: i64) -> Result<ops::Operator, Fail> {
        let functions = &self.model.functions;
        if !functions.is_empty() && functions.contains(&(domain.to_owned(), proto.op_type().to_owned())) {
            return Err(Fail::Unsupported(
                "it is a function defined in the model; inline functions first (onnx.inliner)".into(),
            ));
        }
        ops::find(domain, proto.op_type(), opset)
    }

    /// Reports the operators of a graph that have no importer, for models that cannot be
    /// imported at all.
    fn report_unknown_operators(&mut self, graph: &'m GraphProto) {
        for proto in &graph.node {
            let domain = domain_name(proto.domain());
            let opset = self.model.opsets.get(domain).copied().unwrap_or(0);
            if let Err(fail) = self.find_operator(proto, domain, opset) {
                self.errors.extend(fail.at(site(proto, opset)));
            }
        }
    }

    /// Imports the chosen branch of an If.
    pub(super) fn import_branch(&mut self, graph: &'m GraphProto) -> Result<Vec<Item>, Fail> {
        let depth = self.scopes.len();
        if !graph.input.is_empty() {
            return invalid("a branch has inputs");
        }
        let before = self.errors.len();
        let result = self.import_body(graph, Scope::default());
        self.scopes.truncate(depth);
        match result {
            Ok(items) if self.errors.len() == before => Ok(items),
            Ok(_) => Err(Fail::Reported),
            Err(e) => Err(Fail::Invalid(e.to_string())),
        }
    }

    // ---- items as operands -----------------------------------------------------------

    /// The shape of a tensor item.
    pub(super) fn dims(&self, item: &Item) -> Result<Dims, Fail> {
        match item {
            Item::Value(v) => Ok(self.graph.ty(*v).dims.clone()),
            Item::Const(c) => Ok(c.dims.clone()),
            Item::Sequence(_) => invalid("a sequence stands where a tensor is expected"),
            Item::Failed => Err(Fail::Reported),
        }
    }

    /// The element class of a tensor item.
    pub(super) fn elem(&self, item: &Item) -> Result<Elem, Fail> {
        match item {
            Item::Value(v) => Ok(match self.graph.ty(*v).dtype {
                d if d.is_float() => Elem::F32,
                DType::Bool => Elem::Bool,
                _ => Elem::I64,
            }),
            Item::Const(c) => Ok(c.elem()),
            Item::Sequence(_) => invalid("a sequence stands where a tensor is expected"),
            Item::Failed => Err(Fail::Reported),
        }
    }

    /// The step counter that dropout masks depend on.
    pub(super) fn step(&mut self) -> ValueId {
        *self.step.get_or_insert_with(|| self.graph.add_input("vdnnc.step", TensorType::new(DType::I64, [])))
    }

    // ---- building --------------------------------------------------------------------

    /// True if the model itself uses a name.
    pub(super) fn is_name_of_model(&self, name: &str) -> bool {
        let known = |s: &Scope<'_>| s.initializers.contains_key(name) || s.items.contains_key(name);
        self.scopes.first().is_some_and(known)
    }

    /// Adds an op with one result, named after the node.
    pub(super) fn emit(&mut self, node: &Node<'_>, op: Op, inputs: &[ValueId]) -> Result<Item, Fail> {
        let value = self.emit_named(node.name.clone(), op, inputs)?;
        Ok(self.item(value))
    }

    /// A value as an item. One without elements is known, whatever it was computed from.
    fn item(&self, value: ValueId) -> Item {
        let ty = self.graph.ty(value);
        if ty.elements() > 0 {
            return Item::Value(value);
        }
        let zero = self.zero(&Item::Value(value)).unwrap_or(Scalar::F32(0.0));
        Item::Const(Constant::uniform(ty.dims.clone(), zero))
    }

    /// Zero of an item's element class.
    pub(super) fn zero(&self, item: &Item) -> Result<Scalar, Fail> {
        Ok(match self.elem(item)? {
            Elem::F32 => Scalar::F32(0.0),
            Elem::I64 => Scalar::I64(0),
            Elem::Bool => Scalar::Bool(false),
        })
    }

    /// Adds a helper op with one result, named after the node with a suffix.
    pub(super) fn emit_part(
        &mut self,
        node: &Node<'_>,
        part: &str,
        op: Op,
        inputs: &[ValueId],
    ) -> Result<ValueId, Fail> {
        self.emit_named(format!("{}.{part}", node.name), op, inputs)
    }

    fn emit_named(&mut self, name: String, op: Op, inputs: &[ValueId]) -> Result<ValueId, Fail> {
        self.check_arithmetic(&op, inputs)?;
        Ok(self.graph.add1(op, inputs, NodeSpec::forward(name))?)
    }

    /// Adds an op with `n` results, named after the node.
    pub(super) fn emit_many(
        &mut self,
        node: &Node<'_>,
        op: Op,
        inputs: &[ValueId],
        n: usize,
    ) -> Result<Vec<Item>, Fail> {
        self.check_arithmetic(&op, inputs)?;
        let id = self.graph.add(op, inputs, NodeSpec::forward(node.name.clone()).outputs(n))?;
        Ok(self.graph.node(id).outputs.iter().map(|&v| self.item(v)).collect())
    }

    /// Refuses arithmetic on values that are not f32: only ops that move data take others.
    fn check_arithmetic(&self, op: &Op, inputs: &[ValueId]) -> Result<(), Fail> {
        let data = match op {
            Op::Concat { .. }
            | Op::Split { .. }
            | Op::Slice(_)
            | Op::Pad { .. }
            | Op::Reshape { .. }
            | Op::Transpose { .. }
            | Op::Expand { .. } => return Ok(()),
            // Labels and steps are integers.
            Op::SoftmaxCrossEntropy { .. } | Op::NegativeLogLikelihood { .. } | Op::Dropout { .. } => {
                &inputs[..inputs.len().min(1)]
            }
            _ => inputs,
        };
        match data.iter().map(|&v| self.graph.ty(v)).find(|ty| ty.dtype != DType::F32) {
            Some(ty) => Err(Fail::Unsupported(format!(
                "arithmetic on values of type {ty} that are not known at import; arithmetic is f32"
            ))),
            None => Ok(()),
        }
    }
}

/// Float initializers of rank 1 and more of the model itself are parameters.
fn with_origin(mut c: Constant, name: &str, depth: usize) -> Constant {
    if depth == 0 && c.elem() == Elem::F32 && !c.dims.is_empty() {
        c.origin = Some(Origin { initializer: name.to_owned(), alias: name.to_owned() });
    }
    c
}

/// Attributes that were not understood and results that are not there are errors.
fn check_results(node: &Node<'_>, items: Vec<Item>) -> Result<Vec<Item>, Fail> {
    if let Some(name) = node.unread() {
        return Err(Fail::Unsupported(format!("attribute {name} is not known for this operator and opset")));
    }
    match (items.len()..node.proto.output.len()).find(|&i| node.output_used(i)) {
        Some(i) => Err(Fail::Unsupported(format!("its output {i}, `{}`", node.proto.output[i]))),
        None => Ok(items),
    }
}
