//! Reads the text form. Hostile text gives an error, never a panic, and memory use is
//! proportional to the text.

use crate::cursor::{self, Cursor, Fail};
use crate::names;
use crate::plan::{
    Arena, Binding, BufId, Buffer, Command, EngineOrigin, EventId, FORMAT_VERSION, Header, ModelRef, Output,
    Param, ParamSource, Plan, Predicted, SetupId, SetupLoad, SetupOp, StreamId,
};
use crate::sig::Sig;
use smallvec::SmallVec;
use std::collections::HashMap;
use vdnn_ir::id::PrimaryMap;
use vdnn_ir::{Bytes, ConvSchedule, Mode, Nanos, NodeId, Op, Precision, Space, TensorType};

/// Where and why a text is not a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What was expected.
    pub message: String,
}

/// Reads a plan. The result is well-formed text, not yet a sound plan: see [`crate::check()`].
///
/// # Errors
/// The first line that does not parse, or the line of a missing or repeated header item.
pub fn parse_plan(text: &str) -> Result<Plan, ParseError> {
    let mut parser = Parser::default();
    let mut count = 0;
    for (i, line) in text.lines().enumerate() {
        count = i + 1;
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        parser.line(line).map_err(|(at, message)| ParseError {
            line: count,
            column: line.get(..at).map_or(1, |before| before.chars().count() + 1),
            message,
        })?;
    }
    parser.finish().map_err(|message| ParseError { line: count.max(1), column: 1, message })
}

/// Items of the header, each of which occurs once.
#[derive(Default)]
struct Parser<'a> {
    version: Option<u32>,
    model_name: Option<String>,
    mode: Option<Mode>,
    batch: Option<u64>,
    policy: Option<String>,
    algo: Option<String>,
    device_name: Option<(String, Precision)>,
    engines: Option<EngineOrigin>,
    model: Option<ModelRef>,
    options: Option<Vec<String>>,
    predicted: Option<Predicted>,
    device: Option<Arena>,
    host: Option<Arena>,
    n_events: Option<u32>,
    streams: Vec<crate::plan::StreamKind>,
    buffers: PrimaryMap<BufId, Buffer>,
    inputs: Vec<Binding>,
    outputs: Vec<Output>,
    params: Vec<Param>,
    setup_loads: Vec<SetupLoad>,
    setup: Vec<SetupOp>,
    commands: Vec<Command>,
    /// Ops read so far by text: a network repeats few distinct ones.
    ops: HashMap<&'a str, Op>,
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Fail> {
    if slot.replace(value).is_some() { Err((0, "this item occurs twice".into())) } else { Ok(()) }
}

/// `key=number`.
fn number(c: &mut Cursor<'_>, key: &str) -> Result<u64, Fail> {
    c.expect(key)?;
    c.expect("=")?;
    c.parse("a number")
}

fn buf(c: &mut Cursor<'_>) -> Result<BufId, Fail> {
    c.id("b").map(BufId)
}

fn sig(c: &mut Cursor<'_>) -> Result<Sig, Fail> {
    c.expect("expect=")?;
    c.parse("a term of 32 hex digits")
}

fn source(c: &mut Cursor<'_>) -> Result<ParamSource, Fail> {
    if c.eat("inline=") {
        return c.hex().map(ParamSource::Inline);
    }
    c.map("a source", |w| match w {
        "initializer" => Some(ParamSource::Initializer),
        "zero" => Some(ParamSource::Zero),
        _ => cursor::id(w, "u").map(|i| ParamSource::Setup(SetupId(i))),
    })
}

/// An engine's text has `=` inside, where a word would end.
fn algo(c: &mut Cursor<'_>) -> Result<ConvSchedule, Fail> {
    let mut text = c.word()?.to_owned();
    let at = c.at();
    while c.eat("=") {
        text.push('=');
        text.push_str(c.word()?);
    }
    text.parse().map_err(|e| (at, e))
}

fn ty(c: &mut Cursor<'_>) -> Result<TensorType, Fail> {
    // A type has commas inside its brackets, where a word would end.
    let mut text = c.word()?.to_owned();
    let at = c.at();
    while text.contains('[') && !text.contains(']') {
        c.expect(",")?;
        text.push(',');
        text.push_str(c.word()?);
    }
    text.parse().map_err(|e| (at, e))
}

