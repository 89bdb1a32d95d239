//! Panels of the unfolded input, gathered straight from the image with 512-bit vectors.
//!
//! Row `(channel, tap)` and column `output position` of the unfolding (im2col) hold the
//! input that the output reads at that tap, or zero in the padding. It never exists as a
//! whole: [`Window::pack`] writes the few rows and columns that one product needs, in the
//! order in which [`super::tile`] reads them, and [`Window::pack_transposed`] their
//! transpose.

#![cfg(target_arch = "x86_64")]

use super::geometry::{Conv, Space, inputs, outputs, tap_at, taps};
use super::tile::{LANES, VECTORS};
use smallvec::SmallVec;
use std::arch::x86_64::{
    __m512, _MM_HINT_T0, _MM_HINT_T1, _mm_prefetch, _mm512_load_si512, _mm512_loadu_si512,
    _mm512_mask_i32gather_ps, _mm512_maskz_loadu_ps, _mm512_permutex2var_ps, _mm512_set1_epi32,
    _mm512_setr_epi32, _mm512_setzero_ps, _mm512_store_ps, _mm512_test_epi32_mask, _pdep_u32,
};
use std::ops::Range;

/// Taps per word of validity bits.
const BITS: usize = 32;

/// Elements between what [`Window::pack_transposed`] reads and what it prefetches.
const AHEAD: isize = 64;

/// Where the outputs of some images find their inputs. Positions count the outputs of one
/// image after those of the image before.
pub(super) struct Window<'a> {
    /// Per position: index of the input of a tap with offset 0, relative to the first image.
    base: &'a [i32],
    /// Per word of taps and position: which taps read an existing input.
    valid: &'a [u32],
    /// Positions, rounded up to whole vectors.
    pitch: usize,
    /// Per tap: offset to add to the base.
    offsets: SmallVec<[isize; 25]>,
    /// Elements of an input plane.
    plane: usize,
    /// The base of position p is p.
    contiguous: bool,
    /// Taps of a row of the kernel: they read the same lines of memory.
    across: usize,
}

/// Elements of scratch that a window over `images` images takes.
pub(super) fn scratch_len(g: &Conv, images: usize) -> usize {
    let pitch = (images * g.outputs()).next_multiple_of(LANES);
    pitch * (1 + taps(&g.space).div_ceil(BITS))
}

/// True if indices of `images` images fit the gather instructions.
pub(super) fn fits(g: &Conv, images: usize) -> bool {
    let reach = g.space.iter().map(|d| d.input.max(d.output * d.stride));
    let reach = reach.fold(images * g.c, usize::saturating_mul);
    i32::try_from(reach).is_ok()
}

impl<'a> Window<'a> {
    /// Tables for `images` images of `g`, kept in `buffer` of [`scratch_len`] elements.
    pub(super) fn new(g: &Conv, images: usize, buffer: &'a mut [f32]) -> Self {
        let (s, positions) = (&g.space, images * g.outputs());
        let pitch = positions.next_multiple_of(LANES);
        let (base, valid) = buffer.split_at_mut(pitch);
        let base: &mut [i32] = bytemuck::cast_slice_mut(base);
        let valid: &mut [u32] = bytemuck::cast_slice_mut(valid);
        base.fill(0);
        valid.fill(0);
        let (plane, out) = (inputs(s), outputs(s));
        fill_base(s, &mut base[..out]);
        let taps = taps(s);
        for (word, valid) in valid.chunks_exact_mut(pitch.max(1)).enumerate() {
            fill_valid(s, word * BITS..((word + 1) * BITS).min(taps), &mut valid[..out]);
            for n in 1..images {
                valid.copy_within(..out, n * out);
            }
        }
        for n in 1..images {
            let (first, rest) = base.split_at_mut(n * out);
            let shift = (n * g.c * plane) as i32;
            rest.iter_mut().zip(&first[..out]).for_each(|(to, from)| *to = from + shift);
        }
        let [d, h, w] = s;
        let offsets = (0..taps)
            .map(|tap| {
                let [kd, kh, kw] = tap_at(s, tap);
                (d.origin(kd) * h.input as isize + h.origin(kh)) * w.input as isize + w.origin(kw)
            })
            .collect();
        let contiguous = base[..positions].iter().enumerate().all(|(i, &b)| i == b as usize);
        Self { base, valid, pitch, offsets, plane, contiguous, across: w.kernel }
    }

