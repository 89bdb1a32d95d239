//! Whether a program, which may come from a file, can be executed at all.

use crate::chain::MAX_EXTENT;
use crate::geometry::{MAX_POSITION, MAX_STEPS, Track};
use crate::program::{ACCUMULATOR, Instruction, PoolKind, Program, Space, Step, element};
use crate::{Shape, Window};
use vdnn_ir::Bytes;

/// Most elements of a tensor or of a space of a program.
const MAX_ELEMENTS: u64 = 1 << 40;

/// Why a program cannot be executed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// A number outside its range.
    #[error("{what} is {value}, which is out of range")]
    Range {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// A buffer that lies outside its space.
    #[error("buffer {buffer} ends at byte {end} of a space of {space}")]
    Place {
        /// The buffer.
        buffer: usize,
        /// One past its last byte.
        end: u64,
        /// Size of the space.
        space: Bytes,
    },
    /// An instruction names what is not there, or operands of other sizes.
    #[error("instruction {instruction}: {why}")]
    Instruction {
        /// Position in the body.
        instruction: usize,
        /// What is wrong.
        why: &'static str,
    },
}

impl Program {
    /// Checks everything that does not depend on tile and step: ranges, places, numbers of
    /// buffers and operands, sizes of weights. What does depend on them is found by
    /// [`crate::interpret`].
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn verify(&self) -> Result<(), ProgramError> {
        let range = |what, value: i64, least: i64, most: i64| {
            if (least..=most).contains(&value) { Ok(()) } else { Err(ProgramError::Range { what, value }) }
        };
        let extent = MAX_EXTENT as i64;
        for shape in [self.input, self.output] {
            for n in [shape.channels, shape.height, shape.width] {
                range("an extent", i64::try_from(n).unwrap_or(i64::MAX), 1, extent)?;
            }
            let elements = u128::from(shape.channels) * u128::from(shape.height) * u128::from(shape.width);
            range("a tensor's size", i64::try_from(elements).unwrap_or(i64::MAX), 1, MAX_ELEMENTS as i64)?;
        }
        for n in self.grid {
            range("an extent of the grid", i64::try_from(n).unwrap_or(i64::MAX), 1, extent)?;
        }
        range("the first step", self.steps.start, -(MAX_STEPS as i64), 0)?;
        range("the end of the steps", self.steps.end, 1, MAX_STEPS as i64)?;
        for bytes in [self.shared, self.accumulators] {
            range("a space", i64::try_from(bytes.0).unwrap_or(i64::MAX), 0, MAX_ELEMENTS as i64)?;
        }
        for &n in &self.operands {
            range("an operand's size", i64::try_from(n).unwrap_or(i64::MAX), 1, MAX_ELEMENTS as i64)?;
        }
        if self.operands.first() != Some(&self.input.elements()) {
            return Err(ProgramError::Range { what: "the first operand, not the input's size,", value: 0 });
        }
        range("the number of buffers", self.buffers.len() as i64, 1, 1 << 10)?;
        for (b, buffer) in self.buffers.iter().enumerate() {
            range("channels", i64::try_from(buffer.channels).unwrap_or(i64::MAX), 1, extent)?;
            track(&buffer.y)?;
            track(&buffer.x)?;
            let size = if buffer.space == Space::Shared { element(self.precision) } else { ACCUMULATOR };
            let space = if buffer.space == Space::Shared { self.shared } else { self.accumulators };
            let elements = u128::from(buffer.channels)
                * u128::from(buffer.y.capacity)
                * u128::from(buffer.x.capacity)
                * u128::from(size.0);
            let end = u64::try_from(elements).unwrap_or(u64::MAX).saturating_add(buffer.offset.0);
            if end > space.0 || !buffer.offset.0.is_multiple_of(size.0) {
                return Err(ProgramError::Place { buffer: b, end, space });
            }
        }
        for (i, instruction) in self.body.iter().enumerate() {
            self.instruction(instruction).map_err(|why| ProgramError::Instruction { instruction: i, why })?;
        }
        Ok(())
    }

