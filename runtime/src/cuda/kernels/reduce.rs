//! Sums, means and maxima over axes.

use super::context::Cx;
use super::shape::{Axis, Divisor, Walk, collapse, memory_order, strides};
use super::source::{Kernel, Source};
use super::step::{Args, ITEMS, LIMIT, Step, THREADS};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Operand;
use cudarc::driver::sys::CUdeviceptr;
use smallvec::SmallVec;
use vdnn_ir::op::ReduceKind;
use vdnn_ir::{DType, TensorType};

/// Most blocks of a grid along its second and third dimension.
const GRID: u64 = 65_535;

/// What combines values and what the result is divided by.
#[derive(Clone, Copy)]
pub(super) struct Fold {
    pub(super) name: &'static str,
    pub(super) divisor: f64,
}

/// [`vdnn_ir::Op::Reduce`].
pub(super) fn reduce(
    cx: &mut Cx<'_>,
    kind: ReduceKind,
    axes: &[u64],
    keepdims: bool,
) -> Result<(), CudaError> {
    let (x, y) = (cx.input(0)?, cx.output(0)?);
    if y.ty.elements() == 0 {
        return Ok(());
    }
    let count: u64 = axes.iter().map(|&a| x.ty.dims[a as usize]).product();
    let divisor = if kind == ReduceKind::Mean { count as f64 } else { 1.0 };
    let fold = Fold { name: if kind == ReduceKind::Max { "Max" } else { "Sum" }, divisor };
    let fast =
        matches!(x.ty.dtype, DType::F32 | DType::BF16) && count > 0 && same_order(x.ty, y.ty, axes, keepdims);
    match (fast, pattern(x.ty, axes).as_slice()) {
        (true, []) => rows(cx, fold, x, y, [1, 1, 1]),
        (true, &[(n, true)]) => rows(cx, fold, x, y, [1, 1, n]),
        (true, &[(k, false)]) => rows(cx, fold, x, y, [1, k, 1]),
        (true, &[(k, false), (n, true)]) => rows(cx, fold, x, y, [1, k, n]),
        (true, &[(m, true), (k, false), (n, true)]) => rows(cx, fold, x, y, [m, k, n]),
        (true, &[(n, true), (k, false)]) => columns(cx, fold, x, y, [1, n, k]),
        (true, &[(j, false), (n, true), (k, false)]) if j <= GRID => columns(cx, fold, x, y, [j, n, k]),
        _ => any(cx, kind, axes, keepdims, x, y),
    }
}

/// x's dimensions by memory order: extent and whether it is reduced, neighbours joined, without
/// extents of 1.
fn pattern(x: &TensorType, axes: &[u64]) -> SmallVec<[(u64, bool); 4]> {
    let mut out: SmallVec<[(u64, bool); 4]> = SmallVec::new();
    for d in memory_order(x) {
        let reduced = axes.contains(&(d as u64));
        match out.last_mut() {
            _ if x.dims[d] == 1 => {}
            Some(last) if last.1 == reduced => last.0 *= x.dims[d],
            _ => out.push((x.dims[d], reduced)),
        }
    }
    out
}

/// The kept dimensions of x by the memory order of y, as dimensions of x.
fn kept_by_output(x: &TensorType, y: &TensorType, axes: &[u64], keepdims: bool) -> SmallVec<[usize; 4]> {
    let kept = (0..x.rank()).filter(|&d| !axes.contains(&(d as u64)));
    if keepdims {
        memory_order(y).into_iter().filter(|&d| !axes.contains(&(d as u64))).collect()
    } else {
        let kept: SmallVec<[usize; 4]> = kept.collect();
        memory_order(y).into_iter().map(|d| kept[d]).collect()
    }
}

/// True if the kept dimensions lie in the same order in x and y.
fn same_order(x: &TensorType, y: &TensorType, axes: &[u64], keepdims: bool) -> bool {
    let long = |d: &usize| x.dims[*d] != 1;
    let in_x = memory_order(x).into_iter().filter(|&d| !axes.contains(&(d as u64))).filter(long);
    in_x.eq(kept_by_output(x, y, axes, keepdims).into_iter().filter(long))
}

/// Output k of `[outer, kept, inner]` reduces over outer and inner.
pub(super) fn rows(
    cx: &mut Cx<'_>,
    fold: Fold,
    x: Operand<'_>,
    y: Operand<'_>,
    [outer, kept, inner]: [u64; 3],
) -> Result<(), CudaError> {
    let (from, to) = (cx.element(x)?, cx.element(y)?.name);
    let width = from.fitting(inner);
    let (inner, kept32) = (inner / width, cx.count(kept)?);
    let units = u64::from(cx.count(outer * inner)?);
    // A warp for a short row, a block for a long one, several where there are few.
    let (group, parts) = if units <= 1024 || kept >= LIMIT / 8 {
        (32, 1)
    } else {
        (THREADS, cx.parts(units.div_ceil(u64::from(THREADS * ITEMS)), kept, 8 * kept))
    };
    let partial = if parts > 1 { cx.scratch(0, 8 * kept * parts)? } else { 0 };
    let args = Args::new()
        .ptr(x.ptr)
        .ptr(y.ptr)
        .ptr(partial)
        .u32(kept32)
        .pod(&Divisor::new(inner))
        .u32(units as u32)
        .f64(fold.divisor);
    let arguments = format!("{}, {to}, {group}, {width}, {}", from.name, fold.name);
    let blocks = kept32.div_ceil(THREADS / group);
    let kernel = Kernel::instance(Source::Reduce, "REDUCE_ROWS", &arguments);
    cx.push(Step { grid: [blocks, parts as u32, 1], ..Step::new(kernel, blocks, args) });
    finish(cx, fold, y, partial, kept, parts)
}

