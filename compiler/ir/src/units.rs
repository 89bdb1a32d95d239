//! Units as newtypes: sizes, times and work are never a bare integer.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);
        impl $name {
            /// Zero of this unit.
            pub const ZERO: Self = Self(0);
            /// The sum, or the largest representable value.
            #[must_use]
            pub fn saturating_add(self, other: Self) -> Self {
                Self(self.0.saturating_add(other.0))
            }
            /// The difference, or zero.
            #[must_use]
            pub fn saturating_sub(self, other: Self) -> Self {
                Self(self.0.saturating_sub(other.0))
            }
            /// The sum, or `None` on overflow.
            pub fn checked_add(self, other: Self) -> Option<Self> {
                self.0.checked_add(other.0).map(Self)
            }
            /// The value as a float, for ratios.
            pub fn as_f64(self) -> f64 {
                self.0 as f64
            }
        }
        impl Add for $name {
            type Output = Self;
            fn add(self, other: Self) -> Self {
                Self(self.0 + other.0)
            }
        }
        impl Sub for $name {
            type Output = Self;
            fn sub(self, other: Self) -> Self {
                Self(self.0 - other.0)
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: Self) {
                self.0 += other.0;
            }
        }
        impl SubAssign for $name {
            fn sub_assign(&mut self, other: Self) {
                self.0 -= other.0;
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
                iter.fold(Self(0), Add::add)
            }
        }
    };
}

unit!(
    /// A size in bytes.
    Bytes
);
unit!(
    /// A duration in nanoseconds.
    Nanos
);
unit!(
    /// Floating-point operations (a multiply-add counts as two).
    Flops
);

impl Bytes {
    /// One mebibyte.
    pub const MIB: Self = Self(1 << 20);
    /// One gibibyte.
    pub const GIB: Self = Self(1 << 30);
    /// Rounds up to a multiple of `align` (a power of two), saturating.
    #[must_use]
    pub fn align_up(self, align: u64) -> Self {
        debug_assert!(align.is_power_of_two());
        Self(self.0.saturating_add(align - 1) & !(align - 1))
    }
    /// The size in MiB, for people.
    pub fn mib(self) -> f64 {
        self.0 as f64 / 1_048_576.0
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0 as f64;
        match self.0 {
            0..1024 => write!(f, "{}B", self.0),
            1024..1_048_576 => write!(f, "{:.1}KiB", b / 1024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1}MiB", b / 1_048_576.0),
            _ => write!(f, "{:.2}GiB", b / 1_073_741_824.0),
        }
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{}ns", self.0),
            1_000..1_000_000 => write!(f, "{:.1}us", n / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.2}ms", n / 1e6),
            _ => write!(f, "{:.2}s", n / 1e9),
        }
    }
}

impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{}FLOP", self.0),
            1_000..1_000_000 => write!(f, "{:.2}KFLOP", n / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.2}MFLOP", n / 1e6),
            _ => write!(f, "{:.2}GFLOP", n / 1e9),
        }
    }
}

/// Why a size such as `12GiB` could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a size; write a number with B, KB, MB, GB, KiB, MiB or GiB, such as 12GiB")]
pub struct ParseBytesError {
    text: String,
}

impl FromStr for Bytes {
    type Err = ParseBytesError;

    /// Reads `4096`, `512MiB`, `1.5GB`; K, M, G alone mean KiB, MiB, GiB.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseBytesError { text: text.to_owned() };
        let t = text.trim();
        let split = t.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(t.len());
        let (number, suffix) = t.split_at(split);
        let scale = match suffix.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "tb" => 1e12,
            "k" | "kib" => 1024.0,
            "m" | "mib" => 1_048_576.0,
            "g" | "gib" => 1_073_741_824.0,
            "t" | "tib" => 1_099_511_627_776.0,
            _ => return Err(error()),
        };
        let number: f64 = number.parse().map_err(|_| error())?;
        let bytes = number * scale;
        // 2^63: far beyond any device, and exactly representable.
        if !bytes.is_finite() || bytes >= 9.223_372_036_854_776e18 {
            return Err(error());
        }
        Ok(Self(bytes.round() as u64))
    }
}
