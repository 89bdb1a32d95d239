//! Running a graph.

use crate::kernels::WideKernels;
use crate::kernels::element::{Element, storage};
use std::borrow::Cow;
use std::collections::BTreeMap;
use vdnn_ir::graph::{Def, Graph, NodeId, ParamRole, ValueId};
use vdnn_ir::id::EntityId;
use vdnn_ir::kernel::{KernelError, Kernels, Operand, TensorMut};
use vdnn_ir::slices::through_slices;
use vdnn_ir::verify::{VerifyErrors, verify};
use vdnn_ir::{DType, Tensor, TensorType};

/// What one execution of a graph gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Results by name.
    pub outputs: BTreeMap<String, Tensor>,
    /// Every parameter by name, as it is when the step ends.
    pub params: BTreeMap<String, Tensor>,
}

/// Why a graph did not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterpError {
    /// The graph breaks an invariant.
    #[error("the graph does not verify:\n{0}")]
    Invalid(#[from] VerifyErrors),
    /// An input has no tensor.
    #[error("no tensor for input `{name}`; pass one of type {ty}")]
    MissingInput {
        /// The input.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// A parameter other than momentum has no tensor.
    #[error("no tensor for parameter `{name}`; pass one of type {ty}")]
    MissingParam {
        /// The parameter.
        name: String,
        /// Its type.
        ty: TensorType,
    },
    /// A tensor has another type than the graph says.
    #[error("the tensor for `{name}` is {found}; the graph needs {expected}")]
    WrongType {
        /// The input or parameter.
        name: String,
        /// The type in the graph.
        expected: TensorType,
        /// The tensor's type.
        found: TensorType,
    },
    /// The host has no memory for a tensor.
    #[error("cannot allocate {} for a tensor of type {ty}; use a smaller batch", ty.bytes())]
    OutOfMemory {
        /// Its type.
        ty: TensorType,
    },
    /// A kernel failed.
    #[error("node {node} \"{name}\": {error}")]
    Kernel {
        /// The node.
        node: NodeId,
        /// Its name.
        name: String,
        /// What its kernel said.
        error: KernelError,
    },
}

fn bind<'a>(
    tensors: &'a BTreeMap<String, Tensor>,
    name: &str,
    ty: &TensorType,
) -> Result<Option<Cow<'a, Tensor>>, InterpError> {
    match tensors.get(name) {
        Some(t) if t.ty() == ty => Ok(Some(Cow::Borrowed(t))),
        Some(t) => {
            Err(InterpError::WrongType { name: name.to_owned(), expected: ty.clone(), found: t.ty().clone() })
        }
        None => Ok(None),
    }
}

fn zeros(ty: &TensorType) -> Result<Tensor, InterpError> {
    Tensor::try_zeros(ty.clone()).ok_or_else(|| InterpError::OutOfMemory { ty: ty.clone() })
}

/// A literal as kernels of `E` want it.
fn stored<E: Element>(literal: Tensor) -> Tensor {
    if E::DTYPE == DType::F32 {
        return literal;
    }
    let literal = match literal.ty().dtype {
        DType::BF16 => literal.to_dtype(DType::F32).unwrap_or(literal),
        DType::F32 => literal,
        _ => return literal,
    };
    let mut tensor = Tensor::zeros(storage::<E>(literal.ty()));
    let elements: &mut [E] = bytemuck::cast_slice_mut(tensor.bytes_mut());
    for (e, &x) in elements.iter_mut().zip(literal.f32()) {
        *e = E::round(f64::from(x));
    }
    tensor
}

/// The tensor of each leaf: inputs, parameters and literals.
fn leaves<'a, E: Element>(
    graph: &Graph,
    inputs: &'a BTreeMap<String, Tensor>,
    params: &'a BTreeMap<String, Tensor>,
) -> Result<Vec<Option<Cow<'a, Tensor>>>, InterpError> {
    let mut values = vec![None; graph.value_bound()];
    for &v in graph.inputs() {
        let value = graph.value(v);
        let (name, ty) = (value.name.clone(), storage::<E>(&value.ty));
        let tensor = bind(inputs, &name, &ty)?;
        values[v.index()] = Some(tensor.ok_or(InterpError::MissingInput { name, ty })?);
    }
    for &v in graph.params() {
        let value = graph.value(v);
        let (name, ty) = (value.name.clone(), storage::<E>(&value.ty));
        let tensor = match bind(params, &name, &ty)? {
            None if value.def == Def::Param(ParamRole::Momentum) => Cow::Owned(zeros(&ty)?),
            None => return Err(InterpError::MissingParam { name, ty }),
            Some(tensor) => tensor,
        };
        values[v.index()] = Some(tensor);
    }
    for v in graph.value_ids() {
        let value = graph.value(v);
        if let Def::Const(bytes) = &value.def {
            let tensor = Tensor::from_bytes(value.ty.clone(), bytes);
            values[v.index()] = tensor.map(|t| Cow::Owned(stored::<E>(t)));
        }
    }
    Ok(values)
}

