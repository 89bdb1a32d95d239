//! Times and energy on a GPU: whole steps as captured graphs, and the 3x3 convolutions one by one
//! on the feature maps that the images give them.

use super::zeros::Layer;
use crate::cli::{ComputeBackend, CudaArgs, CusnnArgs, DeviceName, SharedArgs};
use crate::commands::backend::{self, Choice};
use crate::commands::bench;
use crate::commands::load::{self, FromWeights};
use crate::commands::target::{Runner, Target};
use crate::driver;
use crate::error::Failure;
use crate::measuring;
use crate::progress::Progress;
use std::collections::BTreeMap;
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Mode, Nanos, Op, Precision, Tensor};
use vdnn_plan::{CmdId, Command, Plan};
use vdnn_runtime::cpu::{CpuBackend, CpuOptions};
use vdnn_runtime::cuda::{CudaBackend, Energy};
use vdnn_runtime::executor::Executor;

/// The three algorithms that the artifact's layer times are compared with.
pub(super) const CLASSIC: [ConvAlgo; 3] =
    [ConvAlgo::ImplicitGemm, ConvAlgo::ImplicitPrecompGemm, ConvAlgo::Gemm];

/// Steps before the measured ones: one loads code, one is captured.
const WARM_UP: usize = 3;
/// Measured steps per image.
const STEPS: usize = 50;

/// One way to run a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As the artifact's baseline.
    ImplicitGemm,
    /// The same, but for the 3x3 convolutions.
    Sparse,
    /// The fastest dense kernel of each convolution, nothing fused.
    Dense,
    /// Our best dense plan.
    Best,
    /// The same, with zeros left out where that was measured to be faster.
    Auto,
}

impl Way {
    pub(super) const ALL: [Self; 5] = [Self::ImplicitGemm, Self::Sparse, Self::Dense, Self::Best, Self::Auto];

    /// Key in JSON.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ImplicitGemm => "implicit_gemm",
            Self::Sparse => "sparse",
            Self::Dense => "dense",
            Self::Best => "best",
            Self::Auto => "auto",
        }
    }

    /// What a reader is told.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::ImplicitGemm => "IMPLICIT_GEMM throughout",
            Self::Sparse => "the same, 3x3 on zeros",
            Self::Dense => "fastest dense kernels",
            Self::Best => "best dense plan (fused)",
            Self::Auto => "the same, zeros by time",
        }
    }

    /// The compile options, as on the command line.
    fn options(self) -> &'static str {
        match self {
            Self::ImplicitGemm => "--algo only=implicit_gemm --fuse off --sparse off",
            Self::Sparse => "--algo only=implicit_gemm --fuse off --sparse force=activations",
            Self::Dense => "--algo performance --fuse off --sparse off",
            Self::Best => "--algo performance --fuse auto --sparse off",
            Self::Auto => "--algo performance --fuse auto --sparse auto",
        }
    }

    /// True if its kernels are chosen by times, which are measured where they are not known.
    fn needs_times(self) -> bool {
        matches!(self, Self::Dense | Self::Best | Self::Auto)
    }
}

/// What one way came to.
#[derive(Debug)]
pub(super) struct StepRow {
    pub way: Way,
    /// Median step of each image.
    pub steps: Vec<Nanos>,
    /// Of the steps on the first image; not of [`Way::Dense`].
    pub energy: Option<Result<Energy, String>>,
    /// Steps were replayed from a graph.
    pub captured: bool,
    /// Largest difference of a result from the baseline's, of the baseline from the CPU's, over the
    /// largest of theirs.
    pub deviation: f64,
    /// Convolutions that leave zeros out.
    pub sparse: usize,
}

impl StepRow {
    /// Mean over the images.
    pub(super) fn step(&self) -> Nanos {
        Nanos(self.steps.iter().map(|s| s.0).sum::<u64>() / self.steps.len().max(1) as u64)
    }
}

/// Times of one layer, means over the images.
#[derive(Clone, Debug, Default)]
pub(super) struct LayerRow {
    /// By [`CLASSIC`], without the bias.
    pub classic: [Option<Nanos>; 3],
    /// By the fastest dense kernel, with the bias.
    pub dense: Option<Nanos>,
    /// By the activation-sparse kernel, with the bias.
    pub sparse: Option<Nanos>,
}

