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

/// Share of the batch, as a divisor, that engines run first, to see which are fast; those that use
/// tensor cores, few of which are slow and many of which take long to compile, do not.
const FIRST_PART: u64 = 32;
/// Share that an engine runs next, if a rival may be faster with the whole batch.
const SECOND_PART: u64 = 8;
/// Parts are run of convolutions that may take this long (ns).
const WORTH_PARTS: f64 = 500_000.0;
/// A launch that takes this long (ns) shows what it takes also if it is the first one.
const PLAIN: f64 = 20_000_000.0;
/// An engine that takes so many times as long as a rival is not timed to the end.
const BEHIND: f64 = 1.25;
/// The same beside a rival that takes at least [`STEADY`] nanoseconds.
const BEHIND_STEADY: f64 = 1.05;
/// Times of this length hardly vary.
const STEADY: f64 = 5_000_000.0;
/// So much more workspace is no more: limits and plans have it. Engines without any are often the
/// slowest by far, beside others that keep a few numbers there.
const NOTHING: Bytes = Bytes(64 << 10);

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
        let enough = workspace.saturating_add(NOTHING);
        let serves = |r: &&Rival| r.workspace <= enough && (r.deterministic || !deterministic);
        self.0.iter().filter(serves).map(|r| r.time).min_by(f64::total_cmp)
    }
}

/// An engine of a convolution.
#[derive(Clone, Copy, Debug)]
struct Try {
    candidate: Candidate,
    /// False if it does not build.
    runs: bool,
    /// Nanoseconds for the first part of the batch, if it ran that.
    part: Option<f64>,
}

impl Try {
    fn uses_tensor_cores(&self) -> bool {
        self.candidate.notes.contains(Notes::TENSOR_CORE)
    }
}

/// The order in which engines are timed: those with tensor cores first, then those that are fast
/// with a part of the batch, so that the others have rivals; the first of the list before its
/// equals.
fn order(tries: &[Try]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..tries.len()).collect();
    let part = |i: usize| match tries[i].part {
        _ if tries[i].uses_tensor_cores() => 0.0,
        Some(time) => time,
        None => f64::INFINITY,
    };
    order.sort_by(|&a, &b| part(a).total_cmp(&part(b)));
    order
}