impl<'a> Parser<'a> {
    fn line(&mut self, line: &'a str) -> Result<(), Fail> {
        let c = &mut Cursor::new(line);
        let item = c.word()?;
        if self.version.is_none() && item != "vplan" {
            return Err((0, "a plan starts with `vplan 1`".into()));
        }
        match item {
            "vplan" => {
                let version = c.parse("a version")?;
                if version != FORMAT_VERSION {
                    return c.fail(format!("version {version} is not supported, only {FORMAT_VERSION}"));
                }
                once(&mut self.version, version)?;
            }
            "model" => once(&mut self.model_name, c.quoted()?)?,
            "mode" => once(&mut self.mode, c.parse("a mode")?)?,
            "batch" => once(&mut self.batch, c.parse("a number")?)?,
            "policy" => once(&mut self.policy, c.quoted()?)?,
            "algo" => once(&mut self.algo, c.quoted()?)?,
            "device" => {
                let name = c.quoted()?;
                let precision = if c.eat("precision=") { c.parse("a precision")? } else { Precision::F32 };
                once(&mut self.device_name, (name, precision))?;
            }
            "engines" => {
                let device = c.quoted()?;
                c.expect("cudnn=")?;
                once(&mut self.engines, EngineOrigin { device, cudnn: c.quoted()? })?;
            }
            "weights" => {
                let path = c.quoted()?;
                c.expect("sha256=")?;
                let Ok(sha256) = c.hex()?.try_into() else {
                    return c.fail("expected 64 hexadecimal digits");
                };
                once(&mut self.model, ModelRef { path, sha256 })?;
            }
            "options" => {
                let mut options = vec![c.quoted()?];
                while !c.is_at_end() {
                    options.push(c.quoted()?);
                }
                once(&mut self.options, options)?;
            }
            "predicted" => {
                let step = Nanos(number(c, "step")?);
                let compute = Nanos(number(c, "compute")?);
                let stall = Nanos(number(c, "stall")?);
                let lower_bound = Bytes(number(c, "lower_bound")?);
                once(&mut self.predicted, Predicted { step, compute, stall, lower_bound })?;
            }
            "arena" => {
                let space = c.map("an arena", names::space_from)?;
                let bytes = Bytes(c.parse("a size in bytes")?);
                let budget = c.eat("budget=").then(|| c.parse("a size in bytes").map(Bytes)).transpose()?;
                let slot = match space {
                    Space::Device => &mut self.device,
                    Space::Host => &mut self.host,
                };
                once(slot, Arena { bytes, budget })?;
            }
            "events" => once(&mut self.n_events, c.parse("a number")?)?,
            "stream" => {
                self.next(c, "s", self.streams.len())?;
                self.streams.push(c.map("a stream kind", names::stream_kind_from)?);
            }
            "buffer" => {
                self.next(c, "b", self.buffers.len())?;
                let space = c.map("an arena", names::space_from)?;
                let offset = Bytes(c.parse("an offset in bytes")?);
                let ty = ty(c)?;
                self.buffers.push(Buffer { space, offset, ty, name: c.quoted()? });
            }
            "input" => self.inputs.push(Binding { name: c.quoted()?, buf: buf(c)? }),
            "output" => self.outputs.push(Output { name: c.quoted()?, buf: buf(c)?, expect: sig(c)? }),
            "param" => self.params.push(Param {
                name: c.quoted()?,
                buf: buf(c)?,
                role: c.map("a role", names::role_from)?,
                source: source(c)?,
                expect: sig(c)?,
            }),
            "load" => self.setup_loads.push(SetupLoad {
                id: SetupId(c.id("u")?),
                ty: ty(c)?,
                source: source(c)?,
                name: c.quoted()?,
            }),
            "setup" => {
                let op = self.op(c)?;
                let mut inputs = SmallVec::new();
                c.list(|c| c.id("u").map(SetupId), |id| inputs.push(id))?;
                c.expect("->")?;
                let mut outputs = SmallVec::new();
                c.list(setup_output, |o| outputs.push(o))?;
                self.setup.push(SetupOp { op, inputs, outputs });
            }
            word if word.starts_with('c') && cursor::id(word, "c").is_some() => {
                if cursor::id(word, "c").map(|i| i as usize) != Some(self.commands.len()) {
                    return Err((0, format!("expected c{}: ids count up from 0", self.commands.len())));
                }
                let command = self.command(c)?;
                self.commands.push(command);
            }
            _ => return Err((0, format!("`{}` starts no item of a plan", item.escape_debug()))),
        }
        c.end()
    }

