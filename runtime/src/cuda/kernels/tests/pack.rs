//! The kernels that pack and unpack, against the codec of the host.

use super::emulator::Emulator;
use crate::cuda::kernels::pack::step;
use crate::cuda::kernels::source::{Kernel, Source};
use std::collections::BTreeMap;
use vdnn_ir::packed::{CHUNK, MASK, pack, packed_type, slot, used};
use vdnn_ir::random::splitmix64;
use vdnn_ir::{DType, TensorType};
use vdnn_plan::CopyForm;

/// The kernels of both directions and element types.
pub(super) fn kernels() -> BTreeMap<Source, Vec<Kernel>> {
    let mut out: BTreeMap<Source, Vec<Kernel>> = BTreeMap::new();
    for dtype in [DType::F32, DType::BF16] {
        for form in [CopyForm::Pack, CopyForm::Unpack] {
            let step = step(form, &TensorType::new(dtype, [1]), 0, 0).expect("a kernel");
            out.entry(Source::Pack).or_default().push(step.kernel);
        }
    }
    out
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn packing_on_an_emulator_gives_the_codecs_bytes_and_the_tensor_back() {
    let Some(compiler) = std::env::var_os("VDNNC_EMULATOR_CXX") else {
        eprintln!("skipped: needs a C++17 compiler named in VDNNC_EMULATOR_CXX");
        return;
    };
    let mut emulator = Emulator::build(&compiler, &kernels());
    for dtype in [DType::F32, DType::BF16] {
        for zeros in [0, 50, 97, 100] {
            // More than the blocks do at once, the last chunk whole, cut, and of one element.
            for elements in [1, 9, CHUNK, 5 * CHUNK + 3, 130 * CHUNK, 131 * CHUNK - 5] {
                round_trip(&mut emulator, &TensorType::new(dtype, [elements]), zeros);
            }
        }
    }
}

fn round_trip(emulator: &mut Emulator, ty: &TensorType, zeros: u64) {
    let width = ty.dtype.bytes() as usize;
    let element = |i: u64| {
        let z = splitmix64(zeros, i);
        let bits = if z % 100 < zeros { 0 } else { z | 0x8000_0000_8000_8000 };
        bits.to_le_bytes()[..width].to_vec()
    };
    let x: Vec<u8> = (0..ty.elements()).flat_map(element).collect();
    let mut wanted = vec![0xff; packed_type(ty).bytes().0 as usize];
    let kept = pack(&x, width, &mut wanted);
    // x, its packed form, and what comes back of it.
    let packed_at = 256 + x.len().next_multiple_of(256) + 256;
    let back_at = packed_at + wanted.len().next_multiple_of(256) + 256;
    let size = (back_at + x.len() + 256).next_multiple_of(4096);
    let mut image = vec![0xff; size];
    image[256..256 + x.len()].copy_from_slice(&x);
    let at = |offset: usize| Emulator::ADDRESS + offset as u64;
    let steps = [
        step(CopyForm::Pack, ty, at(256), at(packed_at)).expect("a kernel"),
        step(CopyForm::Unpack, ty, at(packed_at), at(back_at)).expect("a kernel"),
    ];
    for backwards in [false, true] {
        let after = emulator.launch("packing", &image, &steps, backwards);
        let packed = &after[packed_at..packed_at + wanted.len()];
        assert_eq!(used(packed, width, ty.elements()), kept, "{ty}");
        let slot = slot(ty.dtype).0 as usize;
        for (got, wanted) in packed.chunks(slot).zip(wanted.chunks(slot)) {
            let values: u32 = wanted[..MASK.0 as usize].iter().map(|b| b.count_ones()).sum();
            let len = MASK.0 as usize + values as usize * width;
            assert!(got[..len] == wanted[..len], "{ty} with {zeros} % zeros");
        }
        assert!(after[back_at..back_at + x.len()] == x, "{ty} with {zeros} % zeros comes back");
        let outside = [256 + x.len()..packed_at, packed_at + wanted.len()..back_at, back_at + x.len()..size];
        assert!(outside.into_iter().flat_map(|r| &after[r]).all(|&b| b == 0xff), "{ty} writes outside");
    }
}