impl LayerRow {
    /// The fastest of the three.
    pub(super) fn best_of_three(&self) -> Option<Nanos> {
        self.classic.iter().flatten().min().copied()
    }

    /// The fastest dense kernel of all that were timed.
    pub(super) fn best_dense(&self) -> Option<Nanos> {
        self.dense.into_iter().chain(self.best_of_three()).min()
    }

    /// How much faster the sparse kernel is than the best of the three, and than the best.
    pub(super) fn gains(&self) -> [Option<f64>; 2] {
        [self.best_of_three(), self.best_dense()].map(|d| Some(d?.as_f64() / self.sparse?.as_f64().max(1.0)))
    }
}

/// Everything timed of one model.
#[derive(Debug)]
pub(super) struct Timed {
    pub device: String,
    pub images: usize,
    pub steps: Vec<StepRow>,
    /// As the layers that zeros were counted of.
    pub layers: Vec<LayerRow>,
    /// Ways that could not be timed, and why.
    pub missing: Vec<(Way, String)>,
}

/// The GPU and how it is asked for.
pub(super) struct Device<'a> {
    args: &'a CusnnArgs,
    cuda: CudaArgs,
}

impl<'a> Device<'a> {
    /// The GPU the options name; makes no context.
    pub(super) fn new(args: &'a CusnnArgs) -> Self {
        let cuda = CudaArgs {
            cuda_device: args.cuda_device.clone(),
            no_graph: false,
            delay_seed: None,
            drop_wait: None,
            fail_launch: None,
        };
        Self { args, cuda }
    }

    /// Why there is nothing to time on.
    ///
    /// # Errors
    /// Without a GPU, or a library for it.
    pub(super) fn probe(&self) -> Result<(), Failure> {
        let shared = self.shared("")?;
        let (cuda, shared) = (&self.cuda, &shared);
        let choice = Choice { backend: ComputeBackend::Cuda, threads: None, poison: false, cuda, shared };
        choice.probe()
    }

    fn shared(&self, options: &str) -> Result<SharedArgs, Failure> {
        let fixed = "--policy none --precision f32 --batch 1";
        let words = fixed.split_whitespace().chain(options.split_whitespace());
        let mut shared = SharedArgs::of(words)?;
        shared.gpu = self.args.gpu.clone();
        shared.device = DeviceName::Gpu(self.cuda.cuda_device.clone().unwrap_or_default());
        Ok(shared)
    }

    /// A plan of the model run one way, on the device.
    fn load(&self, way: Way, model: &load::Model) -> Result<Executor<CudaBackend>, Failure> {
        let shared = self.shared(way.options())?;
        let mut options = shared.options_on_gpu(Mode::Infer);
        let mut target = Target::open(&mut options, &shared, Runner::Device)?;
        model.note_zeros(&mut options);
        let graph = &model.imported.graph;
        let cost = if way.needs_times() {
            // Nothing else has several kernels to choose among.
            let mut kernels = measuring::kernels_of(graph, &options, target.base())?;
            kernels.retain(|k| k.op.is_conv() || matches!(k.op, Op::SparseInputConv { .. }));
            let pyramids = measuring::pyramids_of(graph, &options, target.base())?;
            target.cost_of((&kernels, &pyramids), &options, Bytes::ZERO)?
        } else {
            target.base().clone()
        };
        // Measuring holds memory of the device.
        drop(target);
        let plan = driver::compile(graph.clone(), model.imported.batch, None, &options, &cost)
            .map_err(load::over_budget)?
            .plan;
        let backend = backend::cuda(&self.cuda, &shared, false)?;
        Executor::load(plan, &FromWeights(&model.imported.weights), backend).map_err(Failure::user)
    }

    /// Times the model every way, on the first images.
    ///
    /// # Errors
    /// If the baseline cannot be timed.
    pub(super) fn time(
        &self,
        model: &load::Model,
        images: &Tensor,
        layers: &[Layer],
    ) -> Result<Timed, Failure> {
        let images = split(model, images, self.args.timed_images)?;
        let mut timed = Timed {
            device: String::new(),
            images: images.len(),
            steps: Vec::new(),
            layers: vec![LayerRow::default(); layers.len()],
            missing: Vec::new(),
        };
        let progress = Progress::new(Way::ALL.len() as u64, "timing");
        let mut expected = on_cpu(model, &images)?;
        for way in Way::ALL {
            match self.time_one(way, model, &images, layers, &mut expected, &mut timed) {
                Ok(row) => timed.steps.push(row),
                Err(failure) if way == Way::ImplicitGemm => return Err(failure),
                Err(failure) => timed.missing.push((way, failure.message)),
            }
            progress.tick(way.name());
        }
        progress.finish();
        Ok(timed)
    }

