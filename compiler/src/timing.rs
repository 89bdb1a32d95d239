//! Wall-clock of passes, for reports only: no pass ever sees a clock.

use std::time::Instant;
use vdnn_ir::{Graph, Nanos};
use vdnn_passes::pass::run_pass;
use vdnn_passes::{Pass, PassCtx, PassError, Stats};

/// One row of the report.
#[derive(Clone, Debug)]
pub struct PassRow {
    /// Pass name.
    pub name: &'static str,
    /// Time over all its runs in this compilation.
    pub time: Nanos,
    /// Counters of its last run.
    pub stats: Stats,
}

/// Rows in order of first use.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    /// The rows.
    pub rows: Vec<PassRow>,
}

impl Timings {
    /// Runs and records a pass.
    ///
    /// # Errors
    /// Those of the pass.
    pub fn pass(&mut self, pass: &dyn Pass, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<(), PassError> {
        let start = Instant::now();
        let outcome = run_pass(pass, graph, cx)?;
        self.record(pass.name(), start, outcome.stats);
        Ok(())
    }

    /// Runs and records any other step; `stats` counts what it did.
    ///
    /// # Errors
    /// Those of the step.
    pub fn step<T, E>(
        &mut self,
        name: &'static str,
        f: impl FnOnce() -> Result<T, E>,
        stats: impl FnOnce(&T) -> Stats,
    ) -> Result<T, E> {
        let start = Instant::now();
        let value = f()?;
        let stats = stats(&value);
        self.record(name, start, stats);
        Ok(value)
    }

    fn record(&mut self, name: &'static str, start: Instant, stats: Stats) {
        let time = Nanos(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
        if let Some(row) = self.rows.iter_mut().find(|r| r.name == name) {
            row.time += time;
            row.stats = stats;
        } else {
            self.rows.push(PassRow { name, time, stats });
        }
    }
}
