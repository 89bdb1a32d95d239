//! How the last layer's result is cut among thread blocks, and how a block goes through its part.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How a block goes through its tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The whole tile at once. Every buffer holds what the tile needs, halos and all; what
    /// neighbouring tiles share is computed by each.
    Recompute,
    /// So many rows of the tile at a time, downwards. Buffers keep the rows that the next windows
    /// need again (kernel less stride), so rows are computed once per block; only columns are
    /// computed again.
    Reuse {
        /// Rows of the last layer per step.
        step: u64,
    },
}

/// The part of the last layer's result that a block makes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tiling {
    /// Rows of the tile.
    pub rows: u64,
    /// Columns of the tile.
    pub cols: u64,
    /// How the block goes through it.
    pub mode: Mode,
}

/// Why a tiling does not cut a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TilingError {
    /// A tile without positions, or larger than the result.
    #[error("a tile of {rows}x{cols} does not cut a result of {height}x{width}; give 1 to the extent")]
    Tile {
        /// Rows of the tile.
        rows: u64,
        /// Columns of the tile.
        cols: u64,
        /// Rows of the result.
        height: u64,
        /// Columns of the result.
        width: u64,
    },
    /// Steps of no rows, or of more than the tile has.
    #[error("steps of {step} rows do not go through a tile of {rows}; give 1 to {rows}")]
    Step {
        /// Rows of a step.
        step: u64,
        /// Rows of the tile.
        rows: u64,
    },
    /// Positions beyond what addresses can hold, or millions of steps.
    #[error("the strides or paddings of this chain are too large to go through it in such tiles")]
    TooFar,
}

impl Tiling {
    /// Square tiles that are computed at once.
    pub const fn square(tile: u64) -> Self {
        Self { rows: tile, cols: tile, mode: Mode::Recompute }
    }
}

impl fmt::Display for Tiling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Recompute => write!(f, "recompute {}x{}", self.rows, self.cols),
            Mode::Reuse { step } => write!(f, "reuse {}x{} by {step}", self.rows, self.cols),
        }
    }
}

impl FromStr for Tiling {
    type Err = String;

    /// Reads `recompute 8x8` or `reuse 56x14 by 2`.
    fn from_str(text: &str) -> Result<Self, String> {
        let error = || format!("`{text}` is not a tiling such as `recompute 8x8` or `reuse 56x14 by 2`");
        let words: Vec<&str> = text.split_whitespace().collect();
        let (mode, size) = match words.as_slice() {
            ["recompute", size] => (Mode::Recompute, size),
            ["reuse", size, "by", step] => (Mode::Reuse { step: step.parse().map_err(|_| error())? }, size),
            _ => return Err(error()),
        };
        let (rows, cols) = size.split_once('x').ok_or_else(error)?;
        let number = |t: &str| t.parse().map_err(|_| error());
        Ok(Self { rows: number(rows)?, cols: number(cols)?, mode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tilings_print_and_parse() {
        for t in [Tiling::square(8), Tiling { rows: 56, cols: 14, mode: Mode::Reuse { step: 2 } }] {
            assert_eq!(t.to_string().parse(), Ok(t));
        }
        assert!("reuse 5x5".parse::<Tiling>().is_err() && "recompute 5".parse::<Tiling>().is_err());
    }
}
