//! What a compilation is for: a device profile, the times measured there, and what of the
//! memory is the arena's.

use super::{backend, load};
use crate::cli::{DeviceName, SharedArgs};
use crate::error::Failure;
use crate::measuring::{self, FEW_WAYS, Kernel, KernelTimer};
use crate::micro;
use crate::options::CompileOptions;
use crate::progress::Progress;
use std::fmt;
use std::path::{Path, PathBuf};
use vdnn_benchdb::BenchDb;
use vdnn_cost::{CostModel, DeviceRates, Measured, MeasuredOn, Precision};
use vdnn_ir::{Bytes, Graph};
use vdnn_passes::fuse_pyramids::{Candidate, Rule};
use vdnn_passes::{AlgoMode, BatchSizes, Workspace};
use vdnn_plan::Command;
use vdnn_runtime::cuda::DeviceFacts;

/// Who is to run the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runner {
    /// The CPU: all of `--memory` is the arena's.
    Host,
    /// The device: the process also holds a context and libraries there.
    Device,
}

/// Where the times of a GPU come from.
struct Gpu {
    on: MeasuredOn,
    db: PathBuf,
    timer: Box<dyn KernelTimer>,
}

/// What plans are made for.
pub struct Target {
    cost: CostModel,
    gpu: Option<Gpu>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = self.gpu.as_ref().map(|g| &g.on);
        f.debug_struct("Target").field("profile", &self.cost.device_name()).field("gpu", &on).finish()
    }
}

impl Target {
    /// What the options ask for, with the files they name: a profile, a table of measured
    /// times, and a plan whose convolution algorithms are put into the options. Nothing is
    /// measured yet.
    ///
    /// # Errors
    /// If there is no such profile or GPU, a file is not what it should be, or options contradict
    /// each other.
    pub fn open(options: &mut CompileOptions, shared: &SharedArgs, runner: Runner) -> Result<Self, Failure> {
        if let AlgoMode::Only(_) = options.algo
            && (options.micro_batch != BatchSizes::Undivided || options.workspace != Workspace::Planned)
        {
            return Err(Failure::user(format!(
                "--algo {} runs every convolution in one piece, with whatever workspace that takes",
                options.algo
            ))
            .hint("leave out --micro-batch, --workspace-limit and --workspace-total"));
        }
        let mut gpu = None;
        let cost = match &shared.device {
            DeviceName::Gpu(selector) => {
                let (facts, on) = backend::identify(shared, selector, "unknown")?;
                let cost = gpu_profile(&facts, &shared.gpu.device_profile, options.precision)?;
                if shared.times.is_none() {
                    let db = database(shared)?;
                    let timer = Box::new(backend::LazyTimer::quick(shared, selector));
                    gpu = Some(Gpu { on, db, timer });
                }
                cost
            }
            _ => profile(shared, options.precision)?,
        };
        let mut cost = cost.with_deterministic(options.deterministic);
        if let Some(path) = &shared.times {
            cost = cost.with_measured(load::times(path)?);
        }
        if runner == Runner::Device {
            options.overhead = cost.overhead();
        }
        if let Some(path) = &shared.kernels_from {
            let other = load::plan(path)?;
            options.kernels_made_for = other.header.engines;
            let algos = other.commands.into_iter().filter_map(|c| match c {
                Command::Launch { node, algo, .. } => Some((node, algo?)),
                _ => None,
            });
            options.kernels = algos.collect();
        }
        Ok(Self { cost, gpu })
    }

    /// The GPU that `on` describes, its times in the database `db` and from `timer`.
    pub fn measured(cost: CostModel, on: MeasuredOn, db: PathBuf, timer: Box<dyn KernelTimer>) -> Self {
        Self { cost, gpu: Some(Gpu { on, db, timer }) }
    }

    /// The cost model without what is still to be measured: its profile, layout and capacity.
    pub fn base(&self) -> &CostModel {
        &self.cost
    }

