//! The optimizer step, constants and plain copies.

use super::context::Cx;
use super::source::{Kernel, Source};
use super::step::{Args, ITEMS, Step, THREADS};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use vdnn_ir::op::MAX_UPDATES;

/// One weight of `sgd_many` in update.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Weight {
    w_in: u64,
    v_in: u64,
    g: u64,
    w_out: u64,
    v_out: u64,
    elements: u32,
    first_block: u32,
}

/// `Weights` of update.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Weights {
    all: [Weight; MAX_UPDATES],
}

/// Elements of a block: [`ITEMS`] vectors of four a thread.
const BLOCK: u64 = 4 * (THREADS * ITEMS) as u64;

/// [`vdnn_ir::Op::SgdUpdate`].
pub(super) fn sgd(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let hyper = cx.f32(cx.spec.inputs.len().saturating_sub(1))?.ptr;
    let mut weights: Weights = Zeroable::zeroed();
    let (mut count, mut blocks) = (0, 0);
    for i in 0..cx.spec.outputs.len() / 2 {
        let [w, v, g] = [cx.f32(3 * i)?, cx.f32(3 * i + 1)?, cx.f32(3 * i + 2)?].map(|x| x.ptr);
        let (w_out, v_out) = (cx.f32_out(2 * i)?, cx.f32_out(2 * i + 1)?.ptr);
        let elements = w_out.ty.elements();
        if elements == 0 {
            continue;
        }
        let weight = weights.all.get_mut(count).ok_or_else(|| cx.unsupported("this many weights"))?;
        *weight = Weight {
            w_in: w,
            v_in: v,
            g,
            w_out: w_out.ptr,
            v_out,
            elements: cx.count(elements)?,
            first_block: cx.count(blocks)?,
        };
        count += 1;
        blocks += elements.div_ceil(BLOCK);
    }
    if count == 1 {
        let Weight { w_in, v_in, g, w_out, v_out, elements, .. } = weights.all[0];
        let n = u64::from(elements);
        let args = Args::new().ptr(w_in).ptr(v_in).ptr(g).ptr(hyper).ptr(w_out).ptr(v_out).u64(n);
        return cx.per_items(Kernel::fixed(Source::Update, "sgd"), n / 4, args);
    }
    if count > 0 {
        let args = Args::new().ptr(hyper).u32(count as u32).pod(&weights);
        let blocks = cx.count(blocks)?;
        cx.push(Step::new(Kernel::fixed(Source::Update, "sgd_many"), blocks, args));
    }
    Ok(())
}

/// [`vdnn_ir::Op::Fill`].
pub(super) fn fill(cx: &mut Cx<'_>, value: f32) -> Result<(), CudaError> {
    let y = cx.f32_out(0)?;
    cx.fill(y.ptr, 4, u64::from(value.to_bits()), y.ty.elements())
}

/// Ops that leave the bytes as they are but must put them elsewhere.
pub(super) fn copy(cx: &mut Cx<'_>) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    let n = y.ty.bytes().0;
    if n == 0 || x.ptr == y.ptr {
        return Ok(());
    }
    let args = Args::new().ptr(x.ptr).ptr(y.ptr).u64(n);
    cx.per_items(Kernel::fixed(Source::Update, "copy_bytes"), n / 16, args)
}
