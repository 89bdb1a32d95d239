//! Models and plans from files, and parameters for executors.

use crate::driver::{self, Compiled, NoPlan};
use crate::error::Failure;
use crate::options::CompileOptions;
use crate::recorded;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use vdnn_cost::{CostModel, Measured, Precision};
use vdnn_frontends::onnx::{self, ImportOptions, Imported};
use vdnn_ir::{Bytes, DType, Graph, Mode, Op, Tensor, TensorType, WeightTensor, Weights};
use vdnn_passes::sparsify::{Facts, ParamFacts, SparseMode};
use vdnn_plan::Plan;
use vdnn_plan::plan::ModelRef;
use vdnn_runtime::executor::{LoadParamError, ParamLoader};

/// A model file imported.
#[derive(Debug)]
pub struct Model {
    /// What the frontend made of it.
    pub imported: Imported,
    /// Path as given.
    pub path: PathBuf,
}

/// Reads an ONNX model.
///
/// # Errors
/// Everything unsupported in it, or why the file cannot be read.
pub fn model(
    path: &Path,
    batch: Option<u64>,
    dims: &BTreeMap<String, u64>,
    training: bool,
) -> Result<Model, Failure> {
    let options = ImportOptions { batch, dims: dims.clone(), training };
    let imported = onnx::import_file(path, &options).map_err(Failure::user)?;
    for w in &imported.warnings {
        super::warn(w);
    }
    Ok(Model { imported, path: path.to_owned() })
}

impl Model {
    /// The reference a plan keeps to its weights.
    ///
    /// # Errors
    /// If the files cannot be read again.
    pub fn reference(&self) -> Result<ModelRef, Failure> {
        let sha256 = onnx::content_sha256(&self.imported.files)
            .map_err(|e| Failure::user(format!("{}: {e}", self.path.display())))?;
        Ok(ModelRef { path: self.path.display().to_string(), sha256 })
    }

    /// Tells the options of an inference where this model's weights have zeros. For plans that run
    /// with these weights and no others.
    pub fn note_zeros(&self, options: &mut CompileOptions) {
        if options.mode == Mode::Infer && options.sparse.mode != SparseMode::Off {
            options.sparse.facts = Rc::new(facts(&self.imported.weights));
        }
    }

    /// Compiles a copy of the graph.
    ///
    /// # Errors
    /// Over budget, or a failure.
    pub fn compile(
        &self,
        reference: Option<ModelRef>,
        options: &CompileOptions,
        cost: &CostModel,
    ) -> Result<Compiled, NoPlan> {
        let compiled =
            driver::compile(self.imported.graph.clone(), self.imported.batch, reference, options, cost)?;
        if forced_for_nothing(options, &compiled.graph) {
            super::warn(&format!(
                "--sparse {}: no layer of the plan is of that kind; docs/sparsity.md tells which can be, and in \
                 which precision",
                options.sparse.mode
            ));
        }
        Ok(compiled)
    }
}

/// True if a kind of kernel is asked for of which there is none in an inference.
fn forced_for_nothing(options: &CompileOptions, graph: &Graph) -> bool {
    let has = |wanted: fn(&Op) -> bool| graph.nodes().any(|(_, n)| wanted(&n.op));
    match options.sparse.mode {
        _ if options.mode == Mode::Train => false,
        SparseMode::Csr | SparseMode::Block | SparseMode::TwoFour => {
            !has(|op| matches!(op, Op::SparseConv { .. }))
        }
        SparseMode::Activations => !has(|op| matches!(op, Op::SparseInputConv { .. })),
        SparseMode::Off | SparseMode::Auto | SparseMode::Channels => false,
    }
}

/// Where weights have zeros.
pub fn facts(weights: &Weights) -> Facts {
    let of = |(name, w): (&String, &WeightTensor)| {
        let known = (name.clone(), ParamFacts::of(&w.ty.dims, &w.to_f32()?));
        onnx::mmap::release(&w.data);
        Some(known)
    };
    Facts::new(weights.tensors.iter().filter(|(_, w)| w.ty.dtype == DType::F32).filter_map(of))
}

/// The cost model of a named profile.
///
/// # Errors
/// If there is no such profile.
pub fn cost_model(device: &str, precision: Precision) -> Result<CostModel, Failure> {
    CostModel::named(device, precision).ok_or_else(|| {
        Failure::user(format!("no device profile `{device}`"))
            .hint(format!("profiles are {}", CostModel::names().join(", ")))
    })
}

/// Reads a table of measured times.
///
/// # Errors
/// If the file cannot be read or is no table.
pub fn times(path: &Path) -> Result<Measured, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
    text.parse().map_err(|e| fail(&e))
}

/// Turns "no plan" into the message the user reads.
pub fn over_budget(no_plan: NoPlan) -> Failure {
    match no_plan {
        NoPlan::Failed(f) => f,
        NoPlan::TooLarge { summary, .. } if summary.peak <= summary.budget => {
            let limit = summary.host_limit.unwrap_or_default();
            Failure::user(format!(
                "the plan needs {} ({} bytes) of pinned host memory with --policy {}, --host-memory is {limit} ({} \
                 bytes)",
                summary.host, summary.host.0, summary.chosen_policy, limit.0
            ))
            .hint("offload less (--policy conv, or none), raise --memory or --host-memory, or use a smaller --batch")
        }
        NoPlan::TooLarge { summary, smallest: (bytes, policy) } => {
            let whole = |arena: Bytes| arena.saturating_add(summary.overhead);
            let (need, least) = (whole(summary.peak), whole(bytes));
            let libraries = match summary.overhead {
                Bytes::ZERO => String::new(),
                overhead => format!(", {overhead} of it for the context and libraries"),
            };
            let mut f = Failure::user(format!(
                "the plan needs {need} ({} bytes) of device memory{libraries}, the limit is {} ({} bytes); the \
                 smallest that fits is {least} ({} bytes), with --policy {policy} --algo memory",
                need.0, summary.limit, summary.limit.0, least.0
            ));
            f.hint = Some(if bytes <= summary.budget {
                format!("use --policy {policy} --algo memory, or --policy dyn")
            } else {
                "use a smaller --batch, or raise --memory".to_owned()
            });
            f
        }
    }
}

