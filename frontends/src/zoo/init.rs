//! Seeded weights: He initialisation, any element computable on its own.
//!
//! Element pairs come from SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number
//! generators", 2014) in its counter form, seeded by the model's seed and the parameter's name.
//! So the weights depend on neither the thread count, nor the buffer sizes, nor the other
//! parameters. Values are uniform with the variance `2 / fan_in` of He, Zhang, Ren, Sun,
//! "Delving deep into rectifiers" (2015), eq. 10.

use super::build::{Fill, Weight};
use rayon::prelude::*;
use std::io::{self, Write};

/// Bytes one thread fills at a time; a multiple of 8, so that no element pair is torn.
const CHUNK: usize = 1 << 18;

/// Bytes [`stream`] holds at a time.
const BUFFER: usize = 16 * CHUNK;

/// All bytes of a parameter, little-endian.
pub(super) fn bytes(seed: u64, weight: &Weight) -> Vec<u8> {
    let mut data = vec![0; weight.bytes() as usize];
    fill(seed, weight, 0, &mut data);
    data
}

/// Writes a parameter piece by piece, using `buffer` for the pieces.
pub(super) fn stream(
    seed: u64,
    weight: &Weight,
    buffer: &mut Vec<u8>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let total = weight.bytes();
    let mut start = 0;
    while start < total {
        let length = (total - start).min(BUFFER as u64);
        buffer.resize(length as usize, 0);
        fill(seed, weight, start, buffer);
        out.write_all(buffer)?;
        start += length;
    }
    Ok(())
}

/// Fills the bytes from `start`, a multiple of 8, on.
fn fill(seed: u64, weight: &Weight, start: u64, out: &mut [u8]) {
    match weight.fill {
        Fill::Constant(value) => {
            out.chunks_exact_mut(4).for_each(|element| element.copy_from_slice(&value.to_le_bytes()));
        }
        Fill::He { fan_in } => {
            // A uniform variable on [-b, b) has variance b^2 / 3.
            let bound = (6.0 / fan_in as f64).sqrt() as f32;
            let key = mix(seed ^ fnv1a(weight.name.as_bytes()));
            out.par_chunks_mut(CHUNK)
                .enumerate()
                .for_each(|(i, chunk)| uniform(key, (start + (i * CHUNK) as u64) / 8, bound, chunk));
        }
    }
}

/// Uniform values in `[-bound, bound)`, from pair number `pair` on.
fn uniform(key: u64, pair: u64, bound: f32, out: &mut [u8]) {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = key.wrapping_add(pair.wrapping_mul(GAMMA));
    let mut pairs = out.chunks_exact_mut(8);
    for pair in &mut pairs {
        state = state.wrapping_add(GAMMA);
        pair.copy_from_slice(&scale(mix(state), bound).to_le_bytes());
    }
    let last = scale(mix(state.wrapping_add(GAMMA)), bound).to_le_bytes();
    let rest = pairs.into_remainder();
    rest.copy_from_slice(&last[..rest.len()]);
}

/// The bits of two f32 values made from the upper 24 bits of each half.
fn scale(random: u64, bound: f32) -> u64 {
    const STEP: f32 = 1.0 / (1 << 23) as f32;
    let one = |half: u32| u64::from((((half >> 8) as f32 * STEP - 1.0) * bound).to_bits());
    one(random as u32) | one((random >> 32) as u32) << 32
}

/// The output function of SplitMix64.
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Hash FNV-1a, 64 bits.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn he(name: &str, elements: u64, fan_in: u64) -> Weight {
        Weight { name: name.to_owned(), dims: vec![elements], fill: Fill::He { fan_in } }
    }

    fn values(bytes: &[u8]) -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    #[test]
    fn splitmix_matches_its_published_sequence() {
        // The first outputs for seed 1234567 of the reference program.
        let mut state = 1_234_567u64;
        let mut next = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(state)
        };
        assert_eq!([next(), next(), next()], [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn mean_variance_and_range_are_those_of_he() {
        let w = values(&bytes(7, &he("w", 200_001, 50)));
        let mean = w.iter().map(|&x| f64::from(x)).sum::<f64>() / w.len() as f64;
        let variance = w.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / w.len() as f64;
        assert!(mean.abs() < 2e-3, "{mean}");
        assert!((variance / 0.04 - 1.0).abs() < 0.01, "{variance}");
        let bound = (6.0f32 / 50.0).sqrt();
        assert!(w.iter().all(|x| x.abs() <= bound));
        assert!(w.iter().any(|x| *x > 0.999 * bound) && w.iter().any(|x| *x < -0.999 * bound));
    }

    #[test]
    fn pieces_are_the_whole() {
        // Odd length, over more than one streaming buffer.
        let weight = he("w", (BUFFER / 4 + CHUNK / 4 + 3) as u64, 9);
        let whole = bytes(1, &weight);
        let mut pieces = Vec::new();
        stream(1, &weight, &mut Vec::new(), &mut pieces).unwrap();
        assert!(whole == pieces);
        assert!(whole[whole.len() - 4..] != [0; 4]);
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert!(one_thread.install(|| bytes(1, &weight)) == whole);
    }

    #[test]
    fn seed_and_name_both_matter() {
        let a = bytes(1, &he("a", 100, 9));
        assert_eq!(a, bytes(1, &he("a", 100, 9)));
        assert_ne!(a, bytes(2, &he("a", 100, 9)));
        assert_ne!(a, bytes(1, &he("b", 100, 9)));
        let constant = Weight { name: "c".to_owned(), dims: vec![3], fill: Fill::Constant(0.25) };
        assert_eq!(values(&bytes(1, &constant)), [0.25; 3]);
    }
}
