//! Pictures of a simulated step: the timeline of the streams, live memory, and the memory
//! map of the device arena. Plain rectangles; no dependency draws them.

use std::collections::BTreeMap;
use std::fmt::Write;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Nanos, Space};
use vdnn_plan::{BufId, CmdId, Command, Plan, StreamId, StreamKind};
use vdnn_runtime::trace::{Span, SpanKind, Trace};

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 90.0;

pub(crate) fn escape(s: &str) -> String {
    s.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

pub(crate) fn open(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"100%\" \
         font-family=\"sans-serif\" font-size=\"11\">\n"
    )
}

fn scale(step: Nanos) -> impl Fn(Nanos) -> f64 {
    let span = step.0.max(1) as f64;
    move |t| LEFT + t.0 as f64 / span * (WIDTH - LEFT - 10.0)
}

fn time_axis(out: &mut String, step: Nanos, y: f64) {
    let x = scale(step);
    for i in 0..=10 {
        let t = Nanos(step.0 * i / 10);
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{y}\" text-anchor=\"{}\" fill=\"#666\">{t}</text>",
            x(t),
            if i == 10 { "end" } else { "middle" }
        );
    }
}

/// One lane per stream; kernels, copies and waits as boxes with tooltips.
pub fn timeline(plan: &Plan, trace: &Trace, step: Nanos) -> String {
    const LANE: f64 = 44.0;
    let height = LANE * plan.streams.len() as f64 + 40.0;
    let mut out = open(height);
    let x = scale(step);
    for (i, kind) in plan.streams.iter().enumerate() {
        let y = 10.0 + LANE * i as f64;
        let _ = writeln!(out, "<text x=\"4\" y=\"{:.1}\">s{i} {kind:?}</text>", y + LANE / 2.0);
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#f4f4f4\"/>",
            WIDTH - LEFT - 10.0,
            LANE - 6.0
        );
    }
    // An idle copy stream is no news; a waiting compute stream is.
    let shown = |s: &&Span| s.kind != SpanKind::Wait || plan.streams[s.stream.index()] == StreamKind::Compute;
    for s in trace.spans.iter().filter(shown) {
        let y = 10.0 + LANE * f64::from(s.stream.0);
        let colour = match s.kind {
            SpanKind::Kernel => "#4e79a7",
            SpanKind::Copy => "#f28e2b",
            SpanKind::Wait => "#e15759",
        };
        let opacity = if s.kind == SpanKind::Wait { 0.35 } else { 0.9 };
        let width = (x(s.end) - x(s.start)).max(0.3);
        let _ = writeln!(
            out,
            "<rect x=\"{:.2}\" y=\"{y}\" width=\"{width:.2}\" height=\"{:.1}\" fill=\"{colour}\" \
             fill-opacity=\"{opacity}\"><title>{} {} ({})</title></rect>",
            x(s.start),
            LANE - 6.0,
            s.cmd,
            escape(&s.name),
            s.end.saturating_sub(s.start)
        );
    }
    time_axis(&mut out, step, height - 8.0);
    out.push_str("</svg>\n");
    out
}

/// Live device bytes over time, with the arena size and the lower bound.
pub fn live_memory(trace: &Trace, step: Nanos, arena: Bytes, bound: Bytes) -> String {
    const HEIGHT: f64 = 240.0;
    let mut out = open(HEIGHT);
    let x = scale(step);
    let top = arena.0.max(1) as f64;
    let y = |b: Bytes| 15.0 + (1.0 - b.0 as f64 / top) * (HEIGHT - 50.0);
    let mut path = String::new();
    let mut last = y(Bytes::ZERO);
    for (i, &(t, device, _)) in trace.memory.iter().enumerate() {
        let (px, py) = (x(t), y(device));
        if i == 0 {
            let _ = write!(path, "M{px:.1},{py:.1}");
        } else {
            let _ = write!(path, " L{px:.1},{last:.1} L{px:.1},{py:.1}");
        }
        last = py;
    }
    let _ = writeln!(out, "<path d=\"{path}\" fill=\"none\" stroke=\"#4e79a7\" stroke-width=\"1.5\"/>");
    for (b, name, colour) in [(arena, "arena", "#e15759"), (bound, "lower bound", "#59a14f")] {
        let _ = writeln!(
            out,
            "<line x1=\"{LEFT}\" x2=\"{:.0}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
             stroke-dasharray=\"4 3\"/><text x=\"4\" y=\"{:.1}\" fill=\"{colour}\">{name} {b}</text>",
            WIDTH - 10.0,
            y(b),
            y(b),
            y(b) + if name == "arena" { -3.0 } else { 12.0 }
        );
    }
    time_axis(&mut out, step, HEIGHT - 8.0);
    out.push_str("</svg>\n");
    out
}

