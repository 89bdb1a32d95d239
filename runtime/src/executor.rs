//! The executor: loads a plan, keeps its parameters, runs its steps. The same code drives
//! every backend.

use crate::backend::Backend;
pub use crate::error::{LoadParamError, RunError};
use crate::packed::{self, Packed};
use crate::program::{Program, Span};
use std::collections::BTreeMap;
use std::sync::Arc;
use vdnn_ir::kernel::{Kernels, Operand, TensorMut};
use vdnn_ir::{Layout, Tensor, TensorType};
use vdnn_plan::{Param, ParamSource, Plan, SetupId};

/// Where initializers come from.
pub trait ParamLoader {
    /// The initializer `name`, which must have type `ty`.
    ///
    /// # Errors
    /// If there is none, or it has another type, or reading fails.
    fn load(&self, name: &str, ty: &TensorType) -> Result<Tensor, LoadParamError>;

    /// Hands over the bytes of [`Self::load`] in order, in pieces. Sources that hold the bytes
    /// need not copy them for that.
    ///
    /// # Errors
    /// As [`Self::load`].
    fn pieces(&self, name: &str, ty: &TensorType, take: &mut dyn FnMut(&[u8])) -> Result<(), LoadParamError> {
        let tensor = self.load(name, ty)?;
        if tensor.ty() != ty {
            return Err(LoadParamError::wrong_type(name, ty, tensor.ty()));
        }
        take(tensor.bytes());
        Ok(())
    }
}

/// The bytes of a step's inputs, and where they belong.
pub type Bound<'a> = Vec<(Span, &'a [u8])>;

/// A loaded plan on a backend.
#[derive(Debug)]
pub struct Executor<B> {
    program: Arc<Program>,
    backend: B,
    failed: bool,
}

impl<B: Backend> Executor<B> {
    /// Checks a plan, takes its arenas, runs its setup program on the host and fills its
    /// parameters.
    ///
    /// # Errors
    /// If the plan is not sound, memory is short, or a parameter cannot be loaded.
    pub fn load(plan: Plan, source: &dyn ParamLoader, backend: B) -> Result<Self, RunError> {
        Self::start(Program::checked(plan)?, source, backend)
    }

    /// Loads a plan that the checker may refuse: only ids, types and bounds are checked.
    /// For tests that compare what the checker says with what happens. Results may be
    /// garbage, but stay memory-safe: such plans run on one thread only, and a launch whose
    /// operands overlap where they may not sees its outputs clobbered first.
    ///
    /// # Errors
    /// As [`Self::load`], but for races and contents.
    pub fn load_unchecked_for_tests(
        plan: Plan,
        source: &dyn ParamLoader,
        backend: B,
    ) -> Result<Self, RunError> {
        Self::start(Program::unchecked(plan)?, source, backend)
    }

    fn start(program: Program, source: &dyn ParamLoader, mut backend: B) -> Result<Self, RunError> {
        let program = Arc::new(program);
        backend.prepare(Arc::clone(&program))?;
        let setup = run_setup(program.plan(), source, backend.host_kernels())?;
        let mut executor = Self { program, backend, failed: false };
        let program = Arc::clone(&executor.program);
        for p in &program.plan().params {
            let ty = &program.plan().buffers[p.buf].ty;
            let span = program.span(p.buf);
            match &p.source {
                ParamSource::Setup(id) => executor.backend.write(span, setup[id].bytes())?,
                ParamSource::Inline(bytes) => executor.backend.write(span, bytes)?,
                ParamSource::Initializer if ty.layout == Layout::RowMajor => {
                    executor.fill(span, &p.name, ty, source)?;
                }
                source_kind => {
                    let tensor = fetch(source_kind, &p.name, &ty.in_layout(Layout::RowMajor), source)?;
                    executor.backend.write(span, tensor.to_layout(ty.layout).bytes())?;
                }
            }
        }
        Ok(executor)
    }

