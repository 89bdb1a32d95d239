//! The ONNX backend suite: finding its cases, running one through the whole compiler.
//!
//! A case is a folder with `model.onnx` and `test_data_set_*/{input,output}_N.pb`. It is
//! tried three ways, and every way that imports must give the expected values: with every
//! input bound when it runs; with what is not a float tensor of rank 1 or more known at
//! import, as shapes, axes and bounds are in models; with everything known at import.

use crate::harness;
use half::{bf16, f16};
use prost::Message;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use vdnn_frontends::onnx::proto::tensor_proto::DataType;
use vdnn_frontends::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use vdnn_frontends::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, attribute_proto,
    type_proto,
};
use vdnn_frontends::onnx::{self, ImportError, ImportErrors, ImportOptions, Imported};
use vdnn_ir::{DType, Mode, Tensor, TensorType};
use vdnn_passes::{AlgoMode, Policy};
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::executor::Executor;
use vdnnc::commands::load::FromTensors;
use vdnnc::driver::{self, NoPlan};

/// Version of the PyPI package `onnx` that holds the suite.
pub const VERSION: &str = "1.20.1";

/// The suite's folder, if `tests/conformance/fetch.sh` has been run.
pub fn suite() -> Option<PathBuf> {
    let folder = crate::data::root().join("target/onnx-backend").join(VERSION);
    folder.is_dir().then_some(folder)
}

/// Our own cases, part of the repository.
pub fn own_cases() -> PathBuf {
    crate::data::root().join("tests/conformance/cases")
}

/// An operator: domain (`ai.onnx` for the default one) and name.
pub type OperatorName = (String, String);

/// One test of the suite.
#[derive(Clone, Debug)]
pub struct Case {
    /// `category/name`, such as `node/test_add`.
    pub name: String,
    /// Every operator the model has, those inside branches and bodies included.
    pub operators: BTreeSet<OperatorName>,
    /// Why the case is outside of what the compiler takes on, if it is.
    pub beyond: Option<Beyond>,
    folder: PathBuf,
}

/// Why a model need not be supported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// It has an operator without an importer.
    Operator(OperatorName),
    /// Its operator set is older or newer than what is understood.
    Opset(i64),
    /// An input or output is a sequence or an optional.
    Container(String),
    /// A tensor has an element type whose values f32, i64 and bool do not stand for.
    ElementType(String),
    /// An output has no elements.
    Empty(String),
}

impl Case {
    /// Reads the operators of the case in `folder`.
    ///
    /// # Errors
    /// If its model cannot be read.
    pub fn read(category: &str, folder: PathBuf) -> Result<Self, String> {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let name = format!("{category}/{name}");
        let model = read_message::<ModelProto>(&folder.join("model.onnx"))?;
        let mut operators = BTreeSet::new();
        collect_operators(model.graph.iter(), &mut operators);
        let beyond = beyond(&model, &operators);
        Ok(Self { name, operators, beyond, folder })
    }

    /// The row of the compatibility table: the one operator, constants aside, if there is one.
    pub fn row(&self) -> String {
        let mut names = self.operators.iter().filter(|o| o.1 != "Constant");
        match (names.next(), names.next()) {
            (Some(only), None) => display(only),
            (None, _) => "Constant".to_owned(),
            _ => "several operators".to_owned(),
        }
    }
}

/// Element types the importer has values for: floats as f32, integers as i64, booleans.
const ELEMENT_TYPES: [DataType; 11] = [
    DataType::Float,
    DataType::Double,
    DataType::Float16,
    DataType::Bfloat16,
    DataType::Int64,
    DataType::Int32,
    DataType::Int16,
    DataType::Int8,
    DataType::Uint16,
    DataType::Uint8,
    DataType::Bool,
];