/// The device arena over time: one box per buffer, address upwards.
pub fn memory_map(plan: &Plan, trace: &Trace, step: Nanos) -> String {
    const HEIGHT: f64 = 420.0;
    let mut out = open(HEIGHT);
    let x = scale(step);
    let top = plan.device.bytes.0.max(1) as f64;
    let y = |b: u64| 10.0 + (1.0 - b as f64 / top) * (HEIGHT - 40.0);
    for (i, (buf, start, end)) in lifetimes(plan, trace, step).into_iter().enumerate() {
        let b = &plan.buffers[buf];
        if b.space != Space::Device {
            continue;
        }
        let hue = (i * 47) % 360;
        let (low, high) = (b.offset.0, b.offset.0 + b.ty.bytes().0);
        let _ = writeln!(
            out,
            "<rect x=\"{:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{:.2}\" fill=\"hsl({hue},55%,65%)\" \
             stroke=\"#333\" stroke-width=\"0.2\"><title>{buf} {} {} at {:#x}</title></rect>",
            x(start),
            y(high),
            (x(end) - x(start)).max(0.3),
            (y(low) - y(high)).max(0.2),
            escape(&b.name),
            b.ty,
            low
        );
    }
    for i in 0..=4u64 {
        let b = plan.device.bytes.0 / 4 * i;
        let _ = writeln!(out, "<text x=\"4\" y=\"{:.1}\" fill=\"#666\">{}</text>", y(b), Bytes(b));
    }
    time_axis(&mut out, step, HEIGHT - 8.0);
    out.push_str("</svg>\n");
    out
}

/// When each buffer holds a value: from the command that first writes it to its `Free`.
fn lifetimes(plan: &Plan, trace: &Trace, step: Nanos) -> Vec<(BufId, Nanos, Nanos)> {
    let spans: BTreeMap<CmdId, (Nanos, Nanos)> =
        trace.spans.iter().filter(|s| s.kind != SpanKind::Wait).map(|s| (s.cmd, (s.start, s.end))).collect();
    let mut born: BTreeMap<BufId, Nanos> = BTreeMap::new();
    let mut dead: BTreeMap<BufId, Nanos> = BTreeMap::new();
    let persistent = plan.params.iter().map(|p| p.buf).chain(plan.inputs.iter().map(|i| i.buf));
    born.extend(persistent.map(|b| (b, Nanos::ZERO)));
    let mut now: BTreeMap<StreamId, Nanos> = BTreeMap::new();
    for (i, command) in plan.commands.iter().enumerate() {
        let id = CmdId::from_index(i);
        if let Some(&(start, end)) = spans.get(&id) {
            now.insert(command.stream(), end);
            match command {
                Command::Launch { outputs, workspace, .. } => {
                    for &b in outputs {
                        born.entry(b).or_insert(start);
                    }
                    if let Some(ws) = workspace {
                        born.entry(*ws).or_insert(start);
                        dead.insert(*ws, end);
                    }
                }
                Command::Copy { dst, .. } => {
                    born.entry(*dst).or_insert(start);
                }
                _ => {}
            }
        }
        if let Command::Free { stream, buf } = command {
            dead.insert(*buf, now.get(stream).copied().unwrap_or(Nanos::ZERO));
        }
    }
    born.into_iter().map(|(b, start)| (b, start, dead.get(&b).copied().unwrap_or(step))).collect()
}
