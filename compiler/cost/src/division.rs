//! Prices of convolutions whose batch is divided into micro-batches.

use crate::measured::ACCUMULATES;
use crate::{ConvOption, CostModel};
use vdnn_ir::slices::{batch, conv_slice, output_has_images};
use vdnn_ir::{ConvSchedule, Nanos, Op, TensorType};

impl CostModel {
    /// Time of a kernel as a plan launches it: for a divided convolution the sum over its
    /// micro-batches, for everything else [`Self::kernel`].
    pub fn launch(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        schedule: Option<&ConvSchedule>,
    ) -> Nanos {
        let (Some(schedule @ ConvSchedule::Divided(_)), Some(images)) = (schedule, batch(op, inputs)) else {
            return self.kernel(op, inputs, outputs, schedule.and_then(ConvSchedule::whole));
        };
        let mut total = 0u64;
        for run in schedule.runs(images) {
            let Some(slice) = conv_slice(op, inputs, outputs, run.images) else { continue };
            let (i, o) = slice.types();
            let one = self.kernel(&slice.op, &i, &o, Some(run.algo));
            total = total.saturating_add(one.0.saturating_mul(run.times));
        }
        Nanos(total)
    }

    /// The ways to run `images` images of a convolution as one of several micro-batches,
    /// fastest first; those of the batch itself are [`Self::conv_options`]. If the batch was
    /// measured, only what was measured of the micro-batch: nothing is guessed beside
    /// measurements, and a table without this size simply offers nothing. A weight gradient
    /// offers only engines that were seen to add to their result.
    pub fn micro_batch_options(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        images: u64,
    ) -> Vec<ConvOption> {
        let precision = self.precision();
        let Some(slice) = conv_slice(op, inputs, outputs, images) else { return Vec::new() };
        let (i, o) = slice.types();
        if !self.is_measured(op, inputs, outputs) {
            return self.conv_options(&slice.op, &i, &o);
        }
        let Some(rows) = self.measured().rows(&slice.op, &i, &o, precision) else { return Vec::new() };
        let adds = |option: &ConvOption| {
            output_has_images(op) || rows.iter().any(|r| r.algo == Some(option.algo) && r.has(ACCUMULATES))
        };
        let mut options = self.measured().conv_options(&slice.op, &i, &o, precision, self.deterministic());
        options.retain(adds);
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Measured, MeasuredRow, Precision};
    use vdnn_ir::Bytes;
    use vdnn_ir::graph::{ConvAlgo, EngineConfig};
    use vdnn_ir::op::ConvAttrs;

    #[test]
    fn micro_batches_are_priced_from_what_was_measured_of_them() {
        let conv = ConvAttrs::square(3, 1, 1, 1);
        let [x, w, y] = [[8, 16, 28, 28], [32, 16, 3, 3], [8, 32, 28, 28]].map(TensorType::f32);
        let wgrad = Op::ConvWgrad { conv: conv.clone(), w_dims: w.dims.clone() };
        let algo = |n| ConvAlgo::Engine(EngineConfig::new(n, &[]).expect("no knobs"));
        let mut table = Measured::default();
        let mut add = |op: &Op, images: u64, n: u16, time: u64, flags: &[&str]| {
            let (i, o): ([&TensorType; 2], [&TensorType; 1]) =
                if matches!(op, Op::Conv(_)) { ([&x, &w], [&y]) } else { ([&x, &y], [&w]) };
            let s = conv_slice(op, &i, &o, images).expect("a convolution");
            let flags = flags.iter().map(|&f| f.to_owned()).collect();
            let row =
                MeasuredRow { algo: Some(algo(n)), workspace: Bytes(0), time: Some(Nanos(time)), flags };
            let (i, o) = s.types();
            table.insert(&s.op, &i, &o, Precision::F32, row);
        };
        let fprop = Op::Conv(conv);
        add(&fprop, 8, 1, 100, &[]);
        add(&fprop, 4, 2, 30, &[]);
        add(&wgrad, 8, 1, 100, &[]);
        add(&wgrad, 4, 2, 30, &[]);
        add(&wgrad, 4, 3, 40, &[ACCUMULATES]);
        let cost = CostModel::named("v100", Precision::F32).expect("shipped").with_measured(table);
        let options = |op: &Op, i: [&TensorType; 2], o, images| -> Vec<u64> {
            cost.micro_batch_options(op, &i, &[o], images).iter().map(|o| o.time.0).collect()
        };
        assert_eq!(options(&fprop, [&x, &w], &y, 4), [30]);
        assert_eq!(options(&fprop, [&x, &w], &y, 2), [0u64; 0], "not measured, so not offered");
        assert_eq!(options(&wgrad, [&x, &y], &w, 4), [40], "the faster one does not add");
        let schedule: ConvSchedule = "eng2@4x2".parse().expect("a division");
        assert_eq!(cost.launch(&fprop, &[&x, &w], &[&y], Some(&schedule)), Nanos(60));
        assert_eq!(cost.launch(&fprop, &[&x, &w], &[&y], Some(&algo(1).into())), Nanos(100));
    }
}
