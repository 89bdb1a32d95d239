//! Random numbers from seeds.

use vdnn_ir::random::splitmix64;

/// A stream of numbers.
pub struct Source {
    seed: u64,
    next: u64,
}

impl Source {
    pub fn new(seed: u64) -> Self {
        Self { seed: splitmix64(0x7159_2d01, seed), next: 0 }
    }
    pub fn raw(&mut self) -> u64 {
        self.next += 1;
        splitmix64(self.seed, self.next)
    }
    /// In `lo..=hi`.
    pub fn within(&mut self, lo: u64, hi: u64) -> u64 {
        lo + self.raw() % (hi - lo + 1)
    }
    /// True once in so many times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.raw().is_multiple_of(n)
    }
    /// In -1..1.
    pub fn real(&mut self) -> f32 {
        ((self.raw() >> 40) as f64 / 8_388_608.0 - 1.0) as f32
    }
    pub fn tensor(&mut self, n: u64) -> Vec<f32> {
        (0..n).map(|_| self.real()).collect()
    }
}
