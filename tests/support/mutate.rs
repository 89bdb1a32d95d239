//! Small damages to plans, for testing the checker against what really happens.
//!
//! Every mutant is still well-formed (it passes `check_runnable`): ids exist, types fit,
//! buffers stay inside their arena, waits follow their records in issue order. So an
//! executor can run it, on one thread, and show whether its meaning changed.

use std::fmt;
use vdnn_ir::Bytes;
use vdnn_ir::id::EntityId;
use vdnn_plan::check::check_runnable;
use vdnn_plan::plan::ALIGNMENT;
use vdnn_plan::{BufId, CmdId, Command, EventId, Plan};

/// One damage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// Remove a wait.
    DropWait(CmdId),
    /// Remove an event: its record and all its waits.
    DropEvent(EventId),
    /// Let a wait come after the next command of its stream.
    DelayWait(CmdId),
    /// Let a record come before the previous command of its stream.
    HastenRecord(CmdId),
    /// Move a buffer.
    ShiftAddress {
        /// The buffer.
        buf: BufId,
        /// Its new offset, a multiple of [`ALIGNMENT`].
        to: Bytes,
    },
    /// Move a free to an earlier place of the issue order.
    FreeEarly {
        /// The free.
        free: CmdId,
        /// Its new index.
        to: CmdId,
    },
    /// Exchange the sources (or destinations) of two copies of one type and direction.
    SwapCopies {
        /// One copy.
        first: CmdId,
        /// The other.
        second: CmdId,
        /// Sources, else destinations.
        sources: bool,
    },
    /// Remove a copy, launch or free.
    DropCommand(CmdId),
    /// Exchange a command with the next one of its stream.
    SwapAdjacent(CmdId),
    /// Let a launch read another buffer of the same type.
    ChangeOperand {
        /// The launch.
        launch: CmdId,
        /// Which operand.
        operand: usize,
        /// The buffer it reads instead.
        buf: BufId,
    },
    /// Let a launch write another buffer of the same type.
    ChangeResult {
        /// The launch.
        launch: CmdId,
        /// Which result.
        result: usize,
        /// The buffer it writes instead.
        buf: BufId,
    },
}

impl fmt::Display for Mutation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DropWait(c) => write!(f, "drop the wait {c}"),
            Self::DropEvent(e) => write!(f, "drop the event {e}"),
            Self::DelayWait(c) => write!(f, "delay the wait {c}"),
            Self::HastenRecord(c) => write!(f, "hasten the record {c}"),
            Self::ShiftAddress { buf, to } => write!(f, "move {buf} to {}", to.0),
            Self::FreeEarly { free, to } => write!(f, "move the free {free} up to {to}"),
            Self::SwapCopies { first, second, sources } => {
                let what = if *sources { "sources" } else { "destinations" };
                write!(f, "exchange the {what} of {first} and {second}")
            }
            Self::DropCommand(c) => write!(f, "drop {c}"),
            Self::SwapAdjacent(c) => write!(f, "exchange {c} with the next of its stream"),
            Self::ChangeOperand { launch, operand, buf } => {
                write!(f, "let operand {operand} of {launch} be {buf}")
            }
            Self::ChangeResult { launch, result, buf } => {
                write!(f, "let result {result} of {launch} be {buf}")
            }
        }
    }
}

