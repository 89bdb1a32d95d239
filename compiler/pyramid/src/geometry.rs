//! Which positions of every layer a tile needs: interval arithmetic from the last layer backwards.
//!
//! Along one axis, the positions `lo..hi` of a layer's result need `lo*s - before ..
//! (hi-1)*s - before + span` of its input. What lies outside a layer's domain is padding of the
//! next layer and is *written*, never computed: a convolution evaluated outside its domain would
//! give numbers where the next one reads zeros.
//!
//! Cutting off at the domain on the way back is the same as cutting the whole, uncut way back
//! at what any tile needs: all steps are monotone. So one [`Track`] per buffer and axis says
//! everything, for every tile and step, by shifts and intersections.

use crate::chain::Chain;
use crate::cost::product;
use crate::interval::Interval;
use crate::tiling::{Mode, Tiling, TilingError};
use serde::{Deserialize, Serialize};

/// Positions are kept below this, so that no arithmetic on them can overflow.
pub(crate) const MAX_POSITION: i64 = 1 << 40;

/// Most steps of all tiles on top of each other.
pub(crate) const MAX_STEPS: u64 = 1 << 22;

/// What a buffer holds along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Track {
    /// What the first tile needs, outside the image too.
    pub hull: Interval,
    /// What the first tile needs at step 0; the hull without steps.
    pub window: Interval,
    /// How far both move from tile to tile.
    pub per_tile: i64,
    /// How far the window moves from step to step.
    pub per_step: i64,
    /// So many positions at the window's end are new in a step; those before are there already.
    pub fresh: i64,
    /// Positions of the layer's domain that any tile needs: these are computed.
    pub live: Interval,
    /// The same with the padding that the next layer reads: the rest of these is written.
    pub held: Interval,
    /// Most positions of a window that are held: the buffer's extent.
    pub capacity: u64,
}

impl Track {
    /// What is computed for a tile, in all its steps.
    pub fn live(&self, tile: u64) -> Interval {
        self.hull.shift(tile as i64 * self.per_tile).intersect(self.live)
    }

    /// What is computed or written for a tile, in all its steps.
    pub fn held(&self, tile: u64) -> Interval {
        self.hull.shift(tile as i64 * self.per_tile).intersect(self.held)
    }

    /// What the buffer holds in a step.
    pub fn window(&self, tile: u64, step: i64) -> Interval {
        self.window.shift(tile as i64 * self.per_tile + step * self.per_step).intersect(self.held(tile))
    }

    /// What is computed or written in a step.
    pub fn fresh(&self, tile: u64, step: i64) -> Interval {
        let window = self.window.shift(tile as i64 * self.per_tile + step * self.per_step);
        Interval::new(window.hi - self.fresh, window.hi).intersect(self.held(tile))
    }

    /// What is computed in a step.
    pub fn computed(&self, tile: u64, step: i64) -> Interval {
        self.fresh(tile, step).intersect(self.live)
    }

    fn fit(&mut self, tiles: u64, steps: &std::ops::Range<i64>) {
        let windows = (0..tiles).flat_map(|t| steps.clone().map(move |j| (t, j)));
        self.capacity = windows.map(|(t, j)| self.window(t, j).len()).max().unwrap_or(0);
    }
}

/// The positions that every tile of a chain needs of every layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// How the result is cut.
    pub tiling: Tiling,
    /// Tiles along y and x.
    pub grid: [u64; 2],
    /// Steps of a tile; those before 0 fill the buffers for the first rows of the result.
    pub steps: std::ops::Range<i64>,
    /// `[y, x]` of the input's buffer and of each layer's.
    pub tracks: Vec<[Track; 2]>,
}

