//! Every op against plain f64 references, and bit equality across thread counts, addresses
//! and in-place operands.

mod conv;
mod data;
mod pointwise;
mod pool;
mod sparse;
mod statistics;

use super::{CpuKernels, par::Par};
use bytemuck::Zeroable;
use std::slice::from_ref;
use vdnn_interp::NaiveKernels;
use vdnn_ir::kernel::{KernelError, Kernels, Operand, TensorMut, TensorRef};
use vdnn_ir::op::{Op, infer::infer};
use vdnn_ir::{DType, Tensor, TensorType};

/// A fixed sequence of numbers that look random (splitmix64).
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// A number in `lo..=hi`.
    pub(super) fn pick(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.next() % (hi - lo + 1)
    }
    /// Values in -1..1.
    pub(super) fn tensor(&mut self, dims: &[u64]) -> Tensor {
        self.tensor_in(dims, -1.0, 1.0)
    }
    /// Values in lo..hi.
    pub(super) fn tensor_in(&mut self, dims: &[u64], lo: f32, hi: f32) -> Tensor {
        let n = dims.iter().product::<u64>();
        let data: Vec<f32> =
            (0..n).map(|_| lo + (hi - lo) * ((self.next() >> 40) as f32 / 16_777_216.0)).collect();
        Tensor::from_f32(dims.iter().copied(), &data)
    }
}

/// An element-aligned copy of bytes at an address of choice.
struct Buffer {
    words: Vec<[u64; 8]>,
    range: std::ops::Range<usize>,
}

impl Buffer {
    fn new(bytes: usize, shift: usize) -> Self {
        let words = vec![Zeroable::zeroed(); (bytes + shift).div_ceil(64)];
        let mut buffer = Self { words, range: shift..shift + bytes };
        buffer.bytes_mut().fill(0xff);
        buffer
    }
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[self.range.clone()]
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[self.range.clone()]
    }
}

/// Runs `op` once. Outputs are poisoned before, unless an input is in place there.
fn launch(
    kernels: &dyn Kernels,
    op: &Op,
    inputs: &[Tensor],
    in_place: &[(usize, usize)],
    outputs: usize,
    shift: usize,
) -> Result<Vec<Tensor>, KernelError> {
    let types: Vec<&TensorType> = inputs.iter().map(Tensor::ty).collect();
    let types = infer(op, &types, outputs).expect("an op that fits its inputs");
    let mut buffers: Vec<Buffer> = types.iter().map(|t| Buffer::new(t.bytes().0 as usize, shift)).collect();
    let copies: Vec<Buffer> = inputs
        .iter()
        .map(|t| {
            let mut copy = Buffer::new(t.bytes().len(), 3 * shift);
            copy.bytes_mut().copy_from_slice(t.bytes());
            copy
        })
        .collect();
    let operands: Vec<Operand<'_>> = (0..inputs.len())
        .map(|i| match in_place.iter().find(|p| p.1 == i) {
            Some(&(output, _)) => {
                buffers[output].bytes_mut().copy_from_slice(copies[i].bytes());
                Operand::InPlace(output)
            }
            None => Operand::Ref(TensorRef { ty: inputs[i].ty(), bytes: copies[i].bytes() }),
        })
        .collect();
    let mut outs: Vec<TensorMut<'_>> =
        types.iter().zip(&mut buffers).map(|(ty, b)| TensorMut { ty, bytes: b.bytes_mut() }).collect();
    kernels.launch(op, &operands, &mut outs)?;
    Ok(types.iter().zip(&buffers).map(|(ty, b)| Tensor::from_bytes(ty.clone(), b.bytes()).unwrap()).collect())
}

/// Runs `op` on 1, 2 and 3 threads, at several addresses and with every combination of the
/// in-place operands it allows; all results must have the same bits, and agree with the
/// naive kernels. Returns them.
pub(super) fn run_n(op: &Op, inputs: &[Tensor], outputs: usize) -> Vec<Tensor> {
    let serial = CpuKernels::new(1);
    let base = launch(&serial, op, inputs, &[], outputs, 0).expect("a launch");
    let naive = launch(&NaiveKernels, op, inputs, &[], outputs, 0).expect("a naive launch");
    for (i, (fast, naive)) in base.iter().zip(&naive).enumerate() {
        agree(fast, naive, &format!("output {i} of {op}"));
    }
    let legal: Vec<(usize, usize)> = op
        .inplace()
        .iter()
        .copied()
        .filter(|&(o, i)| o < base.len() && i < inputs.len() && base[o].ty() == inputs[i].ty())
        .collect();
    // Other processors have other products.
    let narrow = CpuKernels { par: Par::narrow(2) };
    let other = launch(&narrow, op, inputs, &[], outputs, 0).expect("a launch");
    for (i, (other, naive)) in other.iter().zip(&naive).enumerate() {
        agree(other, naive, &format!("output {i} of {op} without wide products"));
    }
    let same = |got: Vec<Tensor>, what: &str| {
        for (i, (a, b)) in base.iter().zip(&got).enumerate() {
            assert_eq!(a.bytes(), b.bytes(), "output {i} of {op} differs {what}");
        }
    };
    for subset in 0..1usize << legal.len() {
        let chosen: Vec<_> = (0..legal.len()).filter(|i| subset >> i & 1 == 1).map(|i| legal[i]).collect();
        // Two inputs in one output only if they are the same value; tested apart.
        if (1..chosen.len()).any(|i| chosen[..i].iter().any(|p| p.0 == chosen[i].0)) {
            continue;
        }
        let got = launch(&serial, op, inputs, &chosen, outputs, 8).expect("a launch");
        same(got, &format!("with {chosen:?} in place"));
        for threads in [2, 3] {
            let kernels = CpuKernels { par: Par::eager(threads) };
            let got = launch(&kernels, op, inputs, &chosen, outputs, 24).expect("a launch");
            same(got, &format!("on {threads} threads with {chosen:?} in place"));
        }
    }
    base
}