    fn time_one(
        &self,
        way: Way,
        model: &load::Model,
        images: &[BTreeMap<String, Tensor>],
        layers: &[Layer],
        expected: &mut [BTreeMap<String, Tensor>],
        timed: &mut Timed,
    ) -> Result<StepRow, Failure> {
        let mut executor = self.load(way, model)?;
        timed.device.clone_from(&executor.backend().device().facts().name);
        for _ in 0..WARM_UP {
            executor.step(&images[0]).map_err(Failure::user)?;
        }
        let mut deviation: f64 = 0.0;
        for (i, image) in images.iter().enumerate() {
            let outputs = executor.step(image).map_err(Failure::user)?;
            deviation = largest(deviation, difference(&outputs, &expected[i]));
            if way == Way::ImplicitGemm {
                expected[i] = outputs;
            }
        }
        let (mut steps, mut energy) = (Vec::new(), None);
        for image in images {
            let (backend, bound) = executor.bind(image).map_err(Failure::user)?;
            let mut times = backend.time_steps(&bound, STEPS).map_err(Failure::user)?;
            if energy.is_none() && way != Way::Dense {
                energy = Some(bench::energy(backend, &bound, &times));
            }
            times.sort();
            steps.push(times[times.len() / 2]);
        }
        let launches = launches(executor.plan(), layers);
        let is_sparse = |c: &&Command| matches!(c, Command::Launch { op: Op::SparseInputConv { .. }, .. });
        let sparse = executor.plan().commands.iter().filter(is_sparse).count();
        self.time_layers(way, &mut executor, images, &launches, &mut timed.layers)?;
        let captured = executor.backend().is_captured();
        Ok(StepRow { way, steps, energy, captured, deviation, sparse })
    }

    fn time_layers(
        &self,
        way: Way,
        executor: &mut Executor<CudaBackend>,
        images: &[BTreeMap<String, Tensor>],
        launches: &[Option<(CmdId, bool)>],
        rows: &mut [LayerRow],
    ) -> Result<(), Failure> {
        let found: Vec<(usize, CmdId)> = launches
            .iter()
            .enumerate()
            .filter_map(|(i, l)| l.filter(|l| way != Way::Sparse || l.1).map(|l| (i, l.0)))
            .collect();
        let wanted: Vec<CmdId> = found.iter().map(|f| f.1).collect();
        let algos: &[ConvAlgo] = if way == Way::ImplicitGemm { &CLASSIC } else { &[] };
        // The time of dense kernels does not depend on the image.
        let images = match way {
            Way::Best | Way::Auto => return Ok(()),
            Way::Sparse => images,
            Way::ImplicitGemm | Way::Dense => &images[..1],
        };
        let mut sums = vec![0u64; found.len()];
        for image in images {
            let (backend, bound) = executor.bind(image).map_err(Failure::user)?;
            let times = backend.time_launches(&bound, &wanted, algos).map_err(Failure::user)?;
            for ((t, sum), (row, _)) in times.iter().zip(&mut sums).zip(&found) {
                *sum += t.own.0;
                for (to, from) in rows[*row].classic.iter_mut().zip(&t.classic) {
                    *to = *from;
                }
            }
        }
        for (sum, (row, _)) in sums.into_iter().zip(found) {
            let mean = Some(Nanos(sum / images.len() as u64));
            match way {
                Way::Dense => rows[row].dense = mean,
                Way::Sparse => rows[row].sparse = mean,
                _ => {}
            }
        }
        Ok(())
    }
}