    fn taps(&self) -> usize {
        self.offsets.len()
    }

    /// Which of the 16 positions from `at` have an input at `tap`.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn mask(&self, tap: usize, at: usize) -> u16 {
        let row = &self.valid[tap / BITS * self.pitch..][..self.pitch];
        let bits = &row[at..at + LANES];
        // SAFETY: 16 elements were just bounds-checked.
        let bits = unsafe { _mm512_loadu_si512(bits.as_ptr().cast()) };
        _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << (tap % BITS)))
    }

    /// How the 16 positions from `at` are to be read.
    fn pattern(&self, at: usize) -> Pattern {
        let base = &self.base[at..at + LANES];
        let steps = |n: i32| (0..).zip(base).all(|(i, &b)| b == base[0] + n * i);
        match () {
            () if self.contiguous || steps(1) => Pattern::Run(base[0] as isize),
            () if steps(2) => Pattern::Alternate(base[0] as isize),
            () => Pattern::Any(at),
        }
    }

    /// Writes rows `rows` of the unfolding of `x`, columns `from` and the following
    /// `vectors * LANES`, to `out`, row by row. Columns beyond the positions become zero.
    ///
    /// # Safety
    /// [`super::tile::available`] is true. `x` holds the planes of a group of the window's
    /// first image, and those of its further images at the distance that the window was
    /// made for.
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,bmi2")]
    pub(super) unsafe fn pack(
        &self,
        x: &[f32],
        rows: Range<usize>,
        from: usize,
        vectors: usize,
        out: &mut [f32],
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            match vectors {
                1 => self.pack_vectors::<1>(x, rows, from, out),
                2 => self.pack_vectors::<2>(x, rows, from, out),
                _ => self.pack_vectors::<VECTORS>(x, rows, from, out),
            }
        }
    }

    /// # Safety
    /// As [`Self::pack`].
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,bmi2")]
    unsafe fn pack_vectors<const V: usize>(
        &self,
        x: &[f32],
        rows: Range<usize>,
        from: usize,
        out: &mut [f32],
    ) {
        let mut patterns = [Pattern::Run(0); V];
        for (v, pattern) in patterns.iter_mut().enumerate() {
            *pattern = self.pattern(from + v * LANES);
        }
        // SAFETY: `pack_rows` asks for inputs that exist.
        unsafe {
            if let Some(bases) = all(patterns, |p| if let Pattern::Run(b) = p { Some(b) } else { None }) {
                let load = |v: usize, x: *const f32, mask| run(x.wrapping_offset(bases[v]), mask);
                self.pack_rows::<V>(x, rows, from, out, Some(bases[0] + (V * LANES) as isize), load);
                return;
            }
            if let Some(bases) = all(patterns, |p| if let Pattern::Alternate(b) = p { Some(b) } else { None })
            {
                let load = |v: usize, x: *const f32, mask| alternate(x.wrapping_offset(bases[v]), mask);
                self.pack_rows::<V>(x, rows, from, out, None, load);
                return;
            }
            let load = |v: usize, x: *const f32, mask| self.load(patterns[v], x, mask);
            self.pack_rows::<V>(x, rows, from, out, None, load);
        }
    }

    /// Packs with `load(vector, tap's plane, mask)`, and prefetches what lies `ahead` of a
    /// tap's plane: the same row of the next panel. What follows a row is far away.
    ///
    /// # Safety
    /// As [`Self::pack`].
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,bmi2")]
    #[inline]
    unsafe fn pack_rows<const V: usize>(
        &self,
        x: &[f32],
        rows: Range<usize>,
        from: usize,
        out: &mut [f32],
        ahead: Option<isize>,
        load: impl Fn(usize, *const f32, u16) -> __m512,
    ) {
        let taps = self.taps();
        assert!(rows.len() * V * LANES <= out.len(), "room for the panel");
        assert!(out.as_ptr().addr().is_multiple_of(64), "an aligned panel");
        let masks: SmallVec<[[u16; V]; 25]> = (0..taps)
            .map(|tap| {
                let mut masks = [0; V];
                for (v, mask) in masks.iter_mut().enumerate() {
                    *mask = self.mask(tap, from + v * LANES);
                }
                masks
            })
            .collect();
        let mut plane = x.as_ptr().wrapping_add(rows.start / taps * self.plane);
        let (mut tap, mut left, mut to) = (rows.start % taps, rows.len(), out.as_mut_ptr());
        while left > 0 {
            let end = taps.min(tap + left);
            left -= end - tap;
            for t in tap..end {
                let at = plane.wrapping_offset(self.offsets[t]);
                // SAFETY: the panel has room, see above; prefetching may name any address.
                unsafe {
                    if let (Some(ahead), true) = (ahead, t.is_multiple_of(self.across)) {
                        for v in 0..V {
                            let next = at.wrapping_offset(ahead).wrapping_add(v * LANES);
                            _mm_prefetch::<_MM_HINT_T1>(next.cast());
                        }
                    }
                    for (v, &mask) in masks[t].iter().enumerate() {
                        _mm512_store_ps(to.add(v * LANES), load(v, at, mask));
                    }
                    to = to.add(V * LANES);
                }
            }
            tap = 0;
            plane = plane.wrapping_add(self.plane);
        }
    }

    /// Writes the transpose: positions `cols` by rows `rows` of the unfolding, the latter
    /// padded with zeros to `vectors * LANES`.
    ///
    /// # Safety
    /// As [`Self::pack`]; `cols.start` is a multiple of [`LANES`].
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,bmi2")]
    pub(super) unsafe fn pack_transposed(
        &self,
        x: &[f32],
        rows: Range<usize>,
        cols: Range<usize>,
        vectors: usize,
        out: &mut [f32],
    ) {
        assert!(cols.len() * vectors * LANES <= out.len(), "room for the panel");
        assert!(out.as_ptr().addr().is_multiple_of(64), "an aligned panel");
        let mut masks: SmallVec<[u16; 25]> = SmallVec::from_elem(0, self.taps());
        for at in cols.clone().step_by(LANES) {
            for (tap, mask) in masks.iter_mut().enumerate() {
                *mask = self.mask(tap, at);
            }
            let count = (cols.end - at).min(LANES);
            let to = &mut out[(at - cols.start) * vectors * LANES..][..count * vectors * LANES];
            // SAFETY: the masks are those of these positions.
            unsafe {
                match self.pattern(at) {
                    Pattern::Run(base) => {
                        let load = |x: *const f32, mask| {
                            let x = x.wrapping_offset(base);
                            _mm_prefetch::<_MM_HINT_T0>(x.wrapping_offset(AHEAD).cast());
                            run(x, mask)
                        };
                        self.turn(x, rows.clone(), &masks, vectors, to, load);
                    }
                    pattern => {
                        let load = |x: *const f32, mask| self.load(pattern, x, mask);
                        self.turn(x, rows.clone(), &masks, vectors, to, load);
                    }
                }
            }
        }
    }

    /// Packs the transpose of up to 16 positions of the rows `rows` with `load(tap's plane,
    /// mask)`.
    ///
    /// # Safety
    /// As [`Self::pack_transposed`].
    #[expect(unsafe_code, reason = "vector instructions")]
    #[target_feature(enable = "avx512f,bmi2")]
    #[inline]
    unsafe fn turn(
        &self,
        x: &[f32],
        rows: Range<usize>,
        masks: &[u16],
        vectors: usize,
        to: &mut [f32],
        load: impl Fn(*const f32, u16) -> __m512,
    ) {
        let taps = masks.len();
        let mut plane = x.as_ptr().wrapping_add(rows.start / taps * self.plane);
        let (mut tap, mut left) = (rows.start % taps, rows.len());
        for v in 0..vectors {
            let mut square = [_mm512_setzero_ps(); LANES];
            for line in &mut square[..left.min(LANES)] {
                *line = load(plane.wrapping_offset(self.offsets[tap]), masks[tap]);
                tap += 1;
                if tap == taps {
                    tap = 0;
                    plane = plane.wrapping_add(self.plane);
                }
            }
            left = left.saturating_sub(LANES);
            let square = super::transpose::square(square);
            for (line, to) in square.iter().zip(to.chunks_exact_mut(vectors * LANES)) {
                let to = &mut to[v * LANES..][..LANES];
                // SAFETY: 16 elements, just bounds-checked; aligned as the panel is.
                unsafe { _mm512_store_ps(to.as_mut_ptr(), *line) };
            }
        }
    }

    /// The inputs of 16 positions at one tap, zero where `mask` is not set.
    ///
    /// # Safety
    /// `mask` has no more than the positions that [`Self::mask`] allows for this tap, and
    /// `x` is the x of the window + channel * plane + offset of the tap.
    #[expect(unsafe_code, reason = "masked loads from computed addresses")]
    #[target_feature(enable = "avx512f,bmi2")]
    #[inline]
    unsafe fn load(&self, pattern: Pattern, x: *const f32, mask: u16) -> __m512 {
        // SAFETY: only lanes with existing inputs are read, by the caller's promise.
        unsafe {
            match pattern {
                Pattern::Run(base) => run(x.wrapping_offset(base), mask),
                Pattern::Alternate(base) => alternate(x.wrapping_offset(base), mask),
                Pattern::Any(at) => {
                    let index = _mm512_load_si512(self.base.as_ptr().add(at).cast());
                    _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), mask, index, x.cast())
                }
            }
        }
    }
}

