//! Elementwise programs: each is printed as a function of one element of every operand.

use super::context::Cx;
use super::pointwise::{binary_function, function};
use super::shape::{Axis, Divisor, MAX_RANK, broadcast_strides, collapse, memory_order, positions};
use super::source::{Kernel, Source};
use super::step::{Args, LIMIT};
use crate::cuda::error::CudaError;
use bytemuck::{Pod, Zeroable};
use std::fmt::Write;
use vdnn_ir::op::elementwise::MAX_OPERANDS;
use vdnn_ir::op::{ElementwiseAttrs, ElementwiseStep, StepOperand, UnaryKind};

/// `Operands` of program.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Operands {
    at: [u64; MAX_OPERANDS],
}

/// `ProgramAxis` of program.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ProgramAxis {
    extent: Divisor,
    unused: u32,
    step: [i64; MAX_OPERANDS],
}

/// `ProgramWalk` of program.cu.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct ProgramWalk {
    rank: u32,
    unused: u32,
    axes: [ProgramAxis; MAX_RANK],
}

impl ProgramWalk {
    /// `None` if the axes are too many or the positions too many to count.
    fn new(axes: &[Axis<MAX_OPERANDS>]) -> Option<Self> {
        if axes.len() > MAX_RANK || positions(axes)? >= LIMIT {
            return None;
        }
        let mut walk: Self = Zeroable::zeroed();
        walk.rank = axes.len() as u32;
        for (to, from) in walk.axes.iter_mut().zip(axes) {
            *to = ProgramAxis { extent: Divisor::new(from.extent), unused: 0, step: from.step };
        }
        Some(walk)
    }
}

/// [`vdnn_ir::Op::Elementwise`].
pub(super) fn program(cx: &mut Cx<'_>, attrs: &ElementwiseAttrs) -> Result<(), CudaError> {
    let y = cx.real_out(0)?;
    let element = cx.element(y)?;
    let (n, count) = (y.ty.elements(), cx.spec.inputs.len());
    if count > MAX_OPERANDS {
        return Err(cx.unsupported(format!("{count} operands; at most {MAX_OPERANDS}")));
    }
    if n == 0 {
        return Ok(());
    }
    let mut operands = Operands::zeroed();
    let (mut steps, mut along) = (Vec::with_capacity(count), 0u32);
    for i in 0..count {
        let x = cx.real(i)?;
        if x.ty.dtype != y.ty.dtype {
            return Err(cx.unsupported(format!("operand {i} of type {}", x.ty)));
        }
        operands.at[i] = x.ptr;
        steps.push(broadcast_strides(x.ty, &y.ty.dims));
        along |= u32::from(x.ty.elements() == n) << i;
    }
    let axis = |d: usize| {
        let mut step = [0; MAX_OPERANDS];
        step.iter_mut().zip(&steps).for_each(|(to, from)| *to = from[d]);
        Axis { extent: y.ty.dims[d], step }
    };
    let mut axes = collapse(memory_order(y.ty).iter().map(|&d| axis(d)));
    let printed = Printed::new(cx, attrs, count)?;
    // Whatever has one element is read so, and the rest runs along the result.
    let single = (0..count).filter(|&i| along >> i & 1 == 0 && axes.iter().all(|a| a.step[i] == 0));
    let single = single.fold(0u32, |mask, i| mask | 1 << i);
    if along | single == (1 << count) - 1 {
        let arguments = format!("{}, {}, {count}, {single:#x}", element.name, printed.name);
        let kernel = printed.kernel("PROGRAM", &arguments);
        let args = Args::new().pod(&operands).ptr(y.ptr).u64(n);
        return cx.per_items(kernel, n / element.width, args);
    }
    let width = if vectorise(&mut axes, count, element.width) { element.width } else { 1 };
    let innermost = |i: usize| axes.last().map_or(0, |a| a.step[i]);
    let single = (0..count).filter(|&i| along >> i & 1 == 0 && innermost(i) == 0);
    let single = single.fold(0u32, |mask, i| mask | 1 << i);
    let walk = ProgramWalk::new(&axes).ok_or_else(|| cx.unsupported("a broadcast of this shape"))?;
    let groups = positions(&axes).unwrap_or(u64::MAX);
    let arguments = format!("{}, {}, {count}, {along:#x}, {single:#x}, {width}", element.name, printed.name);
    let kernel = printed.kernel("PROGRAM_STRIDED", &arguments);
    let args = Args::new().pod(&operands).ptr(y.ptr).u32(cx.count(groups)?).pod(&walk);
    cx.per_items(kernel, groups, args)
}

