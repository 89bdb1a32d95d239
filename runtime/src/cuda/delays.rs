//! Random delays of commands, for tests: a missing wait then changes results.
//!
//! Every launch and copy has a small kernel in front of it that spins for as long as a table in
//! device memory says. The table can be written between steps, so that a captured graph runs
//! under as many patterns of delays as one likes.

use super::arena::DeviceArena;
use super::error::CudaError;
use super::launch::DeviceRange;
use cudarc::driver::sys;
use vdnn_ir::Bytes;
use vdnn_ir::id::EntityId;
use vdnn_ir::random::splitmix64;
use vdnn_plan::{CmdId, Command, Plan};

/// Longest delay, in nanoseconds.
const MAX_DELAY: u64 = 2_000_000;
/// Delays that a stream is to expect in one step, if one in [`LEAST_APART`] allows.
const EXPECTED: u64 = 8;
/// At most one command in so many is delayed.
const LEAST_APART: u64 = 4;
/// Bytes of one entry of the table.
const ENTRY: u64 = 4;

/// Whether the table says anything of a command: delays elsewhere only move to the next of these.
pub(super) fn may_delay(command: &Command) -> bool {
    matches!(command, Command::Launch { .. } | Command::Copy { .. })
}

/// Where in the table the delay of a command is.
pub(super) fn offset(at: CmdId) -> u64 {
    ENTRY * at.index() as u64
}

/// Nanoseconds to delay each command by: on every stream about [`EXPECTED`] of those that may be
/// delayed, evenly up to 2 ms, as the seed picks; nothing without a seed.
fn lengths(plan: &Plan, seed: Option<u64>) -> Vec<u32> {
    let mut counts = vec![0u64; plan.streams.len()];
    for command in plan.commands.iter().filter(|c| may_delay(c)) {
        counts[command.stream().index()] += 1;
    }
    let length = |(i, command): (usize, &Command)| {
        let apart = (counts[command.stream().index()] / EXPECTED).max(LEAST_APART);
        let z = splitmix64(seed?, i as u64);
        let delayed = may_delay(command) && (z >> 32).is_multiple_of(apart);
        delayed.then_some((((z & 0xffff_ffff) * MAX_DELAY) >> 32) as u32)
    };
    plan.commands.iter().enumerate().map(|c| length(c).unwrap_or(0)).collect()
}

/// The table on the device.
#[derive(Debug)]
pub(super) struct Delays(DeviceArena);

impl Delays {
    /// A table for a plan, filled for the seed.
    pub(super) fn new(plan: &Plan, seed: u64) -> Result<Self, CudaError> {
        let bytes = Bytes(ENTRY * plan.commands.len().max(1) as u64);
        let delays = Self(DeviceArena::new(bytes, "the table of delays")?);
        delays.write(plan, Some(seed))?;
        Ok(delays)
    }

    /// Its memory.
    pub(super) fn range(&self) -> DeviceRange {
        self.0.range()
    }

    /// Fills it for another seed, or with zeros. The device must be idle.
    #[expect(unsafe_code, reason = "copies to the device")]
    pub(super) fn write(&self, plan: &Plan, seed: Option<u64>) -> Result<(), CudaError> {
        let lengths = lengths(plan, seed);
        let bytes: &[u8] = bytemuck::cast_slice(&lengths);
        let to = self.0.at(0, bytes.len());
        // SAFETY: inside the block; the call returns when `bytes` has been read, and steps begin
        // after the copy since it is waited for.
        unsafe {
            CudaError::check("cuMemcpyHtoD", sys::cuMemcpyHtoD_v2(to, bytes.as_ptr().cast(), bytes.len()))?;
            CudaError::check("cuCtxSynchronize", sys::cuCtxSynchronize())
        }
    }
}

/// The `n`th wait of a plan, counted round and round; `None` if it has none.
pub(super) fn nth_wait(plan: &Plan, n: usize) -> Option<CmdId> {
    nth(plan, n, |c| matches!(c, Command::Wait { .. }))
}

/// The `n`th launch of a plan, counted round and round; `None` if it has none.
pub(super) fn nth_launch(plan: &Plan, n: usize) -> Option<CmdId> {
    nth(plan, n, |c| matches!(c, Command::Launch { .. }))
}

fn nth(plan: &Plan, n: usize, wanted: impl Fn(&Command) -> bool) -> Option<CmdId> {
    let found: Vec<usize> = (0..plan.commands.len()).filter(|&i| wanted(&plan.commands[i])).collect();
    found.get(n % found.len().max(1)).map(|&i| CmdId::from_index(i))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(copies: usize) -> Plan {
        let mut text =
            "vplan 1\nmodel \"m\"\nmode infer\nbatch 1\npolicy \"none\"\nalgo \"memory\"\ndevice \"d\"\n\
                        predicted step=0 compute=0 stall=0 lower_bound=0\narena device 512\narena host 256\n\
                        stream s0 compute\nstream s1 d2h\nstream s2 h2d\nevents 1\n\
                        buffer b0 device 0 f32[1] \"x\"\nbuffer b1 host 0 f32[1] \"y\"\ninput \"x\" b0\n\
                        c0 s0 record e0\nc1 s2 wait e0\n"
                .to_owned();
        for i in 0..copies {
            text.push_str(&format!("c{} s2 copy b1 -> b0\n", i + 2));
        }
        vdnn_plan::parse_plan(&text).expect("a plan")
    }

    #[test]
    fn delays_differ_by_seed_and_command_and_stay_below_two_milliseconds() {
        let plan = plan(4000);
        let of = |seed| lengths(&plan, Some(seed));
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
        assert!(lengths(&plan, None).iter().all(|&d| d == 0));
        let all: Vec<u32> = (0..100).flat_map(of).filter(|&d| d > 0).collect();
        // 8 are expected in each of the 100.
        assert!((700..900).contains(&all.len()), "{}", all.len());
        let longest = MAX_DELAY as u32;
        assert!(all.iter().all(|&d| d < longest));
        assert!(all.iter().any(|&d| d > longest / 10 * 9) && all.iter().any(|&d| d < longest / 10));
        // In time every command has its turn.
        let turns = (0..4000).map(of).fold(vec![0u32; 4002], |sum, d| {
            sum.iter().zip(&d).map(|(s, &d)| s + u32::from(d > 0)).collect()
        });
        assert!(turns[2..].iter().filter(|&&n| n == 0).count() < 10);
        assert_eq!(&turns[..2], [0, 0], "records and waits are not delayed themselves");
    }

    #[test]
    fn short_plans_have_a_quarter_of_their_commands_delayed() {
        let plan = plan(8);
        let n: usize =
            (0..100).map(|seed| lengths(&plan, Some(seed)).iter().filter(|&&d| d > 0).count()).sum();
        assert!((150..250).contains(&n), "{n}");
    }

    #[test]
    fn waits_are_counted_round_and_round() {
        assert_eq!(nth_wait(&plan(1), 0), Some(CmdId::from_index(1)));
        assert_eq!(nth_wait(&plan(1), 5), Some(CmdId::from_index(1)));
        let mut none = plan(1);
        none.commands.retain(|c| !matches!(c, Command::Wait { .. }));
        assert_eq!(nth_wait(&none, 0), None);
        assert_eq!(nth_launch(&none, 3), None);
    }
}
