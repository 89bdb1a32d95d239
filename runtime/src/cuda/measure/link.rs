//! Rates of the link to the host, between the device and pinned memory.

use super::super::arena::{DeviceArena, PinnedArena};
use super::super::error::CudaError;
use super::super::stream::{Event, Stream};
use super::Measurer;
use cudarc::driver::sys;
use vdnn_ir::{Bytes, Nanos};

/// Copies per timing.
const COPIES: usize = 8;
/// Timings, of which the median counts.
const TIMINGS: usize = 5;
/// A copy so small that its time is what any copy takes at least.
const TINY: Bytes = Bytes(4 << 10);

/// Times of copies of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTimes {
    /// Size of each copy.
    pub bytes: Bytes,
    /// One copy to the host while nothing else runs.
    pub d2h: Nanos,
    /// One copy to the device while nothing else runs.
    pub h2d: Nanos,
    /// One copy to the host while the other direction runs.
    pub d2h_both: Nanos,
    /// One copy to the device while the other direction runs.
    pub h2d_both: Nanos,
    /// One copy of four KiB on an idle stream, to the host and to the device in the mean.
    pub tiny: Nanos,
}

/// One direction: where from, where to, on which stream.
struct Lane {
    stream: Stream,
    start: Event,
    end: Event,
    from: sys::CUdeviceptr,
    to: sys::CUdeviceptr,
}

impl Lane {
    fn new(from: sys::CUdeviceptr, to: sys::CUdeviceptr) -> Result<Self, CudaError> {
        Ok(Self { stream: Stream::new(false)?, start: Event::timed()?, end: Event::timed()?, from, to })
    }

    /// Queues copies between the two events.
    #[expect(unsafe_code, reason = "queues copies")]
    fn queue(&self, bytes: Bytes, copies: usize) -> Result<(), CudaError> {
        let length = super::size(bytes)?;
        self.stream.record(&self.start)?;
        for _ in 0..copies {
            // SAFETY: both blocks are this long and live until the stream is idle.
            CudaError::check("cuMemcpyAsync", unsafe {
                sys::cuMemcpyAsync(self.to, self.from, length, self.stream.raw())
            })?;
        }
        self.stream.record(&self.end)
    }

    /// Nanoseconds per copy of what was queued, once it is done.
    fn per_copy(&self, copies: usize) -> Result<f64, CudaError> {
        self.stream.synchronize()?;
        Ok(self.end.since(&self.start)? / copies as f64)
    }
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(0.0)
}

/// Repeats a timing of both lanes; the median per lane, in whole nanoseconds.
fn repeated(mut timing: impl FnMut() -> Result<[f64; 2], CudaError>) -> Result<[Nanos; 2], CudaError> {
    timing()?; // The first one wakes the link up.
    let all: Vec<[f64; 2]> = (0..TIMINGS).map(|_| timing()).collect::<Result<_, _>>()?;
    Ok([0, 1].map(|lane| Nanos(median(all.iter().map(|t| t[lane]).collect()).max(1.0).round() as u64)))
}

fn link_times(out: &Lane, back: &Lane, bytes: Bytes) -> Result<LinkTimes, CudaError> {
    let alone = |bytes: Bytes, copies: usize| {
        repeated(|| {
            out.queue(bytes, copies)?;
            let first = out.per_copy(copies)?;
            back.queue(bytes, copies)?;
            Ok([first, back.per_copy(copies)?])
        })
    };
    let [d2h, h2d] = alone(bytes, COPIES)?;
    let [d2h_both, h2d_both] = repeated(|| {
        out.queue(bytes, COPIES)?;
        back.queue(bytes, COPIES)?;
        Ok([out.per_copy(COPIES)?, back.per_copy(COPIES)?])
    })?;
    let [a, b] = alone(TINY.min(bytes), 1)?;
    Ok(LinkTimes { bytes, d2h, h2d, d2h_both, h2d_both, tiny: Nanos(a.saturating_add(b).0 / 2) })
}

impl Measurer {
    /// Times copies of this size, one direction at a time and both at once. Takes four times
    /// the size, half of it pinned host memory.
    ///
    /// # Errors
    /// If memory is short, or the device fails.
    pub fn link(&self, bytes: Bytes) -> Result<LinkTimes, CudaError> {
        self.device.make_current()?;
        let length = super::size(bytes)?;
        let device = [0, 1].map(|_| DeviceArena::new(bytes, "the device's end of measured copies"));
        let host = [0, 1].map(|_| PinnedArena::new(bytes, "the host's end of measured copies"));
        let ([d0, d1], [h0, h1]) = (device, host);
        let (d0, d1, h0, h1) = (d0?, d1?, h0?, h1?);
        let out = Lane::new(d0.at(0, length), h0.device_at(0, length))?;
        let back = Lane::new(h1.device_at(0, length), d1.at(0, length))?;
        let times = link_times(&out, &back, bytes);
        // Also after an error: the blocks are about to go.
        let done = self.device.synchronize();
        let times = times?;
        done.map(|()| times)
    }
}