/// What `f` gives for every pattern, if it gives something for all.
fn all<const V: usize>(p: [Pattern; V], f: impl Fn(Pattern) -> Option<isize>) -> Option<[isize; V]> {
    let mut out = [0; V];
    for (out, p) in out.iter_mut().zip(p) {
        *out = f(p)?;
    }
    Some(out)
}

/// 16 elements side by side, zero where `mask` is not set.
///
/// # Safety
/// The elements that `mask` has are readable.
#[expect(unsafe_code, reason = "masked loads from computed addresses")]
#[target_feature(enable = "avx512f")]
#[inline]
unsafe fn run(x: *const f32, mask: u16) -> __m512 {
    // SAFETY: the caller's promise; other lanes are not read.
    unsafe { _mm512_maskz_loadu_ps(mask, x) }
}

/// Every other element of 32, zero where `mask` is not set.
///
/// # Safety
/// The elements that `mask` has are readable.
#[expect(unsafe_code, reason = "masked loads from computed addresses")]
#[target_feature(enable = "avx512f,bmi2")]
#[inline]
unsafe fn alternate(x: *const f32, mask: u16) -> __m512 {
    let even = _pdep_u32(u32::from(mask), 0x5555_5555);
    // SAFETY: the caller's promise; other lanes, in particular the odd ones, are not read.
    unsafe {
        let low = _mm512_maskz_loadu_ps(even as u16, x);
        let high = _mm512_maskz_loadu_ps((even >> 16) as u16, x.wrapping_add(LANES));
        let pick = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        _mm512_permutex2var_ps(low, pick, high)
    }
}