/// The first images as inputs of steps.
fn split(model: &load::Model, images: &Tensor, most: u64) -> Result<Vec<BTreeMap<String, Tensor>>, Failure> {
    let graph = &model.imported.graph;
    let &[x] = graph.inputs() else { return Err(Failure::user("the model has several inputs")) };
    let ty = graph.ty(x);
    let chunks = images.bytes().chunks_exact(ty.bytes().0.max(1) as usize);
    let one = |bytes| {
        let image = Tensor::from_bytes(ty.clone(), bytes).ok_or_else(|| Failure::internal("an image"))?;
        Ok(BTreeMap::from([(graph.value(x).name.clone(), image)]))
    };
    chunks.take(usize::try_from(most).unwrap_or(usize::MAX)).map(one).collect()
}

/// What the CPU makes of each image.
fn on_cpu(
    model: &load::Model,
    images: &[BTreeMap<String, Tensor>],
) -> Result<Vec<BTreeMap<String, Tensor>>, Failure> {
    let options = SharedArgs::of(["--batch", "1", "--sparse", "off"])?.options_on_cpu(Mode::Infer);
    let cost = load::cost_model("cpu", Precision::F32)?;
    let plan = model.compile(None, &options, &cost).map_err(load::over_budget)?.plan;
    let threads = crate::commands::run::default_threads();
    let backend = CpuBackend::new(CpuOptions { threads, ..CpuOptions::default() });
    let source = FromWeights(&model.imported.weights);
    let mut executor = Executor::load(plan, &source, backend).map_err(Failure::user)?;
    images.iter().map(|image| executor.step(image).map_err(Failure::user)).collect()
}

/// The launch of each layer, and whether it leaves zeros out.
fn launches(plan: &Plan, layers: &[Layer]) -> Vec<Option<(CmdId, bool)>> {
    let mut by_name: BTreeMap<&str, (CmdId, bool)> = BTreeMap::new();
    for (i, command) in plan.commands.iter().enumerate() {
        if let Command::Launch { name, op, .. } = command {
            let sparse = matches!(op, Op::SparseInputConv { .. });
            if sparse || op.is_conv() {
                by_name.entry(name).or_insert((CmdId::from_index(i), sparse));
            }
        }
    }
    layers.iter().map(|l| by_name.get(l.name.as_str()).copied()).collect()
}

/// The larger of two; NaN if one is.
fn largest(a: f64, b: f64) -> f64 {
    if a.is_nan() || b <= a { a } else { b }
}

/// Largest difference of results over the largest of them.
fn difference(ours: &BTreeMap<String, Tensor>, theirs: &BTreeMap<String, Tensor>) -> f64 {
    let of = |(name, b): (&String, &Tensor)| {
        let Some(a) = ours.get(name).filter(|a| a.ty() == b.ty()) else { return f64::INFINITY };
        let apart = a.f32().iter().zip(b.f32()).map(|(a, b)| f64::from((a - b).abs()));
        let scale = b.f32().iter().map(|b| f64::from(b.abs())).fold(f64::MIN_POSITIVE, f64::max);
        apart.fold(0.0, largest) / scale
    };
    theirs.iter().map(of).fold(0.0, largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_is_options_that_the_command_line_takes() {
        for way in Way::ALL {
            let words = way.options().split_whitespace();
            assert!(SharedArgs::of(words).is_ok(), "{way:?}");
        }
    }

    #[test]
    fn gains_are_over_the_best_of_three_and_over_the_best() {
        let ns = |n| Some(Nanos(n));
        let row = LayerRow { classic: [ns(40), None, ns(30)], dense: ns(15), sparse: ns(10) };
        assert_eq!(row.gains(), [Some(3.0), Some(1.5)]);
        let slow = LayerRow { dense: ns(90), ..row.clone() };
        assert_eq!(slow.gains(), [Some(3.0), Some(3.0)], "one of the three is the best dense kernel");
        assert_eq!(LayerRow { sparse: None, ..row }.gains(), [None, None]);
    }

    #[test]
    fn differences_are_relative_and_notice_nan() {
        let of = |v: &[f32]| BTreeMap::from([("y".to_owned(), Tensor::from_f32([v.len() as u64], v))]);
        assert_eq!(difference(&of(&[1.0, -4.0]), &of(&[1.0, -4.0])), 0.0);
        assert_eq!(difference(&of(&[1.5, -4.0]), &of(&[1.0, -4.0])), 0.125);
        assert!(difference(&of(&[f32::NAN, -4.0]), &of(&[1.0, -4.0])).is_nan());
        assert_eq!(difference(&BTreeMap::new(), &of(&[1.0])), f64::INFINITY);
    }
}
