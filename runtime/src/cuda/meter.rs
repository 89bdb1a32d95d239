//! The time of one launch on the device, whatever library it is of.

use super::error::CudaError;
use super::launch::Prepared;
use super::stream::{Event, Stream};
use vdnn_ir::Nanos;

/// A launch shorter than this is timed as a graph of several: events resolve half a
/// microsecond, and queueing one launch can take the host longer than the launch takes.
const SHORT: f64 = 100_000.0;
/// What such a graph should take.
const LONG_ENOUGH: f64 = 200_000.0;
/// Launches in such a graph at most.
const MAX_LAUNCHES: usize = 64;
/// Timings before the first may be the last.
const FEWEST: usize = 3;
/// The same of launches of at least [`LONG`].
const FEWEST_LONG: usize = 2;
/// A launch that takes this long needs no graph to be timed, and hardly varies.
const LONG: f64 = 5_000_000.0;
/// What loading a kernel may take the host within its first launch.
const LOADING: f64 = 50_000_000.0;
/// Repeating ends when a timing is not better than this share of the best so far, as in
/// NVIDIA's cuDNN frontend.
const STABLE: f64 = 0.95;

/// What was seen of one launch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Timing {
    /// Nanoseconds per launch, in the order taken.
    samples: Vec<f64>,
    /// False if the launch could not be captured into a graph, which a plan's step is.
    pub captured: bool,
}

impl Timing {
    /// The median.
    pub(crate) fn median(&self) -> Nanos {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Nanos(median.max(1.0).round() as u64)
    }
}

/// Takes samples until they no longer improve, at least `fewest` and at most `most`, of which
/// the first is there.
fn until_stable(
    (fewest, most): (usize, usize),
    first: f64,
    mut sample: impl FnMut() -> Result<f64, CudaError>,
) -> Result<Vec<f64>, CudaError> {
    let mut samples = vec![first];
    let mut best = first;
    while samples.len() < most.max(1) {
        let new = sample()?;
        samples.push(new);
        let stable = new >= STABLE * best;
        best = best.min(new);
        if stable && samples.len() >= fewest {
            break;
        }
    }
    Ok(samples)
}

/// Times launches on a stream of its own.
#[derive(Debug)]
pub(crate) struct Meter {
    stream: Stream,
    start: Event,
    end: Event,
}

impl Meter {
    /// A stream and two events of the current context.
    pub(crate) fn new() -> Result<Self, CudaError> {
        Ok(Self { stream: Stream::new(true)?, start: Event::timed()?, end: Event::timed()? })
    }

    /// Runs a launch once and waits for it.
    pub(crate) fn run(&self, launch: &dyn Prepared) -> Result<(), CudaError> {
        let queued = launch.enqueue(self.stream.raw());
        let done = self.stream.synchronize();
        queued.and(done)
    }

    /// Runs a launch once; its time, which of a kernel's first one includes what the host does
    /// meanwhile.
    ///
    /// # Errors
    /// If the launch is refused or fails.
    pub(crate) fn once(&self, launch: &dyn Prepared) -> Result<f64, CudaError> {
        self.between(|| launch.enqueue(self.stream.raw()))
    }

    /// Times a launch: one run to warm up, then up to `most` timings until they no longer
    /// improve by more than 5 %. Short launches are repeated inside a captured graph.
    ///
    /// # Errors
    /// If the launch is refused or fails.
    pub(crate) fn time(&self, launch: &dyn Prepared, most: usize) -> Result<Timing, CudaError> {
        self.once(launch)?;
        self.after_first(launch, self.once(launch)?, most)
    }

    /// As [`Self::time`]; `None` after the first timing (or the run before it, if that took by
    /// far too long) if it takes more than `bound` nanoseconds. Short launches are always timed:
    /// alone they seem longer than they are.
    ///
    /// # Errors
    /// If the launch is refused or fails.
    pub(crate) fn time_within(
        &self,
        launch: &dyn Prepared,
        bound: f64,
        most: usize,
    ) -> Result<Option<Timing>, CudaError> {
        if self.once(launch)? > 2.0 * bound + LOADING {
            return Ok(None);
        }
        let first = self.once(launch)?;
        let too_long = first > bound && first >= SHORT;
        if too_long { Ok(None) } else { self.after_first(launch, first, most).map(Some) }
    }

    /// The timings of a launch that is warm and was seen to take `once`.
    fn after_first(&self, launch: &dyn Prepared, once: f64, most: usize) -> Result<Timing, CudaError> {
        if once >= LONG {
            let captured = self.capture(launch, 1).is_ok();
            self.stream.synchronize()?;
            let samples = until_stable((FEWEST_LONG, most), once, || self.once(launch))?;
            return Ok(Timing { samples, captured });
        }
        let launches = if once >= SHORT { 1 } else { (LONG_ENOUGH / once.max(1.0)).ceil() as usize };
        let launches = launches.clamp(1, MAX_LAUNCHES);
        let range = (FEWEST, most);
        match self.capture(launch, launches) {
            Ok(graph) => {
                graph.launch(&self.stream)?;
                self.stream.synchronize()?;
                let all = || Ok(self.between(|| graph.launch(&self.stream))? / launches as f64);
                Ok(Timing { samples: until_stable(range, all()?, all)?, captured: true })
            }
            Err(_) => {
                self.stream.synchronize()?;
                let queue = || (0..launches).try_for_each(|_| launch.enqueue(self.stream.raw()));
                let all = || Ok(self.between(queue)? / launches as f64);
                Ok(Timing { samples: until_stable(range, all()?, all)?, captured: false })
            }
        }
    }

    fn capture(&self, launch: &dyn Prepared, launches: usize) -> Result<super::stream::GraphExec, CudaError> {
        self.stream.begin_capture()?;
        match (0..launches).try_for_each(|_| launch.enqueue(self.stream.raw())) {
            Ok(()) => self.stream.end_capture(),
            Err(error) => {
                self.stream.abandon_capture();
                Err(error)
            }
        }
    }

    /// Nanoseconds on the device of what `queue` queues.
    fn between(&self, queue: impl FnOnce() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        self.stream.record(&self.start)?;
        let queued = queue();
        let recorded = self.stream.record(&self.end);
        let done = self.stream.synchronize();
        queued.and(recorded).and(done)?;
        self.end.since(&self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(mut times: Vec<f64>, most: usize) -> Vec<f64> {
        times.reverse();
        let first = times.pop().expect("one");
        until_stable((FEWEST, most), first, || Ok(times.pop().expect("not more than there are")))
            .expect("no error")
    }

    #[test]
    fn repeating_ends_when_nothing_improves() {
        assert_eq!(taken(vec![100.0, 99.0, 98.0], 20), [100.0, 99.0, 98.0]);
        assert_eq!(taken(vec![100.0, 50.0, 25.0, 25.0], 20), [100.0, 50.0, 25.0, 25.0]);
        assert_eq!(taken(vec![100.0, 90.0, 200.0], 20).len(), 3, "worse is not better");
        assert_eq!(taken(vec![16.0, 8.0, 4.0, 2.0], 4).len(), 4);
        assert_eq!(taken(vec![16.0], 0), [16.0]);
    }

    #[test]
    fn the_median_shrugs_off_a_hiccup_and_is_never_nothing() {
        let of = |samples: &[f64]| Timing { samples: samples.to_vec(), captured: true }.median();
        assert_eq!(of(&[10.0, 1000.0, 12.0]), Nanos(12));
        assert_eq!(of(&[10.0, 13.0]), Nanos(12));
        assert_eq!(of(&[0.0]), Nanos(1));
    }
}
