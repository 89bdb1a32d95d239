//! From measured times to the timeline that the simulator predicts.

use crate::ranges::LiveBytes;
use crate::trace::{Span, SpanKind, Trace, command_name};
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Nanos, Space};
use vdnn_plan::{BufId, CmdId, Command, Plan};

/// Waits shorter than this are the cost of asking, not of being held.
const HELD: Nanos = Nanos(2_000);

/// The timeline of a step from `[start, end)` of each command by id, counted from the start
/// of the step.
pub(super) fn measured(plan: &Plan, times: &[(Nanos, Nanos)]) -> Trace {
    let mut spans = Vec::new();
    // Live bytes change when a result is begun and when a buffer is freed; at equal times
    // the later command wins, as on its stream.
    let mut changes: Vec<(Nanos, CmdId, Vec<BufId>, bool)> = Vec::new();
    for (i, (command, &(start, end))) in plan.commands.iter().zip(times).enumerate() {
        let cmd = CmdId::from_index(i);
        let mut span = |kind, bytes| {
            let name = command_name(plan, command);
            spans.push(Span { stream: command.stream(), cmd, name, kind, start, end, bytes });
        };
        match command {
            Command::Launch { outputs, workspace, .. } => {
                span(SpanKind::Kernel, Bytes::ZERO);
                changes.push((start, cmd, outputs.iter().chain(workspace).copied().collect(), true));
                changes.push((end, cmd, workspace.iter().copied().collect(), false));
            }
            Command::Copy { src, dst, .. } => {
                span(SpanKind::Copy, plan.copied_bytes(*src, *dst));
                changes.push((start, cmd, vec![*dst], true));
            }
            Command::Wait { .. } if end.saturating_sub(start) >= HELD => span(SpanKind::Wait, Bytes::ZERO),
            Command::Free { buf, .. } => changes.push((start, cmd, vec![*buf], false)),
            Command::Wait { .. } | Command::Record { .. } => {}
        }
    }
    spans.sort_by_key(|s| (s.start, s.cmd));
    changes.sort_by_key(|c| (c.0, c.1));
    let lasting = plan.inputs.iter().map(|i| i.buf).chain(plan.params.iter().map(|p| p.buf)).collect();
    Trace { spans, memory: memory(plan, lasting, changes) }
}

fn memory(
    plan: &Plan,
    lasting: Vec<BufId>,
    changes: Vec<(Nanos, CmdId, Vec<BufId>, bool)>,
) -> Vec<(Nanos, Bytes, Bytes)> {
    let mut live: [LiveBytes; 2] = Default::default();
    let mut set = |bufs: &[BufId], on: bool| {
        for &buf in bufs {
            let b = &plan.buffers[buf];
            let (start, end) = (b.offset.0, b.offset.saturating_add(b.ty.bytes()).0);
            let bytes = &mut live[usize::from(b.space == Space::Host)];
            if on { bytes.insert(start, end) } else { bytes.remove(start, end) }
        }
        (live[0].total(), live[1].total())
    };
    let (device, host) = set(&lasting, true);
    let mut samples = vec![(Nanos::ZERO, device, host)];
    for (at, _, bufs, on) in changes {
        let (device, host) = set(&bufs, on);
        match samples.last_mut() {
            Some(last) if last.0 == at => *last = (at, device, host),
            Some(last) if (last.1, last.2) == (device, host) => {}
            _ => samples.push((at, device, host)),
        }
    }
    samples
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_plan::StreamId;

    #[test]
    fn measured_times_become_spans_and_live_bytes() {
        let text = "vplan 1\nmodel \"m\"\nmode infer\nbatch 1\npolicy \"all\"\nalgo \"memory\"\ndevice \"d\"\n\
                    predicted step=0 compute=0 stall=0 lower_bound=0\narena device 1024\narena host 256\n\
                    stream s0 compute\nstream s1 d2h\nevents 1\n\
                    buffer b0 device 0 f32[2] \"x\"\nbuffer b1 device 256 f32[2] \"y\"\n\
                    buffer b2 host 0 f32[2] \"y.host\"\ninput \"x\" b0\n\
                    c0 s0 launch n0 unary(sqrt) forward (b0) -> (b1) \"root\"\nc1 s0 record e0\n\
                    c2 s1 wait e0\nc3 s1 copy b1 -> b2\nc4 s0 free b0\n";
        let plan = vdnn_plan::parse_plan(text).expect("a plan");
        let ns = |a, b| (Nanos(a), Nanos(b));
        let times = [ns(0, 5_000), ns(5_000, 5_000), ns(0, 5_100), ns(5_100, 9_000), ns(5_000, 5_000)];
        let trace = measured(&plan, &times);
        let spans: Vec<_> = trace.spans.iter().map(|s| (s.cmd.0, s.kind, s.start.0, s.end.0)).collect();
        assert_eq!(
            spans,
            [
                (0, SpanKind::Kernel, 0, 5_000),
                (2, SpanKind::Wait, 0, 5_100),
                (3, SpanKind::Copy, 5_100, 9_000)
            ]
        );
        assert_eq!(trace.spans[2].bytes, Bytes(8));
        let bytes: Vec<_> = trace.memory.iter().map(|m| (m.0.0, m.1.0, m.2.0)).collect();
        assert_eq!(bytes, [(0, 16, 0), (5_000, 8, 0), (5_100, 8, 8)]);
        assert_eq!(trace.busy(StreamId(1)), Nanos(3_900));
        // A wait that held nothing is no span.
        let short = [ns(0, 10), ns(10, 10), ns(10, 900), ns(900, 2_000), ns(10, 10)];
        assert!(measured(&plan, &short).spans.iter().all(|s| s.kind != SpanKind::Wait));
    }
}
