//! Part 5 of the statement: symbolic execution in issue order.

use super::error::{Found, PlanError, Site};
use super::ranges::RangeMap;
use super::report::Report;
use crate::plan::{BufId, CmdId, Command, CopyForm, Plan};
use crate::rows::rows_in_place;
use crate::sig::Sig;
use smallvec::SmallVec;
use std::collections::HashMap;
use vdnn_ir::id::EntityId;
use vdnn_ir::{Bytes, Op, Space, TensorType};

/// What a byte range holds.
#[derive(Clone)]
enum State {
    /// Bytes of values: the one that was written first, then those that slices and concats in
    /// place have made of it and its neighbours.
    Values(SmallVec<[Value; 1]>),
    /// Undefined.
    Undefined(Found),
}

impl Default for State {
    fn default() -> Self {
        Self::Undefined(Found::Nothing)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Value {
    /// `None` if an operand was bad: reported there, not again here.
    term: Option<Sig>,
    /// The range it was written to, or found in.
    start: u64,
    end: u64,
    /// `None`: the host, before the step.
    by: Option<CmdId>,
}

struct Memory<'a> {
    plan: &'a Plan,
    device: RangeMap<State>,
    host: RangeMap<State>,
}

impl Memory<'_> {
    fn arena(&mut self, space: Space) -> &mut RangeMap<State> {
        match space {
            Space::Device => &mut self.device,
            Space::Host => &mut self.host,
        }
    }

    fn write(&mut self, buf: BufId, term: Option<Sig>, by: Option<CmdId>) {
        let site = Site::of(self.plan, buf);
        let (start, end) = (site.start.0, site.end.0);
        let values = smallvec::smallvec![Value { term, start, end, by }];
        self.arena(site.space).set(start, end, State::Values(values));
    }

    /// Adds a value to those of a buffer's bytes, after `written` was written as part of it. The
    /// other values stay, but for one of exactly these bytes: readers could not tell the two.
    fn name(&mut self, buf: BufId, written: impl Iterator<Item = Site>, term: Option<Sig>, by: CmdId) {
        let site = Site::of(self.plan, buf);
        let (start, end) = (site.start.0, site.end.0);
        let arena = self.arena(site.space);
        for part in written {
            arena.set(part.start.0, part.end.0, State::Values(SmallVec::new()));
        }
        arena.update(start, end, |state| {
            if let State::Values(values) = state {
                values.retain(|v| (v.start, v.end) != (start, end));
                values.push(Value { term, start, end, by: Some(by) });
            }
        });
    }

    fn forget(&mut self, buf: BufId, why: Found) {
        let site = Site::of(self.plan, buf);
        self.arena(site.space).set(site.start.0, site.end.0, State::Undefined(why));
    }

    /// The one whole value in a buffer.
    fn read(&self, buf: BufId) -> Result<Value, Found> {
        let site = Site::of(self.plan, buf);
        let (start, end) = (site.start.0, site.end.0);
        let arena = match site.space {
            Space::Device => &self.device,
            Space::Host => &self.host,
        };
        let mut at = start;
        let mut whole: Option<Value> = None;
        let mut broken = false;
        let mut partial: Option<Value> = None;
        for (s, e, state) in arena.over(start, end) {
            if s > at {
                return Err(Found::Nothing);
            }
            match state {
                State::Undefined(found) => return Err(*found),
                State::Values(values) => {
                    let v = values.iter().find(|v| (v.start, v.end) == (start, end)).copied();
                    broken |= v.is_none() || (at > start && v != whole);
                    whole = v;
                    // The latest writer is the likely culprit.
                    if let Some(v) = values.first() {
                        partial = Some(partial.map_or(*v, |p| if v.by > p.by { *v } else { p }));
                    }
                }
            }
            at = e;
        }
        if at < end {
            return Err(Found::Nothing);
        }
        match (whole.filter(|_| !broken), partial) {
            (Some(v), _) => Ok(v),
            (None, Some(v)) if (v.start, v.end) == (start, end) || start < v.start || v.end < end => {
                Err(Found::Overwritten(v.by))
            }
            (None, Some(v)) => Err(Found::PartOf { start: Bytes(v.start), end: Bytes(v.end), by: v.by }),
            (None, None) => Err(Found::Nothing),
        }
    }
}

