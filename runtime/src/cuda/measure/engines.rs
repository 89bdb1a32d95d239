//! The rows of a convolution. Engines differ in time by a factor of a hundred and more; those
//! that no plan can want are left as soon as that is certain.

use super::{Kernel, MeasureLimits, Measurer, Places, scales_by};
use crate::cuda::cudnn::{self, Candidate, Notes};
use crate::cuda::error::CudaError;
use crate::cuda::launch::DeviceRange;
use crate::cuda::measure::memory::read;
use crate::cuda::meter::Timing;
use vdnn_cost::MeasuredRow;
use vdnn_cost::measured::{ACCUMULATES, NOT_CAPTURED, SLOWER};
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::slices::{batch, conv_slice};
use vdnn_ir::{Bytes, DType, Op};

/// Which parts of the batch an engine runs before the whole one, as divisors of it.
const PARTS: [u64; 2] = [32, 8];
/// Parts are tried where a rival takes at least this long (ns) for the whole batch.
const WORTH_PARTS: f64 = 500_000.0;
/// An engine that takes so many times as long as a rival is not timed to the end.
const BEHIND: f64 = 1.25;

/// An engine that was timed, and can stand in for another.
#[derive(Clone, Copy, Debug)]
struct Rival {
    workspace: Bytes,
    /// Nanoseconds.
    time: f64,
    deterministic: bool,
}

/// Those of one convolution.
#[derive(Debug, Default)]
struct Rivals(Vec<Rival>);

impl Rivals {
    /// Time of the fastest one that serves wherever an engine with this workspace does.
    fn of(&self, workspace: Bytes, deterministic: bool) -> Option<f64> {
        let serves = |r: &&Rival| r.workspace <= workspace && (r.deterministic || !deterministic);
        self.0.iter().filter(serves).map(|r| r.time).min_by(f64::total_cmp)
    }
}

/// What came of an engine.
enum Tried {
    Timed(Timing),
    Slower,
    Fails,
}

impl Measurer {
    /// The rows of a convolution, in the order of the candidates.
    pub(super) fn engines(
        &mut self,
        kernel: Kernel<'_>,
        limits: &MeasureLimits,
    ) -> Result<Vec<MeasuredRow>, CudaError> {
        let Kernel { op, inputs, outputs, precision } = kernel;
        let found = cudnn::candidates(op, inputs, outputs, precision, limits.others > 0, &self.dnn)?;
        // Building tells the workspace, and whether the engine exists at all.
        let tries: Vec<(Candidate, bool)> = limits
            .choose(&found)
            .into_iter()
            .map(|c| match cudnn::workspace(op, inputs, outputs, c.config, &self.dnn) {
                Ok(workspace) => (Candidate { workspace, ..c }, true),
                Err(_) => (c, false),
            })
            .collect();
        let most = tries.iter().filter(|t| t.1).map(|t| t.0.workspace).max().unwrap_or(Bytes::ZERO);
        let workspace = self.workspace.take(most)?;
        let places = self.place(kernel)?;
        let can_add = matches!(op, Op::ConvWgrad { .. }) && outputs[0].dtype == DType::F32;
        let mut rivals = Rivals::default();
        let mut rows = Vec::new();
        for (c, runs) in &tries {
            let mut flags: Vec<String> = c.notes.names().map(str::to_owned).collect();
            let mut time = None;
            let deterministic = !c.notes.contains(Notes::NONDETERMINISTIC);
            let rival = rivals.of(c.workspace, deterministic);
            let tried = if *runs {
                self.time_engine(kernel, &places, c, workspace, rival, limits)?
            } else {
                Tried::Fails
            };
            match tried {
                Tried::Slower => flags.push(SLOWER.to_owned()),
                Tried::Fails => {}
                Tried::Timed(timing) => {
                    let (exact, adds) = self.checks(kernel, &places, c, workspace, &mut flags)?;
                    time = exact.then(|| timing.median());
                    if !timing.captured {
                        flags.push(NOT_CAPTURED.to_owned());
                    }
                    if adds {
                        flags.push(ACCUMULATES.to_owned());
                    }
                    if let (Some(time), true) = (time, timing.captured && (adds || !can_add)) {
                        rivals.0.push(Rival { workspace: c.workspace, time: time.0 as f64, deterministic });
                    }
                }
            }
            let algo = Some(ConvAlgo::Engine(c.config));
            rows.push(MeasuredRow { algo, workspace: c.workspace, time, flags });
        }
        Ok(rows)
    }

