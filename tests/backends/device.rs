//! The backends under test, behind one way to run a plan.

use std::collections::BTreeMap;
use std::fmt;
use vdnn_ir::Tensor;
use vdnn_plan::Plan;
use vdnn_runtime::backend::Backend;
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::cuda::{CudaBackend, CudaOptions};
use vdnn_runtime::executor::Executor;
use vdnnc::commands::load::FromTensors;

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda,
}

/// Outputs of each step, and the parameters after the last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub steps: Vec<BTreeMap<String, Tensor>>,
    pub params: BTreeMap<String, Tensor>,
}

/// How to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    /// NaN wherever nothing is defined.
    pub poison: bool,
    /// Replay steps from a graph, where the backend can.
    pub graph: bool,
    /// Random delays on every stream, where the backend can.
    pub delay: Option<u64>,
    /// Leave one of the plan's waits out, where the backend can.
    pub drop_wait: Option<usize>,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        })
    }
}

impl Device {
    pub fn all() -> [Self; 2] {
        [Self::Cpu, Self::Cuda]
    }

    /// Whether it can be used here.
    pub fn available(self) -> Result<(), String> {
        match self {
            Self::Cpu => Ok(()),
            Self::Cuda => match CudaBackend::new(cuda_options(PLAIN)) {
                Ok(_) => Ok(()),
                Err(e) => Err(format!("needs a CUDA device: {e}")),
            },
        }
    }

    /// The CUDA backend itself.
    pub fn cuda() -> Result<CudaBackend, String> {
        CudaBackend::new(cuda_options(PLAIN)).map_err(|e| e.to_string())
    }

    /// Runs steps of a plan, one per entry of `inputs`.
    pub fn run(
        self,
        plan: Plan,
        params: &BTreeMap<String, Tensor>,
        inputs: &[BTreeMap<String, Tensor>],
        how: How,
    ) -> Result<Outcome, String> {
        self.run_watched(plan, params, inputs, how, &mut |_, _| Ok(()))
    }

    /// The same, with a look at the parameters after every step.
    pub fn run_watched(
        self,
        plan: Plan,
        params: &BTreeMap<String, Tensor>,
        inputs: &[BTreeMap<String, Tensor>],
        how: How,
        watch: Watch<'_>,
    ) -> Result<Outcome, String> {
        match self {
            Self::Cpu => {
                let options = CpuOptions { poison: how.poison, threads: 2, ..CpuOptions::default() };
                steps(plan, params, inputs, CpuBackend::new(options), watch)
            }
            Self::Cuda => {
                let backend = CudaBackend::new(cuda_options(how)).map_err(|e| e.to_string())?;
                steps(plan, params, inputs, backend, watch)
            }
        }
    }
}

/// Called after a step with its number and what reads all parameters.
pub type Watch<'a> = &'a mut dyn FnMut(usize, &dyn Fn() -> Params) -> Result<(), String>;
/// Parameters by name.
pub type Params = Result<BTreeMap<String, Tensor>, String>;

/// No poison, no delays.
pub const PLAIN: How = How { poison: false, graph: true, delay: None, drop_wait: None };
/// NaN wherever nothing is defined.
pub const POISONED: How = How { poison: true, graph: false, delay: None, drop_wait: None };

fn cuda_options(how: How) -> CudaOptions {
    CudaOptions {
        poison: how.poison,
        graph: how.graph,
        delay_seed: how.delay,
        drop_wait: how.drop_wait,
        fail_launch: None,
        // Steps are compared bit by bit.
        deterministic: true,
        cache_dir: Some(std::env::temp_dir().join("vdnnc-test-kernels")),
        ..CudaOptions::default()
    }
}

fn steps<B: Backend>(
    plan: Plan,
    params: &BTreeMap<String, Tensor>,
    inputs: &[BTreeMap<String, Tensor>],
    backend: B,
    watch: Watch<'_>,
) -> Result<Outcome, String> {
    let mut executor = Executor::load(plan, &FromTensors(params), backend).map_err(|e| e.to_string())?;
    let mut outcome = Outcome::default();
    for (step, inputs) in inputs.iter().enumerate() {
        outcome.steps.push(executor.step(inputs).map_err(|e| e.to_string())?);
        watch(step, &|| read(&executor))?;
    }
    outcome.params = read(&executor)?;
    Ok(outcome)
}

fn read<B: Backend>(executor: &Executor<B>) -> Params {
    let value = |name: &str| executor.read_param(name).map_err(|e| e.to_string());
    executor.params().iter().map(|p| Ok((p.name.clone(), value(&p.name)?))).collect()
}