fn beyond(model: &ModelProto, operators: &BTreeSet<OperatorName>) -> Option<Beyond> {
    let known: BTreeSet<(&str, &str)> = onnx::operators().map(|(domain, name, _)| (domain, name)).collect();
    if let Some(o) =
        operators.iter().find(|(domain, name)| !known.contains(&(domain.as_str(), name.as_str())))
    {
        return Some(Beyond::Operator(o.clone()));
    }
    let opset = model.opset_import.iter().find(|o| o.domain().is_empty()).map_or(0, |o| o.version());
    let uses_default = operators.iter().any(|o| o.0 == "ai.onnx");
    if uses_default && !(onnx::MIN_OPSET..=onnx::MAX_OPSET).contains(&opset) {
        return Some(Beyond::Opset(opset));
    }
    let graph = model.graph.as_ref()?;
    let supported = |code: i32| DataType::try_from(code).is_ok_and(|t| ELEMENT_TYPES.contains(&t));
    let name = |code: i32| match DataType::try_from(code) {
        Ok(t) => t.as_str_name().to_owned(),
        Err(_) => code.to_string(),
    };
    for (info, output) in graph.input.iter().map(|i| (i, false)).chain(graph.output.iter().map(|o| (o, true)))
    {
        let ty = info.r#type.as_ref().and_then(|t| t.value.as_ref());
        let Some(type_proto::Value::TensorType(tensor)) = ty else {
            return Some(Beyond::Container(info.name().to_owned()));
        };
        if !supported(tensor.elem_type()) {
            return Some(Beyond::ElementType(name(tensor.elem_type())));
        }
        let zero = |d: &Dimension| matches!(d.value, Some(dimension::Value::DimValue(0)));
        if output && tensor.shape.iter().flat_map(|s| &s.dim).any(zero) {
            return Some(Beyond::Empty(info.name().to_owned()));
        }
    }
    let cast = graph.node.iter().filter(|n| n.op_type() == "Cast").flat_map(|n| &n.attribute);
    let mut targets = cast.filter(|a| a.name() == "to").map(|a| a.i() as i32);
    targets.find(|&t| !supported(t)).map(|t| Beyond::ElementType(name(t)))
}

/// An operator's name, with its domain unless that is the default one.
pub fn display((domain, name): &OperatorName) -> String {
    if domain == "ai.onnx" { name.clone() } else { format!("{domain}.{name}") }
}

fn collect_operators<'a>(graphs: impl Iterator<Item = &'a GraphProto>, out: &mut BTreeSet<OperatorName>) {
    for node in graphs.flat_map(|g| &g.node) {
        let domain = if node.domain().is_empty() { "ai.onnx" } else { node.domain() };
        out.insert((domain.to_owned(), node.op_type().to_owned()));
        for a in &node.attribute {
            collect_operators(a.g.iter().chain(&a.graphs), out);
        }
    }
}

/// The cases of a category's folder, by name.
///
/// # Errors
/// If a model cannot be read.
pub fn cases(root: &Path, category: &str) -> Result<Vec<Case>, String> {
    let folder = root.join(category);
    let entries = fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut folders: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.join("model.onnx").is_file()).collect();
    folders.sort();
    folders.into_iter().map(|f| Case::read(category, f)).collect()
}

/// How much of a model was known when it was imported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Known {
    /// Nothing: every input was bound when the plan ran.
    Nothing,
    /// The inputs that are not float tensors of rank 1 or more.
    Operands,
    /// Every input.
    Everything,
}

/// What became of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Every data set gave the expected values; with as little known as this.
    Passed(Known),
    /// The importer refused the model, whatever was known.
    Refused(ImportErrors),
    /// A wrong value, or an error after the import.
    Wrong(String),
    /// A panic.
    Panicked(String),
}

/// Runs a case.
pub fn run(case: &Case) -> Outcome {
    match catch_unwind(AssertUnwindSafe(|| attempt_all(case))) {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(reason)) => Outcome::Wrong(reason),
        Err(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            Outcome::Panicked(
                text.or(payload.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned(),
            )
        }
    }
}

fn attempt_all(case: &Case) -> Result<Outcome, String> {
    let model: ModelProto = read_message(&case.folder.join("model.onnx"))?;
    let mut passed = None;
    let mut refused = None;
    for known in [Known::Nothing, Known::Operands, Known::Everything] {
        match attempt(case, &model, known)? {
            Some(Ok(())) => passed = passed.or(Some(known)),
            Some(Err(errors)) => refused = refused.or(Some(errors)),
            // The same as the way before.
            None => {}
        }
    }
    match (passed, refused) {
        (Some(known), _) => Ok(Outcome::Passed(known)),
        (None, Some(errors)) => Ok(Outcome::Refused(errors)),
        (None, None) => Err("it has no data set".to_owned()),
    }
}

type Attempt = Option<Result<(), ImportErrors>>;