impl Mutation {
    /// The damaged plan, or `None` if the damage does not apply, changes nothing, or leaves
    /// a plan that cannot be run at all.
    pub fn apply(&self, plan: &Plan) -> Option<Plan> {
        let mut p = plan.clone();
        match self {
            Self::DropWait(c) => {
                matches!(p.commands.get(c.index())?, Command::Wait { .. }).then_some(())?;
                p.commands.remove(c.index());
            }
            Self::DropEvent(event) => p.commands.retain(|c| match c {
                Command::Record { event: e, .. } | Command::Wait { event: e, .. } => e != event,
                _ => true,
            }),
            Self::DelayWait(c) => {
                matches!(p.commands.get(c.index())?, Command::Wait { .. }).then_some(())?;
                let next = neighbour(plan, *c, true)?;
                let wait = p.commands.remove(c.index());
                // The removal moved the next command up by one, so this is just after it.
                p.commands.insert(next, wait);
            }
            Self::HastenRecord(c) => {
                matches!(p.commands.get(c.index())?, Command::Record { .. }).then_some(())?;
                let before = neighbour(plan, *c, false)?;
                let record = p.commands.remove(c.index());
                p.commands.insert(before, record);
            }
            Self::ShiftAddress { buf, to } => p.buffers[*buf].offset = *to,
            Self::FreeEarly { free, to } => {
                let command = p.commands.get(free.index())?;
                (matches!(command, Command::Free { .. }) && to < free).then_some(())?;
                let command = p.commands.remove(free.index());
                p.commands.insert(to.index(), command);
            }
            Self::SwapCopies { first, second, sources } => {
                let (a, b) = (copy(&p, *first)?, copy(&p, *second)?);
                let parts = |commands: &mut Vec<Command>, c: CmdId, new: (BufId, BufId)| {
                    if let Command::Copy { src, dst, .. } = &mut commands[c.index()] {
                        if *sources { *src = new.0 } else { *dst = new.1 }
                    }
                };
                parts(&mut p.commands, *first, b);
                parts(&mut p.commands, *second, a);
            }
            Self::DropCommand(c) => {
                let command = p.commands.get(c.index())?;
                (!matches!(command, Command::Record { .. } | Command::Wait { .. })).then_some(())?;
                p.commands.remove(c.index());
            }
            Self::SwapAdjacent(c) => {
                p.commands.get(c.index())?;
                p.commands.swap(c.index(), neighbour(plan, *c, true)?);
            }
            Self::ChangeOperand { launch, operand, buf } => {
                let Command::Launch { inputs, .. } = p.commands.get_mut(launch.index())? else { return None };
                *inputs.get_mut(*operand)? = *buf;
            }
            Self::ChangeResult { launch, result, buf } => {
                let Command::Launch { outputs, .. } = p.commands.get_mut(launch.index())? else {
                    return None;
                };
                *outputs.get_mut(*result)? = *buf;
            }
        }
        (p != *plan && check_runnable(&p).is_ok()).then_some(p)
    }
}

/// Source and destination of a copy.
fn copy(plan: &Plan, c: CmdId) -> Option<(BufId, BufId)> {
    match plan.commands.get(c.index())? {
        Command::Copy { src, dst, .. } => Some((*src, *dst)),
        _ => None,
    }
}

/// Index of the next (or previous) command of the same stream.
fn neighbour(plan: &Plan, c: CmdId, next: bool) -> Option<usize> {
    let stream = plan.commands.get(c.index())?.stream();
    let same = |i: &usize| plan.commands[*i].stream() == stream;
    if next { (c.index() + 1..plan.commands.len()).find(same) } else { (0..c.index()).rev().find(same) }
}

/// The plan with one damage picked by `seed`, and its description; `None` if nothing was
/// found to damage. The same seed gives the same mutant.
pub fn mutate(plan: &Plan, seed: u64) -> Option<(Plan, String)> {
    let mut random = Random(seed);
    (0..64).find_map(|_| {
        let mutation = draw(plan, &mut random)?;
        let mutant = mutation.apply(plan)?;
        let text = describe(plan, &mutation);
        Some((mutant, text))
    })
}

fn describe(plan: &Plan, mutation: &Mutation) -> String {
    let at = match mutation {
        Mutation::DropWait(c)
        | Mutation::DelayWait(c)
        | Mutation::HastenRecord(c)
        | Mutation::DropCommand(c)
        | Mutation::SwapAdjacent(c)
        | Mutation::FreeEarly { free: c, .. }
        | Mutation::SwapCopies { first: c, .. }
        | Mutation::ChangeOperand { launch: c, .. }
        | Mutation::ChangeResult { launch: c, .. } => Some(*c),
        Mutation::DropEvent(_) | Mutation::ShiftAddress { .. } => None,
    };
    match at.and_then(|c| Some((c, plan.commands.get(c.index())?))) {
        Some((c, command)) => format!("{mutation} ({c} {command})"),
        None => mutation.to_string(),
    }
}

