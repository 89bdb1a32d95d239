//! Packed tensors: zeros left out (zero-value compression; Rhu, O'Connor, Chatterjee, Pool, Kwon
//! and Keckler, *Compressing DMA Engine: Leveraging Activation Sparsity for Training Deep Neural
//! Networks*, HPCA 2018).
//!
//! Elements go in chunks of [`CHUNK`], in the order they lie in memory. Each chunk has a *slot* of
//! fixed size and place: a mask with one bit per element, the least significant of byte 0 first,
//! set where the element's bytes are not all zero, and behind it the bytes of those elements, one
//! after the other. What is left of a slot is undefined, so no slot depends on another and sizes
//! need not be known before the step: fewer bytes cross the link, not fewer are reserved.
//!
//! Elements are bit patterns: every tensor comes back as it was, negative zeros and NaNs included.

use crate::types::{DType, TensorType};
use crate::units::Bytes;

/// Elements of a chunk.
pub const CHUNK: u64 = 2048;

/// Bytes of a chunk's mask.
pub const MASK: Bytes = Bytes(CHUNK / 8);

/// Bytes of a chunk's slot, for elements of a type.
pub fn slot(dtype: DType) -> Bytes {
    Bytes(MASK.0 + CHUNK * dtype.bytes())
}

/// The type of a packed tensor: bytes enough for one without zeros.
pub fn packed_type(ty: &TensorType) -> TensorType {
    TensorType::new(DType::U8, [ty.elements().div_ceil(CHUNK) * slot(ty.dtype).0])
}

/// True for the types whose tensors are packed.
pub fn can_pack(ty: &TensorType) -> bool {
    matches!(ty.dtype, DType::F32 | DType::BF16) && ty.elements() > 0
}

/// Packs elements of `width` bytes. Returns the bytes of masks and elements written.
///
/// # Panics
/// If `out` does not hold a slot for every chunk of `x`.
pub fn pack(x: &[u8], width: usize, out: &mut [u8]) -> Bytes {
    let (mask_len, chunk) = (MASK.0 as usize, CHUNK as usize * width);
    let mut written = 0;
    for (x, slot) in x.chunks(chunk).zip(out.chunks_mut(mask_len + chunk)) {
        let (mask, values) = slot.split_at_mut(mask_len);
        mask.fill(0);
        let mut at = 0;
        for (i, element) in x.chunks(width).enumerate().filter(|(_, e)| e.iter().any(|&b| b != 0)) {
            mask[i / 8] |= 1 << (i % 8);
            values[at..at + width].copy_from_slice(element);
            at += width;
        }
        written += mask_len + at;
    }
    Bytes(written as u64)
}

/// Unpacks elements of `width` bytes.
///
/// # Panics
/// If `packed` does not hold a slot for every chunk of `out`.
pub fn unpack(packed: &[u8], width: usize, out: &mut [u8]) {
    let (mask_len, chunk) = (MASK.0 as usize, CHUNK as usize * width);
    for (slot, out) in packed.chunks(mask_len + chunk).zip(out.chunks_mut(chunk)) {
        let (mask, values) = slot.split_at(mask_len);
        let mut values = values.chunks(width);
        for (i, element) in out.chunks_mut(width).enumerate() {
            let value = if mask[i / 8] >> (i % 8) & 1 == 1 { values.next() } else { None };
            match value {
                Some(value) => element.copy_from_slice(value),
                None => element.fill(0),
            }
        }
    }
}

/// Bytes of masks and elements of a packed tensor of `elements` elements of `width` bytes.
///
/// # Panics
/// If `packed` does not hold a slot for every chunk.
pub fn used(packed: &[u8], width: usize, elements: u64) -> Bytes {
    let (mask_len, chunk) = (MASK.0 as usize, CHUNK as usize * width);
    let chunks = elements.div_ceil(CHUNK) as usize;
    packed.chunks(mask_len + chunk).take(chunks).map(|slot| of_slot(&slot[..mask_len], width)).sum()
}

/// Bytes of the mask and elements of a slot with this mask.
pub fn of_slot(mask: &[u8], width: usize) -> Bytes {
    let set: u32 = mask.iter().map(|b| b.count_ones()).sum();
    Bytes((mask.len() + set as usize * width) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::splitmix64;

    fn some(elements: u64, width: usize, zeros: u64) -> Vec<u8> {
        let element = |i: u64| {
            let z = splitmix64(7, i);
            let bytes = if z % 100 < zeros { 0 } else { z | 0x8000_0000_8000_8000 };
            bytes.to_le_bytes()[..width].to_vec()
        };
        (0..elements).flat_map(element).collect()
    }

    #[test]
    fn what_is_packed_comes_back_and_takes_what_it_says() {
        for (dtype, width) in [(DType::F32, 4), (DType::BF16, 2)] {
            for zeros in [0, 37, 50, 95, 100] {
                for elements in [1, 7, 8, 9, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 77] {
                    let ty = TensorType::new(dtype, [elements]);
                    let x = some(elements, width, zeros);
                    let kept = x.chunks(width).filter(|e| e.iter().any(|&b| b != 0)).count() as u64;
                    let mut packed = vec![0xff; packed_type(&ty).bytes().0 as usize];
                    let written = pack(&x, width, &mut packed);
                    assert_eq!(written.0, elements.div_ceil(CHUNK) * MASK.0 + kept * width as u64);
                    assert_eq!(used(&packed, width, elements), written);
                    let mut back = vec![0x55; x.len()];
                    unpack(&packed, width, &mut back);
                    assert_eq!(back, x, "{elements} elements of {width} bytes, {zeros} % zeros");
                }
            }
        }
    }

    #[test]
    fn bits_are_kept_not_numbers() {
        let x: Vec<u8> =
            [0.0f32, -0.0, f32::NAN, f32::MIN_POSITIVE / 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut packed = vec![0; slot(DType::F32).0 as usize];
        assert_eq!(pack(&x, 4, &mut packed), Bytes(MASK.0 + 12));
        assert_eq!(packed[0], 0b1110);
        let mut back = vec![0xff; 16];
        unpack(&packed, 4, &mut back);
        assert_eq!(back, x);
    }
}
