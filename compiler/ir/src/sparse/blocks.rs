//! Weights without their blocks of zeros, for tensor cores.
//!
//! Weights `[M, C, k..]` are blocks of [`BLOCK`] filters by as many channels at one tap. A group
//! of filters (the last may have fewer) keeps its blocks that hold anything but zeros: of each the
//! number `slab * taps + tap`, ascending, a slab being that many channels; and all values, zeros
//! where there is no filter or channel. One i32 tensor has `groups + 1` starts, the numbers of
//! `room` blocks, zeros up to a multiple of four words, and `room` blocks of values.
//!
//! Values lie as the lanes of a warp take them for `mma.m16n8k8` (tf32) or `mma.m16n8k16` (bf16):
//! a lane has filters `2 * (lane / 4)` and the next one, which are rows `lane / 4` and
//! `lane / 4 + 8` of the instruction's first matrix, so that results of a lane are neighbours.

use super::{SparseForm, misfit};
use crate::bf16;
use crate::kernel::KernelError;

/// Filters and channels of a block.
pub const BLOCK: usize = 16;

/// Values of a block.
const VALUES: usize = BLOCK * BLOCK;

/// What a matrix of weights `[M, C, taps]` comes to in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockShape {
    /// Filters.
    pub filters: usize,
    /// Channels.
    pub channels: usize,
    /// Taps of the window.
    pub taps: usize,
}

impl BlockShape {
    /// Of weights of these extents; `None` for less than two.
    pub fn of(w_dims: &[u64]) -> Option<Self> {
        let &[m, c, ref taps @ ..] = w_dims else { return None };
        let taps = taps.iter().try_fold(1u64, |n, &d| n.checked_mul(d))?;
        let size = |n: u64| usize::try_from(n).ok().filter(|&n| n > 0);
        Some(Self { filters: size(m)?, channels: size(c)?, taps: size(taps)? })
    }

    /// Groups of filters.
    pub fn groups(&self) -> usize {
        self.filters.div_ceil(BLOCK)
    }

    /// Blocks of a group, zero or not.
    pub fn columns(&self) -> usize {
        self.channels.div_ceil(BLOCK).saturating_mul(self.taps)
    }

    /// Of each group, which of its blocks hold anything but zeros.
    fn alive(&self, w: &[f32]) -> Vec<Vec<bool>> {
        let mut alive = vec![vec![false; self.columns()]; self.groups()];
        for (m, row) in w.chunks_exact(self.channels * self.taps).take(self.filters).enumerate() {
            let slabs = alive[m / BLOCK].chunks_exact_mut(self.taps);
            for (slab, alive) in row.chunks(BLOCK * self.taps).zip(slabs) {
                for window in slab.chunks_exact(self.taps) {
                    window.iter().zip(alive.iter_mut()).for_each(|(&v, alive)| *alive |= v != 0.0);
                }
            }
        }
        alive
    }

    /// How many blocks hold anything but zeros.
    pub fn count(&self, w: &[f32]) -> u64 {
        self.alive(w).iter().flatten().filter(|alive| **alive).count() as u64
    }
}

/// Words in front of the values.
fn head(groups: u64, room: u64) -> u64 {
    let words = groups.saturating_add(1).saturating_add(room);
    words.checked_next_multiple_of(4).unwrap_or(u64::MAX)
}

/// Words of a block's values.
fn words(form: SparseForm) -> u64 {
    if form == SparseForm::BlockBf16 { VALUES as u64 / 2 } else { VALUES as u64 }
}

/// Words of packed weights with so many rows and room for so many blocks, saturating.
pub(super) fn packed_len(form: SparseForm, rows: u64, room: u64) -> u64 {
    head(rows.div_ceil(BLOCK as u64), room).saturating_add(room.saturating_mul(words(form)))
}

/// The room of packed weights with so many rows and words.
pub(super) fn room(form: SparseForm, rows: u64, len: u64) -> Option<u64> {
    let groups = rows.div_ceil(BLOCK as u64);
    // The head's filling is less than a block.
    let most = len.checked_sub(groups.checked_add(1)?)? / (words(form) + 1);
    (most.saturating_sub(1)..=most).find(|&room| packed_len(form, rows, room) == len)
}

/// Where in its block the value of a filter and a channel lies: the word, and which half of it.
fn place(form: SparseForm, filter: usize, channel: usize) -> (usize, usize) {
    let row = filter % 2;
    if form == SparseForm::BlockBf16 {
        let (lane, second) = (filter / 2 * 4 + channel % 8 / 2, channel / 8);
        return (4 * lane + row + 2 * second, channel % 2);
    }
    let (lane, second) = (filter / 2 * 4 + channel % 4, channel % 8 / 4);
    (channel / 8 * 128 + 4 * lane + row + 2 * second, 0)
}