fn draw(plan: &Plan, random: &mut Random) -> Option<Mutation> {
    // Kinds are drawn first, so that rare commands are damaged as often as common ones.
    let kind = random.below(11);
    let pick = |random: &mut Random, wanted: &dyn Fn(&Command) -> bool| -> Option<CmdId> {
        let all: Vec<usize> = (0..plan.commands.len()).filter(|&i| wanted(&plan.commands[i])).collect();
        (!all.is_empty()).then(|| CmdId::from_index(all[random.below(all.len())]))
    };
    let mutation = match kind {
        0 => Mutation::DropWait(pick(random, &|c| matches!(c, Command::Wait { .. }))?),
        1 => Mutation::DropEvent(EventId(random.below(plan.n_events as usize) as u32)),
        2 => Mutation::DelayWait(pick(random, &|c| matches!(c, Command::Wait { .. }))?),
        3 => Mutation::HastenRecord(pick(random, &|c| matches!(c, Command::Record { .. }))?),
        4 => shift(plan, random)?,
        5 => {
            let free = pick(random, &|c| matches!(c, Command::Free { .. }))?;
            let up = 1 + random.near(free.index());
            Mutation::FreeEarly { free, to: CmdId::from_index(free.index().saturating_sub(up)) }
        }
        6 => {
            let first = pick(random, &|c| matches!(c, Command::Copy { .. }))?;
            let (src, _) = copy(plan, first)?;
            let (ty, space) = (&plan.buffers[src].ty, plan.buffers[src].space);
            let alike = |c: &Command| match c {
                Command::Copy { src, .. } => {
                    plan.buffers[*src].ty == *ty && plan.buffers[*src].space == space
                }
                _ => false,
            };
            let second = pick(random, &alike)?;
            Mutation::SwapCopies { first, second, sources: random.below(2) == 0 }
        }
        7 => {
            let removable = |c: &Command| !matches!(c, Command::Record { .. } | Command::Wait { .. });
            Mutation::DropCommand(pick(random, &removable)?)
        }
        8 => Mutation::SwapAdjacent(pick(random, &|_| true)?),
        _ => {
            let launch = pick(random, &|c| matches!(c, Command::Launch { .. }))?;
            let Command::Launch { inputs, outputs, .. } = &plan.commands[launch.index()] else { return None };
            let (list, operand) = if kind == 9 { (&inputs[..], true) } else { (&outputs[..], false) };
            if list.is_empty() {
                return Some(Mutation::SwapAdjacent(launch));
            }
            let n = random.below(list.len());
            let old = &plan.buffers[list[n]];
            let alike: Vec<BufId> = plan
                .buffers
                .iter()
                .filter(|(_, b)| b.ty == old.ty && b.space == old.space)
                .map(|(id, _)| id)
                .collect();
            let buf = alike[random.below(alike.len())];
            if operand {
                Mutation::ChangeOperand { launch, operand: n, buf }
            } else {
                Mutation::ChangeResult { launch, result: n, buf }
            }
        }
    };
    Some(mutation)
}

