//! The named phases a graph passes through. Which ops are legal in which phase is
//! decided by [`crate::op::Op::earliest_phase`] and checked by the verifier.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What the plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Forward only.
    Infer,
    /// Forward, backward and optimizer update.
    Train,
}

/// How far lowering has come; phases only ever increase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// As the frontend built it.
    Imported,
    /// Canonical: identities gone, constants folded, batch norm folded for inference.
    Simplified,
    /// The whole step: for training forward + backward + update, with the loss.
    Joint,
    /// Every convolution has an algorithm and a workspace size.
    Selected,
    /// Offload and prefetch pairs are inserted.
    Placed,
    /// The node order is final and in-place reuse is decided.
    Scheduled,
}

impl Phase {
    /// All phases, in order.
    pub const ALL: [Self; 6] =
        [Self::Imported, Self::Simplified, Self::Joint, Self::Selected, Self::Placed, Self::Scheduled];
    /// Name in the text form and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Imported => "imported",
            Self::Simplified => "simplified",
            Self::Joint => "joint",
            Self::Selected => "selected",
            Self::Placed => "placed",
            Self::Scheduled => "scheduled",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Phase {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|p| p.name() == s).ok_or_else(|| {
            format!("`{s}` is not a phase; phases are {}", Self::ALL.map(Self::name).join(", "))
        })
    }
}

impl Mode {
    /// Name in the text form and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Train => "train",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mode {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "infer" => Ok(Self::Infer),
            "train" => Ok(Self::Train),
            _ => Err(format!("`{s}` is not a mode; modes are train, infer")),
        }
    }
}
