//! Prices of pyramids: what was measured of them, and what is predicted of the rest.

use crate::CostModel;
use crate::measured::{Measured, MeasuredRow, NOT_CAPTURED};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use vdnn_ir::op::PyramidAttrs;
use vdnn_ir::{Bytes, Nanos, Op, Precision, TensorType};
use vdnn_pyramid::kernel::{Config, configs, kernel};
use vdnn_pyramid::machine::{Machine, Target};
use vdnn_pyramid::search::estimate;
use vdnn_pyramid::stage::{self, Stage, StageConfig, stage_of};
use vdnn_pyramid::{Chain, chain_of, tensor};

/// Share of what a fused kernel is taken to reach that plain loops do, which read both factors
/// of every product from memory. Nominal.
const LOOPS: f64 = 0.15;

/// What was searched for, by layers and operands. A search depends on nothing else of a model but its
/// profile and precision, so models made of one another share what they found.
#[derive(Debug, Default)]
pub(crate) struct Searched(Mutex<BTreeMap<Key, Vec<PyramidOption>>>);

/// Layers without a configuration, and the types of their operands.
type Key = (PyramidAttrs, Vec<TensorType>);

/// A way to run a pyramid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PyramidOption {
    /// The text of [`PyramidAttrs::config`].
    pub config: String,
    /// Its time.
    pub time: Nanos,
}

impl PyramidOption {
    /// Whether predictions of its kind are fitted to measurements: those of kernels for matrix
    /// units, not those of plain loops.
    pub fn is_fitted(&self) -> bool {
        is_fitted(&self.config)
    }
}

/// See [`PyramidOption::is_fitted`].
fn is_fitted(config: &str) -> bool {
    matches!(config.parse(), Ok(Config::Tensor(_) | Config::Stage(_)))
}

impl Measured {
    /// Every configuration of a pyramid that was measured on operands of these types, whatever
    /// its own is, by its text.
    pub fn pyramids(
        &self,
        pyramid: &PyramidAttrs,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        precision: Precision,
    ) -> Vec<(&str, &MeasuredRow)> {
        // Pyramids that differ in their configurations alone are neighbours, the empty one first.
        let first = Op::Pyramid(pyramid.with_config(""));
        let alike = self.from(&first).map_while(|op| match op {
            Op::Pyramid(other) if other.layers == pyramid.layers => Some((op, other)),
            _ => None,
        });
        alike
            .filter_map(|(op, other)| {
                let row = self.rows(op, inputs, outputs, precision)?.first()?;
                Some((other.config.as_str(), row))
            })
            .collect()
    }
}

impl CostModel {
    /// The machine that pyramids would run on, at this model's rates; `None` where nothing is
    /// known of its multiprocessors.
    pub fn pyramid_target(&self) -> Option<Target> {
        let peaks = self.peaks();
        Some(Target {
            machine: Machine::named(self.device_name())?,
            precision: self.precision(),
            peak: peaks.arithmetic,
            bandwidth: peaks.bandwidth,
            launch: peaks.launch,
        })
    }

    /// The ways to run a pyramid, whatever its own configuration, that were measured to run and
    /// that kernels are still printed by, fastest first (ties by text).
    pub fn measured_pyramid(
        &self,
        pyramid: &PyramidAttrs,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
    ) -> Vec<PyramidOption> {
        let rows = self.measured().pyramids(pyramid, inputs, outputs, self.precision());
        let is_way = |config: &str| config.parse::<Config>().is_ok();
        let runs = rows.into_iter().filter(|(c, row)| !row.has(NOT_CAPTURED) && is_way(c));
        sorted(
            runs.filter_map(|(config, row)| {
                Some(PyramidOption { config: config.to_owned(), time: row.time? })
            }),
        )
    }

