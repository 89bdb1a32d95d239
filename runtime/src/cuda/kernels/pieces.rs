//! Tensors laid behind each other along an axis, in one launch: concats, and the batch norms
//! that read them.

use super::batchnorm::given_coefficients;
use super::context::Cx;
use super::shape::{Divisor, Image, memory_order};
use super::source::{Kernel, Source};
use super::step::{Args, LIMIT};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Operand;
use bytemuck::{Pod, Zeroable};
use cudarc::driver::sys::CUdeviceptr;

/// Pieces of one launch: `MAX_PIECES` of pieces.cu.
const MAX_PIECES: usize = 64;

/// `Pieces` of pieces.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct Table {
    from: [CUdeviceptr; MAX_PIECES],
    end: [u32; MAX_PIECES],
    stride: u64,
    first: u64,
    row: Divisor,
    unused: u32,
}

/// A run in every row of the result.
#[derive(Clone, Copy, Debug)]
struct Piece {
    ptr: CUdeviceptr,
    len: u64,
}

/// The rows of a result, in elements, and the runs they are made of.
struct Rows {
    count: u64,
    pieces: Vec<Piece>,
}

impl Rows {
    fn new(operands: &[Operand<'_>], axis: usize) -> Self {
        let run = |x: &Operand<'_>| -> (u64, u64) {
            let order = memory_order(x.ty);
            let at = order.iter().position(|&d| d == axis).unwrap_or_default();
            let extent = |dims: &[usize]| dims.iter().map(|&d| x.ty.dims[d]).product();
            (extent(&order[..at]), extent(&order[at..]))
        };
        let count = operands.first().map_or(0, |x| run(x).0);
        let pieces = operands.iter().map(|x| Piece { ptr: x.ptr, len: run(x).1 });
        Self { count, pieces: pieces.filter(|p| p.len > 0).collect() }
    }

    /// Elements of a row.
    fn len(&self) -> u64 {
        self.pieces.iter().map(|p| p.len).sum()
    }

    /// True if every run is whole units of `unit` elements.
    fn divides(&self, unit: u64) -> bool {
        self.pieces.iter().all(|p| p.len.is_multiple_of(unit))
    }

    /// The launches that see all pieces, as few as their number and 32-bit counts allow: units
    /// and table of each.
    fn launches(&self, cx: &Cx<'_>, unit: u64) -> Result<Vec<(u32, Table)>, CudaError> {
        let mut out = Vec::new();
        let (mut left, mut first) = (self.pieces.as_slice(), 0);
        while self.count > 0 && !left.is_empty() {
            let units = |n: usize| left[..n].iter().map(|p| p.len / unit).sum::<u64>();
            let fits = |n: &usize| self.count.saturating_mul(units(*n)) < LIMIT;
            let n = (1..=left.len().min(MAX_PIECES)).rev().find(fits).unwrap_or(1);
            let mut table: Table = Zeroable::zeroed();
            table.end = [u32::MAX; MAX_PIECES];
            table.stride = self.len() / unit;
            table.first = first;
            table.row = Divisor::new(units(n));
            let mut end = 0;
            for (i, piece) in left[..n].iter().enumerate() {
                end += piece.len / unit;
                table.from[i] = piece.ptr;
                table.end[i] = cx.count(end)?;
            }
            out.push((cx.count(self.count.saturating_mul(end))?, table));
            first += end;
            left = &left[n..];
        }
        Ok(out)
    }
}

/// [`vdnn_ir::Op::Concat`].
pub(super) fn concat(cx: &mut Cx<'_>, axis: u64) -> Result<(), CudaError> {
    let y = cx.output(0)?;
    let rows = Rows::new(cx.spec.inputs, axis as usize);
    let size = y.ty.dtype.bytes();
    let access = [16, 8, 4, 2, 1].into_iter().find(|&a| a >= size && rows.divides(a / size)).unwrap_or(size);
    let element = ["u8", "u16", "u32", "u64", "uint4"][access.trailing_zeros() as usize];
    for (n, table) in rows.launches(cx, access / size)? {
        let args = Args::new().ptr(y.ptr).u32(n).pod(&table);
        cx.per_items(Kernel::instance(Source::Pieces, "CONCAT", element), n.into(), args)?;
    }
    Ok(())
}

/// The channels of tensors joined along them.
pub(super) struct Channels {
    /// What the sums of batch norms read.
    pub(super) table: Table,
    /// Every tensor has a multiple of four.
    pub(super) by_four: bool,
}

