//! The measured steps again from the same parameters, under random delays on every stream. A wait
//! that the plan lacks lets a stream read or overwrite what another has not finished with, and
//! leaves other parameters.

use super::report::{Delayed, median};
use crate::cli::BenchArgs;
use crate::error::Failure;
use std::collections::BTreeMap;
use std::ops::Range;
use vdnn_ir::{Nanos, Tensor};
use vdnn_runtime::cuda::{CudaBackend, SavedParams};
use vdnn_runtime::executor::Executor;

/// Steps that can be repeated.
pub(super) struct Repeated {
    seeds: Range<u64>,
    /// Parameters as loaded.
    start: SavedParams,
}

impl Repeated {
    /// Keeps the parameters as loaded, and switches delays off for the steps to compare with.
    pub(super) fn new(executor: &mut Executor<CudaBackend>, seeds: Range<u64>) -> Result<Self, Failure> {
        let backend = executor.backend_mut();
        let start = backend.save_params().map_err(Failure::user)?;
        backend.set_delays(None).map_err(Failure::user)?;
        Ok(Self { seeds, start })
    }

    /// Puts the parameters back.
    pub(super) fn restore(&self, executor: &mut Executor<CudaBackend>) -> Result<(), Failure> {
        executor.backend_mut().restore_params(&self.start).map_err(Failure::user)
    }

    /// Repeats the steps until every seed has served, `--delay-every` steps each, and compares
    /// with the parameters as they are now.
    ///
    /// # Errors
    /// At the first difference: our bug.
    pub(super) fn compare(
        self,
        executor: &mut Executor<CudaBackend>,
        inputs: &BTreeMap<String, Tensor>,
        args: &BenchArgs,
    ) -> Result<Delayed, Failure> {
        let (backend, bound) = executor.bind(inputs).map_err(Failure::user)?;
        let end = backend.save_params().map_err(Failure::user)?;
        let every = args.delay_every.unwrap_or(args.steps).min(args.steps);
        let mut delayed =
            Delayed { seeds: self.seeds.end - self.seeds.start, comparisons: 0, step: Nanos::ZERO };
        let mut times = Vec::new();
        let mut seeds = self.seeds.clone().peekable();
        while let Some(&first) = seeds.peek() {
            backend.restore_params(&self.start).map_err(Failure::user)?;
            let mut last = first;
            let mut left = args.steps;
            while left > 0 {
                // The last seed also serves for what is left of the last run.
                last = seeds.next().unwrap_or(last);
                backend.set_delays(Some(last)).map_err(Failure::user)?;
                let steps = every.min(left);
                times.extend(backend.time_steps(&bound, steps as usize).map_err(Failure::user)?);
                left -= steps;
            }
            let words = backend.changed_words(&end).map_err(Failure::user)?;
            delayed.comparisons += 1;
            if words > 0 {
                return Err(Failure::internal(format!(
                    "{words} words of the parameters differ after {} steps under the delays of seeds {first} to \
                     {last}: the plan lacks a wait",
                    args.steps
                )));
            }
        }
        backend.set_delays(None).map_err(Failure::user)?;
        times.sort_unstable();
        delayed.step = median(&times);
        Ok(delayed)
    }
}