/// Asserts that the fast and the naive kernels say the same, NaN and infinities included.
fn agree(fast: &Tensor, naive: &Tensor, what: &str) {
    if fast.ty().dtype != DType::F32 {
        assert_eq!(fast.bytes(), naive.bytes(), "{what}: fast and naive");
        return;
    }
    let finite = naive.f32().iter().filter(|x| x.is_finite());
    let scale = finite.fold(0f32, |m, x| m.max(x.abs()));
    for (i, (&f, &n)) in fast.f32().iter().zip(naive.f32()).enumerate() {
        let same = f.to_bits() == n.to_bits() || (f.is_nan() && n.is_nan());
        assert!(same || (f - n).abs() <= 3e-6 * scale, "{what}: element {i} is {f}, naively {n}");
    }
}

/// As [`run_n`], for the single output.
pub(super) fn run(op: &Op, inputs: &[Tensor]) -> Tensor {
    run_n(op, inputs, 1).remove(0)
}

/// The error of a launch.
pub(super) fn run_err(op: &Op, inputs: &[Tensor]) -> KernelError {
    launch(&CpuKernels::new(1), op, inputs, &[], 1, 0).expect_err("a launch that fails")
}

/// The elements in f64.
pub(super) fn wide(t: &Tensor) -> Vec<f64> {
    t.f32().iter().map(|&x| f64::from(x)).collect()
}

/// Asserts that every element is within `tolerance` of the reference's largest magnitude.
#[track_caller]
pub(super) fn close(got: &Tensor, want: &[f64], tolerance: f64, what: &str) {
    let scale = want.iter().fold(1e-30f64, |m, x| m.max(x.abs()));
    assert_eq!(got.f32().len(), want.len(), "{what}: number of elements");
    for (i, (&g, &w)) in got.f32().iter().zip(want).enumerate() {
        let error = (f64::from(g) - w).abs() / scale;
        assert!(error <= tolerance, "{what}: element {i} is {g}, not {w} (error {error:.1e} of {scale:.3})");
    }
}

/// Gradient of `sum(dy * f(x))` by central differences in f64.
pub(super) fn numeric_grad(f: impl Fn(&[f64]) -> Vec<f64>, x: &[f64], dy: &[f64]) -> Vec<f64> {
    let step = 1e-5;
    let mut x = x.to_vec();
    (0..x.len())
        .map(|i| {
            let old = x[i];
            let mut side = |sign: f64| {
                x[i] = old + sign * step;
                f(&x).iter().zip(dy).map(|(y, d)| y * d).sum::<f64>()
            };
            let slope = (side(1.0) - side(-1.0)) / (2.0 * step);
            x[i] = old;
            slope
        })
        .collect()
}

/// All index tuples of a shape, row-major.
pub(super) fn indices(dims: &[usize]) -> impl Iterator<Item = Vec<usize>> + use<> {
    let dims = dims.to_vec();
    (0..dims.iter().product::<usize>()).map(move |flat| {
        let mut rest = flat;
        let mut index: Vec<usize> = dims
            .iter()
            .rev()
            .map(|&d| {
                let i = rest % d;
                rest /= d;
                i
            })
            .collect();
        index.reverse();
        index
    })
}

/// Row-major position of an index.
pub(super) fn flat(dims: &[usize], index: &[usize]) -> usize {
    dims.iter().zip(index).fold(0, |at, (&d, &i)| at * d + i)
}

/// A list of extents.
pub(super) fn list(dims: &[u64]) -> vdnn_ir::Dims {
    dims.iter().copied().collect()
}

/// Extents as indices.
pub(super) fn sizes(dims: &[u64]) -> Vec<usize> {
    dims.iter().map(|&d| d as usize).collect()
}

#[test]
fn other_element_types_are_refused() {
    let x = Tensor::zeros(TensorType::new(DType::F64, [2]));
    let ty = TensorType::new(DType::F64, [2]);
    let mut bytes = [0u64; 2];
    let mut out = [TensorMut { ty: &ty, bytes: bytemuck::cast_slice_mut(&mut bytes) }];
    let op = Op::Unary(vdnn_ir::op::UnaryKind::Relu);
    let error = CpuKernels::new(1).launch(&op, &[Operand::Ref(x.view())], &mut out).unwrap_err();
    assert!(matches!(error, KernelError::Unsupported { .. }), "{error}");
    assert_eq!(error.to_string(), "no kernel for unary(relu): input 0 of type f64, not f32");
}

#[test]
fn thread_counts() {
    assert_eq!(
        (CpuKernels::new(0).threads(), CpuKernels::new(1).threads(), CpuKernels::new(3).threads()),
        (1, 1, 3)
    );
}