fn attempt(case: &Case, model: &ModelProto, known: Known) -> Result<Attempt, String> {
    let graph = model.graph.as_ref().ok_or("it holds no graph")?;
    let is_tensor = |i: usize, outputs: bool| {
        let info = if outputs { graph.output.get(i) } else { graph.input.get(i) };
        let ty = info.and_then(|i| i.r#type.as_ref()).and_then(|t| t.value.as_ref());
        matches!(ty, Some(type_proto::Value::TensorType(_)))
    };
    let mut sets: Vec<PathBuf> = fs::read_dir(&case.folder)
        .map_err(|e| e.to_string())?
        .filter_map(|e| Some(e.ok()?.path()))
        .filter(|p| p.is_dir())
        .collect();
    sets.sort();
    let mut attempted = None;
    for set in sets {
        let read = |what: &str, i: usize| -> Result<Option<TensorProto>, String> {
            let path = set.join(format!("{what}_{i}.pb"));
            if path.is_file() && is_tensor(i, what == "output") {
                read_message(&path).map(Some)
            } else {
                Ok(None)
            }
        };
        let mut fixed = model.clone();
        let mut inputs = BTreeMap::new();
        let target = fixed.graph.as_mut().ok_or("it holds no graph")?;
        let mut any_fixed = false;
        for (i, info) in graph.input.iter().enumerate() {
            let Some(tensor) = read("input", i)? else { continue };
            let weight = is_float(&tensor) && !tensor.dims.is_empty();
            let fix = match known {
                Known::Nothing => false,
                Known::Operands => !weight,
                Known::Everything => true,
            };
            if fix {
                any_fixed = true;
                target.input.retain(|i| i.name() != info.name());
                target.node.insert(0, constant(info.name(), &tensor));
            } else {
                inputs.insert(info.name().to_owned(), tensor);
            }
        }
        let repeats = match known {
            Known::Nothing => false,
            Known::Operands => !any_fixed || inputs.is_empty(),
            Known::Everything => graph.input.is_empty(),
        };
        if repeats {
            return Ok(None);
        }
        // The constants are operators of the default domain, which a model need not use.
        if any_fixed && !fixed.opset_import.iter().any(|o| matches!(o.domain(), "" | "ai.onnx")) {
            fixed.opset_import.push(OperatorSetIdProto { domain: None, version: Some(17) });
        }
        let options = ImportOptions::default();
        let imported = match onnx::import_model(fixed, Some(&case.folder), &options) {
            Ok(imported) => imported,
            Err(errors) => return Ok(Some(Err(errors))),
        };
        let results = execute(&imported, Mode::Infer, &inputs)
            .map_err(|e| format!("with {known:?} known at import: {e}"))?;
        for (i, (info, result)) in graph.output.iter().zip(&results).enumerate() {
            let Some(want) = read("output", i)? else { continue };
            compare(result, &want)
                .map_err(|e| format!("with {known:?} known at import: output `{}`: {e}", info.name()))?;
        }
        attempted = Some(Ok(()));
    }
    Ok(attempted)
}

fn constant(name: &str, tensor: &TensorProto) -> NodeProto {
    let value = AttributeProto {
        name: Some("value".to_owned()),
        r#type: Some(attribute_proto::AttributeType::Tensor.into()),
        t: Some(tensor.clone()),
        ..Default::default()
    };
    NodeProto {
        op_type: Some("Constant".to_owned()),
        output: vec![name.to_owned()],
        attribute: vec![value],
        ..Default::default()
    }
}

/// Compiles, checks and runs one step; the results in the order of the model's outputs.
///
/// # Errors
/// Anything but success: what imports must run.
pub fn execute(
    imported: &Imported,
    mode: Mode,
    inputs: &BTreeMap<String, TensorProto>,
) -> Result<Vec<Tensor>, String> {
    let options = harness::options(mode, Policy::Dyn, AlgoMode::Dynamic);
    let compiled =
        driver::compile(imported.graph.clone(), imported.batch, None, &options, &harness::cost(&options));
    let plan = match compiled {
        Ok(compiled) => compiled.plan,
        Err(NoPlan::Failed(f)) => return Err(format!("no plan: {f}")),
        Err(NoPlan::TooLarge { .. }) => return Err("no plan: too large".to_owned()),
    };
    let mut bound = BTreeMap::new();
    for input in &plan.inputs {
        let ty = &plan.buffers[input.buf].ty;
        let tensor = match inputs.get(&input.name) {
            Some(proto) => tensor(proto, ty)?,
            None => Tensor::zeros(ty.clone()),
        };
        bound.insert(input.name.clone(), tensor);
    }
    let order: Vec<String> = imported.graph.outputs.iter().map(|o| o.name.clone()).collect();
    let params = harness::params(imported);
    let mut executor = Executor::load(plan, &FromTensors(&params), CpuBackend::new(CpuOptions::default()))
        .map_err(|e| format!("the plan does not load: {e}"))?;
    let mut results = executor.step(&bound).map_err(|e| format!("the step fails: {e}"))?;
    order.iter().map(|name| results.remove(name).ok_or_else(|| format!("no result `{name}`"))).collect()
}

// ---- tensors of the suite --------------------------------------------------------------

/// Reads a protobuf file.
///
/// # Errors
/// If it cannot be read or decoded.
pub fn read_message<M: Message + Default>(path: &Path) -> Result<M, String> {
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    M::decode(&bytes[..]).map_err(|e| format!("{}: {e}", path.display()))
}

fn is_float(t: &TensorProto) -> bool {
    matches!(t.data_type(), 1 | 10 | 11 | 16)
}

/// A tensor of the suite as one of the type that the plan asks for.
fn tensor(proto: &TensorProto, ty: &TensorType) -> Result<Tensor, String> {
    let dims: Vec<u64> = proto.dims.iter().map(|&d| d as u64).collect();
    // An extent of 0 in a file means that it is open; an operand that is really empty holds nothing.
    if dims.contains(&0) {
        return Ok(Tensor::zeros(ty.clone()));
    }
    if ty.dims.as_slice() != dims {
        return Err(format!("the plan has {ty} for an input of shape {dims:?}"));
    }
    let x = elements(proto)?;
    let bytes: Vec<u8> = match ty.dtype {
        DType::F32 => x.iter().flat_map(|&x| (x as f32).to_le_bytes()).collect(),
        DType::I64 => x.iter().flat_map(|&x| (x as i64).to_le_bytes()).collect(),
        DType::I32 => x.iter().flat_map(|&x| (x as i32).to_le_bytes()).collect(),
        DType::U8 | DType::Bool => x.iter().map(|&x| x as u8).collect(),
        other => return Err(format!("the plan has an input of type {other}")),
    };
    Tensor::from_bytes(ty.clone(), &bytes).ok_or_else(|| format!("{} elements for {ty}", x.len()))
}

/// The elements of a tensor of any numeric type, as f64.
///
/// # Errors
/// If the type is not numeric or the data is short.
pub fn elements(t: &TensorProto) -> Result<Vec<f64>, String> {
    let raw = t.raw_data.as_deref().unwrap_or_default();
    fn words<const N: usize>(raw: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        raw.chunks_exact(N).map(|c| f(c.try_into().expect("N bytes"))).collect()
    }
    let small = |f: fn(i32) -> f64| t.int32_data.iter().map(|&x| f(x)).collect::<Vec<_>>();
    let ty = DataType::try_from(t.data_type()).map_err(|e| e.to_string())?;
    let from_raw = !raw.is_empty();
    let found = match ty {
        DataType::Float if from_raw => words(raw, |w| f32::from_le_bytes(w).into()),
        DataType::Float => t.float_data.iter().map(|&x| x.into()).collect(),
        DataType::Double if from_raw => words(raw, f64::from_le_bytes),
        DataType::Double => t.double_data.clone(),
        DataType::Float16 if from_raw => words(raw, |w| f16::from_le_bytes(w).into()),
        DataType::Float16 => small(|x| f16::from_bits(x as u16).into()),
        DataType::Bfloat16 if from_raw => words(raw, |w| bf16::from_le_bytes(w).into()),
        DataType::Bfloat16 => small(|x| bf16::from_bits(x as u16).into()),
        DataType::Int64 if from_raw => words(raw, |w| i64::from_le_bytes(w) as f64),
        DataType::Int64 => t.int64_data.iter().map(|&x| x as f64).collect(),
        DataType::Uint64 if from_raw => words(raw, |w| u64::from_le_bytes(w) as f64),
        DataType::Uint32 if from_raw => words(raw, |w| u32::from_le_bytes(w).into()),
        DataType::Uint64 | DataType::Uint32 => t.uint64_data.iter().map(|&x| x as f64).collect(),
        DataType::Int32 if from_raw => words(raw, |w| i32::from_le_bytes(w).into()),
        DataType::Int16 if from_raw => words(raw, |w| i16::from_le_bytes(w).into()),
        DataType::Uint16 if from_raw => words(raw, |w| u16::from_le_bytes(w).into()),
        DataType::Int8 if from_raw => words(raw, |w| i8::from_le_bytes(w).into()),
        DataType::Uint8 | DataType::Bool if from_raw => words(raw, |[b]: [u8; 1]| b.into()),
        DataType::Int32
        | DataType::Int16
        | DataType::Uint16
        | DataType::Int8
        | DataType::Uint8
        | DataType::Bool => small(f64::from),
        other => return Err(format!("element type {}", other.as_str_name())),
    };
    let n: i64 = t.dims.iter().product();
    if found.len() as i64 == n {
        Ok(found)
    } else {
        Err(format!("{} elements for {:?}", found.len(), t.dims))
    }
}

/// The elements of a result, as f64.
fn values(t: &Tensor) -> Vec<f64> {
    match t.ty().dtype {
        DType::F32 => t.f32().iter().map(|&x| x.into()).collect(),
        DType::I64 => t.i64().iter().map(|&x| x as f64).collect(),
        DType::I32 => bytemuck::cast_slice::<u8, i32>(t.bytes()).iter().map(|&x| x.into()).collect(),
        _ => t.bytes().iter().map(|&b| b.into()).collect(),
    }
}

/// Compares a result, converted to the expected type, with the suite's tolerances.
///
/// # Errors
/// The first difference.
pub fn compare(found: &Tensor, want: &TensorProto) -> Result<(), String> {
    const RELATIVE: f64 = 1e-3;
    const ABSOLUTE: f64 = 1e-7;
    let dims: Vec<u64> = want.dims.iter().map(|&d| d as u64).collect();
    if found.ty().dims.as_slice() != dims {
        return Err(format!("shape {:?} instead of {dims:?}", found.ty().dims));
    }
    let float = is_float(want);
    if float != found.ty().dtype.is_float() {
        return Err(format!("{} instead of element type {}", found.ty(), want.data_type()));
    }
    let round = |x: f64| match DataType::try_from(want.data_type()) {
        Ok(DataType::Float16) => f16::from_f64(x).into(),
        Ok(DataType::Bfloat16) => bf16::from_f64(x).into(),
        _ => x,
    };
    let near = |a: f64, b: f64| {
        let tolerance = if float { ABSOLUTE + RELATIVE * b.abs() } else { 0.0 };
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance
    };
    let pairs = values(found).into_iter().map(round).zip(elements(want)?);
    match pairs.enumerate().find(|&(_, (a, b))| !near(a, b)) {
        Some((i, (a, b))) => Err(format!("[{i}] is {a} instead of {b}")),
        None => Ok(()),
    }
}

impl std::fmt::Display for Beyond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Operator(o) => write!(f, "operator {} has no importer", display(o)),
            Self::Opset(v) => write!(f, "opset {v}"),
            Self::Container(name) => write!(f, "`{name}` is no tensor"),
            Self::ElementType(name) => write!(f, "element type {name}"),
            Self::Empty(name) => write!(f, "`{name}` has no elements"),
        }
    }
}

