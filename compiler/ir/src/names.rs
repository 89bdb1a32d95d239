//! Names of the small enums in the text form.

use crate::graph::{ParamRole, Stage};
use std::fmt;
use std::str::FromStr;

macro_rules! named {
    ($type:ident, $what:literal, { $($variant:ident = $text:literal),+ $(,)? }) => {
        impl $type {
            /// Every variant, in order.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];
            /// Name in the text form.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
        impl FromStr for $type {
            type Err = String;
            fn from_str(s: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|v| v.name() == s).ok_or_else(|| {
                    let all: Vec<&str> = Self::ALL.iter().map(|v| v.name()).collect();
                    format!(concat!("`{}` is not ", $what, "; expected one of {}"), s, all.join(", "))
                })
            }
        }
    };
}

named!(Stage, "a stage", {
    Setup = "setup",
    Forward = "forward",
    Backward = "backward",
    Update = "update",
});

named!(ParamRole, "a parameter role", {
    Trainable = "trainable",
    Frozen = "frozen",
    Statistic = "statistic",
    Momentum = "momentum",
});
