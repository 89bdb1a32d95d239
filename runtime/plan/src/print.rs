//! The text form of a plan: one line per item, in the order of [`Plan`]'s fields.
//!
//! ```text
//! vplan 1
//! model "lenet"
//! mode train
//! batch 64
//! policy "conv"
//! algo "performance"
//! device "h200"
//! engines "NVIDIA H200" cudnn="9.19.0"
//! weights "lenet.onnx" sha256=9f86…
//! options "fuse=auto" "recompute=off"
//! predicted step=81200 compute=80000 stall=1200 lower_bound=4096
//! arena device 8192 budget=16384
//! arena host 4096
//! stream s0 compute
//! stream s1 d2h
//! events 1
//! buffer b0 device 0 f32[64,1,28,28] "x"
//! input "x" b0
//! output "loss" b9 expect=0123…
//! param "conv1.weight" b3 trainable initializer expect=4567…
//! load u0 f32[6] initializer "bn.weight"
//! setup unary(sqrt) (u0) -> (u1:f32[6])
//! c0 s0 launch n5 conv(…) algo=fft forward (b0, b3) -> (b4) ws=b9 "conv1"
//! c1 s1 copy b4 -> b31
//! c2 s1 record e0
//! c3 s0 wait e0
//! c4 s0 free b4
//! ```
//!
//! Sizes are bytes, times nanoseconds. [`crate::parse_plan`] reads exactly this back;
//! blank lines and lines that start with `#` are ignored there.

use crate::names;
use crate::plan::{CmdId, Command, FORMAT_VERSION, Param, ParamSource, Plan};
use std::fmt;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Precision, Space};

/// A string in quotes, escaped so that it stays on its line.
pub(crate) struct Quoted<'a>(pub(crate) &'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"")?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                '\t' => f.write_str("\\t")?,
                // Control characters, line separators and direction marks would let a
                // name forge what a reader sees.
                c if c.is_control()
                    || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}') =>
                {
                    write!(f, "\\u{{{:x}}}", c as u32)?;
                }
                c => write!(f, "{c}")?,
            }
        }
        f.write_str("\"")
    }
}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

struct List<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for List<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(")?;
        for (i, x) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{x}")?;
        }
        f.write_str(")")
    }
}

struct Source<'a>(&'a ParamSource);

impl fmt::Display for Source<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ParamSource::Initializer => f.write_str("initializer"),
            ParamSource::Zero => f.write_str("zero"),
            ParamSource::Setup(id) => write!(f, "{id}"),
            ParamSource::Inline(bytes) => write!(f, "inline={}", Hex(bytes)),
        }
    }
}

impl fmt::Display for Command {
    /// The command without its id, as in the text form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.stream())?;
        match self {
            Self::Launch { op, inputs, outputs, workspace, algo, stage, node, name, .. } => {
                write!(f, "launch {node} {op}")?;
                if let Some(a) = algo {
                    write!(f, " algo={a}")?;
                }
                write!(f, " {} {} -> {}", names::stage(*stage), List(inputs), List(outputs))?;
                if let Some(ws) = workspace {
                    write!(f, " ws={ws}")?;
                }
                write!(f, " {}", Quoted(name))
            }
            Self::Copy { form, src, dst, .. } => write!(f, "{} {src} -> {dst}", names::copy_form(*form)),
            Self::Free { buf, .. } => write!(f, "free {buf}"),
            Self::Record { event, .. } => write!(f, "record {event}"),
            Self::Wait { event, .. } => write!(f, "wait {event}"),
        }
    }
}

/// The line of one command.
pub fn command_text(id: CmdId, command: &Command) -> String {
    format!("{id} {command}")
}

fn param(f: &mut fmt::Formatter<'_>, p: &Param) -> fmt::Result {
    writeln!(
        f,
        "param {} {} {} {} expect={}",
        Quoted(&p.name),
        p.buf,
        names::role(p.role),
        Source(&p.source),
        p.expect
    )
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vplan {FORMAT_VERSION}")?;
        let h = &self.header;
        writeln!(f, "model {}", Quoted(&h.model_name))?;
        writeln!(f, "mode {}", h.mode)?;
        writeln!(f, "batch {}", h.batch)?;
        writeln!(f, "policy {}", Quoted(&h.policy))?;
        writeln!(f, "algo {}", Quoted(&h.algo))?;
        write!(f, "device {}", Quoted(&h.device))?;
        match h.precision {
            Precision::F32 => writeln!(f)?,
            other => writeln!(f, " precision={other}")?,
        }
        if let Some(e) = &h.engines {
            writeln!(f, "engines {} cudnn={}", Quoted(&e.device), Quoted(&e.cudnn))?;
        }
        if let Some(m) = &h.model {
            writeln!(f, "weights {} sha256={}", Quoted(&m.path), Hex(&m.sha256))?;
        }
        if !h.options.is_empty() {
            f.write_str("options")?;
            h.options.iter().try_for_each(|option| write!(f, " {}", Quoted(option)))?;
            writeln!(f)?;
        }
        let p = &self.predicted;
        writeln!(
            f,
            "predicted step={} compute={} stall={} lower_bound={}",
            p.step.0, p.compute.0, p.stall.0, p.lower_bound.0
        )?;
        for (space, arena) in [(Space::Device, &self.device), (Space::Host, &self.host)] {
            write!(f, "arena {} {}", names::space(space), arena.bytes.0)?;
            if let Some(budget) = arena.budget {
                write!(f, " budget={}", budget.0)?;
            }
            writeln!(f)?;
        }
        for (i, kind) in self.streams.iter().enumerate() {
            writeln!(f, "stream s{i} {kind}")?;
        }
        writeln!(f, "events {}", self.n_events)?;
        for (id, b) in self.buffers.iter() {
            writeln!(f, "buffer {id} {} {} {} {}", names::space(b.space), b.offset.0, b.ty, Quoted(&b.name))?;
        }
        for b in &self.inputs {
            writeln!(f, "input {} {}", Quoted(&b.name), b.buf)?;
        }
        for o in &self.outputs {
            writeln!(f, "output {} {} expect={}", Quoted(&o.name), o.buf, o.expect)?;
        }
        self.params.iter().try_for_each(|p| param(f, p))?;
        for l in &self.setup_loads {
            writeln!(f, "load {} {} {} {}", l.id, l.ty, Source(&l.source), Quoted(&l.name))?;
        }
        for s in &self.setup {
            let outputs: Vec<String> = s.outputs.iter().map(|(id, ty)| format!("{id}:{ty}")).collect();
            writeln!(f, "setup {} {} -> {}", s.op, List(&s.inputs), List(&outputs))?;
        }
        for (i, c) in self.commands.iter().enumerate() {
            writeln!(f, "{} {c}", CmdId::from_index(i))?;
        }
        Ok(())
    }
}
