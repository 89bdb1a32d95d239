//! Pools and their gradients.

use super::context::{Cx, Element};
use super::reduce::{self, Fold};
use super::shape::{Divisor, Image};
use super::source::{Kernel, Source};
use super::step::{Args, LIMIT};
use crate::cuda::error::CudaError;
use crate::cuda::launch::Operand;
use bytemuck::{Pod, Zeroable};
use vdnn_ir::op::PoolAttrs;
use vdnn_ir::{DType, Layout};

/// `Pool` of pool.cuh.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
struct Pool {
    input: [u32; 3],
    output: [u32; 3],
    kernel: [u32; 3],
    stride: [u32; 3],
    before: [u32; 3],
    after: [u32; 3],
    dilation: [u32; 3],
    include_pad: u32,
    in_height: Divisor,
    in_width: Divisor,
    in_depth: Divisor,
    out_height: Divisor,
    out_width: Divisor,
    out_depth: Divisor,
    channels: Divisor,
    full: f32,
}

/// A pool of a tensor, and how its kernels see it.
#[derive(Clone, Copy)]
struct Plan {
    pool: Pool,
    x: Image,
    y: Image,
    /// Channels a thread.
    width: u64,
    element: Element,
    /// Bytes of an element.
    bytes: u64,
    /// Two spatial dimensions, no dilation.
    plain: bool,
}

/// What a kernel has one thread for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Per {
    Input,
    Output,
    /// A patch of so many rows and columns of input positions.
    Inputs([u32; 2]),
    /// The same of output positions.
    Outputs([u32; 2]),
}

impl Plan {
    fn new(
        cx: &Cx<'_>,
        attrs: &PoolAttrs,
        include_pad: bool,
        x: Operand<'_>,
        y: Operand<'_>,
    ) -> Result<Self, CudaError> {
        let element = cx.element(x)?;
        let (ty, y) = (x.ty, y.ty);
        let x = ty;
        let spatial = x.rank() - 2;
        if !(1..=3).contains(&spatial) {
            return Err(cx.unsupported(format!("{spatial} spatial dimensions; 1 to 3 are possible")));
        }
        // Absent dimensions come first and have extent 1.
        let three = |values: &[u64], absent: u32| -> Result<[u32; 3], CudaError> {
            let mut out = [absent; 3];
            for (to, &from) in out[3 - spatial..].iter_mut().zip(values) {
                // Sums of a few extents must stay within 32 bits.
                *to = if from < LIMIT / 8 {
                    from as u32
                } else {
                    return Err(cx.unsupported("a window this large"));
                };
            }
            Ok(out)
        };
        let (input, output) = (three(&x.dims[2..], 1)?, three(&y.dims[2..], 1)?);
        let dilation = three(&attrs.dilations, 1)?;
        let kernel = three(&attrs.kernel, 1)?;
        let image = Image::new(x);
        // A plane of one element has output planes of more, so only the layout counts.
        let last = x.layout == Layout::ChannelsLast;
        // Wider ones need more registers than the windows leave.
        let width = if last && image.channels.is_multiple_of(4) { 4 } else { 1 };
        let of = |n: u32| Divisor::new(u64::from(n));
        let pool = Pool {
            input,
            output,
            kernel,
            stride: three(&attrs.strides, 1)?,
            before: three(&attrs.before, 0)?,
            after: three(&attrs.after, 0)?,
            dilation,
            include_pad: u32::from(include_pad),
            in_height: of(input[1]),
            in_width: of(input[2]),
            in_depth: of(input[0]),
            out_height: of(output[1]),
            out_width: of(output[2]),
            out_depth: of(output[0]),
            channels: Divisor::new(image.channels / width),
            full: 1.0 / kernel.iter().map(|&k| k as f32).product::<f32>(),
        };
        let x = Image { last, ..image };
        let y = Image { last, ..Image::new(y) };
        let bytes = ty.dtype.bytes();
        Ok(Self { pool, x, y, width, element, bytes, plain: spatial == 2 && dilation == [1; 3] })
    }

