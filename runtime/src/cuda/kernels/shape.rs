//! Numbers that kernels take: divisors, walks over strided axes, and tensors seen by memory order.

use super::step::LIMIT;
use bytemuck::{Pod, Zeroable};
use smallvec::SmallVec;
use vdnn_ir::{Layout, TensorType};

/// `Divisor` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Divisor {
    value: u32,
    multiplier: u32,
    shift: u32,
}

impl Divisor {
    /// Division by `value`, at least 1 and below [`LIMIT`]; other values are brought into that
    /// range, for kernels that then have nothing to do.
    pub(super) fn new(value: u64) -> Self {
        let value = value.clamp(1, LIMIT - 1);
        let shift = value.next_power_of_two().trailing_zeros();
        let multiplier = ((1u64 << 32) * ((1u64 << shift) - value)) / value + 1;
        Self { value: value as u32, multiplier: multiplier as u32, shift }
    }
}

/// `Axis` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct WalkAxis {
    extent: Divisor,
    unused: u32,
    step: [i64; 2],
}

pub(super) const MAX_RANK: usize = 8;

/// `Walk` of common.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Walk {
    rank: u32,
    unused: u32,
    axes: [WalkAxis; MAX_RANK],
}

/// A dimension of a walk: extent, and steps in elements in `N` layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis<const N: usize = 2> {
    pub(super) extent: u64,
    pub(super) step: [i64; N],
}

/// Dimensions from the outermost to the innermost.
pub(super) type Axes<const N: usize = 2> = SmallVec<[Axis<N>; 6]>;

impl Walk {
    /// `None` if the axes are too many or the positions too many to count.
    pub(super) fn new(axes: &[Axis]) -> Option<Self> {
        if axes.len() > MAX_RANK || positions(axes)? >= LIMIT {
            return None;
        }
        let mut walk: Self = Zeroable::zeroed();
        walk.rank = axes.len() as u32;
        for (to, from) in walk.axes.iter_mut().zip(axes) {
            *to = WalkAxis { extent: Divisor::new(from.extent), unused: 0, step: from.step };
        }
        Some(walk)
    }
}

/// Product of the extents.
pub(super) fn positions<const N: usize>(axes: &[Axis<N>]) -> Option<u64> {
    axes.iter().try_fold(1u64, |n, a| n.checked_mul(a.extent))
}

/// Drops extents of 1 and joins neighbours that are one dimension in all layouts.
pub(super) fn collapse<const N: usize>(axes: impl IntoIterator<Item = Axis<N>>) -> Axes<N> {
    let mut out = Axes::<N>::new();
    for axis in axes {
        if axis.extent == 1 {
            continue;
        }
        match out.last_mut() {
            Some(last) if (0..N).all(|i| last.step[i] == axis.step[i].wrapping_mul(axis.extent as i64)) => {
                *last = Axis { extent: last.extent * axis.extent, step: axis.step };
            }
            _ => out.push(axis),
        }
    }
    out
}

/// Logical dimensions from the slowest in memory to the fastest.
pub(super) fn memory_order(ty: &TensorType) -> SmallVec<[usize; 4]> {
    match ty.layout {
        Layout::RowMajor => (0..ty.rank()).collect(),
        Layout::ChannelsLast => [0, 2, 3, 1].into_iter().collect(),
    }
}

/// Elements between neighbours along each logical dimension.
pub(super) fn strides(ty: &TensorType) -> SmallVec<[i64; 4]> {
    let mut strides: SmallVec<[i64; 4]> = smallvec::smallvec![0; ty.rank()];
    let mut step = 1;
    for &d in memory_order(ty).iter().rev() {
        strides[d] = step;
        step *= ty.dims[d].max(1) as i64;
    }
    strides
}

/// The steps that read `ty` as if broadcast (numpy) to `dims`: zero along dimensions that are
/// missing or 1.
pub(super) fn broadcast_strides(ty: &TensorType, dims: &[u64]) -> SmallVec<[i64; 4]> {
    let mut out: SmallVec<[i64; 4]> = smallvec::smallvec![0; dims.len() - ty.rank()];
    out.extend(ty.dims.iter().zip(strides(ty)).map(|(&d, s)| if d == 1 { 0 } else { s }));
    out
}

/// A tensor `[N, C, ..]` as images, channels and positions.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    pub(super) images: u64,
    pub(super) channels: u64,
    pub(super) plane: u64,
    /// Channels are the fastest dimension.
    pub(super) last: bool,
}

impl Image {
    /// The type has at least two dimensions.
    pub(super) fn new(ty: &TensorType) -> Self {
        let plane = ty.dims.iter().skip(2).product();
        Self {
            images: ty.dims.first().copied().unwrap_or(1),
            channels: ty.dims.get(1).copied().unwrap_or(1),
            plane,
            last: ty.layout == Layout::ChannelsLast || plane == 1,
        }
    }

    pub(super) fn elements(&self) -> u64 {
        self.images * self.channels * self.plane
    }
}

/// A tensor by memory order as `[outer, axis, inner]`.
pub(super) fn around(ty: &TensorType, axis: u64) -> [u64; 3] {
    let order = memory_order(ty);
    let at = order.iter().position(|&d| d as u64 == axis).unwrap_or(0);
    let product = |dims: &[usize]| dims.iter().map(|&d| ty.dims[d]).product();
    [product(&order[..at]), ty.dims[axis as usize], product(&order[at + 1..])]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quotient(d: Divisor, n: u32) -> u32 {
        let high = ((u64::from(n) * u64::from(d.multiplier)) >> 32) as u32;
        high.wrapping_add(n) >> d.shift
    }

    #[test]
    fn divisors_divide() {
        for value in [1, 2, 3, 5, 7, 49, 64, 641, 6_700_417, (1 << 30) - 1, 1 << 30, (1 << 31) - 1] {
            let d = Divisor::new(value);
            let multiples = (0..4).flat_map(|k| [(k * value).wrapping_sub(1), k * value, k * value + 1]);
            for n in multiples.chain([0, 1, 12_345_678, LIMIT - 2, LIMIT - 1]).filter(|&n| n < LIMIT) {
                assert_eq!(u64::from(quotient(d, n as u32)), n / value, "{n} / {value}");
            }
        }
    }

    #[test]
    fn neighbours_collapse_where_both_layouts_allow() {
        let axis = |extent, a, b| Axis { extent, step: [a, b] };
        assert_eq!(collapse([axis(2, 12, 12), axis(1, 5, 5), axis(3, 4, 4), axis(4, 1, 1)]).len(), 1);
        assert_eq!(
            collapse([axis(2, 12, 0), axis(3, 4, 0), axis(4, 1, 1)]).as_slice(),
            [axis(6, 4, 0), axis(4, 1, 1)]
        );
    }

    #[test]
    fn channels_last_strides() {
        let ty: TensorType = "f32[2,3,4,5]nhwc".parse().unwrap();
        assert_eq!(strides(&ty).as_slice(), [60, 1, 15, 3]);
        assert_eq!(around(&ty, 1), [40, 3, 1]);
        assert_eq!(around(&ty, 2), [2, 4, 15]);
    }
}
