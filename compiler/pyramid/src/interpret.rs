//! Executes tile programs on the CPU: exactly what the program says, in buffers of exactly its
//! sizes.
//!
//! Every element of a space remembers which buffer it belongs to and when it was last written
//! and read. So an address outside a buffer, a read of what was never written, given up or
//! overwritten by another buffer, a result outside the image, and accesses of different threads
//! without a [`Instruction::Sync`] between them are errors, not numbers. The checks are on the
//! rectangle of positions that an instruction reads.

mod memory;
mod window;

use crate::cost::Counts;
use crate::interval::Interval;
use crate::program::{ACCUMULATOR, Buffer, Instruction, Program, Space, Step, element};
use crate::rounding::{factor, stored};
use crate::verify::ProgramError;
use memory::{Memory, RowPart};
use vdnn_ir::Bytes;

/// What is wrong with an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Outside the buffer.
    Bounds,
    /// Read of an element that holds nothing of this buffer.
    Undefined,
    /// Two accesses that no synchronisation orders, one of them a write.
    Race,
    /// Outside the input or the result.
    Image,
}

/// Why a program could not be executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterpretError {
    /// It is not well-formed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A tensor is missing, or has another size.
    #[error("operand {operand} has {found} elements and needs {wanted}")]
    Operand {
        /// Its number.
        operand: usize,
        /// Elements given.
        found: u64,
        /// Elements needed.
        wanted: u64,
    },
    /// A tile outside the grid.
    #[error("there is no tile {0:?}")]
    NoTile([u64; 2]),
    /// An access that must not be.
    #[error("instruction {instruction}, tile {tile:?}, step {step}: {fault:?} at {at:?} of buffer {buffer}")]
    Fault {
        /// Position in the body.
        instruction: usize,
        /// Place in the grid.
        tile: [u64; 2],
        /// The step.
        step: i64,
        /// The buffer.
        buffer: u32,
        /// Row and column.
        at: [i64; 2],
        /// What is wrong.
        fault: Fault,
    },
    /// Positions of the result that no tile stored, or several.
    #[error("position {at:?} of the result is stored {times} times")]
    Stored {
        /// Row and column.
        at: [u64; 2],
        /// How often.
        times: u32,
    },
}

/// A fault before it is known where in the program it happened.
pub(crate) struct At(u32, [i64; 2], Fault);

/// Rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    y: Interval,
    x: Interval,
}

impl Region {
    fn is_empty(&self) -> bool {
        self.y.is_empty() || self.x.is_empty()
    }
    fn elements(&self) -> u64 {
        self.y.len() * self.x.len()
    }
}

/// Executes all tiles of a program on one image and returns the result `[C,H,W]` with what was
/// counted.
///
/// # Errors
/// [`InterpretError`]: the program is wrong, or the operands are.
pub fn interpret(program: &Program, operands: &[&[f32]]) -> Result<(Vec<f32>, Counts), InterpretError> {
    let mut machine = Machine::new(program, operands)?;
    for y in 0..program.grid[0] {
        for x in 0..program.grid[1] {
            machine.tile([y, x])?;
        }
    }
    let plane = (program.output.height * program.output.width) as usize;
    for (i, &times) in machine.times.iter().enumerate().take(plane) {
        if times != 1 {
            let at = [i as u64 / program.output.width, i as u64 % program.output.width];
            return Err(InterpretError::Stored { at, times });
        }
    }
    Ok(machine.finish())
}

/// Executes one tile and returns what was counted; the rest of the result stays undefined.
///
/// # Errors
/// As [`interpret`].
pub fn interpret_tile(
    program: &Program,
    operands: &[&[f32]],
    tile: [u64; 2],
) -> Result<Counts, InterpretError> {
    if tile[0] >= program.grid[0] || tile[1] >= program.grid[1] {
        return Err(InterpretError::NoTile(tile));
    }
    let mut machine = Machine::new(program, operands)?;
    machine.tile(tile)?;
    Ok(machine.finish().1)
}

struct Machine<'a> {
    program: &'a Program,
    /// Weights rounded as the arithmetic wants them.
    operands: Vec<Vec<f32>>,
    memory: Memory,
    result: Vec<f32>,
    /// How often each position was stored.
    times: Vec<u32>,
    counts: Counts,
    tile: [u64; 2],
    step: i64,
}

