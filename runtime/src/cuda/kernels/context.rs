//! What the planning of every op shares: operands, errors, grid sizes.

use super::source::{Kernel, Source};
use super::step::{Args, GRID, ITEMS, LIMIT, Step, THREADS};
use crate::cuda::error::CudaError;
use crate::cuda::launch::{LaunchSpec, Operand};
use cudarc::driver::sys::CUdeviceptr;
use vdnn_ir::DType;

/// An element type of kernels of real numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element {
    /// Its name in the sources.
    pub(super) name: &'static str,
    /// Elements of a 16-byte access: `WIDTH` of common.cuh.
    pub(super) width: u64,
}

impl Element {
    /// The widest access, in elements, that divides rows of `n`.
    pub(super) fn fitting(self, n: u64) -> u64 {
        [self.width, 4].into_iter().find(|w| n.is_multiple_of(*w)).unwrap_or(1)
    }
}

/// One launch being planned.
pub(super) struct Cx<'a> {
    pub(super) spec: &'a LaunchSpec<'a>,
    /// Multiprocessors of the device.
    pub(super) processors: u32,
    pub(super) steps: Vec<Step>,
}

impl<'a> Cx<'a> {
    pub(super) fn new(spec: &'a LaunchSpec<'a>, processors: u32) -> Self {
        Self { spec, processors: processors.max(1), steps: Vec::new() }
    }

    pub(super) fn unsupported(&self, why: impl Into<String>) -> CudaError {
        CudaError::Unsupported { op: format!("{} ({})", self.spec.op, self.spec.name), why: why.into() }
    }

    pub(super) fn input(&self, i: usize) -> Result<Operand<'a>, CudaError> {
        let operand = self.spec.inputs.get(i).copied();
        operand.ok_or_else(|| self.unsupported(format!("input {i} is missing")))
    }

    pub(super) fn output(&self, i: usize) -> Result<Operand<'a>, CudaError> {
        let operand = self.spec.outputs.get(i).copied();
        operand.ok_or_else(|| self.unsupported(format!("output {i} is missing")))
    }

    /// Input `i`, whose elements must be f32.
    pub(super) fn f32(&self, i: usize) -> Result<Operand<'a>, CudaError> {
        self.is_f32(self.input(i)?)
    }

    /// Output `i`, whose elements must be f32.
    pub(super) fn f32_out(&self, i: usize) -> Result<Operand<'a>, CudaError> {
        self.is_f32(self.output(i)?)
    }

    /// Input `i`, whose elements must be f32 or bf16.
    pub(super) fn real(&self, i: usize) -> Result<Operand<'a>, CudaError> {
        let operand = self.input(i)?;
        self.element(operand).map(|_| operand)
    }

    /// Output `i`, whose elements must be f32 or bf16.
    pub(super) fn real_out(&self, i: usize) -> Result<Operand<'a>, CudaError> {
        let operand = self.output(i)?;
        self.element(operand).map(|_| operand)
    }

    /// How the sources call the elements of a tensor of real numbers.
    pub(super) fn element(&self, operand: Operand<'_>) -> Result<Element, CudaError> {
        match operand.ty.dtype {
            DType::F32 => Ok(Element { name: "float", width: 4 }),
            DType::BF16 => Ok(Element { name: "bf16", width: 8 }),
            other => Err(self.unsupported(format!("elements of type {other}"))),
        }
    }

    fn is_f32(&self, operand: Operand<'a>) -> Result<Operand<'a>, CudaError> {
        if operand.ty.dtype == DType::F32 {
            Ok(operand)
        } else {
            Err(self.unsupported(format!("elements of type {}", operand.ty.dtype)))
        }
    }

    /// A count that a kernel's 32-bit indices reach.
    pub(super) fn count(&self, n: u64) -> Result<u32, CudaError> {
        if n < LIMIT {
            Ok(n as u32)
        } else {
            Err(self.unsupported(format!("{n} positions; at most {} in one launch", LIMIT - 1)))
        }
    }

    /// A grid of so many blocks for each of some images.
    pub(super) fn grid(&self, [x, y]: [u64; 2], images: u64) -> Result<[u32; 3], CudaError> {
        if y > GRID || images > GRID {
            return Err(self.unsupported(format!("{y} blocks of filters; at most {GRID} in one launch")));
        }
        Ok([self.count(x)?, y as u32, images as u32])
    }

    /// The shared scratch range from byte `at` on, if it holds `bytes` more.
    pub(super) fn scratch(&self, at: u64, bytes: u64) -> Result<CUdeviceptr, CudaError> {
        match at.checked_add(bytes) {
            Some(end) if end <= self.spec.scratch.bytes.0 => Ok(self.spec.scratch.ptr + at),
            _ => Err(self.unsupported(format!("{bytes} bytes of intermediate results at {at}"))),
        }
    }

    pub(super) fn push(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// A launch with one thread for each of `n` positions; nothing for none.
    pub(super) fn per_thread(&mut self, kernel: Kernel, n: u32, args: Args) {
        if n > 0 {
            self.push(Step::new(kernel, n.div_ceil(THREADS), args));
        }
    }

    /// A launch with [`ITEMS`] items a thread; at least one block, which handles a tail.
    pub(super) fn per_items(&mut self, kernel: Kernel, items: u64, args: Args) -> Result<(), CudaError> {
        let blocks = items.div_ceil(u64::from(THREADS * ITEMS)).max(1);
        let blocks = self.count(blocks)?;
        self.push(Step::new(kernel, blocks, args));
        Ok(())
    }

    /// Sets `n` elements of `size` bytes to the low bits of `value`.
    pub(super) fn fill(&mut self, to: CUdeviceptr, size: u64, value: u64, n: u64) -> Result<(), CudaError> {
        if n == 0 {
            return Ok(());
        }
        if size == 4 {
            let args = Args::new().ptr(to).u32(value as u32).u64(n);
            return self.per_items(Kernel::fixed(Source::Update, "fill32"), n / 4, args);
        }
        let kernel = Kernel::fixed(Source::Update, &format!("fill{}", 8 * size));
        let blocks = self.count(n.div_ceil(u64::from(THREADS)))?;
        self.push(Step::new(kernel, blocks, Args::new().ptr(to).u64(value).u64(n)));
        Ok(())
    }

    /// How many parts to cut the work of a reduction into, which has `tiles` tiles for each of
    /// `blocks` block columns; every part of all columns leaves `bytes` bytes in scratch.
    ///
    /// Parts are taken tile by tile in turn. Four blocks fit a multiprocessor at least, so that
    /// many are a wave; a wave that is hardly begun costs as much as a full one.
    pub(super) fn parts(&self, tiles: u64, blocks: u64, bytes: u64) -> u64 {
        let wave = 4 * u64::from(self.processors);
        let blocks = blocks.max(1);
        let fits = self.spec.scratch.bytes.0 / 2 / bytes.max(1);
        let most = tiles.min(fits).clamp(1, 65_535);
        let least = (wave / blocks).clamp(1, most);
        // Share of the slots of all begun waves that have a block, in thousandths.
        let full = |parts: u64| blocks * parts * 1000 / ((blocks * parts).div_ceil(wave) * wave);
        let candidates = least..=most.min(least + 8);
        let enough = candidates.clone().find(|&parts| full(parts) >= 900);
        let best = enough.or_else(|| candidates.rev().max_by_key(|&parts| full(parts))).unwrap_or(least);
        // The same number of tiles for each part, if that needs fewer of them.
        tiles.div_ceil(tiles.div_ceil(best).max(1)).max(1)
    }
}