/// Writes the weights into `packed`.
///
/// # Errors
/// If there are more blocks than room, or the sizes do not belong together.
pub fn pack(shape: BlockShape, form: SparseForm, w: &[f32], packed: &mut [i32]) -> Result<(), KernelError> {
    let bad = |why: String| KernelError::BadData(format!("pack_sparse: {why}"));
    let room = room(form, shape.filters as u64, packed.len() as u64);
    let (Some(room), true) = (room, w.len() == shape.filters * shape.channels * shape.taps) else {
        return Err(bad(format!("{} weights into {} words", w.len(), packed.len())));
    };
    packed.fill(0);
    let groups = shape.groups();
    let (head, values) = packed.split_at_mut(head(groups as u64, room) as usize);
    let mut blocks = values.chunks_exact_mut(words(form) as usize);
    let mut at = 0;
    for (group, alive) in shape.alive(w).iter().enumerate() {
        for column in (0..alive.len()).filter(|&column| alive[column]) {
            let Some(block) = blocks.next() else {
                return Err(bad(
                    "the weights have fewer blocks of zeros than when the plan was made; compile it \
                                again"
                        .into(),
                ));
            };
            head[groups + 1 + at] = i32::try_from(column).map_err(|e| bad(e.to_string()))?;
            at += 1;
            let (slab, tap) = (column / shape.taps, column % shape.taps);
            for f in 0..BLOCK.min(shape.filters - group * BLOCK) {
                for c in 0..BLOCK.min(shape.channels - slab * BLOCK) {
                    let row = (group * BLOCK + f) * shape.channels + slab * BLOCK + c;
                    let value = w[row * shape.taps + tap];
                    let (word, half) = place(form, f, c);
                    block[word] |= match form {
                        SparseForm::BlockBf16 => (u32::from(bf16::round(value)) << (16 * half)) as i32,
                        _ => value.to_bits() as i32,
                    };
                }
            }
        }
        head[group + 1] = i32::try_from(at).map_err(|e| bad(e.to_string()))?;
    }
    Ok(())
}

/// Packed weights whose starts and numbers are within bounds.
#[derive(Clone, Copy, Debug)]
pub struct Blocks<'a> {
    shape: BlockShape,
    form: SparseForm,
    starts: &'a [i32],
    columns: &'a [i32],
    values: &'a [i32],
}

impl<'a> Blocks<'a> {
    /// Looks at packed weights.
    ///
    /// # Errors
    /// If they are not of that shape.
    pub fn new(shape: BlockShape, form: SparseForm, packed: &'a [i32]) -> Result<Self, KernelError> {
        let room = room(form, shape.filters as u64, packed.len() as u64)
            .ok_or_else(|| misfit("another size"))? as usize;
        let groups = shape.groups();
        let (first, values) = packed.split_at(head(groups as u64, room as u64) as usize);
        let (starts, columns) = (&first[..=groups], &first[groups + 1..][..room]);
        let ascending = |list: &[i32]| list.windows(2).all(|w| w[0] < w[1]);
        let ordered = starts[0] == 0
            && starts.windows(2).all(|w| w[0] <= w[1])
            && usize::try_from(starts[groups]).is_ok_and(|n| n <= room);
        let blocks = Self { shape, form, starts, columns, values };
        let inside = |g: usize| {
            let list = blocks.columns(g);
            ascending(list) && list.iter().all(|&c| (0..shape.columns()).contains(&(c as usize)))
        };
        if !ordered || !(0..groups).all(inside) {
            return Err(misfit("starts or numbers of blocks that are no order"));
        }
        Ok(blocks)
    }

    fn range(&self, group: usize) -> std::ops::Range<usize> {
        self.starts[group] as usize..self.starts[group + 1] as usize
    }

