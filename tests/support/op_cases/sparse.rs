//! Convolutions and products with packed weights, of the sizes that networks have; not
//! differentiable: models of inference have them.

use super::{Case, Generator, Operand};
use vdnn_ir::op::{ConvAttrs, Op};
use vdnn_ir::sparse::SparseForm;
use vdnn_ir::sparse::blocks::{BLOCK, BlockShape};
use vdnn_ir::{DType, Dims, Tensor, TensorType};

impl Generator {
    /// Weights of which so many percent, or of whose blocks, are zero, or two of every four.
    fn packed(&mut self, dims: &[u64], zeros: u64, form: SparseForm) -> Operand {
        let shape = BlockShape::of(dims).expect("filters and channels");
        let gone: Vec<bool> =
            (0..shape.groups() * shape.columns()).map(|_| self.rng.range(0, 99) < zeros).collect();
        let row = shape.channels * shape.taps;
        let w: Vec<f32> = (0..shape.filters * row)
            .map(|i| {
                let (c, tap) = (i % row / shape.taps, i % shape.taps);
                let column = c / BLOCK * shape.taps + tap;
                let value = self.rng.unit();
                let gone = match form {
                    SparseForm::Csr => self.rng.range(0, 99) < zeros,
                    // Of every four another two, and of some one or none.
                    SparseForm::TwoFourBf16 => {
                        let first = i / row + c / 4 + tap;
                        c % 4 != first % 4 && (c % 4 != first / 4 % 4 || self.rng.range(0, 99) < zeros / 4)
                    }
                    SparseForm::Block | SparseForm::BlockBf16 => {
                        gone[i / row / BLOCK * shape.columns() + column]
                    }
                };
                if gone { 0.0 } else { value }
            })
            .collect();
        let entries = match form {
            SparseForm::Csr => w.iter().filter(|v| **v != 0.0).count() as u64,
            SparseForm::TwoFourBf16 => form.most(dims).expect("weights"),
            SparseForm::Block | SparseForm::BlockBf16 => shape.count(&w),
        };
        let mut words = vec![0; form.packed_len(dims[0], entries) as usize];
        form.pack(&w, dims, &mut words).expect("there is room");
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        let ty = TensorType::new(DType::I32, [words.len() as u64]);
        Operand::Integer(Tensor::from_bytes(ty, &bytes).expect("words"))
    }

    pub(super) fn packed_weights(&mut self) {
        // Images, channels, filters, height, width; window, stride, padding; percent of zeros.
        let convolutions: [[u64; 9]; 9] = [
            [2, 64, 64, 28, 28, 3, 1, 1, 50],
            [3, 128, 96, 14, 14, 3, 1, 1, 90],
            [2, 40, 72, 17, 13, 3, 2, 1, 70],
            [1, 256, 512, 7, 7, 3, 1, 1, 95],
            [2, 512, 256, 14, 14, 1, 1, 0, 98],
            [4, 64, 256, 28, 28, 1, 1, 0, 30],
            [2, 128, 32, 28, 28, 3, 1, 1, 80],
            [2, 8, 64, 30, 30, 7, 2, 3, 0],
            [2, 64, 128, 14, 14, 1, 2, 0, 100],
        ];
        for form in [SparseForm::Csr, SparseForm::Block, SparseForm::BlockBf16, SparseForm::TwoFourBf16] {
            for (i, [n, c, m, h, w, k, stride, pad, zeros]) in convolutions.into_iter().enumerate() {
                let conv = ConvAttrs::square(k, stride, pad, 1);
                let out = |size: u64| (size + 2 * pad - k) / stride + 1;
                let w_dims = [m, c, k, k];
                let mut operands =
                    vec![self.any(&[n, c, h, w]), self.packed(&w_dims, zeros, form), self.any(&[m])];
                if i % 2 == 0 {
                    operands.push(self.any(&[n, m, out(h), out(w)]));
                }
                let relu = i % 3 == 0;
                let op = Op::SparseConv { conv, w_dims: Dims::from_slice(&w_dims), form, relu };
                self.cases.push(Case { op, operands, outputs: 1, sources: vec![] });
            }
            for (n, c, m, zeros) in [(1, 512, 1000, 90), (33, 400, 120, 50)] {
                let w_dims = [m, c];
                let operands = vec![self.any(&[n, c]), self.packed(&w_dims, zeros, form), self.any(&[m])];
                let (conv, w_dims) = (ConvAttrs::without_axes(), Dims::from_slice(&w_dims));
                let op = Op::SparseConv { conv, w_dims, form, relu: false };
                self.cases.push(Case { op, operands, outputs: 1, sources: vec![] });
            }
        }
    }
}
