//! Executes single commands on real arenas.

use super::arena::Arena;
use crate::error::RunError;
use crate::program::{Program, Span};
use smallvec::SmallVec;
use std::sync::Arc;
use vdnn_ir::kernel::{KernelError, Kernels, Operand, TensorMut, TensorRef};
use vdnn_ir::packed;
use vdnn_ir::slices::through_slices;
use vdnn_ir::{ConvSchedule, Op, Space, Tensor};
use vdnn_plan::print::command_text;
use vdnn_plan::{BufId, CmdId, Command, CopyForm};

/// What undefined bytes hold: a NaN of every float type, -1 as an integer.
const POISON: u8 = 0xff;

/// Kernels that several streams may call.
pub type SharedKernels = Arc<dyn Kernels + Send + Sync>;

/// The arenas of a program and the kernels that run on them.
pub(super) struct Machine {
    program: Arc<Program>,
    device: Arena,
    host: Arena,
    kernels: SharedKernels,
    poison: bool,
    /// What is not a parameter, merged: undefined when a step begins. Only if poisoning.
    transient: Vec<Span>,
}

impl Machine {
    pub(super) fn new(program: Arc<Program>, kernels: SharedKernels, poison: bool) -> Result<Self, RunError> {
        let plan = program.plan();
        let device = Arena::new(plan.device.bytes, "device")?;
        let host = Arena::new(plan.host.bytes, "host")?;
        let mut machine = Self { device, host, kernels, poison, transient: Vec::new(), program };
        if poison {
            machine.device.all_mut().fill(POISON);
            machine.host.all_mut().fill(POISON);
            machine.transient = machine.program.transient();
        }
        Ok(machine)
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn begin(&mut self) {
        for span in std::mem::take(&mut self.transient) {
            self.owned(span).fill(POISON);
            self.transient.push(span);
        }
    }

    /// Bytes of an arena for its only user.
    pub(super) fn owned(&mut self, span: Span) -> &mut [u8] {
        let arena = match span.space {
            Space::Device => &mut self.device,
            Space::Host => &mut self.host,
        };
        &mut arena.all_mut()[span.start..span.start + span.len]
    }

    fn arena(&self, space: Space) -> &Arena {
        match space {
            Space::Device => &self.device,
            Space::Host => &self.host,
        }
    }

    /// Bytes to read.
    ///
    /// # Safety
    /// As [`Arena::bytes`].
    #[expect(unsafe_code, reason = "passes the promise on")]
    pub(super) unsafe fn bytes(&self, span: Span) -> &[u8] {
        // SAFETY: the caller's promise.
        unsafe { self.arena(span.space).bytes(span.start, span.len) }
    }

    /// Bytes to write.
    ///
    /// # Safety
    /// As [`Arena::bytes_mut`].
    #[expect(unsafe_code, clippy::mut_from_ref, reason = "passes the promise on")]
    unsafe fn bytes_mut(&self, span: Span) -> &mut [u8] {
        // SAFETY: the caller's promise.
        unsafe { self.arena(span.space).bytes_mut(span.start, span.len) }
    }

    /// Runs a launch, copy or free; records and waits are the queue's.
    ///
    /// # Safety
    /// No other command runs at the same time unless the program is checked and neither
    /// command is ordered before the other by stream order and events. (Part 3 of the
    /// checker's statement: such commands touch no common byte, or only read it.)
    #[expect(unsafe_code, reason = "the checker's proof is what makes the slices disjoint")]
    pub(super) unsafe fn run(&self, at: CmdId) -> Result<(), RunError> {
        let span = |b: BufId| self.program.span(b);
        match &self.program.plan().commands[at.0 as usize] {
            command @ Command::Launch { op, inputs, outputs, workspace, algo, .. } => {
                // SAFETY: no other running command writes what this one reads or touches
                // what it writes (the caller's promise).
                unsafe { self.launch(at, op, algo.as_ref(), inputs, outputs, workspace.map(span)) }
                    .map_err(|error| RunError::Kernel { at, command: command_text(at, command), error })
            }
            Command::Copy { form, src, dst, .. } => {
                let width = |b: BufId| self.program.plan().buffers[b].ty.dtype.bytes() as usize;
                let (from_width, to_width) = (width(*src), width(*dst));
                let (src, dst) = (span(*src), span(*dst));
                // SAFETY: source and destination are in different arenas (part 1 of the
                // checker's statement, which unchecked programs pass too); other commands
                // as the caller promises.
                let (from, to) = unsafe { (self.bytes(src), self.bytes_mut(dst)) };
                match form {
                    CopyForm::Plain => to.copy_from_slice(from),
                    CopyForm::Pack => {
                        packed::pack(from, from_width, to);
                    }
                    CopyForm::Unpack => packed::unpack(from, to_width, to),
                }
                Ok(())
            }
            Command::Free { buf, .. } => {
                if self.poison {
                    // SAFETY: a free counts as a write to the checker; the caller's promise.
                    unsafe { self.bytes_mut(span(*buf)) }.fill(POISON);
                }
                Ok(())
            }
            Command::Record { .. } | Command::Wait { .. } => Ok(()),
        }
    }

    /// # Safety
    /// As [`Self::run`].
    #[expect(unsafe_code, reason = "the checker's proof is what makes the slices disjoint")]
    unsafe fn launch(
        &self,
        at: CmdId,
        op: &Op,
        schedule: Option<&ConvSchedule>,
        inputs: &[BufId],
        outputs: &[BufId],
        workspace: Option<Span>,
    ) -> Result<(), KernelError> {
        let program = &*self.program;
        let info = program.launch(at);
        if info.clobbers {
            return self.launch_clobbered(at, op, inputs, outputs, workspace);
        }
        let scratch = || {
            if let Some(ws) = workspace.filter(|_| self.poison) {
                // SAFETY: the workspace overlaps no operand (`info.clobbers` is false) and
                // no slice of it lives; other commands as the caller promises.
                unsafe { self.bytes_mut(ws) }.fill(POISON);
            }
        };
        scratch();
        if let Some(moves) = &info.rows {
            let result = program.span(outputs[0]);
            for m in moves {
                // Parts of a buffer fit the address space as it does.
                let to = Span { start: result.start + m.at.0 as usize, len: m.len.0 as usize, ..result };
                // SAFETY: an operand that is not in its place overlaps the result nowhere
                // (`info.clobbers` is false); other commands as the caller promises.
                let (from, to) = unsafe { (self.bytes(program.span(inputs[m.operand])), self.bytes_mut(to)) };
                to.copy_from_slice(from);
            }
            return Ok(());
        }
        let buffers = &program.plan().buffers;
        let operands: SmallVec<[Operand<'_>; 4]> = inputs
            .iter()
            .zip(&info.in_place)
            .map(|(&b, place)| match place {
                Some(o) => Operand::InPlace(*o),
                // SAFETY: overlaps no output or workspace of this launch (`info.clobbers`
                // is false: proved by part 4 of the checker's statement, or computed);
                // other commands as the caller promises.
                None => Operand::Ref(TensorRef {
                    ty: &buffers[b].ty,
                    bytes: unsafe { self.bytes(program.span(b)) },
                }),
            })
            .collect();
        let mut results: SmallVec<[TensorMut<'_>; 2]> = outputs
            .iter()
            .map(|&b| TensorMut {
                ty: &buffers[b].ty,
                // SAFETY: outputs are pairwise disjoint and meet no operand slice, for the
                // same reason; an in-place operand has no slice of its own.
                bytes: unsafe { self.bytes_mut(program.span(b)) },
            })
            .collect();
        let done = match (op, &operands[..]) {
            // A reshape moves no data in the graph; launched, it is a copy.
            (Op::Reshape { .. }, [Operand::Ref(x)]) => {
                results[0].bytes.copy_from_slice(x.bytes);
                Ok(())
            }
            _ => through_slices(&*self.kernels, op, schedule, &operands, &mut results)
                .unwrap_or_else(|| self.kernels.launch(op, &operands, &mut results)),
        };
        scratch();
        done
    }

    /// A launch of an unchecked program whose operands overlap illegally. A real kernel may
    /// write its outputs and workspace before it has read its inputs: the worst case.
    #[expect(unsafe_code, reason = "copies in and out of the shared block")]
    fn launch_clobbered(
        &self,
        at: CmdId,
        op: &Op,
        inputs: &[BufId],
        outputs: &[BufId],
        workspace: Option<Span>,
    ) -> Result<(), KernelError> {
        assert!(!self.program.is_checked(), "{at} of a checked plan clobbers nothing");
        let program = &*self.program;
        let buffers = &program.plan().buffers;
        for span in outputs.iter().map(|&b| program.span(b)).chain(workspace) {
            // SAFETY: unchecked programs run on one thread, and no slice lives across this.
            unsafe { self.bytes_mut(span) }.fill(POISON);
        }
        let copies: Vec<Tensor> = inputs
            .iter()
            .map(|&b| {
                // SAFETY: one thread; the slice ends with the statement.
                let bytes = unsafe { self.bytes(program.span(b)) };
                Tensor::from_bytes(buffers[b].ty.clone(), bytes).expect("a span has its type's length")
            })
            .collect();
        let mut made: Vec<Tensor> = outputs.iter().map(|&b| Tensor::zeros(buffers[b].ty.clone())).collect();
        let operands: Vec<Operand<'_>> = copies.iter().map(|t| Operand::Ref(t.view())).collect();
        let mut results: Vec<TensorMut<'_>> = outputs
            .iter()
            .zip(&mut made)
            .map(|(&b, t)| TensorMut { ty: &buffers[b].ty, bytes: t.bytes_mut() })
            .collect();
        match (op, &copies[..]) {
            (Op::Reshape { .. }, [x]) => results[0].bytes.copy_from_slice(x.bytes()),
            _ => self.kernels.launch(op, &operands, &mut results)?,
        }
        for (&b, t) in outputs.iter().zip(&made) {
            // SAFETY: one thread; the slice ends with the statement.
            unsafe { self.bytes_mut(program.span(b)) }.copy_from_slice(t.bytes());
        }
        Ok(())
    }
}
