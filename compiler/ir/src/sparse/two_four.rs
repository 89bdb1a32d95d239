//! Weights of which two of four are zero, for the sparse instructions of tensor cores.
//!
//! Of every four channels of a filter at a tap (the last may be fewer) at most two hold anything but
//! zeros. Weights `[M, C, k..]` are pieces of [`FILTERS`] filters by [`CHANNELS`] channels at one tap,
//! all of them: number `(slab * taps + tap) * groups + group`, a slab being that many channels and a
//! group that many filters; zeros where there is no filter or channel. A piece has 128 words of values,
//! two bf16 of every four channels, and 16 words that say which two: so it takes 9/16 of dense bf16.
//!
//! Both lie as the lanes of a warp take them for `mma.sp.m16n8k32` (PTX ISA, "Matrix fragments for
//! sparse mma.m16n8k32 with .f16 and .bf16 types"). A lane has filters `2 * (lane / 4)` and the next
//! one, which are rows `lane / 4` and `lane / 4 + 8` of the instruction's first matrix, so that results
//! of a lane are neighbours. Every four channels have four bits: the place of the first value, then that
//! of the second, which is behind it.

use super::blocks::BlockShape;
use super::misfit;
use crate::bf16;
use crate::kernel::KernelError;

/// Filters of a piece.
pub const FILTERS: usize = 16;

/// Channels of a piece.
pub const CHANNELS: usize = 32;

/// Words of a piece's values.
const VALUES: usize = FILTERS * CHANNELS / 4;

/// Words of a piece.
pub(super) const WORDS: usize = VALUES + FILTERS * CHANNELS / 32;

/// Weights of a piece that may be other than zero.
pub(super) const KEPT: u64 = (FILTERS * CHANNELS / 2) as u64;

/// Groups of filters, and slabs times taps.
fn pieces(shape: BlockShape) -> [usize; 2] {
    [shape.filters.div_ceil(FILTERS), shape.channels.div_ceil(CHANNELS).saturating_mul(shape.taps)]
}

/// Pieces of all weights; saturating.
pub(super) fn count(shape: BlockShape) -> u64 {
    let [groups, columns] = pieces(shape);
    (groups as u64).saturating_mul(columns as u64)
}

/// True if at most two of every four channels of a filter at a tap are other than zero, and there are
/// four: of fewer nothing is gained.
pub fn holds(shape: BlockShape, w: &[f32]) -> bool {
    let row = shape.channels * shape.taps;
    shape.channels >= 4
        && w.chunks_exact(row.max(1)).all(|row| {
            row.chunks(4 * shape.taps).all(|four| {
                (0..shape.taps)
                    .all(|tap| four.iter().skip(tap).step_by(shape.taps).filter(|v| **v != 0.0).count() <= 2)
            })
        })
}

/// Where in its piece the values of a filter and four channels lie, the first in the lower half of the
/// word; and where it says which they are: the word and the bit.
fn place(filter: usize, four: usize) -> (usize, usize, u32) {
    let lane = filter / 2 * 4 + four % 4;
    let bit = 16 * (filter % 2) + 4 * (four % 4);
    (4 * lane + filter % 2 + four / 4 * 2, VALUES + filter / 2 * 2 + four / 4, bit as u32)
}

/// Writes the weights into `packed`.
///
/// # Errors
/// If more than two of four are not zero, or the sizes do not belong together.
pub fn pack(shape: BlockShape, w: &[f32], packed: &mut [i32]) -> Result<(), KernelError> {
    let bad = |why: String| KernelError::BadData(format!("pack_sparse: {why}"));
    let row = shape.channels * shape.taps;
    if packed.len() as u64 != count(shape) * WORDS as u64 || w.len() != shape.filters * row {
        return Err(bad(format!("{} weights into {} words", w.len(), packed.len())));
    }
    let [groups, _] = pieces(shape);
    for (i, piece) in packed.chunks_exact_mut(WORDS).enumerate() {
        let (group, column) = (i % groups, i / groups);
        let (slab, tap) = (column / shape.taps, column % shape.taps);
        piece.fill(0);
        for filter in 0..FILTERS {
            for four in 0..CHANNELS / 4 {
                let (m, first) = (group * FILTERS + filter, slab * CHANNELS + 4 * four);
                let at = |c: usize| w[m * row + c * shape.taps + tap];
                let inside = (first..shape.channels.min(first + 4)).filter(|_| m < shape.filters);
                let mut kept = inside.filter(|&c| at(c) != 0.0).map(|c| (c - first, at(c)));
                let (one, two) = (kept.next(), kept.next());
                if kept.next().is_some() {
                    let why = "more than two of four weights are not zero, unlike when the plan was made";
                    return Err(bad(format!("{why}; compile it again")));
                }
                // The places differ, also where there is nothing.
                let [one, two] = match (one, two) {
                    (Some(one), Some(two)) => [one, two],
                    (Some(one @ (3, _)), None) => [(0, 0.0), one],
                    (one, _) => [one.unwrap_or((0, 0.0)), (3, 0.0)],
                };
                let (word, places, bit) = place(filter, four);
                let bits = |v: f32| u32::from(bf16::round(v));
                piece[word] = (bits(one.1) | bits(two.1) << 16) as i32;
                piece[places] |= ((one.0 | two.0 << 2) as i32) << bit;
            }
        }
    }
    Ok(())
}