impl Channels {
    /// Those of all.
    pub(super) fn of(pieces: &[Operand<'_>], cx: &Cx<'_>) -> Result<Self, CudaError> {
        let mut table: Table = Zeroable::zeroed();
        table.end = [u32::MAX; MAX_PIECES];
        if pieces.len() > MAX_PIECES {
            return Err(cx.unsupported(format!("{} tensors to join", pieces.len())));
        }
        let (mut end, mut by_four) = (0, true);
        for (i, x) in pieces.iter().enumerate() {
            let channels = Image::new(x.ty).channels;
            end += channels;
            by_four &= channels.is_multiple_of(4);
            table.from[i] = x.ptr;
            table.end[i] = cx.count(end)?;
        }
        table.row = Divisor::new(1);
        Ok(Self { table, by_four })
    }

    /// Those of the inputs from number `first` on but the first `count` channels, which are of whole
    /// tensors; `None` if there are no others.
    pub(super) fn behind(cx: &Cx<'_>, first: usize, count: u64) -> Result<Option<Self>, CudaError> {
        let mut left = cx.spec.inputs.get(first..).unwrap_or_default();
        let mut skipped = 0;
        while let [x, rest @ ..] = left
            && skipped < count
        {
            skipped += Image::new(x.ty).channels;
            left = rest;
        }
        let others = left.iter().any(|x| Image::new(x.ty).channels > 0);
        if others { Self::of(left, cx).map(Some) } else { Ok(None) }
    }
}

/// [`vdnn_ir::Op::BatchNormInferRelu`], or without `eps` [`vdnn_ir::Op::BatchNormApplyRelu`], of
/// several x.
pub(super) fn batch_norm_relu(cx: &mut Cx<'_>, eps: Option<f32>) -> Result<(), CudaError> {
    let y = cx.real_out(0)?;
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let factors = given_coefficients(cx, 0, Image::new(y.ty).channels, eps)?;
    apply_joined(cx, 4, factors, false)
}

/// How a pass over joined rows goes: their runs, elements of a unit, and the arguments of the
/// kernel that tell the channels of one.
struct Pass {
    rows: Rows,
    unit: u64,
    arguments: String,
    channels: u32,
    plane: Divisor,
}

impl Pass {
    /// Over the inputs from number `first` on, which are joined in `whole`; `stride` elements lie
    /// between rows of another tensor, if there is one.
    fn new(cx: &Cx<'_>, first: usize, whole: Operand<'_>, stride: u64) -> Result<Self, CudaError> {
        let element = cx.element(whole)?;
        let Image { channels, plane, last, .. } = Image::new(whole.ty);
        let rows = Rows::new(cx.spec.inputs.get(first..).unwrap_or_default(), 1);
        // Vectors of several channels, or of one.
        let whole = [if last { 0 } else { plane }, stride].iter().all(|n| n.is_multiple_of(element.width));
        let unit = if rows.divides(element.width) && whole { element.width } else { 1 };
        let arguments = format!("{}, {unit}, {last}", element.name);
        let plane = Divisor::new(if last { 1 } else { (plane / unit).max(1) });
        Ok(Self { rows, unit, arguments, channels: cx.count(channels)?, plane })
    }
}

/// `max(normalised x, 0)` of the inputs from number `first` on, joined; `summed`: they have just
/// been read.
pub(super) fn apply_joined(
    cx: &mut Cx<'_>,
    first: usize,
    factors: CUdeviceptr,
    summed: bool,
) -> Result<(), CudaError> {
    let y = cx.real_out(0)?;
    let pass = Pass::new(cx, first, y, 0)?;
    let name = format!("{}, {summed}", pass.arguments);
    for (n, table) in pass.rows.launches(cx, pass.unit)? {
        let args = Args::new().ptr(y.ptr).ptr(factors).u32(n).u32(pass.channels);
        let kernel = Kernel::instance(Source::Pieces, "BN_RELU_CONCAT", &name);
        cx.per_items(kernel, n.into(), args.pod(&pass.plane).pod(&table))?;
    }
    Ok(())
}

/// The gradient of that, with the first channels of `added`.
pub(super) fn grad_joined(
    cx: &mut Cx<'_>,
    first: usize,
    added: Option<Operand<'_>>,
    bias: CUdeviceptr,
    factors: CUdeviceptr,
) -> Result<(), CudaError> {
    let (dy, dx) = (cx.real(0)?, cx.real_out(0)?);
    let stride = added.map_or(0, |g| Rows::new(&[g], 1).len());
    let pass = Pass::new(cx, first, dx, stride)?;
    let name = format!("{}, {}", pass.arguments, added.is_some());
    for (n, table) in pass.rows.launches(cx, pass.unit)? {
        let args = Args::new().ptr(dy.ptr).ptr(added.map_or(0, |g| g.ptr)).u64(stride / pass.unit);
        let args = args.ptr(bias).ptr(dx.ptr).ptr(factors).u32(n).u32(pass.channels);
        let kernel = Kernel::instance(Source::Pieces, "BN_RELU_GRAD_CONCAT", &name);
        cx.per_items(kernel, n.into(), args.pod(&pass.plane).pod(&table))?;
    }
    Ok(())
}