impl<'a> Machine<'a> {
    fn new(program: &'a Program, operands: &[&[f32]]) -> Result<Self, InterpretError> {
        program.verify()?;
        for (i, &wanted) in program.operands.iter().enumerate() {
            let found = operands.get(i).map_or(0, |o| o.len() as u64);
            if found != wanted {
                return Err(InterpretError::Operand { operand: i, found, wanted });
            }
        }
        let mut operands: Vec<Vec<f32>> = operands.iter().map(|o| o.to_vec()).collect();
        for instruction in &program.body {
            if let Instruction::Conv { weight, .. } = instruction {
                for w in &mut operands[*weight as usize] {
                    *w = factor(program.precision, *w);
                }
            }
        }
        let layers = program.body.iter();
        let layers =
            layers.filter(|i| matches!(i, Instruction::Conv { .. } | Instruction::Pool { .. })).count();
        Ok(Self {
            program,
            operands,
            memory: Memory::new(program),
            result: vec![f32::NAN; program.output.elements() as usize],
            times: vec![0; (program.output.height * program.output.width) as usize],
            counts: Counts { macs: vec![0; layers], ..Counts::default() },
            tile: [0; 2],
            step: 0,
        })
    }

    fn finish(mut self) -> (Vec<f32>, Counts) {
        let [shared, registers] = self.memory.touched();
        self.counts.shared = Bytes(shared * element(self.program.precision).0);
        self.counts.accumulators = Bytes(registers * ACCUMULATOR.0);
        (self.result, self.counts)
    }

    fn tile(&mut self, tile: [u64; 2]) -> Result<(), InterpretError> {
        self.tile = tile;
        self.memory.give_up_all();
        for step in self.program.steps.clone() {
            self.step = step;
            let mut layer = 0;
            for (i, instruction) in self.program.body.iter().enumerate() {
                self.run(instruction, &mut layer).map_err(|At(buffer, at, fault)| InterpretError::Fault {
                    instruction: i,
                    tile,
                    step,
                    buffer,
                    at,
                    fault,
                })?;
            }
        }
        Ok(())
    }

