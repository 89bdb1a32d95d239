//! Shared memory and accumulators of a block, with what each element holds and who touched it.

use super::{At, Fault};
use crate::interval::Interval;
use crate::program::{ACCUMULATOR, Buffer, Program, Space, element};

/// No buffer's.
const NOBODY: u16 = u16::MAX;

/// An element's history. Phases start at 1; 0 is never.
#[derive(Clone, Copy)]
struct Mark {
    owner: u16,
    written: u32,
    read: u32,
}

struct Cells {
    values: Vec<f32>,
    marks: Vec<Mark>,
    touched: Vec<bool>,
}

/// Part of a row of a buffer, while a step of a tile runs.
#[derive(Clone, Copy)]
pub(super) struct RowPart {
    pub(super) tile: [u64; 2],
    pub(super) step: i64,
    pub(super) channel: u64,
    pub(super) y: i64,
    pub(super) x: Interval,
}

pub(super) struct Memory {
    spaces: [Cells; 2],
    element: u64,
    /// Between two synchronisations.
    pub(super) phase: u32,
}

impl Memory {
    /// Spaces of exactly the program's sizes.
    pub(super) fn new(program: &Program) -> Self {
        let element = element(program.precision).0;
        let cells = |n: u64| Cells {
            values: vec![f32::NAN; n as usize],
            marks: vec![Mark { owner: NOBODY, written: 0, read: 0 }; n as usize],
            touched: vec![false; n as usize],
        };
        let spaces = [cells(program.shared.0 / element), cells(program.accumulators.0 / ACCUMULATOR.0)];
        Self { spaces, element, phase: 1 }
    }

    /// Elements of each space that were ever written.
    pub(super) fn touched(&self) -> [u64; 2] {
        [0, 1].map(|s| self.spaces[s].touched.iter().filter(|t| **t).count() as u64)
    }

    /// Another block: nothing is defined.
    pub(super) fn give_up_all(&mut self) {
        self.phase += 1;
        for cells in &mut self.spaces {
            cells.marks.iter_mut().for_each(|m| m.owner = NOBODY);
        }
    }

    fn place(&self, buffer: &Buffer) -> (usize, usize) {
        match buffer.space {
            Space::Shared => (0, (buffer.offset.0 / self.element) as usize),
            Space::Registers => (1, (buffer.offset.0 / ACCUMULATOR.0) as usize),
        }
    }

    /// Where part of a row lies, if it lies in the window and the window in the buffer.
    fn slots(&self, buffer: &Buffer, part: &RowPart) -> Option<(usize, std::ops::Range<usize>)> {
        let &RowPart { tile, step, channel, y, x } = part;
        let (rows, cols) = (buffer.y.window(tile[0], step), buffer.x.window(tile[1], 0));
        if !rows.has(y)
            || x.is_empty()
            || !cols.contains(x)
            || rows.len() > buffer.y.capacity
            || cols.len() > buffer.x.capacity
        {
            return None;
        }
        let row = self.row_slot(buffer, rows, y);
        let (space, first) = self.place(buffer);
        let row = (channel * buffer.y.capacity + row) * buffer.x.capacity;
        let at = first + (row as i64 + x.lo - cols.lo) as usize;
        Some((space, at..at + x.len() as usize))
    }

    fn row_slot(&self, buffer: &Buffer, rows: Interval, y: i64) -> u64 {
        if buffer.ring { y.rem_euclid(buffer.y.capacity as i64) as u64 } else { (y - rows.lo) as u64 }
    }

    /// A row of all channels leaves the window.
    pub(super) fn give_up_row(&mut self, buffer: &Buffer, index: usize, y: i64) {
        if buffer.y.capacity == 0 || !buffer.ring {
            return;
        }
        let (space, first) = self.place(buffer);
        let row = self.row_slot(buffer, Interval::EMPTY, y);
        for c in 0..buffer.channels {
            let at = first + ((c * buffer.y.capacity + row) * buffer.x.capacity) as usize;
            for mark in &mut self.spaces[space].marks[at..at + buffer.x.capacity as usize] {
                if mark.owner == index as u16 {
                    mark.owner = NOBODY;
                }
            }
        }
    }

    /// Notes that part of a row is read.
    pub(super) fn read(&mut self, buffer: &Buffer, index: u32, part: &RowPart) -> Result<(), At> {
        let &RowPart { y, x, .. } = part;
        let slots = self.slots(buffer, part);
        let (space, slots) = slots.ok_or(At(index, [y, x.lo], Fault::Bounds))?;
        let phase = self.phase;
        for (i, mark) in self.spaces[space].marks[slots].iter_mut().enumerate() {
            let at = [y, x.lo + i as i64];
            if mark.owner != index as u16 {
                return Err(At(index, at, Fault::Undefined));
            }
            if buffer.space == Space::Shared && mark.written == phase {
                return Err(At(index, at, Fault::Race));
            }
            mark.read = phase;
        }
        Ok(())
    }

    /// Part of a row, to be written; what was there is gone.
    pub(super) fn write(&mut self, buffer: &Buffer, index: u32, part: &RowPart) -> Result<&mut [f32], At> {
        let &RowPart { y, x, .. } = part;
        let slots = self.slots(buffer, part);
        let (space, slots) = slots.ok_or(At(index, [y, x.lo], Fault::Bounds))?;
        let (phase, cells) = (self.phase, &mut self.spaces[space]);
        for (i, mark) in cells.marks[slots.clone()].iter_mut().enumerate() {
            let again = mark.owner != NOBODY && mark.written == phase;
            if buffer.space == Space::Shared && (again || mark.read == phase) {
                return Err(At(index, [y, x.lo + i as i64], Fault::Race));
            }
            *mark = Mark { owner: index as u16, written: phase, read: 0 };
        }
        cells.touched[slots.clone()].fill(true);
        Ok(&mut cells.values[slots])
    }

    /// Part of a row that [`Self::read`] found sound.
    pub(super) fn row(&self, buffer: &Buffer, part: &RowPart) -> &[f32] {
        match self.slots(buffer, part) {
            Some((space, slots)) => &self.spaces[space].values[slots],
            None => &[],
        }
    }
}
