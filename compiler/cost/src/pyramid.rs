//! Prices of pyramids: what was measured of them, and what is predicted of the rest.

use crate::CostModel;
use crate::measured::{Measured, MeasuredRow, NOT_CAPTURED};
use vdnn_ir::op::PyramidAttrs;
use vdnn_ir::{Nanos, Op, Precision, TensorType};
use vdnn_pyramid::kernel::{Config, configs, kernel};
use vdnn_pyramid::machine::{Machine, Target};
use vdnn_pyramid::search::estimate;
use vdnn_pyramid::{Chain, chain_of, tensor};

/// Share of what a fused kernel is taken to reach that plain loops do, which read both factors
/// of every product from memory. Nominal.
const LOOPS: f64 = 0.15;

/// A way to run a pyramid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PyramidOption {
    /// The text of [`PyramidAttrs::config`].
    pub config: String,
    /// Its time.
    pub time: Nanos,
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

    /// The ways to run a pyramid, whatever its own configuration, that were measured to run,
    /// fastest first (ties by text).
    pub fn measured_pyramid(
        &self,
        pyramid: &PyramidAttrs,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
    ) -> Vec<PyramidOption> {
        let rows = self.measured().pyramids(pyramid, inputs, outputs, self.precision());
        let runs = rows.into_iter().filter(|(_, row)| !row.has(NOT_CAPTURED));
        sorted(
            runs.filter_map(|(config, row)| {
                Some(PyramidOption { config: config.to_owned(), time: row.time? })
            }),
        )
    }

    /// The ways to run a pyramid for which there are kernels, with their predicted times,
    /// fastest first (ties by text). None where nothing is known of the multiprocessors.
    pub fn predicted_pyramid(&self, pyramid: &PyramidAttrs, inputs: &[&TensorType]) -> Vec<PyramidOption> {
        let Some((chain, target, batch)) = self.pyramid_problem(pyramid, inputs) else { return Vec::new() };
        let layout = inputs[0].layout;
        let ways = configs(&chain, target.precision, layout, batch, &target.machine);
        let prints = |c: &Config| kernel(&chain, c, target.precision, layout, batch).is_ok();
        sorted(ways.into_iter().filter(prints).filter_map(|c| {
            Some(PyramidOption { config: c.to_string(), time: predict(&chain, c, &target, batch)? })
        }))
    }

    fn pyramid_problem(
        &self,
        pyramid: &PyramidAttrs,
        inputs: &[&TensorType],
    ) -> Option<(Chain, Target, u64)> {
        let batch = *inputs.first()?.dims.first()?;
        Some((chain_of(pyramid, inputs)?, self.pyramid_target()?, batch))
    }

    /// The predicted time of a pyramid by its configuration; `None` if that says nothing.
    pub(crate) fn pyramid(&self, pyramid: &PyramidAttrs, inputs: &[&TensorType]) -> Option<Nanos> {
        let config = pyramid.config.parse().ok()?;
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
    }
}