    /// The cost model to compile an imported graph with. For a GPU at hand it knows the times
    /// of exactly the graph's kernels: from the database, from the times shipped for the same
    /// GPU and libraries, and measured now and put into the database.
    ///
    /// # Errors
    /// If the database cannot be used, or the GPU fails.
    pub fn cost(&mut self, imported: &Graph, options: &CompileOptions) -> Result<CostModel, Failure> {
        if self.gpu.is_none() {
            return Ok(self.cost.clone());
        }
        let mut kernels = measuring::kernels_of(imported, options, &self.cost)?;
        if matches!(options.algo, AlgoMode::Only(_)) {
            // There is nothing to choose.
            kernels.retain(|k| !k.op.is_conv());
        }
        let pyramids = measuring::pyramids_of(imported, options, &self.cost)?;
        if let Some(rule) = options.fuse.pyramids() {
            let mut asked = pyramids.clone();
            if rule == Rule::Fitted {
                asked.retain(|c| c.is_promising(&self.cost));
            }
            kernels.extend(measuring::ways(&asked, FEW_WAYS, &self.cost));
        }
        self.cost_of((&kernels, &pyramids), options, micro::enough(options.workspace))
    }

    /// The cost model for these kernels and the micro-batches that the options allow of them,
    /// as [`Self::cost`], and with what is known already of the pyramids; `enough` as
    /// [`micro::fill_micro_batches`].
    ///
    /// # Errors
    /// If the database cannot be used, or the GPU fails.
    pub fn cost_of(
        &mut self,
        (kernels, pyramids): (&[Kernel], &[Candidate]),
        options: &CompileOptions,
        enough: Bytes,
    ) -> Result<CostModel, Failure> {
        let Some(Gpu { on, db, timer }) = &mut self.gpu else {
            return Ok(self.cost.clone());
        };
        let mut db = BenchDb::open(db).map_err(Failure::user)?;
        let known = db.times(on).map_err(Failure::user)?;
        let shipped = CostModel::shipped_times(on);
        let tables: Vec<&Measured> = [Some(&known), shipped.as_deref()].into_iter().flatten().collect();
        let progress = Progress::new(kernels.len() as u64, "measuring");
        let mut filled = measuring::fill(
            (kernels, options.precision),
            &tables,
            on,
            &mut **timer,
            &mut |rows| db.add(rows).map_err(Failure::user),
            &progress,
        )?;
        progress.finish();
        filled.table.merge(&measuring::known(pyramids, options.precision, &tables, on));
        let mut source = micro::Source {
            known: &tables,
            on,
            timer: &mut **timer,
            keep: &mut |rows| db.add(rows).map_err(Failure::user),
        };
        let all = (kernels, options.precision);
        micro::fill_micro_batches(all, options.micro_batch, enough, &mut source, &mut filled)?;
        if filled.timed > 0 {
            super::note(&format!(
                "measured {} kernels on {on}, kept in {}",
                filled.timed,
                db.path().display()
            ));
        }
        for text in &filled.skipped {
            super::warn(&format!("not measured: {text}"));
        }
        Ok(self.cost.clone().with_measured(filled.table))
    }
}

/// The profile the options name: a file or a shipped one. For a GPU at hand see
/// [`Target::open`].
///
/// # Errors
/// If there is none.
pub fn profile(shared: &SharedArgs, precision: Precision) -> Result<CostModel, Failure> {
    match (&shared.gpu.device_profile, &shared.device) {
        (Some(path), _) | (None, DeviceName::File(path)) => from_file(path, precision),
        (None, name) => load::cost_model(&name.to_string(), precision),
    }
}

