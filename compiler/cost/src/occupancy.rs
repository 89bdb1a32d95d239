//! How much of a device a kernel takes, for those who run several at once.

use crate::conv::{ConvDir, ConvShape};
use crate::{CostModel, PPM};
use vdnn_ir::op::work;
use vdnn_ir::{ConvSchedule, Nanos, Op, TensorType};
use vdnn_pyramid::machine::Machine;

/// Results of a block of the smallest tiles that libraries use for products: rows and columns.
const TILE: [u64; 2] = [64, 32];

/// Elements of a block of a kernel that passes over memory.
const ITEMS: u64 = 1024;

impl CostModel {
    /// Share of the device that a launch takes while it runs, in millionths: the larger of blocks
    /// over multiprocessors and of what it takes of the peak rates. Meant to be too large rather
    /// than too small: tiles are taken for small, each block for a whole multiprocessor, and
    /// kernels that divide sums, pyramids, and all kernels of a device whose multiprocessors are
    /// not known, for filling it.
    pub fn occupancy(
        &self,
        op: &Op,
        inputs: &[&TensorType],
        outputs: &[&TensorType],
        schedule: Option<&ConvSchedule>,
    ) -> u64 {
        let Some(machine) = Machine::named(self.device_name()) else { return PPM };
        let Some(blocks) = blocks(op, inputs, outputs) else { return PPM };
        let placed = blocks.saturating_mul(PPM) / machine.multiprocessors.max(1);
        let time = self.launch(op, inputs, outputs, schedule).0.max(1) as f64;
        let peaks = self.peaks();
        let flops = work::flops(op, inputs, outputs).as_f64() / peaks.arithmetic;
        let bytes = work::traffic(op, inputs, outputs).as_f64() / peaks.bandwidth;
        let busy = (flops.max(bytes) / time * PPM as f64).ceil() as u64;
        placed.max(busy).clamp(1, PPM)
    }

    /// What a kernel loses that waits for one of another compute stream: as much as the launch of a
    /// dependent kernel takes. Nominal.
    pub fn wait(&self) -> Nanos {
        self.peaks().launch
    }
}

/// Blocks of a kernel, or `None` if it has as many as it wants.
fn blocks(op: &Op, inputs: &[&TensorType], outputs: &[&TensorType]) -> Option<u64> {
    let tiles = |rows: u64, columns: u64| rows.div_ceil(TILE[0]).saturating_mul(columns.div_ceil(TILE[1]));
    let product = |dims: &[u64]| dims.iter().copied().fold(1, u64::saturating_mul);
    if let Some(shape) = ConvShape::of(op, inputs, outputs) {
        return match shape.dir {
            ConvDir::Fprop => Some(tiles(shape.n.saturating_mul(product(shape.y)), shape.k)),
            ConvDir::Dgrad => Some(tiles(shape.n.saturating_mul(product(shape.x)), shape.c)),
            ConvDir::Wgrad => None,
        };
    }
    match op {
        Op::Pyramid(_) => None,
        Op::Gemm { .. } | Op::MatMul { .. } => {
            let dims = &outputs.first()?.dims;
            let columns = dims.last().copied().unwrap_or(1).max(1);
            Some(tiles(product(dims) / columns, columns))
        }
        _ => {
            let elements = inputs.iter().chain(outputs).map(|ty| ty.elements()).max()?;
            Some(elements.div_ceil(ITEMS))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_ir::Precision;
    use vdnn_ir::op::{ConvAttrs, UnaryKind};

    fn conv(n: u64, c: u64, k: u64, edge: u64) -> (Op, [TensorType; 3]) {
        let attrs = ConvAttrs::square(3, 1, 1, 1);
        let types = [
            TensorType::f32([n, c, edge, edge]),
            TensorType::f32([k, c, 3, 3]),
            TensorType::f32([n, k, edge, edge]),
        ];
        (Op::Conv(attrs), types)
    }

    fn of(device: &str, (op, [x, w, y]): &(Op, [TensorType; 3])) -> u64 {
        let cost = CostModel::named(device, Precision::Tf32).expect("a profile");
        cost.occupancy(op, &[x, w], &[y], None)
    }

    #[test]
    fn few_blocks_leave_multiprocessors_idle_and_batches_fill_them() {
        // 196 positions and 64 channels: 4 x 2 tiles on 132 multiprocessors.
        let small = of("h200", &conv(1, 32, 64, 14));
        assert!((8 * PPM / 132..PPM / 4).contains(&small), "{small}");
        assert_eq!(of("h200", &conv(64, 32, 64, 14)), PPM);
        // A device with fewer.
        assert!(of("titan-x-maxwell", &conv(1, 32, 64, 14)) >= 8 * PPM / 24);
        // One of which nothing is known.
        assert_eq!(of("cpu", &conv(1, 32, 64, 14)), PPM);
        let cost = CostModel::named("h200", Precision::F32).expect("a profile");
        let ty = TensorType::f32([1 << 20]);
        assert_eq!(cost.occupancy(&Op::Unary(UnaryKind::Relu), &[&ty], &[&ty], None), PPM);
    }
}