/// How 16 inputs lie in memory, from an index relative to the first image.
#[derive(Clone, Copy, Debug)]
enum Pattern {
    /// Side by side.
    Run(isize),
    /// Every other one.
    Alternate(isize),
    /// As the table of bases says from this position.
    Any(usize),
}

/// The bases of the outputs of one image.
fn fill_base(s: &Space, base: &mut [i32]) {
    let [d, h, w] = s;
    for (row, line) in base.chunks_exact_mut(w.output.max(1)).enumerate() {
        let (od, oh) = (row / h.output, row % h.output);
        let first = (od * d.stride * h.input + oh * h.stride) * w.input;
        line.iter_mut().enumerate().for_each(|(ow, b)| *b = (first + ow * w.stride) as i32);
    }
}

/// The validity bits of some taps, at most [`BITS`], for the outputs of one image.
fn fill_valid(s: &Space, taps: Range<usize>, valid: &mut [u32]) {
    let [d, h, w] = s;
    for (bit, tap) in taps.enumerate() {
        let [kd, kh, kw] = tap_at(s, tap);
        let across = w.valid(kw);
        for od in d.valid(kd) {
            for oh in h.valid(kh) {
                let line = &mut valid[(od * h.output + oh) * w.output..][across.clone()];
                line.iter_mut().for_each(|v| *v |= 1 << bit);
            }
        }
    }
}
