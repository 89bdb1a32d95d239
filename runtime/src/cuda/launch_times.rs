//! The times of single launches of a step on the data that the step brings to them.

use super::backend::{CudaBackend, Loaded, command_error};
use super::cudnn;
use super::error::CudaError;
use super::launch::{LaunchSpec, Operand, Prepared};
use super::meter::Meter;
use super::timing::Staged;
use crate::backend::Backend;
use crate::error::RunError;
use crate::program::Span;
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Nanos, Op};
use vdnn_plan::{CmdId, Command};

/// Timings of one launch at most.
const REPEATS: usize = 10;

/// What was measured of one launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaunchTimes {
    /// The launch as the plan has it.
    pub own: Nanos,
    /// The same convolution, without bias, other summand and ReLU, by each of the algorithms asked
    /// for; `None` where cuDNN does not run it so.
    pub classic: Vec<Option<Nanos>>,
}

impl CudaBackend {
    /// Runs one step, command by command, and times some of its launches where the step has come
    /// to them: on the operands they then have, which matters to kernels whose time depends on
    /// them. Convolutions are also timed by cuDNN's classic `algos`, with the scratch range as
    /// their workspace, before the plan's own launch leaves its result. Each is repeated within a
    /// captured graph, so that neither the host nor events are in the times; the operands are
    /// then in the cache as far as they fit.
    ///
    /// # Errors
    /// [`CudaError::BadPlan`] for a command that is no launch, or one that overwrites what it
    /// reads; otherwise as [`run`](Backend::run).
    pub fn time_launches(
        &mut self,
        inputs: &[(Span, &[u8])],
        wanted: &[CmdId],
        algos: &[ConvAlgo],
    ) -> Result<Vec<LaunchTimes>, RunError> {
        let staged = Staged::new(inputs)?;
        let meter = Meter::new()?;
        let mut found: Vec<Option<LaunchTimes>> = vec![None; wanted.len()];
        let outcome = self.walk(&staged, |backend, at| {
            for (i, _) in wanted.iter().enumerate().filter(|(_, w)| **w == at) {
                if backend.loaded().program.launch(at).in_place.iter().any(Option::is_some) {
                    return Err(not_timed(at, "overwrites what it reads"));
                }
                let classic =
                    algos.iter().map(|&a| backend.classic(&meter, at, a)).collect::<Result<_, _>>()?;
                let kernel =
                    backend.loaded().table.kernel(at).ok_or_else(|| not_timed(at, "is no kernel"))?;
                let own = meter.time(kernel, REPEATS)?.median();
                found[i] = Some(LaunchTimes { own, classic });
            }
            Ok(())
        });
        // Also after an error: the staged inputs are about to go.
        let done = self.synchronize();
        outcome.and(done)?;
        let missing = |at: &CmdId| RunError::from(not_timed(*at, "is not in the plan"));
        found.into_iter().zip(wanted).map(|(f, at)| f.ok_or_else(|| missing(at))).collect()
    }

    /// Queues the commands of a step; before each that `look` may time the device is idle.
    fn walk(
        &mut self,
        staged: &Staged,
        mut look: impl FnMut(&mut Self, CmdId) -> Result<(), CudaError>,
    ) -> Result<(), RunError> {
        let loaded = self.loaded();
        staged.enqueue(loaded, loaded.lanes.main())?;
        loaded.lanes.fork()?;
        let commands = loaded.program.plan().commands.len();
        for at in (0..commands).map(CmdId::from_index) {
            if matches!(self.loaded().program.plan().commands[at.index()], Command::Launch { .. }) {
                self.synchronize()?;
                look(self, at).map_err(|e| command_error(&self.loaded().program, at, e))?;
            }
            let Loaded { table, lanes, program, .. } = self.loaded();
            table.enqueue(at, lanes).map_err(|error| command_error(program, at, error))?;
        }
        Ok(self.loaded().lanes.join()?)
    }

    /// The time of a convolution by a classic algorithm; `None` if it does not run so.
    fn classic(&mut self, meter: &Meter, at: CmdId, algo: ConvAlgo) -> Result<Option<Nanos>, CudaError> {
        let loaded = self.loaded();
        let program = &loaded.program;
        let plan = program.plan();
        let Command::Launch { op, inputs, outputs, name, stream, .. } = &plan.commands[at.index()] else {
            return Err(not_timed(at, "is no launch"));
        };
        if !op.is_conv() {
            return Ok(None);
        }
        let operand = |b: &vdnn_plan::BufId| Operand {
            ty: &plan.buffers[*b].ty,
            ptr: loaded.address(program.span(*b)),
        };
        let operands: Vec<Operand<'_>> = inputs.iter().take(2).map(operand).collect();
        let results: Vec<Operand<'_>> = outputs.iter().map(operand).collect();
        let plain = without_epilogue(op);
        let spec = LaunchSpec {
            op: &plain,
            inputs: &operands,
            outputs: &results,
            workspace: None,
            scratch: loaded.scratch(stream.index()),
            algo: Some(algo),
            exact: true,
            accumulate: false,
            precision: plan.header.precision,
            name,
        };
        let mut no_bias =
            || Err(CudaError::BadPlan { why: "a convolution without bias has no epilogue".into() });
        let timing = cudnn::prepare(&spec, self.dnn()?, &mut no_bias)
            .and_then(|prepared| meter.time(&*prepared as &dyn Prepared, REPEATS));
        match timing {
            Ok(timing) => Ok(Some(timing.median())),
            Err(error) if is_refusal(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The convolution alone: what follows it is no part of an algorithm.
fn without_epilogue(op: &Op) -> Op {
    match op {
        Op::ConvEpilogue { conv, .. } => Op::Conv(conv.clone()),
        op => op.clone(),
    }
}

/// True if cuDNN does not run a shape so, or not in the scratch range, and the device is well.
fn is_refusal(error: &CudaError) -> bool {
    matches!(error, CudaError::Cudnn { .. } | CudaError::Unsupported { .. } | CudaError::BadPlan { .. })
}

fn not_timed(at: CmdId, why: &str) -> CudaError {
    CudaError::BadPlan { why: format!("{at} cannot be timed: it {why}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_ir::op::ConvAttrs;

    #[test]
    fn algorithms_are_timed_without_what_follows_them() {
        let conv = ConvAttrs::without_axes();
        let fused = Op::ConvEpilogue { conv: conv.clone(), relu: true };
        assert_eq!(without_epilogue(&fused), Op::Conv(conv.clone()));
        assert_eq!(without_epilogue(&Op::Conv(conv.clone())), Op::Conv(conv));
    }

    #[test]
    fn only_refusals_are_no_times() {
        let text = String::new;
        assert!(is_refusal(&CudaError::Cudnn { call: "cudnnConvolutionForward", text: text() }));
        assert!(is_refusal(&CudaError::Unsupported { op: text(), why: text() }));
        assert!(!is_refusal(&CudaError::Driver { call: "cuStreamSynchronize", text: text() }));
        assert!(!is_refusal(&CudaError::MissingLibrary { library: text(), tried: Vec::new() }));
    }
}