    /// Times one engine, unless it is clearly slower than `rival` nanoseconds.
    fn time_engine(
        &mut self,
        kernel: Kernel<'_>,
        places: &Places,
        c: &Candidate,
        workspace: DeviceRange,
        rival: Option<f64>,
        limits: &MeasureLimits,
    ) -> Result<Tried, CudaError> {
        if let Some(rival) = rival.filter(|r| *r >= WORTH_PARTS)
            && self.part_takes_longer(kernel, places, c, workspace, rival)?
        {
            return Ok(Tried::Slower);
        }
        let range = (c.workspace > Bytes::ZERO).then_some(DeviceRange { bytes: c.workspace, ..workspace });
        let algo = Some(ConvAlgo::Engine(c.config));
        let timed = self.prepare(kernel, places, algo, false, range).and_then(|launch| match rival {
            None => self.meter.time(&*launch, limits.repeats).map(Some),
            Some(rival) => self.meter.time_within(&*launch, BEHIND * rival, limits.repeats),
        });
        match timed {
            Ok(Some(timing)) => Ok(Tried::Timed(timing)),
            Ok(None) => Ok(Tried::Slower),
            // The device itself is in a bad state; nothing after this would be true.
            Err(error @ CudaError::Driver { .. }) => Err(error),
            Err(_) => Ok(Tried::Fails),
        }
    }

    /// True if an engine takes longer for a part of the batch than a rival for all of it.
    fn part_takes_longer(
        &mut self,
        kernel: Kernel<'_>,
        places: &Places,
        c: &Candidate,
        workspace: DeviceRange,
        rival: f64,
    ) -> Result<bool, CudaError> {
        let images = batch(kernel.op, kernel.inputs).unwrap_or(0);
        for images in PARTS.map(|share| images / share).into_iter().filter(|&m| m > 0) {
            let Some(part) = conv_slice(kernel.op, kernel.inputs, kernel.outputs, images) else { break };
            let (inputs, outputs) = part.types();
            let small = Kernel { op: &part.op, inputs: &inputs, outputs: &outputs, ..kernel };
            let needed = match cudnn::workspace(small.op, small.inputs, small.outputs, c.config, &self.dnn) {
                Ok(needed) if needed <= workspace.bytes => needed,
                // Of the whole batch the engine may still be.
                _ => break,
            };
            let range = (needed > Bytes::ZERO).then_some(DeviceRange { bytes: needed, ..workspace });
            let algo = Some(ConvAlgo::Engine(c.config));
            let longer = self.prepare(small, places, algo, false, range).and_then(|launch| {
                Ok(self.meter.once(&*launch)? > rival && self.meter.once(&*launch)? > rival)
            });
            match longer {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(error @ CudaError::Driver { .. }) => return Err(error),
                Err(_) => break,
            }
        }
        Ok(false)
    }

    /// Whether an engine that was just timed is as precise as was asked for, and whether it
    /// adds to its result when asked to; the inputs are random again afterwards.
    fn checks(
        &mut self,
        kernel: Kernel<'_>,
        places: &Places,
        c: &Candidate,
        workspace: DeviceRange,
        flags: &mut Vec<String>,
    ) -> Result<(bool, bool), CudaError> {
        let range = (c.workspace > Bytes::ZERO).then_some(DeviceRange { bytes: c.workspace, ..workspace });
        let launch = self.prepare(kernel, places, Some(ConvAlgo::Engine(c.config)), false, range)?;
        let untouched = flags.len();
        let exact = self.is_as_precise(kernel, places, &*launch, flags)?;
        debug_assert!(exact || flags.len() > untouched, "what is not precise is flagged");
        let adds = exact && self.accumulates(kernel, places, c, range)?;
        if Self::is_checked(kernel) {
            self.fill_inputs(kernel, places)?;
        }
        Ok((exact, adds))
    }

    /// True if the engine of a weight gradient adds to its result when asked to, in the same
    /// workspace: run once more on what it has just computed, it must give twice that.
    fn accumulates(
        &mut self,
        kernel: Kernel<'_>,
        places: &Places,
        c: &Candidate,
        workspace: Option<DeviceRange>,
    ) -> Result<bool, CudaError> {
        let sum = kernel.outputs[0];
        if !matches!(kernel.op, Op::ConvWgrad { .. }) || sum.dtype != DType::F32 {
            return Ok(false);
        }
        let algo = Some(ConvAlgo::Engine(c.config));
        let twice = self.prepare(kernel, places, algo, true, workspace).and_then(|launch| {
            let once = read(places.outputs[0], sum.bytes())?;
            self.meter.run(&*launch)?;
            Ok((once, read(places.outputs[0], sum.bytes())?))
        });
        match twice {
            Ok((once, twice)) => Ok(scales_by(&twice, &once, 2.0)),
            Err(error @ CudaError::Driver { .. }) => Err(error),
            Err(_) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rival_serves_wherever_the_engine_would() {
        let rival =
            |workspace, time, deterministic| Rival { workspace: Bytes(workspace), time, deterministic };
        let rivals = Rivals(vec![rival(0, 9.0, true), rival(8, 5.0, false), rival(8, 7.0, true)]);
        assert_eq!(Rivals::default().of(Bytes(8), false), None);
        assert_eq!(rivals.of(Bytes(8), false), Some(5.0));
        assert_eq!(rivals.of(Bytes(8), true), Some(7.0), "one that varies is no match");
        assert_eq!(rivals.of(Bytes(7), false), Some(9.0), "one with more workspace is none");
    }
}