/// Runs the nodes of a graph once, in program order, and applies its updates at the end.
///
/// `inputs` and `params` are keyed by name; unused entries are ignored, and momentum that
/// `params` lacks starts at zero. A node's result is freed after its last reader.
///
/// # Errors
/// If the graph does not verify, a tensor is missing or of the wrong type, or a kernel fails.
pub fn interpret(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
    params: &BTreeMap<String, Tensor>,
    kernels: &dyn Kernels,
) -> Result<Evaluation, InterpError> {
    run::<f32>(graph, inputs, params, kernels)
}

/// [`interpret`] by [`NaiveKernels`](crate::NaiveKernels) with an f64 for every f32 of the
/// graph, in what it takes and what it gives: what the graph means, free of rounding. Only
/// its attributes and literals are f32 still.
///
/// # Errors
/// As [`interpret`], where an f32 operand is of the wrong type and an f64 one is right.
pub fn interpret_f64(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
    params: &BTreeMap<String, Tensor>,
) -> Result<Evaluation, InterpError> {
    run::<f64>(graph, inputs, params, &WideKernels)
}

fn run<E: Element>(
    graph: &Graph,
    inputs: &BTreeMap<String, Tensor>,
    params: &BTreeMap<String, Tensor>,
    kernels: &dyn Kernels,
) -> Result<Evaluation, InterpError> {
    verify(graph)?;
    let mut values = leaves::<E>(graph, inputs, params)?;
    let mut readers: Vec<usize> = graph.value_ids().map(|v| graph.value(v).users().len()).collect();
    // One more reader for what the caller gets.
    for v in graph.outputs.iter().map(|o| o.value).chain(graph.updates.iter().map(|u| u.value)) {
        readers[v.index()] += 1;
    }
    for &v in graph.params() {
        readers[v.index()] += 1;
    }
    for (id, node) in graph.nodes() {
        let mut results: Vec<Tensor> =
            node.outputs.iter().map(|&v| zeros(&storage::<E>(graph.ty(v)))).collect::<Result<_, _>>()?;
        {
            // Verified: definitions precede uses, and readers keep what they read alive.
            let operands: Vec<Operand<'_>> = node
                .inputs
                .iter()
                .filter_map(|v| values[v.index()].as_ref())
                .map(|t| Operand::Ref(t.view()))
                .collect();
            let types: Vec<TensorType> = results.iter().map(|t| t.ty().clone()).collect();
            let mut outputs: Vec<TensorMut<'_>> = results
                .iter_mut()
                .zip(&types)
                .map(|(t, ty)| TensorMut { ty, bytes: t.bytes_mut() })
                .collect();
            // A divided batch as its plan runs it, so that the two can be compared bit for bit.
            let done = through_slices(kernels, &node.op, node.algo.as_ref(), &operands, &mut outputs)
                .unwrap_or_else(|| kernels.launch(&node.op, &operands, &mut outputs));
            done.map_err(|error| InterpError::Kernel { node: id, name: node.name.clone(), error })?;
        }
        for (tensor, v) in results.into_iter().zip(&node.outputs) {
            if readers[v.index()] > 0 {
                values[v.index()] = Some(Cow::Owned(tensor));
            }
        }
        for (i, v) in node.inputs.iter().enumerate() {
            if node.inputs[..i].contains(v) {
                continue;
            }
            let left = &mut readers[v.index()];
            *left -= 1;
            if *left == 0 {
                values[v.index()] = None;
            }
        }
    }
    Ok(collect(graph, &values))
}

fn collect(graph: &Graph, values: &[Option<Cow<'_, Tensor>>]) -> Evaluation {
    let get = |v: ValueId| values[v.index()].as_deref().cloned();
    let outputs = graph.outputs.iter().filter_map(|o| Some((o.name.clone(), get(o.value)?))).collect();
    let mut finals: BTreeMap<ValueId, ValueId> = graph.params().iter().map(|&p| (p, p)).collect();
    finals.extend(graph.updates.iter().map(|u| (u.param, u.value)));
    let params = finals
        .into_iter()
        .filter_map(|(param, value)| Some((graph.value(param).name.clone(), get(value)?)))
        .collect();
    Evaluation { outputs, params }
}