    /// The id of a new item, which must be the next in order.
    fn next(&self, c: &mut Cursor<'_>, prefix: &str, n: usize) -> Result<(), Fail> {
        if c.id(prefix)? as usize == n {
            Ok(())
        } else {
            c.fail(format!("expected {prefix}{n}: ids count up from 0"))
        }
    }

    fn op(&mut self, c: &mut Cursor<'a>) -> Result<Op, Fail> {
        let text = c.op_text()?;
        if let Some(op) = self.ops.get(text) {
            return Ok(op.clone());
        }
        let op: Op = text.parse().map_err(|e| (c.at() - text.len(), e))?;
        self.ops.insert(text, op.clone());
        Ok(op)
    }

    fn command(&mut self, c: &mut Cursor<'a>) -> Result<Command, Fail> {
        let stream = StreamId(c.id("s")?);
        match c.word()? {
            "launch" => {
                let node = NodeId(c.id("n")?);
                let op = self.op(c)?;
                let algo = c.eat("algo=").then(|| algo(c)).transpose()?;
                let stage = c.map("a stage", names::stage_from)?;
                let mut inputs = SmallVec::new();
                c.list(buf, |b| inputs.push(b))?;
                c.expect("->")?;
                let mut outputs = SmallVec::new();
                c.list(buf, |b| outputs.push(b))?;
                let workspace = c.eat("ws=").then(|| buf(c)).transpose()?;
                let name = c.quoted()?;
                Ok(Command::Launch { stream, op, inputs, outputs, workspace, algo, stage, node, name })
            }
            word @ ("copy" | "pack" | "unpack") => {
                let form = names::copy_form_from(word).unwrap_or_default();
                let src = buf(c)?;
                c.expect("->")?;
                Ok(Command::Copy { stream, form, src, dst: buf(c)? })
            }
            "free" => Ok(Command::Free { stream, buf: buf(c)? }),
            "record" => Ok(Command::Record { stream, event: EventId(c.id("e")?) }),
            "wait" => Ok(Command::Wait { stream, event: EventId(c.id("e")?) }),
            _ => c.fail("expected launch, copy, pack, unpack, free, record or wait"),
        }
    }

    fn finish(self) -> Result<Plan, String> {
        fn need<T>(slot: Option<T>, item: &str) -> Result<T, String> {
            slot.ok_or_else(|| format!("the plan ends without `{item}`"))
        }
        need(self.version, "vplan")?;
        let (device, precision) = need(self.device_name, "device")?;
        Ok(Plan {
            header: Header {
                model_name: need(self.model_name, "model")?,
                mode: need(self.mode, "mode")?,
                batch: need(self.batch, "batch")?,
                policy: need(self.policy, "policy")?,
                algo: need(self.algo, "algo")?,
                device,
                precision,
                engines: self.engines,
                model: self.model,
                options: self.options.unwrap_or_default(),
            },
            device: need(self.device, "arena device")?,
            host: need(self.host, "arena host")?,
            streams: self.streams,
            n_events: need(self.n_events, "events")?,
            buffers: self.buffers,
            inputs: self.inputs,
            outputs: self.outputs,
            params: self.params,
            setup_loads: self.setup_loads,
            setup: self.setup,
            commands: self.commands,
            predicted: need(self.predicted, "predicted")?,
        })
    }
}