    /// The extent of a square window with a kernel of its own, else 0.
    fn window(&self) -> u32 {
        let [_, h, w] = self.pool.kernel;
        if self.plain && h == w && matches!(h, 2 | 3) && (self.width == 4 || !self.x.last) { h } else { 0 }
    }

    /// Extent, stride and padding before, in both dimensions, of a square window as kernels for
    /// patches take it: small, without dilation, within images that 32 bits index.
    fn patches(&self) -> Option<(u32, u32, [u32; 2])> {
        let Pool { kernel: [_, k, kw], stride: [_, s, sw], before: [_, h, w], .. } = self.pool;
        let image = |of: &Image| of.channels * of.plane < LIMIT;
        let small = image(&self.x) && image(&self.y);
        let fits = self.plain && small && k == kw && s == sw && matches!(k, 2 | 3);
        fits.then_some((k, s, [h, w]))
    }

    /// The widest access, in columns of the input, that rows of the input and, with a stride of
    /// `s`, rows of the output consist of; `whole` if they have to be as long as each other.
    fn access(&self, s: u32, whole: bool) -> Option<u32> {
        let (from, to) = (self.pool.input[2], self.pool.output[2]);
        let fits = |&n: &u32| {
            let long = if whole { to * s == from } else { to * s <= from };
            long && n.is_multiple_of(s) && from.is_multiple_of(n) && to.is_multiple_of(n / s)
        };
        [self.element.width as u32, 4, 2].into_iter().find(fits)
    }

    /// The kernel for maxima by patches of outputs, if the geometry has one.
    fn max_kernel(&self) -> Option<(Kernel, Per)> {
        let (k, s, [h, w]) = self.patches()?;
        // Every window has a position of the input.
        let Pool { input, output, .. } = self.pool;
        let met = |d: usize, before: u32| {
            let last = u64::from(output[d].saturating_sub(1)) * u64::from(s);
            before < k && input[d] > 0 && last < u64::from(input[d]) + u64::from(before)
        };
        if !(1..=3).contains(&s) || !met(1, h) || !met(2, w) {
            return None;
        }
        let name = self.element.name;
        Some(if self.x.last {
            let rows = if s == 1 { 4 } else { 2 };
            let arguments = format!("{name}, {}, {k}, {s}, {rows}", self.width);
            (Kernel::instance(Source::PoolMax, "MAX_PATCH_LAST", &arguments), Per::Outputs([rows, 1]))
        } else {
            let access = self.access(s, false);
            let n = access.unwrap_or(s);
            let before = if access.is_some() { w } else { 0 };
            let arguments = format!("{name}, {n}, {k}, {s}, 2, {}, {before}", access.is_some());
            (Kernel::instance(Source::PoolMax, "MAX_PATCH_PLANES", &arguments), Per::Outputs([2, n / s]))
        })
    }

    /// The kernel for the gradient by patches of input positions, if the geometry has one, and
    /// the plan for it.
    fn grad_kernel(&self, max: bool) -> Option<(Self, Kernel, Per)> {
        let (k, s, [h, w]) = self.patches()?;
        if !matches!(s, 1 | 2) || h % s != w % s {
            return None;
        }
        let r = h % s;
        let name = self.element.name;
        let instance = |name: &str, arguments: &str| Kernel::instance(Source::PoolPatch, name, arguments);
        if max && self.x.last && self.width == 4 && self.bytes == 2 && k == 3 {
            let width = if self.x.channels.is_multiple_of(8) { 8 } else { 4 };
            let channels = Divisor::new(self.x.channels / width);
            let plan = Self { width, pool: Pool { channels, ..self.pool }, ..*self };
            return Some((
                plan,
                instance("POOL_GRAD_PAIRS", &format!("{width}, {s}, {k}, {r}")),
                Per::Inputs([2, 2]),
            ));
        }
        if let Some(n) = self.access(s, true).filter(|&n| n >= 4 && !self.x.last && w < k) {
            let left = (k - 1 - r) / s - w / s;
            let kernel = instance("POOL_GRAD_ROWS", &format!("{name}, {max}, {n}, {s}, {k}, {r}, {left}"));
            return Some((*self, kernel, Per::Inputs([2, n])));
        }
        let rows = if self.x.last && s == 2 { 2 } else { 4 };
        let arguments = format!("{name}, {max}, {}, {}, {s}, {k}, {r}", self.x.last, self.width);
        Some((*self, instance("POOL_GRAD_PATCH", &arguments), Per::Inputs([rows, 2])))
    }

