//! One timeline schema for all backends, predicted or measured.

use std::fmt::Write;
use vdnn_ir::{Bytes, Nanos, Space};
use vdnn_plan::{CmdId, Command, Plan, StreamId};

/// What a stream did during a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SpanKind {
    /// Ran a kernel.
    Kernel,
    /// Copied between arenas.
    Copy,
    /// Was held by an event.
    Wait,
}

impl SpanKind {
    fn category(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Copy => "copy",
            Self::Wait => "wait",
        }
    }
}

/// One command on its stream during `[start, end)` of the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The queue.
    pub stream: StreamId,
    /// The command of the plan.
    pub cmd: CmdId,
    /// For people.
    pub name: String,
    /// What the stream did.
    pub kind: SpanKind,
    /// From the start of the step.
    pub start: Nanos,
    /// Not before `start`.
    pub end: Nanos,
    /// Bytes copied; zero for kernels and waits.
    pub bytes: Bytes,
}

impl Span {
    /// Its length.
    pub fn duration(&self) -> Nanos {
        self.end.saturating_sub(self.start)
    }
}

/// The timeline of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Spans in the order they began; ties in issue order.
    pub spans: Vec<Span>,
    /// Live bytes of the device and the host arena from each time on, at strictly
    /// increasing times.
    pub memory: Vec<(Nanos, Bytes, Bytes)>,
}

/// See [`Trace::overlap`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overlap {
    /// At least one copy ran.
    pub copying: Nanos,
    /// The part of it in which at least one kernel ran.
    pub hidden: Nanos,
}

impl Trace {
    /// End of the last span.
    pub fn makespan(&self) -> Nanos {
        self.spans.iter().map(|s| s.end).max().unwrap_or_default()
    }

    /// Time a stream spent in kernels and copies.
    pub fn busy(&self, stream: StreamId) -> Nanos {
        let work = self.spans.iter().filter(|s| s.stream == stream && s.kind != SpanKind::Wait);
        work.map(Span::duration).sum()
    }

    /// Time a stream had nothing to run between the start of the step and its last span.
    pub fn stall(&self, stream: StreamId) -> Nanos {
        let end = self.spans.iter().filter(|s| s.stream == stream).map(|s| s.end).max();
        end.unwrap_or_default().saturating_sub(self.busy(stream))
    }

    /// Bytes a stream copied.
    pub fn copied(&self, stream: StreamId) -> Bytes {
        self.spans.iter().filter(|s| s.stream == stream).map(|s| s.bytes).sum()
    }

    /// Time in which at least one copy ran, and how much of it at least one kernel ran too.
    pub fn overlap(&self) -> Overlap {
        let covered = |kind| {
            let mut spans: Vec<(Nanos, Nanos)> =
                self.spans.iter().filter(|s| s.kind == kind).map(|s| (s.start, s.end)).collect();
            spans.sort();
            let mut union: Vec<(Nanos, Nanos)> = Vec::new();
            for (start, end) in spans {
                match union.last_mut() {
                    Some(last) if start <= last.1 => last.1 = last.1.max(end),
                    _ => union.push((start, end)),
                }
            }
            union
        };
        let (copies, kernels) = (covered(SpanKind::Copy), covered(SpanKind::Kernel));
        let mut hidden = Nanos::ZERO;
        let mut at = 0;
        for &(start, end) in &copies {
            while kernels.get(at).is_some_and(|k| k.1 <= start) {
                at += 1;
            }
            for &(from, to) in kernels[at..].iter().take_while(|k| k.0 < end) {
                hidden = hidden.saturating_add(end.min(to).saturating_sub(start.max(from)));
            }
        }
        Overlap { copying: copies.iter().map(|c| c.1.saturating_sub(c.0)).sum(), hidden }
    }

    /// The trace in the Chrome trace event format, which Perfetto loads: one process for
    /// the device, one thread per stream, a counter for the live bytes of each arena.
    pub fn to_chrome_json(&self) -> String {
        let mut out = String::from("{\"displayTimeUnit\":\"ns\",\"traceEvents\":[\n");
        out.push_str("{\"ph\":\"M\",\"pid\":0,\"name\":\"process_name\",\"args\":{\"name\":\"device\"}}");
        let mut streams: Vec<StreamId> = self.spans.iter().map(|s| s.stream).collect();
        streams.sort();
        streams.dedup();
        for stream in streams {
            let works = |kind| self.spans.iter().any(|s| s.stream == stream && s.kind == kind);
            let kind = if works(SpanKind::Kernel) {
                "compute"
            } else if works(SpanKind::Copy) {
                "copies"
            } else {
                "idle"
            };
            let id = stream.0;
            let _ = write!(
                out,
                ",\n{{\"ph\":\"M\",\"pid\":0,\"tid\":{id},\"name\":\"thread_name\",\"args\":{{\"name\":\"{stream} {kind}\"}}}}"
            );
        }
        for s in &self.spans {
            let _ = write!(
                out,
                ",\n{{\"ph\":\"X\",\"pid\":0,\"tid\":{},\"ts\":{},\"dur\":{},\"cat\":\"{}\",\"name\":\"{}\",\"args\":{{\"cmd\":\"{}\",\"bytes\":{}}}}}",
                s.stream.0,
                micros(s.start),
                micros(s.duration()),
                s.kind.category(),
                escape(&s.name),
                s.cmd,
                s.bytes.0,
            );
        }
        for (t, device, host) in &self.memory {
            let ts = micros(*t);
            for (arena, bytes) in [("device", device), ("host", host)] {
                let _ = write!(
                    out,
                    ",\n{{\"ph\":\"C\",\"pid\":0,\"ts\":{ts},\"name\":\"live bytes ({arena})\",\"args\":{{\"bytes\":{}}}}}",
                    bytes.0
                );
            }
        }
        out.push_str("\n]}\n");
        out
    }
}