/// What is wrong about the outcome of a case, if anything: in scope it must pass; otherwise it
/// may pass, or be refused, because of its operator if that is the reason.
pub fn objection(case: &Case, outcome: &Outcome) -> Option<String> {
    match (outcome, &case.beyond) {
        (Outcome::Passed(_), _) => None,
        (Outcome::Wrong(e), _) => Some(e.clone()),
        (Outcome::Panicked(e), _) => Some(format!("panicked: {e}")),
        (Outcome::Refused(e), None) => Some(format!("refused: {e}")),
        (Outcome::Refused(e), Some(Beyond::Operator(_))) => {
            let named = |e: &ImportError| matches!(e, ImportError::Unsupported { .. });
            (!e.errors.iter().any(named)).then(|| format!("refused for another reason: {e}"))
        }
        (Outcome::Refused(_), Some(_)) => None,
    }
}

/// Cases that may fail, with the reason, from lines `name<TAB>reason`.
///
/// # Errors
/// If the file cannot be read or a line has no reason.
pub fn ignored(path: &Path) -> Result<BTreeMap<String, String>, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    text.lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(|l| match l.split_once('\t') {
            Some((name, reason)) if !reason.trim().is_empty() => Ok((name.to_owned(), reason.to_owned())),
            _ => Err(format!("`{l}` gives no reason")),
        })
        .collect()
}