    /// A kernel named by the layout: `planes` or `last` with the width first.
    fn kernel(&self, what: &str, arguments: &str) -> Kernel {
        let comma = if arguments.is_empty() { "" } else { ", " };
        if self.x.last {
            let arguments = format!("{}, {}{comma}{arguments}", self.element.name, self.width);
            Kernel::instance(Source::PoolLast, &format!("{what}_LAST"), &arguments)
        } else {
            let arguments = format!("{}{comma}{arguments}", self.element.name);
            Kernel::instance(Source::PoolPlanes, &format!("{what}_PLANES"), &arguments)
        }
    }

    /// Launches over as many images at a time as 32-bit indices reach; `args` makes the
    /// pointers for the images from the given one on.
    fn launch(
        &self,
        cx: &mut Cx<'_>,
        kernel: &Kernel,
        per: Per,
        args: impl Fn(u64) -> Args,
    ) -> Result<(), CudaError> {
        let Pool { input, output, .. } = self.pool;
        let patches = |of: [u32; 3], [rows, columns]: [u32; 2]| {
            [u64::from(of[1].div_ceil(rows)), u64::from(of[2].div_ceil(columns))]
        };
        let patches = match per {
            Per::Input | Per::Output => None,
            Per::Inputs(patch) => Some(patches(input, patch)),
            Per::Outputs(patch) => Some(patches(output, patch)),
        };
        let per_image = match patches {
            Some([rows, columns]) => self.x.channels * rows * columns,
            None if per == Per::Input => self.x.channels * self.x.plane,
            None => self.y.channels * self.y.plane,
        } / self.width;
        cx.count(per_image)?;
        let most = (LIMIT - 1) / per_image.max(1);
        let mut image = 0;
        while image < self.x.images {
            let images = most.min(self.x.images - image);
            let n = cx.count(images * per_image)?;
            let mut args = args(image).u32(n);
            if let Some([rows, columns]) = patches {
                args = args.pod(&Divisor::new(rows)).pod(&Divisor::new(columns));
            }
            cx.per_thread(kernel.clone(), n, args.pod(&self.pool));
            image += images;
        }
        Ok(())
    }

    /// Byte offsets of an image in x, in y, and in an index tensor with elements of `index` bytes.
    fn offsets(&self, image: u64, index: u64) -> [u64; 3] {
        let (x, y) = (self.x.channels * self.x.plane, self.y.channels * self.y.plane);
        [self.bytes * image * x, self.bytes * image * y, index * image * y]
    }

    /// The window is the whole plane.
    fn global(&self) -> bool {
        let p = &self.pool;
        p.output == [1; 3]
            && p.kernel == p.input
            && p.before == [0; 3]
            && p.dilation == [1; 3]
            && p.after == [0; 3]
    }
}