    /// Writes an initializer piece by piece: no copy of the whole is made on the way.
    fn fill(
        &mut self,
        span: Span,
        name: &str,
        ty: &TensorType,
        source: &dyn ParamLoader,
    ) -> Result<(), RunError> {
        let (mut at, end) = (span.start, span.start + span.len);
        let mut done = Ok(());
        source.pieces(name, ty, &mut |bytes| {
            let piece = Span { start: at, len: bytes.len(), ..span };
            at = at.saturating_add(bytes.len());
            if at <= end && done.is_ok() {
                done = self.backend.write(piece, bytes);
            }
        })?;
        done?;
        if at == end {
            return Ok(());
        }
        let why = format!("its source has {} bytes for {ty}", at - span.start);
        Err(LoadParamError::Failed { name: name.to_owned(), why }.into())
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        self.program.plan()
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// What the packed copies of the last step put on the link.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn packed(&self) -> Result<Packed, RunError> {
        packed::look(&self.program, &self.backend)
    }

    /// The backend, to be used between steps.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The parameters, in the plan's order.
    pub fn params(&self) -> &[Param] {
        &self.plan().params
    }

    /// Runs one step: binds every input by name, runs all commands, returns every output
    /// by name. Parameters are updated in place.
    ///
    /// # Errors
    /// If an input is missing, unknown or of the wrong type (nothing has run then), or a
    /// kernel fails (parameters are undefined then, and later steps are refused).
    pub fn step(&mut self, inputs: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>, RunError> {
        if self.failed {
            return Err(RunError::Poisoned);
        }
        let program = Arc::clone(&self.program);
        let plan = program.plan();
        validate(plan, inputs)?;
        self.backend.begin()?;
        for b in &plan.inputs {
            self.backend.write(program.span(b.buf), inputs[&b.name].bytes())?;
        }
        if let Err(e) = self.backend.run(&program) {
            self.failed = true;
            return Err(e);
        }
        let mut outputs = BTreeMap::new();
        for o in &plan.outputs {
            let mut t = Tensor::zeros(plan.buffers[o.buf].ty.clone());
            self.backend.read(program.span(o.buf), t.bytes_mut())?;
            outputs.insert(o.name.clone(), t);
        }
        Ok(outputs)
    }

    /// The inputs of a step as the backend's bytes, for backends that run steps by
    /// themselves, together with that backend.
    ///
    /// # Errors
    /// If an input is missing, unknown or of the wrong type.
    pub fn bind<'a>(
        &'a mut self,
        inputs: &'a BTreeMap<String, Tensor>,
    ) -> Result<(&'a mut B, Bound<'a>), RunError> {
        let plan = self.program.plan();
        validate(plan, inputs)?;
        let bound = plan.inputs.iter().map(|b| (self.program.span(b.buf), inputs[&b.name].bytes())).collect();
        Ok((&mut self.backend, bound))
    }

    /// A parameter's present content, row-major.
    ///
    /// # Errors
    /// If there is no parameter of that name.
    pub fn read_param(&self, name: &str) -> Result<Tensor, RunError> {
        let buf = self.param(name)?.buf;
        let mut t = Tensor::zeros(self.plan().buffers[buf].ty.clone());
        self.backend.read(self.program.span(buf), t.bytes_mut())?;
        Ok(t.to_layout(Layout::RowMajor))
    }

    /// Replaces a parameter's content by a row-major tensor.
    ///
    /// # Errors
    /// If there is no parameter of that name, or its type is another.
    pub fn write_param(&mut self, name: &str, value: &Tensor) -> Result<(), RunError> {
        let buf = self.param(name)?.buf;
        let layout = self.plan().buffers[buf].ty.layout;
        let expected = self.plan().buffers[buf].ty.in_layout(Layout::RowMajor);
        if expected != *value.ty() {
            return Err(RunError::ParamType { name: name.to_owned(), expected, found: value.ty().clone() });
        }
        let span = self.program.span(buf);
        self.backend.write(span, value.to_layout(layout).bytes())
    }