    /// The fastest way to run a pyramid, whatever its own configuration, and whether it was measured: by
    /// measurements, where there are any, else by the predictions that are `believed`.
    pub fn fastest_pyramid(
        &self,
        pyramid: &PyramidAttrs,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        believed: impl Fn(&PyramidOption) -> bool,
    ) -> Option<(PyramidOption, bool)> {
        if let Some(option) = self.measured_pyramid(pyramid, inputs, outputs).into_iter().next() {
            return Some((option, true));
        }
        // What was measured and is no way could not run.
        let failed =
            |config: &str| self.is_measured(&Op::Pyramid(pyramid.with_config(config)), inputs, outputs);
        let mut predicted = self.predicted_pyramid(pyramid, inputs).into_iter();
        Some((predicted.find(|o| believed(o) && !failed(&o.config))?, false))
    }

    /// The ways to run a pyramid for which there are kernels, with their predicted times,
    /// fastest first (ties by text). None where nothing is known of the multiprocessors.
    pub fn predicted_pyramid(&self, pyramid: &PyramidAttrs, inputs: &[&TensorType]) -> Vec<PyramidOption> {
        let types = inputs.iter().map(|&t| t.clone()).collect();
        let key = (pyramid.with_config(""), types);
        let mut known = self.pyramids.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.entry(key).or_insert_with(|| self.search_pyramid(pyramid, inputs)).clone()
    }

    fn search_pyramid(&self, pyramid: &PyramidAttrs, inputs: &[&TensorType]) -> Vec<PyramidOption> {
        if let Some(stage) = stage_of(pyramid, inputs) {
            let batch = inputs[0].dims[0];
            let option = |c: StageConfig| PyramidOption {
                config: Config::Stage(c).to_string(),
                time: stage::predict(&stage, &c, batch),
            };
            return sorted(self.stage_configs(&stage, inputs).into_iter().map(option));
        }
        let Some((chain, target, batch)) = self.pyramid_problem(pyramid, inputs) else { return Vec::new() };
        let layout = inputs[0].layout;
        let ways = configs(&chain, target.precision, layout, batch, &target.machine);
        let prints = |c: &Config| kernel(&chain, c, target.precision, layout, batch).is_ok();
        sorted(ways.into_iter().filter(prints).filter_map(|c| {
            Some(PyramidOption { config: c.to_string(), time: predict(&chain, c, &target, batch)? })
        }))
    }

    /// The ways to run a stage on this device.
    fn stage_configs(&self, stage: &Stage, inputs: &[&TensorType]) -> Vec<StageConfig> {
        let (layout, batch) = (inputs[0].layout, inputs[0].dims[0]);
        let target = self.pyramid_target();
        target.map(|t| stage::configs(stage, t.precision, layout, batch, &t.machine)).unwrap_or_default()
    }

    fn pyramid_problem(
        &self,
        pyramid: &PyramidAttrs,
        inputs: &[&TensorType],
    ) -> Option<(Chain, Target, u64)> {
        let batch = *inputs.first()?.dims.first()?;
        Some((chain_of(pyramid, inputs)?, self.pyramid_target()?, batch))
    }