pub(super) fn check(plan: &Plan, report: &mut Report) {
    let mut memory = Memory { plan, device: RangeMap::default(), host: RangeMap::default() };
    for input in &plan.inputs {
        memory.write(input.buf, Some(Sig::input(&input.name)), None);
    }
    for param in &plan.params {
        memory.write(param.buf, Some(Sig::param(&param.name)), None);
    }
    // What packed forms are of.
    let mut packed: HashMap<Sig, Sig> = HashMap::new();
    // One text per distinct op: printing dominates otherwise.
    let mut texts: HashMap<&Op, String> = HashMap::new();
    for (i, command) in plan.commands.iter().enumerate() {
        let at = CmdId::from_index(i);
        let mut read = |memory: &Memory<'_>, buf| match memory.read(buf) {
            Ok(value) => value.term,
            Err(found) => {
                report.push(PlanError::BadRead { at, site: Site::of(plan, buf), found });
                None
            }
        };
        match command {
            Command::Launch { op, inputs, outputs, workspace, .. } => {
                let terms: SmallVec<[Option<Sig>; 4]> = inputs.iter().map(|&b| read(&memory, b)).collect();
                if let Some(ws) = workspace {
                    memory.forget(*ws, Found::Scratch(at));
                }
                let operands: Option<SmallVec<[(Sig, &TensorType); 4]>> = terms
                    .iter()
                    .zip(inputs)
                    .map(|(term, &b)| Some(((*term)?, &plan.buffers[b].ty)))
                    .collect();
                let in_place = rows_in_place(plan, op, inputs, outputs).filter(|_| operands.is_some());
                for (o, &buf) in outputs.iter().enumerate() {
                    let term = match &operands {
                        None => None,
                        // A reshape that was not elided copies its operand.
                        Some(all) if op.views().contains(&(o, 0)) => Some(all[0].0),
                        Some(all) => {
                            let text = texts.entry(op).or_insert_with(|| op.to_string());
                            Some(Sig::apply_text(text, all, o))
                        }
                    };
                    match &in_place {
                        Some(moves) => {
                            let parts = moves.iter().map(|m| Site::of(plan, buf).part(m.at, m.len));
                            memory.name(buf, parts, term, at);
                        }
                        None => memory.write(buf, term, Some(at)),
                    }
                }
            }
            Command::Copy { form, src, dst, .. } => {
                let term = read(&memory, *src);
                let term = match form {
                    CopyForm::Plain => term,
                    CopyForm::Pack => term.map(|plain| {
                        let form = plain.packed(plan.buffers[*src].ty.dtype);
                        packed.insert(form, plain);
                        form
                    }),
                    CopyForm::Unpack => term.and_then(|form| {
                        let dtype = plan.buffers[*dst].ty.dtype;
                        let plain = packed.get(&form).copied().filter(|p| p.packed(dtype) == form);
                        if plain.is_none() {
                            report.push(PlanError::NotPacked { at, site: Site::of(plan, *src) });
                        }
                        plain
                    }),
                };
                memory.write(*dst, term, Some(at));
            }
            Command::Free { buf, .. } => memory.forget(*buf, Found::Freed(at)),
            Command::Record { .. } | Command::Wait { .. } => {}
        }
    }
    let outputs = plan.outputs.iter().map(|o| ("output", &o.name, o.buf, o.expect));
    let params = plan.params.iter().map(|p| ("parameter", &p.name, p.buf, p.expect));
    for (what, name, buf, expected) in outputs.chain(params) {
        let site = Site::of(plan, buf);
        match memory.read(buf) {
            Err(found) => report.push(PlanError::BadResult { what, name: name.clone(), site, found }),
            Ok(Value { term: Some(found), by, .. }) if found != expected => {
                report.push(PlanError::WrongResult { what, name: name.clone(), site, expected, found, by });
            }
            Ok(_) => {}
        }
    }
}
