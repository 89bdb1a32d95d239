//! How a convolution is computed: the classic algorithms by name, or one engine of a vendor
//! library with its knobs.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Convolution algorithm. Which are legal per direction is the cost model's knowledge;
/// arithmetic on the CPU does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConvAlgo {
    /// No workspace.
    ImplicitGemm,
    /// Small index workspace.
    ImplicitPrecompGemm,
    /// Explicit im2col.
    Gemm,
    /// Fourier transform of whole images.
    Fft,
    /// Fourier transform of tiles.
    FftTiling,
    /// Winograd with fused transforms.
    Winograd,
    /// Winograd with transforms through workspace.
    WinogradNonfused,
    /// A configuration of cuDNN's backend API, from a table of measured times.
    Engine(EngineConfig),
}

impl ConvAlgo {
    /// The algorithms with names of their own, in cuDNN's vocabulary.
    pub const CLASSIC: [Self; 7] = [
        Self::ImplicitGemm,
        Self::ImplicitPrecompGemm,
        Self::Gemm,
        Self::Fft,
        Self::FftTiling,
        Self::Winograd,
        Self::WinogradNonfused,
    ];

    /// Name of the algorithm's kind: that of a classic one, or `engine`.
    pub fn kind(self) -> &'static str {
        match self {
            Self::ImplicitGemm => "implicit_gemm",
            Self::ImplicitPrecompGemm => "implicit_precomp_gemm",
            Self::Gemm => "gemm",
            Self::Fft => "fft",
            Self::FftTiling => "fft_tiling",
            Self::Winograd => "winograd",
            Self::WinogradNonfused => "winograd_nonfused",
            Self::Engine(_) => "engine",
        }
    }
}

impl fmt::Display for ConvAlgo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Engine(config) => config.fmt(f),
            classic => f.write_str(classic.kind()),
        }
    }
}

impl FromStr for ConvAlgo {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(classic) = Self::CLASSIC.into_iter().find(|a| a.kind() == s) {
            return Ok(classic);
        }
        s.parse().map(Self::Engine).map_err(|_| {
            let names = Self::CLASSIC.map(Self::kind).join(", ");
            format!("`{s}` is not a convolution algorithm; expected one of {names}, or an engine such as eng5_k2=3")
        })
    }
}

impl TryFrom<String> for ConvAlgo {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<ConvAlgo> for String {
    fn from(algo: ConvAlgo) -> Self {
        algo.to_string()
    }
}

/// Knob choices an [`EngineConfig`] can hold.
pub const MAX_KNOBS: usize = 16;

/// An engine of cuDNN's backend API and its knob choices, by the numbers the library gives
/// them: `eng5_k2=3_k6=0`. They mean the same kernel only under the same library version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EngineConfig {
    engine: u16,
    len: u8,
    /// Sorted by knob type; entries from `len` on are zero.
    knobs: [(u8, i32); MAX_KNOBS],
}

impl EngineConfig {
    /// A configuration; `None` for more than [`MAX_KNOBS`] knobs or a knob chosen twice.
    pub fn new(engine: u16, knobs: &[(u8, i32)]) -> Option<Self> {
        if knobs.len() > MAX_KNOBS {
            return None;
        }
        let mut all = [(0, 0); MAX_KNOBS];
        all[..knobs.len()].copy_from_slice(knobs);
        all[..knobs.len()].sort_unstable();
        let twice = all[..knobs.len()].windows(2).any(|w| w[0].0 == w[1].0);
        (!twice).then_some(Self { engine, len: knobs.len() as u8, knobs: all })
    }
    /// Global index of the engine.
    pub fn engine(&self) -> u16 {
        self.engine
    }
    /// Knob types and the values chosen, by type.
    pub fn knobs(&self) -> &[(u8, i32)] {
        &self.knobs[..usize::from(self.len)]
    }
}

impl fmt::Display for EngineConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "eng{}", self.engine)?;
        self.knobs().iter().try_for_each(|(knob, value)| write!(f, "_k{knob}={value}"))
    }
}

impl FromStr for EngineConfig {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let read = || {
            let mut parts = s.strip_prefix("eng")?.split('_');
            let engine = parts.next()?.parse().ok()?;
            let mut knobs = Vec::new();
            for part in parts.take(MAX_KNOBS + 1) {
                let (knob, value) = part.strip_prefix('k')?.split_once('=')?;
                knobs.push((knob.parse().ok()?, value.parse().ok()?));
            }
            Self::new(engine, &knobs)
        };
        read().ok_or_else(|| format!("`{s}` is not an engine such as eng5_k2=3_k6=0"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn algorithms_print_and_parse() {
        let engine = EngineConfig::new(38, &[(6, -1), (2, 10)]).expect("two knobs");
        assert_eq!(engine.to_string(), "eng38_k2=10_k6=-1");
        for algo in ConvAlgo::CLASSIC.into_iter().chain([ConvAlgo::Engine(engine)]) {
            assert_eq!(algo.to_string().parse(), Ok(algo));
        }
        assert_eq!("eng0".parse(), Ok(EngineConfig::new(0, &[]).expect("no knobs")));
        for bad in ["eng", "eng5_", "eng5_k2", "eng5_k2=1_k2=2", "engine", "eng99999", "eng1_k999=0"] {
            assert!(bad.parse::<ConvAlgo>().is_err(), "{bad}");
        }
        assert_eq!(EngineConfig::new(1, &[(0, 0); MAX_KNOBS + 1]), None);
    }
}