/// A command's name in timelines.
pub(crate) fn command_name(plan: &Plan, command: &Command) -> String {
    match command {
        Command::Launch { name, .. } => name.clone(),
        Command::Copy { src, dst, .. } => {
            let verb = if plan.buffers[*dst].space == Space::Host { "offload" } else { "prefetch" };
            format!("{verb} {}", plan.buffers[*src].name)
        }
        Command::Wait { event, .. } => format!("wait {event}"),
        Command::Free { buf, .. } => format!("free {buf}"),
        Command::Record { event, .. } => format!("record {event}"),
    }
}

/// Microseconds with three decimals, the format's unit, without rounding.
fn micros(t: Nanos) -> String {
    format!("{}.{:03}", t.0 / 1000, t.0 % 1000)
}

/// The inside of a JSON string.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(stream: u32, cmd: u32, kind: SpanKind, start: u64, end: u64) -> Span {
        let bytes = if kind == SpanKind::Copy { Bytes(7) } else { Bytes::ZERO };
        Span {
            stream: StreamId(stream),
            cmd: CmdId(cmd),
            name: "a \"b\"\n\\".into(),
            kind,
            start: Nanos(start),
            end: Nanos(end),
            bytes,
        }
    }

    fn sample() -> Trace {
        Trace {
            spans: vec![
                span(0, 0, SpanKind::Kernel, 0, 10),
                span(1, 1, SpanKind::Copy, 5, 2_005),
                span(0, 2, SpanKind::Wait, 10, 2_005),
                span(0, 3, SpanKind::Kernel, 2_005, 2_010),
            ],
            memory: vec![(Nanos(0), Bytes(1), Bytes(0)), (Nanos(5), Bytes(1), Bytes(9))],
        }
    }

    #[test]
    fn statistics_count_work_and_idleness() {
        let t = sample();
        assert_eq!(t.makespan(), Nanos(2_010));
        assert_eq!(t.busy(StreamId(0)), Nanos(15));
        assert_eq!(t.stall(StreamId(0)), Nanos(1_995));
        assert_eq!(t.stall(StreamId(1)), Nanos(5));
        assert_eq!(t.copied(StreamId(1)), Bytes(7));
        assert_eq!(Trace::default().makespan(), Nanos::ZERO);
        assert_eq!(t.stall(StreamId(9)), Nanos::ZERO);
    }

    #[test]
    fn overlap_counts_each_moment_once() {
        let t = sample();
        assert_eq!(t.overlap(), Overlap { copying: Nanos(2_000), hidden: Nanos(5) });
        let spans = vec![
            span(0, 0, SpanKind::Kernel, 0, 10),
            span(0, 1, SpanKind::Kernel, 20, 30),
            span(1, 2, SpanKind::Copy, 5, 25),
            span(2, 3, SpanKind::Copy, 8, 22),
            span(1, 4, SpanKind::Copy, 28, 40),
        ];
        let t = Trace { spans, memory: Vec::new() };
        assert_eq!(t.overlap(), Overlap { copying: Nanos(32), hidden: Nanos(12) });
        assert_eq!(Trace::default().overlap(), Overlap::default());
    }

    #[test]
    fn chrome_json_has_one_event_per_span_and_is_escaped() {
        let json = sample().to_chrome_json();
        assert_eq!(json.matches("\"ph\":\"X\"").count(), 4);
        assert_eq!(json.matches("\"ph\":\"C\"").count(), 4);
        assert_eq!(json.matches("thread_name").count(), 2);
        assert!(json.contains("\"ts\":0.005,\"dur\":2.000,\"cat\":\"copy\""));
        assert!(json.contains(r#""name":"a \"b\"\u000a\\""#));
        let (open, close) = (json.matches('{').count(), json.matches('}').count());
        assert_eq!(open, close);
    }
}
