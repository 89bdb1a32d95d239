//! The choices a user makes, as closed types.

use std::fmt;
use std::str::FromStr;

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

named_enum!(
    /// How convolution algorithms are chosen.
    AlgoMode, "an algorithm mode" {
        /// No workspace.
        Memory = "memory",
        /// Fastest, whatever the workspace.
        Performance = "performance",
        /// Fastest that lets the plan fit.
        Dynamic = "dynamic",
    }
);

named_enum!(
    /// What is fused.
    Fuse, "a degree of fusion" {
        /// Nothing.
        Off = "off",
        /// Sums and ReLUs into the convolution or batch norm in front of them, and the optimizer
        /// steps of small weights into one.
        Epilogue = "epilogue",
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
