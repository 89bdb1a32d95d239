//! Slices and concats of rows that move nothing: a sound plan and what must not pass.

use super::{Found, PlanError, check};
use crate::parse::parse_plan;
use crate::plan::{BufId, CmdId, Command, CopyForm, EventId, Plan, StreamId};
use crate::rows::rows_in_place;
use crate::sig::Sig;
use vdnn_ir::op::{BinaryKind, SliceAttrs, UnaryKind};
use vdnn_ir::{Bytes, Op, TensorType};

/// `r0 = relu(x[0..2]); r1 = -x[2..4]; z = concat(r0, r1) + x; w = exp(r0)`, with the slices in
/// `x`, the operands of the concat in its result, and `r0` on its way to the host meanwhile.
fn sound() -> Plan {
    let (all, half) = (TensorType::f32([4, 64]), TensorType::f32([2, 64]));
    let apply = |op: Op, operands: &[(Sig, &TensorType)]| Sig::apply(&op, operands, 0);
    let x = Sig::input("x");
    let slice = |first: u64| {
        let (starts, lens) = ([first, 0].into_iter().collect(), [2, 64].into_iter().collect());
        apply(Op::Slice(SliceAttrs { starts, steps: [1, 1].into_iter().collect(), lens }), &[(x, &all)])
    };
    let r0 = apply(Op::Unary(UnaryKind::Relu), &[(slice(0), &half)]);
    let r1 = apply(Op::Unary(UnaryKind::Neg), &[(slice(2), &half)]);
    let y = apply(Op::Concat { axis: 0 }, &[(r0, &half), (r1, &half)]);
    let z = apply(Op::Binary(BinaryKind::Add), &[(y, &all), (x, &all)]);
    let w = apply(Op::Unary(UnaryKind::Exp), &[(r0, &half)]);
    let text = format!(
        r#"vplan 1
model "rows"
mode infer
batch 4
policy "none"
algo "memory"
device "cpu"
predicted step=0 compute=0 stall=0 lower_bound=0
arena device 8192
arena host 1024
stream s0 compute
stream s1 d2h
events 1
buffer b0 device 0 f32[4,64] "x"
buffer b1 device 0 f32[2,64] "s0"
buffer b2 device 512 f32[2,64] "s1"
buffer b3 device 1024 f32[2,64] "r0"
buffer b4 device 1536 f32[2,64] "r1"
buffer b5 device 1024 f32[4,64] "y"
buffer b6 device 2048 f32[4,64] "z"
buffer b7 device 3072 f32[2,64] "w"
buffer b8 host 0 f32[2,64] "r0.host"
input "x" b0
output "z" b6 expect={z}
output "w" b7 expect={w}
c0 s0 launch n0 slice(starts:[0,0],steps:[1,1],lens:[2,64]) forward (b0) -> (b1) "s0"
c1 s0 launch n1 slice(starts:[2,0],steps:[1,1],lens:[2,64]) forward (b0) -> (b2) "s1"
c2 s0 launch n2 unary(relu) forward (b1) -> (b3) "r0"
c3 s0 record e0
c4 s1 wait e0
c5 s1 copy b3 -> b8
c6 s0 launch n3 unary(neg) forward (b2) -> (b4) "r1"
c7 s0 launch n4 concat(axis:0) forward (b3, b4) -> (b5) "y"
c8 s0 launch n5 binary(add) forward (b5, b0) -> (b6) "z"
c9 s0 launch n6 unary(exp) forward (b3) -> (b7) "w"
"#
    );
    parse_plan(&text).expect("the test plan parses")
}

fn moved(plan: &Plan, at: usize) -> Option<Vec<usize>> {
    let Command::Launch { op, inputs, outputs, .. } = &plan.commands[at] else { panic!("c{at} is a launch") };
    Some(rows_in_place(plan, op, inputs, outputs)?.iter().map(|m| m.operand).collect())
}

fn errors(change: impl FnOnce(&mut Plan)) -> Vec<PlanError> {
    let mut plan = sound();
    change(&mut plan);
    check(&plan).expect_err("the changed plan is not sound").errors
}

macro_rules! rejects {
    ($change:expr, $pattern:pat $(if $guard:expr)?) => {
        let found = errors($change);
        assert!(found.iter().any(|e| matches!(e, $pattern $(if $guard)?)), "found only {found:#?}");
    };
}

/// A relu that overwrites a buffer, before command `at`.
fn overwrite(at: usize, buf: u32) -> impl FnOnce(&mut Plan) {
    move |p| {
        let mut relu = p.commands[2].clone();
        if let Command::Launch { inputs, outputs, .. } = &mut relu {
            inputs[0] = BufId(buf);
            outputs[0] = BufId(buf);
        }
        p.commands.insert(at, relu);
    }
}

#[test]
fn rows_in_place_are_sound_and_move_nothing() {
    let plan = sound();
    check(&plan).unwrap_or_else(|e| panic!("{e}"));
    for at in [0, 1, 7] {
        assert_eq!(moved(&plan, at), Some(vec![]), "c{at}");
    }
}

