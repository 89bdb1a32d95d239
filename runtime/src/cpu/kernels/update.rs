//! The optimizer step.

use super::args::Call;
use super::par::{CHUNK, Disjoint, simd_fn};
use vdnn_ir::kernel::{KernelError, TensorMut};

/// [`vdnn_ir::Op::SgdUpdate`]: stochastic gradient descent with momentum and weight decay in
/// PyTorch's form (velocity without dampening, decay added to the gradient).
pub(super) fn sgd(call: &Call<'_>, outputs: &mut [TensorMut<'_>]) -> Result<(), KernelError> {
    let &[lr, momentum, decay] = call.f32(call.arity().saturating_sub(1))? else {
        return Err(call.unsupported("hyperparameters other than (lr, momentum, weight decay)"));
    };
    if call.arity() != outputs.len() / 2 * 3 + 1 {
        return Err(call.unsupported(format!("{} outputs", outputs.len())));
    }
    for (i, outputs) in outputs.chunks_exact_mut(2).enumerate() {
        one(call, 3 * i, outputs, [lr, momentum, decay])?;
    }
    Ok(())
}

/// The step of the weight that is input `i`.
fn one(call: &Call<'_>, i: usize, outputs: &mut [TensorMut<'_>], hyper: [f32; 3]) -> Result<(), KernelError> {
    let [lr, momentum, decay] = hyper;
    let (w_in, v_in) = (call.f32_or_in_place(i)?, call.f32_or_in_place(i + 1)?);
    let g = call.f32(i + 2)?;
    let [w, v] = outputs else {
        return Err(call.unsupported("an odd number of outputs"));
    };
    let (w, v) = (call.f32_out(w)?, call.f32_out(v)?);
    if let Some(from) = w_in {
        w.copy_from_slice(from);
    }
    if let Some(from) = v_in {
        v.copy_from_slice(from);
    }
    let v = Disjoint::new(v);
    call.par.chunks(w, CHUNK, 2, |i, w| {
        let range = i * CHUNK..i * CHUNK + w.len();
        let g = &g[range.clone()];
        // SAFETY: chunk i of w and chunk i of v are taken by task i alone.
        #[expect(unsafe_code, reason = "two outputs written by the same tasks")]
        let v = unsafe { v.get(range) };
        step(w, v, g, lr, momentum, decay);
    });
    Ok(())
}

simd_fn! {
    /// The update of one chunk.
    fn step(w: &mut [f32], v: &mut [f32], g: &[f32], lr: f32, momentum: f32, decay: f32) {
        for ((w, v), &g) in w.iter_mut().zip(v).zip(g) {
            *v = momentum * *v + (g + decay * *w);
            *w -= lr * *v;
        }
    }
}
