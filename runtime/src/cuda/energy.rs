//! The energy of steps: by the device's own counter, over as many of them as its ticks ask for.

use super::backend::CudaBackend;
use super::error::CudaError;
use super::libs::Library;
use super::nvml::Nvml;
use super::timing::Staged;
use crate::backend::Backend;
use crate::error::RunError;
use crate::program::Span;
use std::time::{Duration, Instant};
use vdnn_ir::Nanos;

/// Steps are queued for about so long between two looks at the counter: long enough that the
/// pause for looking is nothing, short against its ticks.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// A counter that stands still for so long is broken.
const PATIENCE: Duration = Duration::from_secs(2);
/// Measured time without work.
const IDLE: Duration = Duration::from_millis(400);

/// The energy of steps that ran back to back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Energy {
    /// Steps between the two ticks of the counter.
    pub steps: u64,
    /// What the device took meanwhile, in millijoules: the whole device, with its memory.
    pub millijoules: u64,
    /// Time between the two ticks.
    pub time: Nanos,
    /// Mean power in watts of the device with its context but without work, right before.
    pub idle_watts: f64,
}

impl Energy {
    /// Millijoules per step.
    pub fn per_step(&self) -> f64 {
        self.millijoules as f64 / self.steps.max(1) as f64
    }

    /// Mean power in watts.
    pub fn watts(&self) -> f64 {
        // Millijoules per nanosecond are megawatts.
        1e6 * self.millijoules as f64 / self.time.as_f64().max(1.0)
    }
}

/// What has happened at one tick of the counter.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tick {
    at: Duration,
    steps: u64,
    millijoules: u64,
}

/// From the first tick of a counter to the first one at least `least` later. `look` reads it;
/// `work` does some steps, returns how many, and lets time pass; `clock` is the time since some
/// moment.
fn between_ticks<E>(
    least: Duration,
    mut look: impl FnMut() -> Result<u64, E>,
    mut work: impl FnMut() -> Result<u64, E>,
    clock: impl Fn() -> Duration,
) -> Result<Option<(Tick, Tick)>, E> {
    let mut steps = 0;
    let before = look()?;
    let mut next = |after: u64, begin: Duration| -> Result<Option<Tick>, E> {
        loop {
            steps += work()?;
            let millijoules = look()?;
            let at = clock();
            if millijoules != after {
                return Ok(Some(Tick { at, steps, millijoules }));
            }
            if at.saturating_sub(begin) > PATIENCE {
                return Ok(None);
            }
        }
    };
    let Some(first) = next(before, clock())? else { return Ok(None) };
    let mut last = first;
    while last.at.saturating_sub(first.at) < least {
        let Some(tick) = next(last.millijoules, last.at)? else { return Ok(None) };
        last = tick;
    }
    Ok(Some((first, last)))
}

fn stuck() -> RunError {
    let text = format!("the counter has not moved for {PATIENCE:?}");
    CudaError::Driver { call: "nvmlDeviceGetTotalEnergyConsumption", text }.into()
}

impl CudaBackend {
    /// Runs steps back to back, each behind a copy of its inputs, for at least `least` and tells
    /// the energy of those between two ticks of the device's counter. Other work on the device
    /// counts, too. Call it as [`Self::time_steps`], with what that found a step to take.
    ///
    /// # Errors
    /// [`CudaError::MissingLibrary`] or [`CudaError::Driver`] where the device counts no energy;
    /// otherwise as [`run`](Backend::run).
    pub fn measure_energy(
        &mut self,
        inputs: &[(Span, &[u8])],
        step: Nanos,
        least: Duration,
    ) -> Result<Energy, RunError> {
        let driver = self.libraries().iter().find(|l| l.library == Library::Driver);
        let nvml = Nvml::open(self.device(), driver.and_then(|l| l.path.as_deref()))?;
        let staged = Staged::new(inputs)?;
        let begin = Instant::now();
        let look = || nvml.energy_mj().map_err(RunError::from);
        let rest = || -> Result<u64, RunError> {
            std::thread::sleep(Duration::from_millis(2));
            Ok(0)
        };
        self.synchronize()?;
        let (a, b) = between_ticks(IDLE, look, rest, || begin.elapsed())?.ok_or_else(stuck)?;
        let idle_watts =
            1e-3 * b.millijoules.saturating_sub(a.millijoules) as f64 / (b.at - a.at).as_secs_f64();
        let batch = (BETWEEN_LOOKS.as_nanos() as u64 / step.0.max(1)).clamp(1, 10_000);
        let work = || -> Result<u64, RunError> {
            let queued = (0..batch).try_for_each(|_| {
                let loaded = self.loaded();
                staged.enqueue(loaded, loaded.lanes.main())?;
                self.enqueue_step()
            });
            // Also after an error: the staged inputs are about to go.
            let done = self.synchronize();
            queued.and(done)?;
            Ok(batch)
        };
        let (a, b) = between_ticks(least, look, work, || begin.elapsed())?.ok_or_else(stuck)?;
        Ok(Energy {
            steps: b.steps - a.steps,
            millijoules: b.millijoules.saturating_sub(a.millijoules),
            time: Nanos(u64::try_from((b.at - a.at).as_nanos()).unwrap_or(u64::MAX)),
            idle_watts,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// A counter that ticks every 100 ms of a clock that work moves by 30 ms: 7 mJ per ms.
    #[test]
    fn energy_is_counted_between_ticks() {
        let now = Cell::new(5u64);
        let look = || Ok::<u64, ()>(now.get() / 100 * 700);
        let work = || {
            now.set(now.get() + 30);
            Ok(3)
        };
        let clock = || Duration::from_millis(now.get());
        let (a, b) =
            between_ticks(Duration::from_secs(2), look, work, clock).expect("no error").expect("ticks");
        assert_eq!((a.steps, a.millijoules), (12, 700), "the first tick, not the start");
        let time = b.at - a.at;
        assert!(time >= Duration::from_secs(2) && time < Duration::from_millis(2200), "{time:?}");
        let energy = Energy {
            steps: b.steps - a.steps,
            millijoules: b.millijoules - a.millijoules,
            time: Nanos(time.as_nanos() as u64),
            idle_watts: 0.0,
        };
        assert!((energy.watts() / 7.0 - 1.0).abs() < 0.02, "{}", energy.watts());
        assert!((energy.per_step() / 70.0 - 1.0).abs() < 0.02, "{}", energy.per_step());
    }

    #[test]
    fn a_counter_that_stands_still_is_noticed_and_errors_are_passed_on() {
        let now = Cell::new(0u64);
        let work = || {
            now.set(now.get() + 50);
            Ok(1)
        };
        let clock = || Duration::from_millis(now.get());
        assert_eq!(between_ticks(Duration::ZERO, || Ok::<_, ()>(3), work, clock), Ok(None));
        let failing = || Err::<u64, _>("no such counter");
        assert_eq!(between_ticks(Duration::ZERO, failing, || Ok(1), clock), Err("no such counter"));
    }
}