#[test]
fn an_operand_elsewhere_is_moved_and_so_is_all_that_lies_nowhere_near() {
    let mut plan = sound();
    plan.buffers[BufId(4)].offset = Bytes(4096);
    check(&plan).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(moved(&plan, 7), Some(vec![1]));
    plan.buffers[BufId(5)].offset = Bytes(5120);
    plan.buffers[BufId(2)].offset = Bytes(6144);
    check(&plan).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!((moved(&plan, 7), moved(&plan, 1)), (None, None));
}

#[test]
fn rows_lie_exactly_in_their_place() {
    let shift = |b: u32, to: u64| move |p: &mut Plan| p.buffers[BufId(b)].offset = Bytes(to);
    rejects!(shift(2, 256), PlanError::LaunchOverlap { at: CmdId(1), .. });
    rejects!(shift(2, 0), PlanError::LaunchOverlap { at: CmdId(1), .. });
    rejects!(shift(5, 1280), PlanError::LaunchOverlap { at: CmdId(7), .. });
    // Both operands in the place of the first.
    rejects!(shift(4, 1024), PlanError::LaunchOverlap { at: CmdId(7), .. });
    // Operands that overlap each other.
    rejects!(shift(4, 1280), PlanError::LaunchOverlap { at: CmdId(7), .. });
    // Exchanged.
    rejects!(
        |p| if let Command::Launch { inputs, .. } = &mut p.commands[7] {
            inputs.swap(0, 1);
        },
        PlanError::LaunchOverlap { at: CmdId(7), .. }
    );
    // One operand twice: its second copy would be moved within the result.
    rejects!(
        |p| if let Command::Launch { inputs, .. } = &mut p.commands[7] {
            inputs[1] = BufId(3);
        },
        PlanError::LaunchOverlap { at: CmdId(7), .. }
    );
}

#[test]
fn shared_rows_are_not_overwritten_while_they_are_read() {
    // A slice, and with it the input that is read later.
    rejects!(
        overwrite(2, 1),
        PlanError::BadRead { at: CmdId(9), found: Found::Overwritten(Some(CmdId(2))), .. }
    );
    // The input before its slice is read: the slice is gone, whatever it was.
    rejects!(overwrite(2, 0), PlanError::BadRead { at: CmdId(3), found: Found::PartOf { .. }, .. });
    // An operand before the concat, which is then another one.
    rejects!(overwrite(7, 4), PlanError::WrongResult { what: "output", .. });
    // An operand before the reader of the concat.
    rejects!(
        overwrite(8, 4),
        PlanError::BadRead { at: CmdId(9), found: Found::Overwritten(Some(CmdId(8))), .. }
    );
    // The result before the reader of the operand.
    rejects!(overwrite(9, 5), PlanError::BadRead { at: CmdId(10), found: Found::PartOf { .. }, .. });
    // An operand that is copied to the host.
    rejects!(overwrite(8, 3), PlanError::Race { first: CmdId(5), second: CmdId(8), .. });
    // Released as part of the whole.
    rejects!(
        |p| p.commands.insert(8, Command::Free { stream: StreamId(0), buf: BufId(4) }),
        PlanError::BadRead { at: CmdId(9), found: Found::Freed(CmdId(8)), .. }
    );
    rejects!(
        |p| p.commands.insert(2, Command::Free { stream: StreamId(0), buf: BufId(0) }),
        PlanError::BadRead { at: CmdId(3), found: Found::Freed(CmdId(2)), .. }
    );
}

#[test]
fn what_is_not_launched_is_not_there() {
    let drop = |at: usize| move |p: &mut Plan| drop(p.commands.remove(at));
    rejects!(drop(0), PlanError::BadRead { at: CmdId(1), found: Found::PartOf { .. }, .. });
    rejects!(drop(7), PlanError::BadRead { at: CmdId(7), .. });
    rejects!(drop(6), PlanError::BadRead { at: CmdId(6), found: Found::Nothing, .. });
}

#[test]
fn what_is_moved_beside_rows_in_place_is_a_write() {
    // `r1` is elsewhere and moved into the result while a copy still fills its place.
    let plan = |waits: bool| {
        let mut plan = sound();
        plan.buffers[BufId(4)].offset = Bytes(4096);
        // c5 reads the place of `r1`, as another value that lies there before.
        let old = plan.buffers.push(plan.buffers[BufId(4)].clone());
        plan.buffers[old].offset = Bytes(1536);
        let mut write = plan.commands[2].clone();
        if let Command::Launch { outputs, .. } = &mut write {
            outputs[0] = old;
        }
        plan.commands[5] =
            Command::Copy { stream: StreamId(1), form: CopyForm::Plain, src: old, dst: BufId(8) };
        plan.commands.insert(3, write);
        plan.n_events = 2;
        if waits {
            let event = EventId(1);
            plan.commands.insert(7, Command::Record { stream: StreamId(1), event });
            plan.commands.insert(8, Command::Wait { stream: StreamId(0), event });
        }
        plan
    };
    check(&plan(true)).unwrap_or_else(|e| panic!("{e}"));
    let found = check(&plan(false)).expect_err("a race").errors;
    assert!(matches!(found[..], [PlanError::Race { first: CmdId(6), second: CmdId(8), .. }]), "{found:#?}");
}