impl Geometry {
    /// The geometry of a chain cut this way.
    ///
    /// # Errors
    /// If the tile is empty or larger than the result, or the steps are.
    pub fn new(chain: &Chain, tiling: Tiling) -> Result<Self, TilingError> {
        let result = chain.output();
        let (height, width) = (result.height, result.width);
        let Tiling { rows, cols, mode } = tiling;
        if rows == 0 || cols == 0 || rows > height || cols > width {
            return Err(TilingError::Tile { rows, cols, height, width });
        }
        let step = match mode {
            Mode::Recompute => None,
            Mode::Reuse { step } if step == 0 || step > rows => {
                return Err(TilingError::Step { step, rows });
            }
            Mode::Reuse { step } => Some(step),
        };
        let grid = [height.div_ceil(rows), width.div_ceil(cols)];
        let mut y = axis(chain, 0, rows, step)?;
        let mut x = axis(chain, 1, cols, None)?;
        let steps = match step {
            None => 0..1,
            Some(r) => {
                // Before the first step a tile's buffers hold nothing that it needs.
                let filled = y.iter().map(|t| {
                    let rows = t.window.hi - t.hull.lo;
                    (rows + t.per_step - 1).div_euclid(t.per_step) - 1
                });
                -filled.max().unwrap_or(0).max(0)..rows.div_ceil(r) as i64
            }
        };
        if (steps.end - steps.start) as u64 > MAX_STEPS / grid[0] {
            return Err(TilingError::TooFar);
        }
        y.iter_mut().for_each(|t| t.fit(grid[0], &steps));
        x.iter_mut().for_each(|t| t.fit(grid[1], &(0..1)));
        let tracks = y.into_iter().zip(x).map(|(y, x)| [y, x]).collect();
        Ok(Self { tiling, grid, steps, tracks })
    }

    /// Positions of a layer's result (layer -1, the input, is index 0) that all tiles together
    /// would need if nothing were cut off at the borders: rows times columns. For tilings without
    /// steps, the count of pyramids of one fixed size.
    pub fn uncut_positions(&self, buffer: usize) -> u64 {
        let [y, x] = &self.tracks[buffer];
        product(&[self.grid[0], y.hull.len(), self.grid[1], x.hull.len()])
    }

    /// Positions of a layer's result that all tiles together compute.
    pub fn positions(&self, buffer: usize) -> u64 {
        let [y, x] = &self.tracks[buffer];
        let rows: u64 =
            (0..self.grid[0]).flat_map(|t| self.steps.clone().map(move |j| y.computed(t, j).len())).sum();
        let cols: u64 = (0..self.grid[1]).map(|t| x.live(t).len()).sum();
        product(&[rows, cols])
    }

    /// Rows that the buffer in front of each layer keeps from one step to the next: the kernel's
    /// span less the stride, where that is more than nothing.
    pub fn kept_rows(&self, buffer: usize) -> u64 {
        let y = &self.tracks[buffer][0];
        y.window.len().saturating_sub(y.fresh.max(0) as u64)
    }
}

/// The tracks of all buffers along one axis, but for their capacities.
fn axis(chain: &Chain, axis: usize, tile: u64, step: Option<u64>) -> Result<Vec<Track>, TilingError> {
    let domain = Interval::of_extent(chain.output().extent(axis));
    let rows = step.unwrap_or(tile) as i64;
    let mut track = Track {
        hull: Interval::of_extent(tile),
        window: Interval::new(0, rows),
        per_tile: tile as i64,
        per_step: if step.is_some() { rows } else { 0 },
        fresh: rows,
        live: domain,
        held: domain,
        capacity: 0,
    };
    let mut all = vec![track];
    for (i, layer) in chain.layers().iter().enumerate().rev() {
        let window = layer.kind.window();
        let stride = window.strides[axis] as i64;
        let new = Interval::new(track.window.hi - track.fresh, track.window.hi);
        let held = window.input_of(axis, track.live);
        let domain = Interval::of_extent(chain.shapes()[i].extent(axis));
        track = Track {
            hull: window.input_of(axis, track.hull),
            window: window.input_of(axis, new),
            per_tile: track.per_tile * stride,
            per_step: track.per_step * stride,
            fresh: 0,
            live: held.intersect(domain),
            held,
            capacity: 0,
        };
        track.fresh = track.window.len() as i64;
        if step.is_some() {
            track.fresh = track.fresh.min(track.per_step);
        }
        // The next product is at most 2^20 times as large.
        let far = [track.hull.lo, track.hull.hi, track.window.lo, track.window.hi, track.per_tile];
        if far.iter().any(|p| p.abs() > MAX_POSITION) {
            return Err(TilingError::TooFar);
        }
        all.push(track);
    }
    all.reverse();
    Ok(all)
}