/// Turns the innermost axis into one of groups of `width` elements, if every operand then has
/// whole vectors or single elements.
fn vectorise(axes: &mut [Axis<MAX_OPERANDS>], count: usize, width: u64) -> bool {
    let Some((last, outer)) = axes.split_last_mut() else { return false };
    let fits = |i: usize| match last.step[i] {
        0 => true,
        1 => outer.iter().all(|axis| axis.step[i] % width as i64 == 0),
        _ => false,
    };
    if !last.extent.is_multiple_of(width) || !(0..count).all(fits) {
        return false;
    }
    last.extent /= width;
    last.step = last.step.map(|s| width as i64 * s);
    true
}

/// A program as a structure with one function.
struct Printed {
    /// The structure's name, which the steps alone decide.
    name: String,
    text: String,
}

impl Printed {
    fn new(cx: &Cx<'_>, attrs: &ElementwiseAttrs, count: usize) -> Result<Self, CudaError> {
        let mut body = String::new();
        let mut words = String::new();
        for (i, step) in attrs.steps.iter().enumerate() {
            let name = |operand: &StepOperand| match *operand {
                StepOperand::X(j) if usize::from(j) < count => Ok(format!("x[{j}]")),
                StepOperand::T(j) if usize::from(j) < i => Ok(format!("t{j}")),
                _ => Err(cx.unsupported(format!("step {i} reads what is not there"))),
            };
            let read = step.operands().iter().map(name).collect::<Result<Vec<_>, _>>()?.join(", ");
            let (callee, word) = match *step {
                ElementwiseStep::Unary(kind, _) => (unary(kind, ""), function(kind).0),
                ElementwiseStep::UnaryGrad(kind, ..) => {
                    let slope = unary(kind, "Slope");
                    let class = function(kind).0;
                    (format!("Gradient<{class}Slope>{{{slope}}}"), class)
                }
                ElementwiseStep::Binary(kind, ..) => {
                    let class = binary_function(kind);
                    (format!("{class}{{}}"), class)
                }
            };
            let _ = writeln!(body, "        const float t{i} = {callee}({read});");
            if i < 4 {
                words.push_str(word);
            }
        }
        let last = attrs.steps.len().saturating_sub(1);
        // Programs that begin alike have other hashes.
        let name = format!("{words}{:016x}", fnv1a(format!("{count}\n{body}").as_bytes()));
        let text = format!(
            "#ifndef VDNN_{name}\n#define VDNN_{name}\nstruct {name} {{\n    __device__ __forceinline__ float \
             operator()(const float (&x)[{count}]) const {{\n{body}        return t{last};\n    }}\n}};\n#endif\n"
        );
        Ok(Self { name, text })
    }

    /// The kernel that a macro makes of the structure.
    fn kernel(&self, r#macro: &str, arguments: &str) -> Kernel {
        let kernel = Kernel::instance(Source::Program, r#macro, arguments);
        Kernel { line: format!("{}{}", self.text, kernel.line), ..kernel }
    }
}

/// A function object with its parameters, as their bits.
fn unary(kind: UnaryKind, suffix: &str) -> String {
    let (name, p, q) = function(kind);
    let bits = |v: f32| format!("__uint_as_float({:#010x}u)", v.to_bits());
    format!("{name}{suffix}{{{}, {}}}", bits(p), bits(q))
}

/// The 64-bit hash FNV-1a (Fowler, Noll and Vo).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
