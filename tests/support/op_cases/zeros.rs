//! Convolutions whose kernels leave out zeros of the input.

use super::{Case, Generator};
use vdnn_ir::op::{ConvAttrs, Op};

/// What follows the products.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    Nothing,
    Bias,
    BiasRelu,
    SumRelu,
}

/// Shape of x; filters; extent, stride and padding of the window; percent of zeros; what follows.
type Layer = ([u64; 4], u64, [u64; 3], u64, Then);

impl Generator {
    /// Layers of networks at every share of zeros, odd batches and borders.
    pub(super) fn inputs_with_zeros(&mut self) {
        use Then::{Bias, BiasRelu, Nothing, SumRelu};
        let layers: [Layer; 13] = [
            ([1, 128, 7, 7], 32, [3, 1, 1], 98, Nothing),
            ([1, 128, 14, 14], 32, [3, 1, 1], 80, Nothing),
            ([1, 64, 28, 28], 32, [3, 1, 1], 50, Bias),
            ([1, 32, 56, 56], 32, [3, 1, 1], 30, Nothing),
            ([1, 64, 28, 28], 128, [3, 1, 1], 80, BiasRelu),
            ([1, 128, 14, 14], 256, [3, 1, 1], 90, BiasRelu),
            ([7, 64, 14, 14], 64, [3, 1, 1], 0, SumRelu),
            ([3, 40, 13, 15], 70, [3, 2, 1], 0, BiasRelu),
            ([5, 33, 9, 11], 48, [3, 1, 1], 95, SumRelu),
            ([1, 256, 14, 14], 64, [1, 1, 0], 50, BiasRelu),
            ([2, 48, 12, 20], 130, [1, 2, 0], 80, Bias),
            ([3, 30, 11, 9], 300, [1, 1, 0], 95, SumRelu),
            ([2, 16, 8, 8], 16, [3, 1, 1], 100, Bias),
        ];
        for (x, filters, [kernel, stride, pad], zeros, then) in layers {
            let conv = ConvAttrs::square(kernel, stride, pad, 1);
            let image = self.with(&x, |rng| {
                let v = 2.0 * f64::from(rng.unit());
                if rng.range(0, 99) < zeros { 0.0 } else { v }
            });
            let mut operands = vec![image, self.any(&[x[1], kernel * kernel, filters])];
            if then != Nothing {
                operands.push(self.any(&[filters]));
            }
            if then == SumRelu {
                let out = |n: u64| (n + 2 * pad - kernel) / stride + 1;
                operands.push(self.any(&[x[0], filters, out(x[2]), out(x[3])]));
            }
            let op = Op::SparseInputConv { conv, relu: matches!(then, BiasRelu | SumRelu) };
            self.cases.push(Case { op, operands, outputs: 1, sources: vec![] });
        }
    }
}