/// [`vdnn_ir::Op::MaxPool`].
pub(super) fn max(cx: &mut Cx<'_>, attrs: &PoolAttrs) -> Result<(), CudaError> {
    let (x, y) = (cx.real(0)?, cx.real_out(0)?);
    let plan = Plan::new(cx, attrs, false, x, y)?;
    let index = cx.spec.outputs.get(1).copied();
    let patches = index.is_none_or(|i| i.ty.dtype == DType::U8);
    let patches = patches.then(|| plan.max_kernel()).flatten();
    let (kernel, per) = patches.unwrap_or_else(|| (plan.kernel("MAX_POOL", ""), Per::Output));
    plan.launch(cx, &kernel, per, |image| {
        let size = index.map_or(0, |i| i.ty.dtype.bytes());
        let [at_x, at_y, at_index] = plan.offsets(image, size);
        let address = |dtype: DType| index.filter(|i| i.ty.dtype == dtype).map_or(0, |i| i.ptr + at_index);
        let args = Args::new().ptr(x.ptr + at_x).ptr(y.ptr + at_y).ptr(address(DType::U8));
        if per == Per::Output { args.ptr(address(DType::I32)) } else { args }
    })
}

/// [`vdnn_ir::Op::MaxPoolGrad`].
pub(super) fn max_grad(cx: &mut Cx<'_>, attrs: &PoolAttrs) -> Result<(), CudaError> {
    let (dy, index, dx) = (cx.real(0)?, cx.input(1)?, cx.real_out(0)?);
    let plan = Plan::new(cx, attrs, false, dx, dy)?;
    let (patch, ty) = match index.ty.dtype {
        DType::U8 => (plan.grad_kernel(true), "u8"),
        DType::I32 => (None, "i32"),
        other => return Err(cx.unsupported(format!("an index of type {other}"))),
    };
    let each = || (plan, plan.kernel("MAX_POOL_GRAD", ty), Per::Input);
    let (plan, kernel, per) = patch.unwrap_or_else(each);
    plan.launch(cx, &kernel, per, |image| {
        let [at_x, at_y, at_index] = plan.offsets(image, index.ty.dtype.bytes());
        Args::new().ptr(dy.ptr + at_y).ptr(index.ptr + at_index).ptr(dx.ptr + at_x)
    })
}

/// [`vdnn_ir::Op::AvgPool`].
pub(super) fn average(cx: &mut Cx<'_>, attrs: &PoolAttrs, include_pad: bool) -> Result<(), CudaError> {
    let (x, y) = (cx.real(0)?, cx.real_out(0)?);
    let plan = Plan::new(cx, attrs, include_pad, x, y)?;
    if plan.global() {
        let Image { images, channels, plane, last } = plan.x;
        let mean = Fold { name: "Sum", divisor: plane as f64 };
        if !last {
            return reduce::rows(cx, mean, x, y, [1, images * channels, plane]);
        }
        if images <= 65_535 {
            return reduce::columns(cx, mean, x, y, [images, plane, channels]);
        }
    }
    let kernel = plan.kernel("AVERAGE_POOL", &plan.window().to_string());
    plan.launch(cx, &kernel, Per::Output, |image| {
        let [at_x, at_y, _] = plan.offsets(image, 0);
        Args::new().ptr(x.ptr + at_x).ptr(y.ptr + at_y)
    })
}

/// [`vdnn_ir::Op::AvgPoolGrad`].
pub(super) fn average_grad(cx: &mut Cx<'_>, attrs: &PoolAttrs, include_pad: bool) -> Result<(), CudaError> {
    let (dy, dx) = (cx.real(0)?, cx.real_out(0)?);
    let plan = Plan::new(cx, attrs, include_pad, dx, dy)?;
    let Some((plan, kernel, per)) = plan.grad_kernel(false) else {
        let kernel = plan.kernel("AVERAGE_POOL_GRAD", "");
        return plan.launch(cx, &kernel, Per::Input, |image| {
            let [at_x, at_y, _] = plan.offsets(image, 0);
            Args::new().ptr(dy.ptr + at_y).ptr(dx.ptr + at_x)
        });
    };
    plan.launch(cx, &kernel, per, |image| {
        let [at_x, at_y, _] = plan.offsets(image, 0);
        Args::new().ptr(dy.ptr + at_y).ptr(0).ptr(dx.ptr + at_x)
    })
}