/// Largest plan file that is read.
const MAX_PLAN: Bytes = Bytes(256 << 20);

/// True if the file starts like a plan (text or binary).
pub fn looks_like_plan(path: &Path) -> bool {
    use std::io::Read;
    let mut head = [0u8; 5];
    match std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut head)) {
        Ok(()) => head.eq_ignore_ascii_case(b"vplan"),
        Err(_) => false,
    }
}

/// Reads a plan, text or binary, without checking it.
///
/// # Errors
/// If it cannot be read or parsed.
pub fn plan(path: &Path) -> Result<Plan, Failure> {
    let fail = |e: &dyn std::fmt::Display| Failure::user(format!("{}: {e}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| fail(&e))?.len();
    if size > MAX_PLAN.0 {
        return Err(fail(&format!("{} is too large for a plan (at most {MAX_PLAN})", Bytes(size))));
    }
    let bytes = std::fs::read(path).map_err(|e| fail(&e))?;
    vdnn_plan::codec::load(&bytes).map_err(|e| fail(&e))
}

/// The weights of the model a plan refers to, proved by its hash.
///
/// # Errors
/// If the file is missing or is another model.
pub fn model_of_plan(plan: &Plan, plan_path: &Path) -> Result<Weights, Failure> {
    match &plan.header.model {
        None => Ok(Weights::default()),
        Some(reference) => {
            let dims = recorded::dims(&plan.header.options);
            Ok(referenced(plan, reference, plan_path, &dims, false)?.imported.weights)
        }
    }
}

/// The model a plan refers to, at the plan's batch, proved by its hash.
///
/// # Errors
/// If the file is missing or is another model.
pub fn referenced(
    plan: &Plan,
    reference: &ModelRef,
    plan_path: &Path,
    dims: &BTreeMap<String, u64>,
    training: bool,
) -> Result<Model, Failure> {
    let given = PathBuf::from(&reference.path);
    let beside = plan_path.parent().map(|d| d.join(&given));
    let path =
        [Some(given.clone()), beside, given.file_name().and_then(|n| Some(plan_path.parent()?.join(n)))]
            .into_iter()
            .flatten()
            .find(|p| p.is_file())
            .ok_or_else(|| {
                Failure::user(format!("the plan's model {} is not there", given.display()))
                    .hint("put the ONNX file back, or compile the plan again")
            })?;
    let options = ImportOptions { batch: Some(plan.header.batch), dims: dims.clone(), training };
    let imported = onnx::import_file(&path, &options).map_err(Failure::user)?;
    let sha256 = onnx::content_sha256(&imported.files)
        .map_err(|e| Failure::user(format!("{}: {e}", path.display())))?;
    if sha256 != reference.sha256 {
        return Err(Failure::user(format!("{} is not the model the plan was made from", path.display()))
            .hint("compile the plan again"));
    }
    Ok(Model { imported, path })
}

/// Bytes of a weight that are copied before the pages they come from are given back.
const PIECE: usize = 4 << 20;

/// Parameters from the model's initializers.
#[derive(Debug)]
pub struct FromWeights<'a>(pub &'a Weights);

impl ParamLoader for FromWeights<'_> {
    fn load(&self, name: &str, ty: &TensorType) -> Result<Tensor, LoadParamError> {
        let w = self.0.tensors.get(name).ok_or_else(|| LoadParamError::missing(name))?;
        if &w.ty != ty {
            return Err(LoadParamError::wrong_type(name, ty, &w.ty));
        }
        Tensor::from_bytes(ty.clone(), &w.data).ok_or_else(|| LoadParamError::wrong_type(name, ty, &w.ty))
    }

    fn pieces(&self, name: &str, ty: &TensorType, take: &mut dyn FnMut(&[u8])) -> Result<(), LoadParamError> {
        let w = self.0.tensors.get(name).ok_or_else(|| LoadParamError::missing(name))?;
        if &w.ty != ty {
            return Err(LoadParamError::wrong_type(name, ty, &w.ty));
        }
        // Copied out for good: the mapped file need not stay in memory beside the arena.
        for piece in w.data.chunks(PIECE) {
            take(piece);
            onnx::mmap::release(piece);
        }
        Ok(())
    }
}

/// Parameters from tensors in memory.
#[derive(Debug)]
pub struct FromTensors<'a>(pub &'a BTreeMap<String, Tensor>);

impl ParamLoader for FromTensors<'_> {
    fn load(&self, name: &str, ty: &TensorType) -> Result<Tensor, LoadParamError> {
        let t = self.0.get(name).ok_or_else(|| LoadParamError::missing(name))?;
        if t.ty() != ty {
            return Err(LoadParamError::wrong_type(name, ty, t.ty()));
        }
        Ok(t.clone())
    }
}

/// The weights as tensors, for the interpreter and for training state.
pub fn tensors(weights: &Weights) -> BTreeMap<String, Tensor> {
    weights
        .tensors
        .iter()
        .filter_map(|(n, w)| {
            let tensor = Tensor::from_bytes(w.ty.clone(), &w.data)?;
            onnx::mmap::release(&w.data);
            Some((n.clone(), tensor))
        })
        .collect()
}