/// True for the kernels whose engines are asked whether they add to their result.
fn may_add(kernel: Kernel<'_>) -> bool {
    matches!(kernel.op, Op::ConvWgrad { .. }) && kernel.outputs[0].dtype == DType::F32
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
        let mut tries: Vec<Try> = limits
            .choose(&found)
            .into_iter()
            .map(|c| match cudnn::workspace(op, inputs, outputs, c.config, &self.dnn) {
                Ok(workspace) => Try { candidate: Candidate { workspace, ..c }, runs: true, part: None },
                Err(_) => Try { candidate: c, runs: false, part: None },
            })
            .collect();
        let most = tries.iter().filter(|t| t.runs).map(|t| t.candidate.workspace).max();
        let workspace = self.workspace.take(most.unwrap_or(Bytes::ZERO))?;
        let places = self.place(kernel)?;
        self.run_parts(kernel, &places, workspace, &mut tries)?;
        let can_add = may_add(kernel);
        let mut rivals = Rivals::default();
        let mut rows: Vec<Option<MeasuredRow>> = vec![None; tries.len()];
        for at in order(&tries) {
            let c = &tries[at].candidate;
            let mut flags: Vec<String> = c.notes.names().map(str::to_owned).collect();
            let mut time = None;
            let deterministic = !c.notes.contains(Notes::NONDETERMINISTIC);
            let rival = rivals.of(c.workspace, deterministic);
            match self.time_engine(kernel, &places, &tries[at], workspace, rival, limits)? {
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
            rows[at] = Some(MeasuredRow { algo, workspace: c.workspace, time, flags });
        }
        Ok(rows.into_iter().flatten().collect())
    }

    /// Runs the first part of the batch by every engine without tensor cores, unless one of them
    /// shows that the whole batch takes little time.
    fn run_parts(
        &mut self,
        kernel: Kernel<'_>,
        places: &Places,
        workspace: DeviceRange,
        tries: &mut [Try],
    ) -> Result<(), CudaError> {
        for one in tries.iter_mut().filter(|t| t.runs && !t.uses_tensor_cores()) {
            one.part = self.time_part(kernel, places, &one.candidate, workspace, FIRST_PART)?;
            if one.part.is_some_and(|t| t * (FIRST_PART as f64) < WORTH_PARTS) {
                break;
            }
        }
        Ok(())
    }

    /// Nanoseconds of an engine for a part of the batch; `None` if it does not run that.
    fn time_part(
        &mut self,
        kernel: Kernel<'_>,
        places: &Places,
        c: &Candidate,
        workspace: DeviceRange,
        share: u64,
    ) -> Result<Option<f64>, CudaError> {
        let images = batch(kernel.op, kernel.inputs).unwrap_or(0) / share;
        let part = conv_slice(kernel.op, kernel.inputs, kernel.outputs, images).filter(|_| images > 0);
        let Some(part) = part else { return Ok(None) };
        let (inputs, outputs) = part.types();
        let small = Kernel { op: &part.op, inputs: &inputs, outputs: &outputs, ..kernel };
        let needed = match cudnn::workspace(small.op, small.inputs, small.outputs, c.config, &self.dnn) {
            Ok(needed) if needed <= workspace.bytes => needed,
            // Of the whole batch the engine may still be.
            _ => return Ok(None),
        };
        let range = workspace.first(needed);
        let algo = Some(ConvAlgo::Engine(c.config));
        let time = self.prepare(small, places, algo, false, range).and_then(|launch| {
            let first = self.meter.once(&*launch)?;
            if first >= PLAIN { Ok(first) } else { self.meter.once(&*launch) }
        });
        match time {
            Ok(time) => Ok(Some(time)),
            // The device itself is in a bad state; nothing after this would be true.
            Err(error @ CudaError::Driver { .. }) => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Times one engine, unless it is clearly slower than `rival` nanoseconds: if it takes
    /// longer for a part of the batch, or much longer for all of it.
    fn time_engine(
        &mut self,
        kernel: Kernel<'_>,
        places: &Places,
        one: &Try,
        workspace: DeviceRange,
        rival: Option<f64>,
        limits: &MeasureLimits,
    ) -> Result<Tried, CudaError> {
        let c = &one.candidate;
        if !one.runs {
            return Ok(Tried::Fails);
        }
        // Short launches seem longer than they are.
        if let (Some(rival), Some(part)) = (rival.filter(|r| *r >= WORTH_PARTS), one.part) {
            let longer = |part: Option<f64>| part.is_some_and(|t| t > rival);
            // What the first part took is a hint what the second will, and the whole.
            let doubtful = part * (FIRST_PART as f64) > 2.0 * rival;
            if longer(Some(part))
                || doubtful && longer(self.time_part(kernel, places, c, workspace, SECOND_PART)?)
            {
                return Ok(Tried::Slower);
            }
        }
        let range = workspace.first(c.workspace);
        let algo = Some(ConvAlgo::Engine(c.config));
        let timed = self.prepare(kernel, places, algo, false, range).and_then(|launch| match rival {
            None => self.meter.time(&*launch, limits.repeats).map(Some),
            Some(rival) => {
                let behind = if rival >= STEADY { BEHIND_STEADY } else { BEHIND };
                self.meter.time_within(&*launch, behind * rival, limits.repeats)
            }
        });
        match timed {
            Ok(Some(timing)) => Ok(Tried::Timed(timing)),
            Ok(None) => Ok(Tried::Slower),
            Err(error @ CudaError::Driver { .. }) => Err(error),
            Err(_) => Ok(Tried::Fails),
        }
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
        let range = workspace.first(c.workspace);
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
        if !may_add(kernel) {
            return Ok(false);
        }
        let sum = kernel.outputs[0];
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
    fn fast_engines_are_timed_first() {
        use crate::cuda::cudnn::Source;
        use vdnn_ir::graph::EngineConfig;
        let noted = |engine, part, notes| Try {
            candidate: Candidate {
                config: EngineConfig::new(engine, &[]).expect("no knobs"),
                workspace: Bytes::ZERO,
                notes,
                source: Source::ModeA,
            },
            runs: true,
            part,
        };
        let one = |engine, part| noted(engine, part, Notes::default());
        assert_eq!(order(&[one(3, None), one(2, Some(2.0)), one(1, None), one(0, Some(1.0))]), [3, 1, 0, 2]);
        assert_eq!(order(&[one(3, None), one(2, None)]), [0, 1]);
        assert_eq!(order(&[one(3, Some(1.0)), noted(2, None, Notes::TENSOR_CORE)]), [1, 0]);
        assert!(order(&[]).is_empty());
    }

    #[test]
    fn a_rival_serves_wherever_the_engine_would() {
        let mib = |n: u64| Bytes(n << 20);
        let rival = |workspace, time, deterministic| Rival { workspace, time, deterministic };
        let few = rival(Bytes(288), 9.0, true);
        let rivals = Rivals(vec![few, rival(mib(8), 5.0, false), rival(mib(8), 7.0, true)]);
        assert_eq!(Rivals::default().of(mib(8), false), None);
        assert_eq!(rivals.of(mib(8), false), Some(5.0));
        assert_eq!(rivals.of(mib(8), true), Some(7.0), "one that varies is no match");
        assert_eq!(rivals.of(mib(7), false), Some(9.0), "one with more workspace is none");
        assert_eq!(rivals.of(Bytes::ZERO, true), Some(9.0), "a few bytes are nothing");
    }
}