    /// Whether the time of an op on operands of these types can stand beside measured ones: it was
    /// measured, or it is a pyramid whose prediction is fitted to measurements.
    pub fn is_reliable(&self, op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> bool {
        let fitted = matches!(op, Op::Pyramid(pyramid) if is_fitted(&pyramid.config));
        fitted || self.is_measured(op, inputs, outputs)
    }

    /// The predicted time of a pyramid by its configuration; `None` if that says nothing.
    pub(crate) fn pyramid(&self, pyramid: &PyramidAttrs, inputs: &[&TensorType]) -> Option<Nanos> {
        let config = pyramid.config.parse().ok()?;
        if let Config::Stage(config) = config {
            let stage = stage_of(pyramid, inputs)?;
            let runs = !self.stage_configs(&stage, inputs).is_empty();
            return runs.then(|| stage::predict(&stage, &config, inputs[0].dims[0]));
        }
        let (chain, target, batch) = self.pyramid_problem(pyramid, inputs)?;
        predict(&chain, config, &target, batch)
    }
}

fn sorted(options: impl Iterator<Item = PyramidOption>) -> Vec<PyramidOption> {
    let mut all: Vec<PyramidOption> = options.collect();
    all.sort_by(|a, b| (a.time, &a.config).cmp(&(b.time, &b.config)));
    all
}

/// The predicted time of a chain; `None` if it does not fit.
fn predict(chain: &Chain, config: Config, target: &Target, batch: u64) -> Option<Nanos> {
    match config {
        Config::Loops(tiling) => {
            let slow = Target { peak: target.peak * LOOPS, ..target.clone() };
            estimate(chain, tiling, &slow, batch).map(|e| e.time)
        }
        Config::Tensor(config) => tensor::predict(chain, &config, target.precision, batch),
        Config::Stage(_) => None,
    }
}

/// What an op needs on the device besides its operands and results whatever is chosen for it: the
/// rings of a stage of blocks. Workspaces of convolutions are those of their algorithms.
pub fn rings(op: &Op, inputs: &[&TensorType]) -> Bytes {
    let Op::Pyramid(pyramid) = op else { return Bytes::ZERO };
    let (Ok(Config::Stage(config)), Some(stage)) = (pyramid.config.parse(), stage_of(pyramid, inputs)) else {
        return Bytes::ZERO;
    };
    stage::workspace(&stage, &config, inputs[0].dims[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_ir::Bytes;

    const PAIR: &str = "pyramid(layers:[(kind:conv(conv:(kernel:[1,1],strides:[1,1],before:[0,0],after:[0,0],\
        dilations:[1,1],groups:1),bias:true),then:[relu]),(kind:max_pool(kernel:[2,2],strides:[2,2],\
        before:[0,0],after:[0,0],dilations:[1,1],ceil_mode:false))])";

    fn types(list: [&str; 3]) -> Vec<TensorType> {
        list.iter().map(|t| t.parse().expect("a type")).collect()
    }

    #[test]
    fn configurations_have_times_of_their_own() {
        let Ok(Op::Pyramid(pyramid)) = PAIR.parse() else { panic!("{PAIR}") };
        let inputs = types(["f32[8,64,56,56]nhwc", "f32[64,64,1,1]nhwc", "f32[64]"]);
        let inputs: Vec<&TensorType> = inputs.iter().collect();
        let output: TensorType = "f32[8,64,28,28]nhwc".parse().expect("a type");
        let cost = CostModel::named("h200", Precision::Tf32).expect("a profile");
        assert!(cost.measured_pyramid(&pyramid, &inputs, &[&output]).is_empty());
        let predicted = cost.predicted_pyramid(&pyramid, &inputs);
        assert!(predicted.len() > 1 && predicted.is_sorted_by_key(|o| o.time));
        let time = |cost: &CostModel, config: &str| {
            cost.kernel(&Op::Pyramid(pyramid.with_config(config)), &inputs, &[&output], None)
        };
        assert!(predicted.iter().all(|o| time(&cost, &o.config) == o.time));
        // Without a configuration, and on a machine that nobody described, still some time.
        assert!(time(&cost, "") > Nanos::ZERO);
        let other = CostModel::named("cpu", Precision::F32).expect("a profile");
        assert!(other.predicted_pyramid(&pyramid, &inputs).is_empty() && time(&other, "") > Nanos::ZERO);

        let mut table = Measured::default();
        let slow = MeasuredRow { algo: None, workspace: Bytes::ZERO, time: Some(Nanos(7)), flags: vec![] };
        let rows = [
            ("loops recompute 1x1", slow.clone()),
            ("loops recompute 2x2", MeasuredRow { time: Some(Nanos(5)), ..slow.clone() }),
            ("loops recompute 3x3", MeasuredRow { time: None, ..slow.clone() }),
            ("a way of old", MeasuredRow { time: Some(Nanos(1)), ..slow.clone() }),
            ("loops recompute 4x4", MeasuredRow { flags: vec![NOT_CAPTURED.to_owned()], ..slow }),
        ];
        for (config, row) in rows {
            let op = Op::Pyramid(pyramid.with_config(config));
            table.insert(&op, &inputs, &[&output], Precision::Tf32, row);
        }
        let table: Measured = table.to_string().parse().expect("its own text");
        assert_eq!(table.pyramids(&pyramid, &inputs, &[&output], Precision::Tf32).len(), 5);
        // Products of another precision are other kernels.
        assert!(table.pyramids(&pyramid, &inputs, &[&output], Precision::Bf16).is_empty());
        let cost = cost.with_measured(table);
        let found = cost.measured_pyramid(&pyramid, &inputs, &[&output]);
        let found: Vec<(&str, u64)> = found.iter().map(|o| (o.config.as_str(), o.time.0)).collect();
        assert_eq!(found, [("loops recompute 2x2", 5), ("loops recompute 1x1", 7)]);
        assert_eq!(time(&cost, "loops recompute 1x1"), Nanos(7));
    }

    /// Two blocks over so many images, the first with a convolution as its residual, with their
    /// operands' types and the result's.
    fn stage(images: u64) -> (PyramidAttrs, Vec<TensorType>, TensorType) {
        let pyramid = PyramidAttrs::stage(2, true);
        let mut operands = vec![format!("f32[{images},64,56,56]nhwc")];
        for (out, into, kernel) in
            [(64, 64, 1), (64, 64, 3), (256, 64, 1), (256, 64, 1), (64, 256, 1), (64, 64, 3), (256, 64, 1)]
        {
            operands.extend([format!("f32[{out},{into},{kernel},{kernel}]nhwc"), format!("f32[{out}]")]);
        }
        let parse = |text: &String| text.parse().expect("a type");
        (pyramid, operands.iter().map(parse).collect(), parse(&format!("f32[{images},256,56,56]nhwc")))
    }

    #[test]
    fn stages_have_times_and_rings_by_their_configurations() {
        let cost = CostModel::named("h200", Precision::Tf32).expect("a profile");
        let (pyramid, inputs, output) = stage(64);
        let types: Vec<&TensorType> = inputs.iter().collect();
        let found = cost.predicted_pyramid(&pyramid, &types);
        let best = found.first().expect("a way to run it");
        assert!(best.is_fitted() && best.config.starts_with("stage "), "{best:?}");
        let op = Op::Pyramid(pyramid.with_config(best.config.clone()));
        assert_eq!(cost.kernel(&op, &types, &[&output], None), best.time);
        // Fewer images take less time, and rings are of a few.
        let (_, few, _) = stage(8);
        let few: Vec<&TensorType> = few.iter().collect();
        assert!(cost.kernel(&op, &few, &[&output], None) < best.time);
        let whole = rings(&op, &types);
        assert!(whole > Bytes::ZERO && whole < output.bytes() && rings(&op, &few) <= whole);
        // Nothing else has any.
        assert_eq!(rings(&Op::Pyramid(pyramid.clone()), &types), Bytes::ZERO);
        assert_eq!(rings(&op, &types[..1]), Bytes::ZERO);
        assert_eq!(rings(&Op::Relayout { to: vdnn_ir::Layout::RowMajor }, &types[..1]), Bytes::ZERO);
        // Where there is no kernel for it there is no way, and still some time.
        for (device, precision) in
            [("h200", Precision::F32), ("h200", Precision::Bf16), ("v100", Precision::Tf32)]
        {
            let other = CostModel::named(device, precision).expect("a profile");
            assert!(other.predicted_pyramid(&pyramid, &types).is_empty(), "{device}, {precision}");
            assert!(other.kernel(&op, &types, &[&output], None) > Nanos::ZERO);
        }
        // A measured time is the time.
        let mut table = Measured::default();
        let row = MeasuredRow { algo: None, workspace: Bytes::ZERO, time: Some(Nanos(9)), flags: vec![] };
        table.insert(&op, &types, &[&output], Precision::Tf32, row);
        let cost = cost.with_measured(table);
        assert_eq!(cost.kernel(&op, &types, &[&output], None), Nanos(9));
        let measured = cost.measured_pyramid(&pyramid, &types, &[&output]);
        assert_eq!(measured, [PyramidOption { config: best.config.clone(), time: Nanos(9) }]);
    }
}
