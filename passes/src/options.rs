//! The choices a user makes, as closed types.

use crate::fuse_pyramids::Rule;
use std::fmt;
use std::str::FromStr;
use vdnn_ir::Bytes;
use vdnn_ir::graph::ConvAlgo;

/// In front of the algorithm of [`AlgoMode::Only`], here and in the header of plans.
const ONLY: &str = vdnn_plan::plan::EXACT_ALGORITHM;

macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident, $what:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// Every choice.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Name on the command line and in plans.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
        impl FromStr for $name {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.name() == s).ok_or_else(|| {
                    let all: Vec<_> = Self::ALL.iter().map(|v| v.name()).collect();
                    format!("`{s}` is not {}; choose one of {}", $what, all.join(", "))
                })
            }
        }
    };
}

named_enum!(
    /// Which feature maps leave the device (vDNN, MICRO 2016, section III).
    Policy, "a policy" {
        /// Nothing moves; buffers are reused as soon as they are dead.
        None = "none",
        /// Nothing moves and nothing is reused but gradient buffers and one workspace: the
        /// network-wide allocation vDNN compares with.
        Baseline = "baseline",
        /// The inputs of every conv, pool, BN and LRN of the feature extractor.
        All = "all",
        /// The inputs of convolutions only.
        Conv = "conv",
        /// The paper's profiling procedure picks among none, conv and all, and algorithms.
        Dyn = "dyn",
    }
);

/// How convolution algorithms are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AlgoMode {
    /// No workspace.
    Memory,
    /// Fastest, whatever the workspace.
    Performance,
    /// Fastest that lets the plan fit.
    Dynamic,
    /// One classic algorithm for every convolution, which runs as exactly that.
    Only(ConvAlgo),
}

impl AlgoMode {
    /// Every rule by which one among several algorithms is chosen.
    pub const ALL: &'static [Self] = &[Self::Memory, Self::Performance, Self::Dynamic];
}

impl fmt::Display for AlgoMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Performance => f.write_str("performance"),
            Self::Dynamic => f.write_str("dynamic"),
            Self::Only(algo) => write!(f, "{ONLY}{algo}"),
        }
    }
}

impl FromStr for AlgoMode {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let found = match s.strip_prefix(ONLY) {
            Some(name) => ConvAlgo::CLASSIC.into_iter().find(|a| a.kind() == name).map(Self::Only),
            None => Self::ALL.iter().copied().find(|m| m.to_string() == s),
        };
        found.ok_or_else(|| {
            let names = ConvAlgo::CLASSIC.map(ConvAlgo::kind).join(", ");
            format!(
                "`{s}` is not an algorithm mode; choose memory, performance, dynamic, or {ONLY} and one of {names}"
            )
        })
    }
}

named_enum!(
    /// Sizes of the micro-batches a convolution's batch may be divided into. The batch itself
    /// always is one.
    BatchSizes, "a choice of micro-batch sizes" {
        /// The batch alone.
        Undivided = "undivided",
        /// 1, 2, 4 and so on, and the batch.
        PowerOfTwo = "power-of-two",
        /// Every size; of batches above 1024 evenly spaced ones and the powers of two.
        All = "all",
    }
);

impl BatchSizes {
    /// The sizes for a batch, increasing.
    pub fn of(self, batch: u64) -> Vec<u64> {
        let powers = || (0..63).map(|i| 1u64 << i).take_while(|&m| m < batch);
        let mut sizes: Vec<u64> = match self {
            Self::Undivided => Vec::new(),
            Self::PowerOfTwo => powers().collect(),
            Self::All => {
                let step = batch.div_ceil(1024).max(1);
                (1..).map(|i| i * step).take_while(|&m| m < batch).chain(powers()).collect()
            }
        };
        sizes.push(batch);
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }
}

/// How much workspace convolutions may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Workspace {
    /// Whatever the memory plan leaves at the moment the convolution runs.
    #[default]
    Planned,
    /// Each at most this (workspace reuse).
    Limit(Bytes),
    /// All together at most this (workspace division).
    Total(Bytes),
}

named_enum!(
    /// What is fused.
    Fuse, "a degree of fusion" {
        /// Nothing.
        Off = "off",
        /// Epilogues, and the pyramids of an inference that were measured to be faster, or are predicted
        /// to be by prices that are fitted to measurements.
        Auto = "auto",
        /// Sums and ReLUs into the convolution or batch norm in front of them, chains of elementwise
        /// ops and the optimizer steps of small weights into one.
        Epilogue = "epilogue",
        /// Chains of convolutions and pools of an inference, where one kernel is measured or
        /// predicted to be faster.
        Pyramid = "pyramid",
        /// Epilogues, then pyramids.
        All = "all",
    }
);

impl Fuse {
    /// Whether epilogues are fused.
    pub fn epilogues(self) -> bool {
        matches!(self, Self::Auto | Self::Epilogue | Self::All)
    }

    /// Which pyramids are fused, if any.
    pub fn pyramids(self) -> Option<Rule> {
        match self {
            Self::Auto => Some(Rule::Fitted),
            Self::Pyramid | Self::All => Some(Rule::Predicted),
            Self::Off | Self::Epilogue => None,
        }
    }

    /// The same without pyramids.
    #[must_use]
    pub fn without_pyramids(self) -> Self {
        if self.epilogues() { Self::Epilogue } else { Self::Off }
    }
}

named_enum!(
    /// What backward computes again instead of reading what was kept.
    Recompute, "a degree of recomputation" {
        /// Nothing.
        Off = "off",
        /// What is cheap and lowers the peak.
        Cheap = "cheap",
        /// As little of it as makes the step fit the budget.
        Auto = "auto",
    }
);

named_enum!(
    /// Whether offloaded tensors lie on the host packed ([`vdnn_ir::packed`]).
    Packing, "a packing" {
        /// None do.
        Off = "off",
        /// Those do that a ReLU made and that are predicted to cross the link sooner for it.
        Auto = "auto",
    }
);

named_enum!(
    /// When compute waits for copies.
    SyncMode, "a synchronisation mode" {
        /// As late as the data allows.
        Event = "event",
        /// At the end of the layer that started the copy, as in the paper.
        Layer = "layer",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithm_modes_print_and_parse() {
        let only = ConvAlgo::CLASSIC.map(AlgoMode::Only);
        for mode in AlgoMode::ALL.iter().copied().chain(only) {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        assert_eq!(AlgoMode::Only(ConvAlgo::ImplicitGemm).to_string(), "only=implicit_gemm");
        for bad in ["", "only=", "only=eng5", "only=fastest", "implicit_gemm"] {
            let error = bad.parse::<AlgoMode>().expect_err(bad);
            assert!(error.contains("only=") && error.contains("implicit_precomp_gemm"), "{error}");
        }
    }
}