/// Packed weights of which every four say two different places, and nothing lies behind the last
/// filter and channel.
#[derive(Clone, Copy, Debug)]
pub struct TwoFour<'a> {
    shape: BlockShape,
    packed: &'a [i32],
}

impl<'a> TwoFour<'a> {
    /// Looks at packed weights.
    ///
    /// # Errors
    /// If they are not of that shape.
    pub fn new(shape: BlockShape, packed: &'a [i32]) -> Result<Self, KernelError> {
        if packed.len() as u64 != count(shape).saturating_mul(WORDS as u64) {
            return Err(misfit("another size"));
        }
        let these = Self { shape, packed };
        let [groups, columns] = pieces(shape);
        for i in 0..groups * columns {
            let (group, slab) = (i % groups, i / groups / shape.taps);
            for filter in 0..FILTERS {
                for four in 0..CHANNELS / 4 {
                    let [(one, a), (two, b)] = these.four(i, filter, four);
                    if one >= two {
                        return Err(misfit("of four weights one that is kept twice, or no order"));
                    }
                    let (m, c) = (group * FILTERS + filter, slab * CHANNELS + 4 * four);
                    let outside = |c: usize, v: f32| (m >= shape.filters || c >= shape.channels) && v != 0.0;
                    if outside(c + one, a) || outside(c + two, b) {
                        return Err(misfit("values behind the last filter or channel"));
                    }
                }
            }
        }
        Ok(these)
    }

    /// The places and values of four channels of a filter of a piece.
    fn four(&self, piece: usize, filter: usize, four: usize) -> [(usize, f32); 2] {
        let (word, places, bit) = place(filter, four);
        let piece = &self.packed[piece * WORDS..][..WORDS];
        let (values, places) = (piece[word] as u32, piece[places] as u32 >> bit);
        let value = |half: u32| bf16::widen((values >> (16 * half)) as u16);
        [((places & 3) as usize, value(0)), ((places >> 2 & 3) as usize, value(1))]
    }

    /// Weights that may be other than zero, without those behind the last filter or channel.
    pub fn most(&self) -> usize {
        self.shape.filters * self.shape.channels.div_ceil(4) * 2 * self.shape.taps
    }

    /// Calls `each` with the column `[C, taps]` and value of every weight of a filter that is not
    /// zero, columns ascending.
    pub fn row(&self, filter: usize, mut each: impl FnMut(usize, f32)) {
        let ([groups, _], taps) = (pieces(self.shape), self.shape.taps);
        for c in 0..self.shape.channels {
            for tap in 0..taps {
                let piece = (c / CHANNELS * taps + tap) * groups + filter / FILTERS;
                for (place, value) in self.four(piece, filter % FILTERS, c % CHANNELS / 4) {
                    if place == c % 4 && value != 0.0 {
                        each(c * taps + tap, value);
                    }
                }
            }
        }
    }
}