/// `u3:f32[6]`.
fn setup_output(c: &mut Cursor<'_>) -> Result<(SetupId, TensorType), Fail> {
    let at = c.at();
    let mut text = c.word()?.to_owned();
    while text.contains('[') && !text.contains(']') {
        c.expect(",")?;
        text.push(',');
        text.push_str(c.word()?);
    }
    text.split_once(':')
        .and_then(|(i, ty)| Some((SetupId(cursor::id(i, "u")?), ty.parse().ok()?)))
        .ok_or_else(|| (at, "expected an id and a type such as u3:f32[6]".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::sound;
    use crate::plan::StreamKind;

    /// A plan that uses every form of every item, with hostile names.
    fn every_form() -> Plan {
        let mut p = sound();
        p.header.model_name = "a \"b\" \\ \n\t\r\u{0}\u{2028}\u{202e} é ".into();
        p.header.engines = Some(EngineOrigin { device: "G \"1\"\n".into(), cudnn: String::new() });
        p.header.options = vec!["fuse=all".into(), "dim=a b=\"2\"\n".into(), String::new()];
        p.header.model = Some(ModelRef { path: "dir/m.onnx".into(), sha256: [0xa5; 32] });
        p.predicted.step = Nanos(u64::MAX);
        p.device.budget = None;
        p.host.budget = Some(Bytes(1 << 40));
        p.streams.push(StreamKind::Compute);
        let name = String::from("w) -> (b1) \"");
        for source in [ParamSource::Zero, ParamSource::Inline(vec![]), ParamSource::Inline(vec![0, 0xff])] {
            p.params.push(Param {
                name: name.clone(),
                buf: BufId(7),
                role: vdnn_ir::ParamRole::Momentum,
                source,
                expect: Sig([7; 16]),
            });
        }
        p.buffers[BufId(0)].ty = "i64[]".parse().unwrap();
        p.setup_loads.push(SetupLoad {
            id: SetupId(0),
            ty: "f32[1,2,3,4,5]".parse().unwrap(),
            source: ParamSource::Initializer,
            name,
        });
        p.setup.push(SetupOp {
            op: Op::Concat { axis: 0 },
            inputs: [SetupId(0), SetupId(0)].as_slice().into(),
            outputs: SmallVec::from_vec(vec![
                (SetupId(1), "f32[2,2]".parse().unwrap()),
                (SetupId(2), "u8[]".parse().unwrap()),
            ]),
        });
        p.setup.push(SetupOp { op: Op::SgdUpdate, inputs: SmallVec::new(), outputs: SmallVec::new() });
        if let Command::Launch { op, algo, name, .. } = &mut p.commands[0] {
            *op = "conv(kernel:[3,3],strides:[1,1],before:[1,1],after:[1,1],dilations:[1,1],groups:1)"
                .parse()
                .unwrap();
            *algo = Some("winograd_nonfused@3x2+fft@1".parse().expect("a division"));
            *name = "ws=b9 \"".into();
        }
        p
    }

    #[test]
    fn text_round_trips() {
        for plan in [sound(), every_form()] {
            let text = plan.to_string();
            let back = parse_plan(&text).unwrap();
            assert_eq!(back, plan);
            assert_eq!(back.to_string(), text);
        }
    }

    #[test]
    fn comments_and_blank_lines_are_skipped() {
        let text = sound().to_string().replace('\n', "\n\n# a remark\n");
        assert_eq!(parse_plan(&format!("# first\n{text}")).unwrap(), sound());
    }

    #[test]
    fn errors_name_line_and_column() {
        let text = sound().to_string();
        let fails = |from: &str, to: &str| {
            assert!(text.contains(from), "{from}");
            let e = parse_plan(&text.replacen(from, to, 1)).unwrap_err();
            (e.line, e.column, e.message)
        };
        assert_eq!(fails("vplan 1", "vplan 2").0, 1);
        assert_eq!(parse_plan("").unwrap_err().message, "the plan ends without `vplan`");
        assert_eq!(parse_plan("hello").unwrap_err().message, "a plan starts with `vplan 1`");
        assert_eq!(
            fails("mode train\n", ""),
            (42, 1, "the plan ends without `mode`".into()),
            "a missing item is reported at the end"
        );
        assert_eq!(fails("mode train", "mode train\nmode train").0, 4);
        assert_eq!(fails("mode train", "mode training"), (3, 6, "`training` is not a mode".into()));
        assert_eq!(fails("b1 device", "b01 device").1, 8);
        assert_eq!(fails("buffer b1 ", "buffer b2 ").2, "expected b1: ids count up from 0");
        assert_eq!(fails("c1 s0", "c2 s0").2, "expected c1: ids count up from 0");
        assert_eq!(fails("binary(add)", "binary(plus)").1, 17);
        assert_eq!(fails("binary(add)", "binary((add)").2, "the op's parentheses do not close");
        assert_eq!(fails("\"a\"", "\"a").2, "the string does not end");
        assert_eq!(fails("\"a\"", "\"\\u{d800}\"").2, "bad escape");
        assert_eq!(fails("c1 s0 record e0", "c1 s0 record e0 e1").2, "expected the end of the line");
    }

    /// Every truncation and every single-byte change of a text parses or fails; it never panics.
    #[test]
    fn damaged_text_never_panics() {
        let text = every_form().to_string();
        for (i, c) in text.char_indices() {
            assert!(parse_plan(&text[..i]).is_err() || text[i..].trim().is_empty() || c != 'v');
            for with in ["", "(", ")", "[", "\"", "\\", ",", "-", "9", "é", "\\u{", " "] {
                let changed = format!("{}{with}{}", &text[..i], &text[i + c.len_utf8()..]);
                let _ = parse_plan(&changed);
            }
        }
    }
}