    /// The numbers of a group's blocks, ascending.
    pub fn columns(&self, group: usize) -> &'a [i32] {
        &self.columns[self.range(group)]
    }

    /// Calls `each` with the column `[C, taps]` and value of every weight of a filter that is not
    /// zero, columns ascending.
    pub fn row(&self, filter: usize, mut each: impl FnMut(usize, f32)) {
        let (group, f) = (filter / BLOCK, filter % BLOCK);
        let (taps, size) = (self.shape.taps, words(self.form) as usize);
        let first = self.range(group).start;
        let columns = self.columns(group);
        let mut at = 0;
        while at < columns.len() {
            let slab = columns[at] as usize / taps;
            let len = columns[at..].iter().take_while(|&&c| c as usize / taps == slab).count();
            for c in 0..BLOCK.min(self.shape.channels - slab * BLOCK) {
                let (word, half) = place(self.form, f, c);
                for (i, &column) in columns.iter().enumerate().skip(at).take(len) {
                    let bits = self.values[(first + i) * size + word] as u32;
                    let value = match self.form {
                        SparseForm::BlockBf16 => bf16::widen((bits >> (16 * half)) as u16),
                        _ => f32::from_bits(bits),
                    };
                    if value != 0.0 {
                        each((slab * BLOCK + c) * taps + column as usize % taps, value);
                    }
                }
            }
            at += len;
        }
    }
}

/// The matrix `[M, C * taps]` that was packed.
///
/// # Errors
/// If the packed weights are not of such a matrix.
pub fn unpack(shape: BlockShape, form: SparseForm, packed: &[i32]) -> Result<Vec<f32>, KernelError> {
    let blocks = Blocks::new(shape, form, packed)?;
    let width = shape.channels * shape.taps;
    let mut w = vec![0.0; shape.filters * width];
    for (m, row) in w.chunks_exact_mut(width).enumerate() {
        blocks.row(m, |column, value| row[column] = value);
    }
    Ok(w)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: BlockShape = BlockShape { filters: 37, channels: 21, taps: 3 };

    /// Weights of which every `n`th block has values.
    fn weights(n: usize) -> Vec<f32> {
        let value = |i: usize| {
            let (m, c, tap) = (i / 63, i / 3 % 21, i % 3);
            let block = m / BLOCK * 6 + c / BLOCK * 3 + tap;
            // Exact in bf16.
            if block.is_multiple_of(n) { (i % 200) as f32 - 100.0 } else { 0.0 }
        };
        (0..37 * 63).map(value).collect()
    }

    #[test]
    fn what_is_packed_comes_back() {
        for form in [SparseForm::Block, SparseForm::BlockBf16] {
            for (n, blocks) in [(1, 18), (4, 5), (100, 1)] {
                let w = weights(n);
                assert_eq!(SHAPE.count(&w), blocks);
                for spare in 0..6 {
                    let len = packed_len(form, 37, blocks + spare);
                    assert_eq!(room(form, 37, len), Some(blocks + spare));
                    let mut packed = vec![7; len as usize];
                    pack(SHAPE, form, &w, &mut packed).expect("it fits");
                    assert_eq!(unpack(SHAPE, form, &packed).expect("blocks"), w);
                }
                let mut small = vec![0; packed_len(form, 37, blocks - 1) as usize];
                let error = pack(SHAPE, form, &w, &mut small).unwrap_err().to_string();
                assert!(error.contains("compile it again"), "{error}");
            }
            assert_eq!(room(form, 37, 3), None);
            assert_eq!(room(form, 37, 200), None);
        }
    }

    #[test]
    fn values_lie_as_lanes_take_them() {
        for form in [SparseForm::Block, SparseForm::BlockBf16] {
            let mut places: Vec<_> = (0..VALUES).map(|i| place(form, i / BLOCK, i % BLOCK)).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), VALUES);
            assert!(places.iter().all(|&(word, half)| half < 2 && (word as u64) < words(form)));
        }
        // Lane 6 of the second k8 step: row 1 is filter 2, row 9 filter 3, columns 2 and 6.
        let at = |f, c| place(SparseForm::Block, f, c).0;
        assert_eq!([at(2, 10), at(3, 10), at(2, 14), at(3, 14)], [152, 153, 154, 155]);
        // Of the k16 step: columns 4, 5 and 12, 13.
        let at = |f, c| place(SparseForm::BlockBf16, f, c);
        assert_eq!([at(2, 4), at(3, 5), at(2, 12), at(3, 13)], [(24, 0), (25, 1), (26, 0), (27, 1)]);
    }

    #[test]
    fn broken_blocks_are_named() {
        let w = weights(4);
        let mut packed = vec![0; packed_len(SparseForm::Block, 37, 5) as usize];
        pack(SHAPE, SparseForm::Block, &w, &mut packed).expect("it fits");
        for (at, word) in [(0, 1), (0, -1), (1, 9), (3, 6), (2, -1), (4, 6), (4, -1), (5, 0)] {
            let mut broken = packed.clone();
            broken[at] = word;
            assert!(unpack(SHAPE, SparseForm::Block, &broken).is_err(), "word {at} is {word}");
        }
    }
}
