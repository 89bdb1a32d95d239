//! How the batch of one convolution is run: whole, or divided into micro-batches that one
//! workspace serves in turn (Oyama et al., *Accelerating Deep Learning Frameworks with
//! Micro-batches*, CLUSTER 2018).
//!
//! A division changes neither the op nor its result: the images of a batch do not meet in
//! `y` and `dx`, and in `dw` they are a sum, of which every launch after the first adds its
//! part. So it is a note on the node, which a plan carries to the executor.

use crate::algo::ConvAlgo;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

/// `times` launches of one algorithm on `images` images each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConvRun {
    /// The algorithm.
    pub algo: ConvAlgo,
    /// Images per launch; at least 1.
    pub images: u64,
    /// Launches; at least 1.
    pub times: u64,
}

/// The algorithm of a convolution, or the algorithms of its micro-batches.
///
/// The text form of a division is its runs in order, `eng5_k2=3@64x3+eng3@32`: three launches
/// of 64 images by the first engine, then one of 32 by the second.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConvSchedule {
    /// All images in one launch.
    Whole(ConvAlgo),
    /// Runs one after the other; see [`Self::divided`].
    Divided(Arc<[ConvRun]>),
}

impl ConvSchedule {
    /// A division into these runs, in order; neighbours that are alike become one. `None` if
    /// there is none, or one without images or launches.
    pub fn divided(runs: impl IntoIterator<Item = ConvRun>) -> Option<Self> {
        let mut joined: Vec<ConvRun> = Vec::new();
        for run in runs {
            if run.images == 0 || run.times == 0 {
                return None;
            }
            match joined.last_mut() {
                Some(last) if last.algo == run.algo && last.images == run.images => {
                    last.times = last.times.checked_add(run.times)?;
                }
                _ => joined.push(run),
            }
        }
        (!joined.is_empty()).then(|| Self::Divided(joined.into()))
    }

    /// The algorithm of an undivided batch.
    pub fn whole(&self) -> Option<ConvAlgo> {
        match self {
            Self::Whole(algo) => Some(*algo),
            Self::Divided(_) => None,
        }
    }

    /// True if the batch is divided.
    pub fn is_divided(&self) -> bool {
        matches!(self, Self::Divided(_))
    }

    /// Name of the kind, for counts: that of the algorithm, or `divided`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Whole(algo) => algo.kind(),
            Self::Divided(_) => "divided",
        }
    }

    /// The runs of a batch of `batch` images.
    pub fn runs(&self, batch: u64) -> Vec<ConvRun> {
        match self {
            Self::Whole(algo) => vec![ConvRun { algo: *algo, images: batch, times: 1 }],
            Self::Divided(runs) => runs.to_vec(),
        }
    }

    /// True if the runs are of `batch` images in all.
    pub fn covers(&self, batch: u64) -> bool {
        match self {
            Self::Whole(_) => true,
            Self::Divided(runs) => {
                let sum = |n: u64, r: &ConvRun| n.checked_add(r.images.checked_mul(r.times)?);
                runs.iter().try_fold(0, sum) == Some(batch)
            }
        }
    }

    /// Every launch with the images it is of, in order. They are consecutive, and all of a
    /// batch the schedule [covers](Self::covers).
    pub fn slices(&self, batch: u64) -> impl Iterator<Item = (ConvAlgo, Range<u64>)> + use<> {
        let mut next = 0u64;
        self.runs(batch).into_iter().flat_map(|r| (0..r.times).map(move |_| (r.algo, r.images))).map(
            move |(algo, images)| {
                let start = next;
                next = next.saturating_add(images);
                (algo, start..next)
            },
        )
    }
}

impl From<ConvAlgo> for ConvSchedule {
    fn from(algo: ConvAlgo) -> Self {
        Self::Whole(algo)
    }
}

impl fmt::Display for ConvSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = match self {
            Self::Whole(algo) => return algo.fmt(f),
            Self::Divided(runs) => runs,
        };
        for (i, ConvRun { algo, images, times }) in runs.iter().enumerate() {
            write!(f, "{}{algo}@{images}", if i > 0 { "+" } else { "" })?;
            if *times > 1 {
                write!(f, "x{times}")?;
            }
        }
        Ok(())
    }
}

impl FromStr for ConvSchedule {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if !s.contains(['@', '+']) {
            return s.parse().map(Self::Whole);
        }
        let wrong = || format!("`{s}` is not a division of a batch such as eng5_k2=3@64x3+eng3@32");
        let run = |text: &str| -> Result<ConvRun, String> {
            let (algo, count) = text.split_once('@').ok_or_else(wrong)?;
            let (images, times) = count.split_once('x').unwrap_or((count, "1"));
            let number = |s: &str| s.parse::<u64>().map_err(|_| wrong());
            Ok(ConvRun { algo: algo.parse()?, images: number(images)?, times: number(times)? })
        };
        let runs = s.split('+').map(run).collect::<Result<Vec<_>, _>>()?;
        Self::divided(runs).ok_or_else(wrong)
    }
}

impl TryFrom<String> for ConvSchedule {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<ConvSchedule> for String {
    fn from(schedule: ConvSchedule) -> Self {
        schedule.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algo::EngineConfig;

    fn engine(n: u16, knobs: &[(u8, i32)]) -> ConvAlgo {
        ConvAlgo::Engine(EngineConfig::new(n, knobs).expect("few knobs"))
    }

    fn run(algo: ConvAlgo, images: u64, times: u64) -> ConvRun {
        ConvRun { algo, images, times }
    }

    #[test]
    fn divisions_print_and_parse() {
        let a = engine(5, &[(2, 3), (6, -1)]);
        let b = ConvAlgo::FftTiling;
        let s = ConvSchedule::divided([run(a, 64, 1), run(a, 64, 2), run(b, 32, 1)]).expect("three runs");
        assert_eq!(s.to_string(), "eng5_k2=3_k6=-1@64x3+fft_tiling@32");
        assert_eq!(s.to_string().parse(), Ok(s.clone()));
        assert_eq!("fft".parse(), Ok(ConvSchedule::Whole(ConvAlgo::Fft)));
        assert!(s.is_divided() && s.covers(224) && !s.covers(223));
        assert_eq!(s.whole(), None);
        for bad in ["fft@", "fft@0", "fft@1x0", "@4", "fft@4+", "+", "fft@4x", "fft@-1", "x@4", "fft@4@4"] {
            assert!(bad.parse::<ConvSchedule>().is_err(), "{bad}");
        }
        let huge: ConvSchedule = format!("fft@{}x{}", u64::MAX, u64::MAX).parse().expect("it is well formed");
        assert!(!huge.covers(1));
    }

    #[test]
    fn slices_are_consecutive_and_whole() {
        let (a, b) = (ConvAlgo::Fft, ConvAlgo::Gemm);
        let s = ConvSchedule::divided([run(a, 3, 2), run(b, 1, 1)]).expect("two runs");
        assert_eq!(s.slices(7).collect::<Vec<_>>(), [(a, 0..3), (a, 3..6), (b, 6..7)]);
        assert_eq!(ConvSchedule::from(b).slices(7).collect::<Vec<_>>(), [(b, 0..7)]);
        assert_eq!(ConvSchedule::divided([]), None);
    }
}