    fn channels(&self, buffer: u32) -> Result<u64, &'static str> {
        Ok(self.buffers.get(buffer as usize).ok_or("no such buffer")?.channels)
    }

    fn operand(&self, operand: u32, elements: u64) -> Result<(), &'static str> {
        match self.operands.get(operand as usize) {
            None => Err("no such operand"),
            Some(&n) if n == elements => Ok(()),
            Some(_) => Err("an operand of another size"),
        }
    }

    fn then(&self, list: &[Step], channels: u64) -> Result<(), &'static str> {
        for step in list {
            match *step {
                Step::Relu | Step::Clip { .. } => {}
                Step::Scale { scale, shift } => {
                    self.operand(scale, channels)?;
                    self.operand(shift, channels)?;
                }
                Step::Add { residual } => {
                    self.operand(residual, self.output.elements())?;
                    if channels != self.output.channels {
                        return Err("a residual of another number of channels");
                    }
                }
            }
        }
        Ok(())
    }

    fn instruction(&self, instruction: &Instruction) -> Result<(), &'static str> {
        match instruction {
            Instruction::Load { to, then } => {
                if self.channels(*to)? != self.input.channels {
                    return Err("the input has another number of channels");
                }
                self.then(then, self.input.channels)
            }
            Instruction::Mask { buffer } => self.channels(*buffer).map(drop),
            Instruction::Conv { from, to, window: w, groups, weight, bias, then } => {
                let (input, out) = (self.channels(*from)?, self.channels(*to)?);
                window(w)?;
                if *groups == 0 || !input.is_multiple_of(*groups) || !out.is_multiple_of(*groups) {
                    return Err("groups that do not divide the channels");
                }
                // Below 2^60: ranges are checked.
                let per_output = (input / groups).checked_mul(w.taps()).ok_or("a kernel too large")?;
                self.operand(*weight, per_output.checked_mul(out).ok_or("a kernel too large")?)?;
                if let Some(bias) = bias {
                    self.operand(*bias, out)?;
                }
                self.then(then, out)
            }
            Instruction::Pool { from, to, window: w, kind, then } => {
                window(w)?;
                if self.channels(*from)? != self.channels(*to)? {
                    return Err("a pool between different numbers of channels");
                }
                if let PoolKind::Mean { image, .. } = kind
                    && image.iter().any(|&n| n == 0 || n > MAX_EXTENT)
                {
                    return Err("an image without an extent");
                }
                self.then(then, self.channels(*to)?)
            }
            Instruction::Store { from } => {
                if self.channels(*from)? != self.output.channels {
                    return Err("the result has another number of channels");
                }
                Ok(())
            }
            Instruction::Sync | Instruction::Advance => Ok(()),
        }
    }
}

fn window(w: &Window) -> Result<(), &'static str> {
    let positive = [w.kernel, w.strides, w.dilations];
    let small = |n: &u64| *n <= MAX_EXTENT;
    if positive.iter().flatten().any(|n| *n == 0 || !small(n)) {
        return Err("a window of no extent, stride or dilation");
    }
    if !w.before.iter().chain(&w.after).all(small) {
        return Err("padding out of range");
    }
    Ok(())
}

fn track(t: &Track) -> Result<(), ProgramError> {
    let ends = [t.hull, t.window, t.live, t.held].into_iter().flat_map(|i| [i.lo, i.hi]);
    let capacity = i64::try_from(t.capacity).unwrap_or(i64::MAX);
    for value in ends.chain([t.per_tile, t.per_step, t.fresh, capacity]) {
        if value.abs() > MAX_POSITION {
            return Err(ProgramError::Range { what: "a position", value });
        }
    }
    for value in [t.per_tile, t.per_step, t.fresh] {
        if value < 0 {
            return Err(ProgramError::Range { what: "a distance between tiles or steps", value });
        }
    }
    Ok(())
}

impl Shape {
    /// Index of the first element of a row.
    pub(crate) fn row(&self, channel: u64, y: i64) -> usize {
        ((channel * self.height + y as u64) * self.width) as usize
    }
}