fn from_file(path: &Path, precision: Precision) -> Result<CostModel, Failure> {
    let fail = |e: &dyn fmt::Display| Failure::user(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
    Ok(CostModel::from_toml(&text, precision).map_err(|e| fail(&e))?.with_shipped_times())
}

/// The profile of a GPU at hand: the file, else the one shipped for it, else what it says of
/// itself.
///
/// # Errors
/// If the file is no profile.
pub fn gpu_profile(
    facts: &DeviceFacts,
    file: &Option<PathBuf>,
    precision: Precision,
) -> Result<CostModel, Failure> {
    if let Some(path) = file {
        return from_file(path, precision);
    }
    if let Some(name) = CostModel::shipped_for(&facts.name) {
        return load::cost_model(name, precision);
    }
    CostModel::from_toml(&nominal(facts).to_toml(), precision).map_err(Failure::internal)
}

/// A guess at a GPU that was never calibrated, from its clocks: FMA lanes per multiprocessor
/// and the ratio of its matrix units as in NVIDIA's data sheets of the generation, PCIe gen 4.
fn nominal(facts: &DeviceFacts) -> DeviceRates {
    let (lanes, tf32, bf16) = match facts.compute_capability {
        (..=7, _) => (64.0, None, None),
        (8, 0) => (64.0, Some(8.0), Some(16.0)),
        (8, _) => (128.0, Some(1.0), Some(2.0)),
        (9.., _) => (128.0, Some(7.4), Some(14.8)),
    };
    let ghz = f64::from(facts.clock_mhz.max(1000)) / 1e3;
    let f32_tflops = 0.75 * 2.0 * lanes * f64::from(facts.multiprocessors.max(1)) * ghz / 1e3;
    let bandwidth_gbps = 0.85 * (facts.memory_rate.max(200_000) as f64) / 1e3;
    let link = bandwidth_gbps.min(22.0);
    DeviceRates {
        name: facts.name.clone(),
        gpu: facts.name.clone(),
        source: "nominal: from the clocks the driver reports".to_owned(),
        capacity: facts.total_memory.saturating_sub(Bytes(512 << 20)),
        overhead: Bytes(700_000_000),
        bandwidth_gbps,
        f32_tflops,
        tf32_tflops: tf32.map(|r| r * f32_tflops),
        bf16_tflops: bf16.map(|r| r * f32_tflops),
        launch_us: 2.5,
        d2h_gbps: link,
        h2d_gbps: link,
        latency_us: 8.0,
        both_ways: 0.9,
    }
}

/// The database the options name, else the user's.
///
/// # Errors
/// If neither is known.
pub fn database(shared: &SharedArgs) -> Result<PathBuf, Failure> {
    shared
        .gpu
        .db
        .clone()
        .or_else(|| backend::cache_folder().map(|folder| folder.join("bench.sqlite")))
        .ok_or_else(|| {
            Failure::user("there is no cache folder for measured times").hint("name a file with --db")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_gpu_has_a_profile() {
        for compute_capability in [(5, 2), (7, 5), (8, 0), (8, 6), (9, 0), (12, 0)] {
            for known in [false, true] {
                let facts = DeviceFacts {
                    name: "Some \"GPU\"".to_owned(),
                    uuid: String::new(),
                    compute_capability,
                    multiprocessors: if known { 132 } else { 0 },
                    total_memory: Bytes(8 << 30),
                    l2: Bytes(0),
                    clock_mhz: if known { 1980 } else { 0 },
                    memory_rate: if known { 4_917_000 } else { 0 },
                    driver_version: 13_000,
                };
                for precision in Precision::ALL {
                    let cost = gpu_profile(&facts, &None, precision).expect("a profile");
                    assert_eq!(cost.device_name(), facts.name);
                    assert!(cost.overhead() > Bytes::ZERO && cost.capacity() < facts.total_memory);
                }
            }
        }
        let h200 = DeviceFacts {
            name: "NVIDIA H200".to_owned(),
            uuid: String::new(),
            compute_capability: (9, 0),
            multiprocessors: 132,
            total_memory: Bytes(140 << 30),
            l2: Bytes(0),
            clock_mhz: 1980,
            memory_rate: 4_917_000,
            driver_version: 13_000,
        };
        assert_eq!(gpu_profile(&h200, &None, Precision::F32).expect("a profile").device_name(), "h200");
        // The guess is not far from what was measured there.
        let guess = nominal(&h200);
        assert!((guess.bandwidth_gbps / 4200.0 - 1.0).abs() < 0.1, "{guess:?}");
        assert!((guess.f32_tflops / 50.6 - 1.0).abs() < 0.1, "{guess:?}");
        assert!((guess.tf32_tflops.unwrap_or(0.0) / 397.0 - 1.0).abs() < 0.1, "{guess:?}");
    }
}