    fn buffer(&self, b: u32) -> &'a Buffer {
        &self.program.buffers[b as usize]
    }

    /// What is computed in this step.
    fn computed(&self, b: u32) -> Region {
        let buffer = self.buffer(b);
        Region { y: buffer.y.computed(self.tile[0], self.step), x: buffer.x.computed(self.tile[1], 0) }
    }

    fn run(&mut self, instruction: &Instruction, layer: &mut usize) -> Result<(), At> {
        match instruction {
            Instruction::Load { to, then } => self.load(*to, then),
            Instruction::Mask { buffer } => self.mask(*buffer),
            Instruction::Conv { from, to, window, groups, weight, bias, then } => {
                *layer += 1;
                let region = self.computed(*to);
                if region.is_empty() {
                    return Ok(());
                }
                let conv = window::Conv { from: *from, to: *to, window, groups: *groups };
                let operands = (*weight as usize, bias.map(|b| b as usize));
                let macs = self.convolve(&conv, region, operands, then)?;
                self.counts.macs[*layer - 1] += macs;
                let bytes = self.operands[operands.0].len() as u64 * element(self.program.precision).0;
                let bias = operands.1.map_or(0, |b| self.operands[b].len() as u64 * ACCUMULATOR.0);
                self.counts.weights += Bytes(bytes + bias);
                Ok(())
            }
            Instruction::Pool { from, to, window, kind, then } => {
                *layer += 1;
                let region = self.computed(*to);
                if region.is_empty() { Ok(()) } else { self.pool(*from, *to, window, *kind, region, then) }
            }
            Instruction::Store { from } => self.store(*from),
            Instruction::Sync => {
                self.memory.phase += 1;
                Ok(())
            }
            Instruction::Advance => {
                for (b, buffer) in self.program.buffers.iter().enumerate() {
                    let old = buffer.y.window(self.tile[0], self.step);
                    let kept = buffer.y.window(self.tile[0], self.step + 1);
                    for y in old.positions().filter(|&y| !kept.has(y)) {
                        self.memory.give_up_row(buffer, b, y);
                    }
                }
                Ok(())
            }
        }
    }

    fn load(&mut self, to: u32, then: &[Step]) -> Result<(), At> {
        let region = self.computed(to);
        let shape = self.program.input;
        inside_image(to, region, [shape.height, shape.width])?;
        if region.is_empty() {
            return Ok(());
        }
        let mut row = vec![0.0; region.x.len() as usize];
        for c in 0..shape.channels {
            for y in region.y.positions() {
                let at = shape.row(c, y) + region.x.lo as usize;
                for (x, &v) in row.iter_mut().zip(&self.operands[0][at..at + region.x.len() as usize]) {
                    *x = stored(self.program.precision, v);
                }
                self.then(then, c, y, region.x, &mut row)?;
                self.write_row(to, c, y, region.x, &row)?;
            }
        }
        self.counts.loaded += Bytes(shape.channels * region.elements() * element(self.program.precision).0);
        Ok(())
    }

    fn mask(&mut self, b: u32) -> Result<(), At> {
        let buffer = self.buffer(b);
        let whole = Region { y: buffer.y.fresh(self.tile[0], self.step), x: buffer.x.fresh(self.tile[1], 0) };
        let inside = self.computed(b);
        let row = vec![buffer.outside.value(); whole.x.len() as usize];
        for c in 0..buffer.channels {
            for y in whole.y.positions() {
                let parts = if inside.y.has(y) && !inside.x.is_empty() {
                    [Interval::new(whole.x.lo, inside.x.lo), Interval::new(inside.x.hi, whole.x.hi)]
                } else {
                    [whole.x, Interval::EMPTY]
                };
                for x in parts.into_iter().filter(|x| !x.is_empty()) {
                    self.write_row(b, c, y, x, &row[..x.len() as usize])?;
                    self.counts.padded += x.len();
                }
            }
        }
        Ok(())
    }

    fn store(&mut self, from: u32) -> Result<(), At> {
        let region = self.computed(from);
        let shape = self.program.output;
        inside_image(from, region, [shape.height, shape.width])?;
        if region.is_empty() {
            return Ok(());
        }
        self.check_read(from, region)?;
        let buffer = self.buffer(from);
        for c in 0..shape.channels {
            for y in region.y.positions() {
                let at = shape.row(c, y) + region.x.lo as usize;
                let n = region.x.len() as usize;
                let source = self.memory.row(buffer, &self.part(c, y, region.x));
                for (r, &v) in self.result[at..at + n].iter_mut().zip(source) {
                    *r = stored(self.program.precision, v);
                }
                if c == 0 {
                    self.times[at..at + n].iter_mut().for_each(|t| *t += 1);
                }
            }
        }
        self.counts.stored += Bytes(shape.channels * region.elements() * element(self.program.precision).0);
        Ok(())
    }

    /// Applies pointwise functions to part of a row.
    fn then(&mut self, list: &[Step], c: u64, y: i64, x: Interval, row: &mut [f32]) -> Result<(), At> {
        for step in list {
            match *step {
                Step::Relu => row.iter_mut().for_each(|v| *v = if *v < 0.0 { 0.0 } else { *v }),
                Step::Clip { lo, hi } => {
                    for v in row.iter_mut() {
                        *v = if *v < lo.0 { lo.0 } else { *v };
                        *v = if *v > hi.0 { hi.0 } else { *v };
                    }
                }
                Step::Scale { scale, shift } => {
                    let scale = self.operands[scale as usize][c as usize];
                    let shift = self.operands[shift as usize][c as usize];
                    row.iter_mut().for_each(|v| *v = *v * scale + shift);
                }
                Step::Add { residual } => {
                    let shape = self.program.output;
                    let rows = Region { y: Interval::new(y, y + 1), x };
                    inside_image(residual, rows, [shape.height, shape.width])?;
                    let at = shape.row(c, y) + x.lo as usize;
                    let r = &self.operands[residual as usize][at..at + row.len()];
                    row.iter_mut().zip(r).for_each(|(v, r)| *v += r);
                    self.counts.residual += Bytes(row.len() as u64 * element(self.program.precision).0);
                }
            }
        }
        Ok(())
    }

    /// Part of a row while this step of this tile runs.
    fn part(&self, channel: u64, y: i64, x: Interval) -> RowPart {
        RowPart { tile: self.tile, step: self.step, channel, y, x }
    }

    /// Writes part of a row; in shared memory as numbers are kept there.
    fn write_row(&mut self, b: u32, c: u64, y: i64, x: Interval, row: &[f32]) -> Result<(), At> {
        let buffer = self.buffer(b);
        let precision = self.program.precision;
        let slots = self.memory.write(buffer, b, &self.part(c, y, x))?;
        for (slot, &v) in slots.iter_mut().zip(row) {
            *slot = if buffer.space == Space::Shared { stored(precision, v) } else { v };
        }
        Ok(())
    }

    /// All channels of a rectangle are about to be read.
    fn check_read(&mut self, b: u32, region: Region) -> Result<(), At> {
        let buffer = self.buffer(b);
        for c in 0..buffer.channels {
            for y in region.y.positions() {
                self.memory.read(buffer, b, &self.part(c, y, region.x))?;
            }
        }
        Ok(())
    }
}

fn inside_image(buffer: u32, region: Region, image: [u64; 2]) -> Result<(), At> {
    let [height, width] = image.map(Interval::of_extent);
    if region.is_empty() || (height.contains(region.y) && width.contains(region.x)) {
        return Ok(());
    }
    Err(At(buffer, [region.y.lo, region.x.lo], Fault::Image))
}