/// The matrix `[M, C * taps]` that was packed.
///
/// # Errors
/// If the packed weights are not of such a matrix.
pub fn unpack(shape: BlockShape, packed: &[i32]) -> Result<Vec<f32>, KernelError> {
    let these = TwoFour::new(shape, packed)?;
    let width = shape.channels * shape.taps;
    let mut w = vec![0.0; shape.filters * width];
    for (m, row) in w.chunks_exact_mut(width).enumerate() {
        these.row(m, |column, value| row[column] = value);
    }
    Ok(w)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of which of every four channels those at two places are kept, other ones in turn.
    fn weights(shape: BlockShape, kept: usize) -> Vec<f32> {
        const PAIRS: [[usize; 2]; 6] = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
        let value = |i: usize| {
            let (m, c, tap) =
                (i / shape.taps / shape.channels, i / shape.taps % shape.channels, i % shape.taps);
            let pair = PAIRS[(m + 5 * (c / 4) + 3 * tap) % 6];
            // Exact in bf16.
            if pair[..kept].contains(&(c % 4)) { (i % 127) as f32 + 1.0 } else { 0.0 }
        };
        (0..shape.filters * shape.channels * shape.taps).map(value).collect()
    }

    fn shape(filters: usize, channels: usize, taps: usize) -> BlockShape {
        BlockShape { filters, channels, taps }
    }

    fn packed(shape: BlockShape, w: &[f32]) -> Vec<i32> {
        let mut packed = vec![7; count(shape) as usize * WORDS];
        pack(shape, w, &mut packed).expect("two of four");
        packed
    }

    #[test]
    fn what_is_packed_comes_back() {
        for s in [shape(37, 70, 3), shape(16, 32, 1), shape(1, 1, 1), shape(5, 35, 9), shape(64, 64, 2)] {
            for kept in 0..=2 {
                let w = weights(s, kept);
                assert_eq!(holds(s, &w), s.channels >= 4);
                let packed = packed(s, &w);
                assert_eq!(unpack(s, &packed).expect("pieces"), w, "{s:?}, {kept} of four");
                let found = w.iter().filter(|v| **v != 0.0).count();
                assert!(found <= TwoFour::new(s, &packed).expect("pieces").most());
            }
        }
        // Half of the values and a bit each of 32.
        assert_eq!(packed(shape(16, 32, 1), &weights(shape(16, 32, 1), 2)).len(), 144);
    }

    #[test]
    fn more_than_two_of_four_are_refused() {
        let s = shape(2, 8, 3);
        let mut w = weights(s, 2);
        let at = (0..4).find(|c| w[(8 + 4 + c) * 3 + 1] == 0.0).expect("a zero");
        w[(8 + 4 + at) * 3 + 1] = 1.0;
        assert!(!holds(s, &w));
        let mut packed = vec![0; count(s) as usize * WORDS];
        let error = pack(s, &w, &mut packed).unwrap_err().to_string();
        assert!(error.contains("compile it again"), "{error}");
        // Two that are alone in the last four, and groups that do not begin at a multiple of four.
        assert!(holds(shape(1, 6, 1), &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0]));
        assert!(!holds(shape(1, 6, 1), &[1.0, 1.0, 1.0, 0.0, 0.0, 0.0]));
    }

    #[test]
    fn values_lie_as_lanes_take_them() {
        let mut words: Vec<_> = (0..VALUES).map(|i| place(i / 8, i % 8).0).collect();
        words.sort_unstable();
        assert_eq!(words, (0..VALUES).collect::<Vec<_>>());
        let mut bits: Vec<_> = (0..VALUES).map(|i| (place(i / 8, i % 8).1, place(i / 8, i % 8).2)).collect();
        bits.sort_unstable();
        bits.dedup();
        assert_eq!((bits.len(), bits[0], bits[VALUES - 1]), (VALUES, (VALUES, 0), (WORDS - 1, 28)));
        // Lane 6: row 1 is filter 2, row 9 filter 3, channels 8 to 11 and 24 to 27; that these are said
        // by lanes 4 and 5, the lower half about row 1.
        let at = |filter, four| place(filter, four);
        assert_eq!([at(2, 2), at(3, 2)], [(24, 130, 8), (25, 130, 24)]);
        assert_eq!([at(2, 6), at(3, 6)], [(26, 131, 8), (27, 131, 24)]);
    }

    #[test]
    fn broken_pieces_are_named() {
        let s = shape(17, 33, 2);
        let good = packed(s, &weights(s, 2));
        // The last piece has one filter and one channel.
        let last = good.len() - WORDS;
        let broken = |at: usize, word: i32| {
            let mut packed = good.clone();
            packed[at] = word;
            unpack(s, &packed)
        };
        for word in [0, 0x1111_1115, !0, 0x1111_1114] {
            assert!(broken(VALUES + 3, word).is_err(), "places {word:x}");
        }
        assert!(broken(VALUES + 3, 0x4444_4444).is_ok());
        assert!(broken(last + 1, 0x3f80).is_err(), "a filter that is none");
        assert!(broken(last + 4, 0x3f80).is_err(), "a channel that is none");
        assert!(unpack(s, &good[1..]).is_err() && unpack(shape(33, 33, 2), &good).is_err());
    }
}