/// Output (o, column) of `[outer, rows, columns]` reduces over rows.
pub(super) fn columns(
    cx: &mut Cx<'_>,
    fold: Fold,
    x: Operand<'_>,
    y: Operand<'_>,
    [outer, rows, columns]: [u64; 3],
) -> Result<(), CudaError> {
    let (from, to) = (cx.element(x)?, cx.element(y)?.name);
    let width = from.fitting(columns);
    let lanes = lanes(columns / width);
    let groups = (columns / width).div_ceil(lanes);
    let height = u64::from(THREADS) / lanes;
    let tiles = rows.div_ceil(height * u64::from(ITEMS));
    let parts = cx.parts(tiles, groups * outer, 8 * columns * outer);
    let partial = if parts > 1 { cx.scratch(0, 8 * columns * outer * parts)? } else { 0 };
    let args = Args::new()
        .ptr(x.ptr)
        .ptr(y.ptr)
        .ptr(partial)
        .u32(cx.count(rows)?)
        .u32(cx.count(columns)?)
        .u32(lanes as u32)
        .f64(fold.divisor);
    let arguments = format!("{}, {to}, {width}, {}", from.name, fold.name);
    let kernel = Kernel::instance(Source::Reduce, "REDUCE_COLUMNS", &arguments);
    let grid = [cx.count(groups)?, parts as u32, outer as u32];
    cx.push(Step { grid, ..Step::new(kernel, 1, args) });
    finish(cx, fold, y, partial, columns * outer, parts)
}

fn finish(
    cx: &mut Cx<'_>,
    fold: Fold,
    y: Operand<'_>,
    partial: CUdeviceptr,
    kept: u64,
    parts: u64,
) -> Result<(), CudaError> {
    if parts == 1 {
        return Ok(());
    }
    let kept = cx.count(kept)?;
    let args = Args::new().ptr(partial).ptr(y.ptr).u32(kept).u32(parts as u32).f64(fold.divisor);
    let arguments = format!("{}, {}", cx.element(y)?.name, fold.name);
    let kernel = Kernel::instance(Source::Reduce, "REDUCE_FINISH", &arguments);
    cx.push(Step::new(kernel, kept.div_ceil(16), args));
    Ok(())
}

/// Threads along the columns of a block: the power of two up to 64 that leaves the fewest
/// without a column, but no fewer than 8 where there are columns for them.
pub(super) fn lanes(columns: u64) -> u64 {
    let least = columns.next_power_of_two().min(8);
    let powers = [64, 32, 16, 8, 4, 2, 1].into_iter().filter(|&l| l >= least);
    powers.min_by_key(|&l| columns.div_ceil(l) * l).unwrap_or(8)
}

/// Any axes, element type and order, one output a thread.
fn any(
    cx: &mut Cx<'_>,
    kind: ReduceKind,
    axes: &[u64],
    keepdims: bool,
    x: Operand<'_>,
    y: Operand<'_>,
) -> Result<(), CudaError> {
    let own = strides(x.ty);
    let axis = |d: usize| Axis { extent: x.ty.dims[d], step: [own[d], 0] };
    // The second step must not join what is apart: it counts positions of the walk itself.
    let walk = |dims: &[usize]| Walk::new(&collapse(dims.iter().map(|&d| axis(d))));
    let kept = walk(&kept_by_output(x.ty, y.ty, axes, keepdims));
    let reduced: SmallVec<[usize; 4]> =
        memory_order(x.ty).into_iter().filter(|&d| axes.contains(&(d as u64))).collect();
    let count: u64 = axes.iter().map(|&a| x.ty.dims[a as usize]).product();
    // Nothing to reduce over: the walk has a zero extent and is not used.
    let reduced = if count == 0 { Walk::new(&[]) } else { walk(&reduced) };
    let (Some(kept), Some(reduced)) = (kept, reduced) else {
        return Err(cx.unsupported("a reduction of this shape"));
    };
    let is_max = kind == ReduceKind::Max;
    let (outputs, count32) = (cx.count(y.ty.elements())?, cx.count(count)?);
    let args = Args::new().ptr(x.ptr).ptr(y.ptr).u32(outputs).u32(count32);
    let mean = kind == ReduceKind::Mean;
    let (types, args) = match x.ty.dtype {
        DType::F32 | DType::BF16 | DType::F64 => {
            let start = if is_max { f64::NEG_INFINITY } else { 0.0 };
            let divisor = if mean { count as f64 } else { 1.0 };
            let types = match x.ty.dtype {
                DType::F64 => "double, double, double",
                DType::BF16 => "bf16, float, double",
                _ => "float, float, double",
            };
            (types, args.f64(start).f64(divisor))
        }
        DType::I32 | DType::I64 => {
            if count == 0 && kind != ReduceKind::Sum {
                return Err(cx.unsupported("there is no integer to take from nothing"));
            }
            let start = if is_max { i64::MIN } else { 0 };
            let divisor = if mean { count as i64 } else { 1 };
            let types = if x.ty.dtype == DType::I32 { "i32, i32, i64" } else { "i64, i64, i64" };
            (types, args.i64(start).i64(divisor))
        }
        other => return Err(cx.unsupported(format!("elements of type {other}"))),
    };
    let args = args.u32(u32::from(is_max)).pod(&kept).pod(&reduced);
    cx.per_thread(Kernel::instance(Source::Reduce, "REDUCE_ANY", types), outputs, args);
    Ok(())
}
