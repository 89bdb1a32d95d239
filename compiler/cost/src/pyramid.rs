//! Prices of pyramids: what was measured of them, and what is predicted of the rest.

use crate::CostModel;
use crate::measured::{Measured, MeasuredRow, NOT_CAPTURED};
use vdnn_ir::op::PyramidAttrs;
use vdnn_ir::{Nanos, Op, Precision, TensorType};
use vdnn_pyramid::chain_of;
use vdnn_pyramid::machine::{Machine, Target};
use vdnn_pyramid::search::estimate;

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

    /// The configurations of a pyramid that were measured to run, fastest first (ties by text).
    pub fn measured_pyramids(
        &self,
        pyramid: &PyramidAttrs,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
    ) -> Vec<(String, Nanos)> {
        let rows = self.measured().pyramids(pyramid, inputs, outputs, self.precision());
        let runs = rows.into_iter().filter(|(_, row)| !row.has(NOT_CAPTURED));
        let mut all: Vec<(String, Nanos)> =
            runs.filter_map(|(config, row)| Some((config.to_owned(), row.time?))).collect();
        all.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        all
    }

    /// The predicted time of a pyramid by its configuration; `None` if it has none that says how
    /// it runs here.
    pub(crate) fn predicted_pyramid(&self, pyramid: &PyramidAttrs, inputs: &[&TensorType]) -> Option<Nanos> {
        let chain = chain_of(pyramid, inputs)?;
        let batch = *inputs.first()?.dims.first()?;
        let tiling = pyramid.config.parse().ok()?;
        estimate(&chain, tiling, &self.pyramid_target()?, batch).map(|e| e.time)
    }
}