/// Another aligned offset in the arena: near the old one, at another buffer's, or anywhere.
fn shift(plan: &Plan, random: &mut Random) -> Option<Mutation> {
    if plan.buffers.is_empty() {
        return None;
    }
    let buf = BufId::from_index(random.below(plan.buffers.len()));
    let b = &plan.buffers[buf];
    let arena = match b.space {
        vdnn_ir::Space::Device => plan.device.bytes,
        vdnn_ir::Space::Host => plan.host.bytes,
    };
    let places = (arena.saturating_sub(b.ty.bytes()).0 / ALIGNMENT) as usize + 1;
    let to = match random.below(3) {
        0 => Bytes(random.below(places) as u64 * ALIGNMENT),
        1 => plan.buffers[BufId::from_index(random.below(plan.buffers.len()))].offset,
        _ => {
            let delta = Bytes((1 + random.near(8) as u64) * ALIGNMENT);
            if random.below(2) == 0 { b.offset.saturating_sub(delta) } else { b.offset.saturating_add(delta) }
        }
    };
    Some(Mutation::ShiftAddress { buf, to })
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// Below `n` (0 if `n` is 0).
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    /// Below `n`, small numbers more often.
    fn near(&mut self, n: usize) -> usize {
        let bound = 1 + self.below(n);
        self.below(bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use vdnn_plan::parse_plan;

    /// Two offloads of one type. Contents are of no interest here.
    fn plan() -> Plan {
        let zero = "0".repeat(32);
        parse_plan(&format!(
            r#"vplan 1
model "m"
mode infer
batch 1
policy "all"
algo "memory"
device "cpu"
predicted step=0 compute=0 stall=0 lower_bound=0
arena device 2048
arena host 512
stream s0 compute
stream s1 d2h
events 2
buffer b0 device 0 f32[64] "x"
buffer b1 device 256 f32[64] "a"
buffer b2 device 512 f32[64] "b"
buffer b3 host 0 f32[64] "a.host"
buffer b4 host 256 f32[64] "b.host"
input "x" b0
output "y" b2 expect={zero}
c0 s0 launch n0 unary(relu) forward (b0) -> (b1) "a"
c1 s0 launch n1 unary(neg) forward (b1) -> (b2) "b"
c2 s0 record e0
c3 s1 wait e0
c4 s1 copy b1 -> b3
c5 s1 copy b2 -> b4
c6 s1 record e1
c7 s0 wait e1
c8 s0 free b1
"#
        ))
        .expect("the plan parses")
    }

    #[test]
    fn mutants_are_deterministic_different_and_runnable() {
        let plan = plan();
        let mut kinds = BTreeSet::new();
        for seed in 0..400 {
            let (mutant, text) = mutate(&plan, seed).expect("there is always something to damage");
            assert_ne!(mutant, plan, "{text}");
            check_runnable(&mutant).expect("a mutant can be run");
            assert_eq!(mutate(&plan, seed), Some((mutant, text.clone())));
            kinds.insert(text.split(' ').take(2).collect::<Vec<_>>().join(" "));
        }
        assert!(kinds.len() >= 8, "{kinds:?}");
    }

    #[test]
    fn each_kind_does_what_it_says() {
        let p = plan();
        let stream = |m: Mutation| {
            let mutant = m.apply(&p).expect("applies");
            mutant.commands.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(stream(Mutation::DropWait(CmdId(3))).len(), 8);
        assert_eq!(stream(Mutation::DropEvent(EventId(1))).len(), 7);
        assert_eq!(stream(Mutation::DelayWait(CmdId(7)))[7..], ["s0 free b1", "s0 wait e1"]);
        assert_eq!(stream(Mutation::DelayWait(CmdId(3)))[3..5], ["s1 copy b1 -> b3", "s1 wait e0"]);
        assert_eq!(stream(Mutation::HastenRecord(CmdId(6)))[5..7], ["s1 record e1", "s1 copy b2 -> b4"]);
        assert_eq!(stream(Mutation::FreeEarly { free: CmdId(8), to: CmdId(1) })[1], "s0 free b1");
        let swap = |sources| {
            stream(Mutation::SwapCopies { first: CmdId(4), second: CmdId(5), sources })[4..6].to_vec()
        };
        assert_eq!(swap(true), ["s1 copy b2 -> b3", "s1 copy b1 -> b4"]);
        assert_eq!(swap(false), ["s1 copy b1 -> b4", "s1 copy b2 -> b3"]);
        assert_eq!(stream(Mutation::SwapAdjacent(CmdId(7)))[7..], ["s0 free b1", "s0 wait e1"]);
        assert!(Mutation::DropCommand(CmdId(2)).apply(&p).is_none(), "a record is no such command");
        let outside = Mutation::ShiftAddress { buf: BufId(1), to: Bytes(2048) };
        assert!(outside.apply(&p).is_none(), "buffers stay inside");
        let same = Mutation::ShiftAddress { buf: BufId(1), to: Bytes(256) };
        assert!(same.apply(&p).is_none(), "nothing changes");
        let unrecorded = Mutation::SwapAdjacent(CmdId(2));
        assert!(unrecorded.apply(&p).is_none(), "a wait stays behind its record");
    }
}