    fn param(&self, name: &str) -> Result<&Param, RunError> {
        self.params().iter().find(|p| p.name == name).ok_or_else(|| RunError::NoSuchParam(name.to_owned()))
    }
}

fn validate(plan: &Plan, inputs: &BTreeMap<String, Tensor>) -> Result<(), RunError> {
    let error = |name: &str, why: String| Err(RunError::Input { name: name.to_owned(), why });
    for b in &plan.inputs {
        let expected = &plan.buffers[b.buf].ty;
        match inputs.get(&b.name) {
            None => return error(&b.name, format!("missing; the plan needs {expected}")),
            Some(t) if t.ty() != expected => {
                return error(&b.name, format!("it is {}, but the plan needs {expected}", t.ty()));
            }
            Some(_) => {}
        }
    }
    if inputs.len() > plan.inputs.len()
        && let Some(name) = inputs.keys().find(|n| plan.inputs.iter().all(|b| b.name != **n))
    {
        let known: Vec<_> = plan.inputs.iter().map(|b| b.name.as_str()).collect();
        return error(name, format!("the plan has no such input; its inputs are {}", known.join(", ")));
    }
    Ok(())
}

fn fetch(
    kind: &ParamSource,
    name: &str,
    ty: &TensorType,
    source: &dyn ParamLoader,
) -> Result<Tensor, LoadParamError> {
    match kind {
        ParamSource::Zero => Tensor::try_zeros(ty.clone()).ok_or_else(|| LoadParamError::Failed {
            name: name.to_owned(),
            why: format!("no memory for zeros of type {ty}"),
        }),
        ParamSource::Inline(bytes) => Tensor::from_bytes(ty.clone(), bytes).ok_or_else(|| {
            LoadParamError::Failed { name: name.to_owned(), why: "inline bytes of the wrong length".into() }
        }),
        ParamSource::Initializer | ParamSource::Setup(_) => {
            let tensor = source.load(name, ty)?;
            if tensor.ty() == ty {
                Ok(tensor)
            } else {
                Err(LoadParamError::wrong_type(name, ty, tensor.ty()))
            }
        }
    }
}

/// Runs the setup program in host memory.
fn run_setup(
    plan: &Plan,
    source: &dyn ParamLoader,
    kernels: &dyn Kernels,
) -> Result<BTreeMap<SetupId, Tensor>, RunError> {
    let mut values: BTreeMap<SetupId, Tensor> = BTreeMap::new();
    for load in &plan.setup_loads {
        values.insert(load.id, fetch(&load.source, &load.name, &load.ty, source)?);
    }
    for (index, op) in plan.setup.iter().enumerate() {
        let zeros = |ty: &TensorType| {
            Tensor::try_zeros(ty.clone()).ok_or_else(|| RunError::SetupOutOfMemory { ty: ty.clone() })
        };
        let mut results: Vec<Tensor> =
            op.outputs.iter().map(|(_, ty)| zeros(ty)).collect::<Result<_, _>>()?;
        if op.op.views().contains(&(0, 0)) {
            results[0].bytes_mut().copy_from_slice(values[&op.inputs[0]].bytes());
        } else {
            let inputs: Vec<Operand<'_>> =
                op.inputs.iter().map(|id| Operand::Ref(values[id].view())).collect();
            let types: Vec<TensorType> = op.outputs.iter().map(|(_, ty)| ty.clone()).collect();
            let mut outputs: Vec<TensorMut<'_>> = results
                .iter_mut()
                .zip(&types)
                .map(|(t, ty)| TensorMut { ty, bytes: t.bytes_mut() })
                .collect();
            kernels.launch(&op.op, &inputs, &mut outputs).map_err(|error| RunError::Setup {
                index,
                op: op.op.to_string(),
                error,
            })?;
        }
        values.extend(op.outputs.iter().map(|(id, _)| *id).zip(results));
    }
    Ok(values)
}
