//! What a group of fused layers runs on: the figures of one multiprocessor that decide whether
//! it fits, and the rates that decide whether it pays.

use vdnn_ir::{Bytes, Nanos, Precision};

/// Multiprocessors and caches of a GPU, from its data sheet and CUDA's table of compute
/// capabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// Name of its device profile.
    pub name: &'static str,
    /// Multiprocessors.
    pub multiprocessors: u64,
    /// Most shared memory of one block.
    pub shared: Bytes,
    /// Second-level cache.
    pub l2: Bytes,
    /// Rate of the second-level cache over that of the memory: nominal.
    pub l2_speed: f64,
}

/// The GPUs that have a profile.
const MACHINES: [Machine; 5] = [
    Machine { name: "h200", multiprocessors: 132, shared: kib(227), l2: kib(50 << 10), l2_speed: 1.6 },
    Machine { name: "v100", multiprocessors: 80, shared: kib(96), l2: kib(6 << 10), l2_speed: 2.5 },
    Machine { name: "p100", multiprocessors: 56, shared: kib(48), l2: kib(4 << 10), l2_speed: 2.0 },
    Machine { name: "rtx-2080-ti", multiprocessors: 68, shared: kib(64), l2: kib(5632), l2_speed: 2.5 },
    Machine {
        name: "titan-x-maxwell",
        multiprocessors: 24,
        shared: kib(48),
        l2: kib(3 << 10),
        l2_speed: 2.0,
    },
];

const fn kib(n: u64) -> Bytes {
    Bytes(n << 10)
}

impl Machine {
    /// The machine of a device profile, or `None` if none is known by this name.
    pub fn named(name: &str) -> Option<Self> {
        MACHINES.iter().find(|m| m.name == name).cloned()
    }

    /// Names of the known machines.
    pub fn names() -> impl Iterator<Item = &'static str> {
        MACHINES.iter().map(|m| m.name)
    }
}

/// A machine with its rates at one precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The machine.
    pub machine: Machine,
    /// Arithmetic.
    pub precision: Precision,
    /// Peak of that arithmetic, operations (a multiply-add is two) per nanosecond.
    pub peak: f64,
    /// Rate of a kernel that only moves data, bytes read and written per nanosecond.
    pub bandwidth: f64,
    /// From start to start of kernels that follow each other.
    pub launch: Nanos,
}

/// Threads of a block.
pub const THREADS: u64 = 256;

/// Most registers of a thread.
pub const MAX_REGISTERS: u64 = 255;

/// Registers of a thread besides accumulators: addresses, fragments. Nominal until a compiler
/// says.
pub const OTHER_REGISTERS: u64 = 40;

/// Share of the bandwidth that layers reach. Nominal.
pub(crate) const BANDWIDTH: f64 = 0.85;

impl Target {
    /// Share of the peak that a fused kernel reaches: matrix instructions of one warp, which
    /// reach less than the library's of a warp group. Nominal.
    pub(crate) fn fused_efficiency(&self) -> f64 {
        if self.precision == Precision::F32 { 0.55 } else { 0.45 }
    }

    /// Products that matrix units compute over those that are asked for: rows and columns of
    /// their fragments are filled up. `outputs` per group, `terms` of each sum.
    pub(crate) fn waste(&self, outputs: u64, terms: u64) -> f64 {
        let fill = |n: u64, to: u64| n.div_ceil(to) as f64 * to as f64 / n as f64;
        match self.precision {
            Precision::F32 => 1.0,
            Precision::Tf32 => fill(outputs, 8) * fill(terms, 8),
            Precision::Bf16 => fill(outputs, 8) * fill(terms, 16),
        }
    }

    /// Share of the multiprocessors that work, on average until the last block is done.
    pub(crate) fn utilisation(&self, blocks: u64) -> f64 {
        let all = self.machine.multiprocessors;
        blocks as f64 / (blocks.div_ceil(all).max(1) as f64 * all as f64)
    }
}
