//! One sound plan and many that differ from it in one place.

use super::{Found, PlanError, PlanErrors, check};
use crate::example::sound;
use crate::parse::parse_plan;
use crate::plan::{
    Binding, BufId, CmdId, Command, CopyForm, EventId, ParamSource, Plan, SetupId, StreamId, StreamKind,
};
use crate::sig::Sig;
use vdnn_ir::op::UnaryKind;
use vdnn_ir::{Bytes, DType, Op, Space, TensorType};

fn errors(change: impl FnOnce(&mut Plan)) -> Vec<PlanError> {
    let mut plan = sound();
    change(&mut plan);
    let PlanErrors { errors, .. } = check(&plan).expect_err("the changed plan is not sound");
    errors
}

/// Asserts that one of the errors of the changed plan matches.
macro_rules! rejects {
    ($change:expr, $pattern:pat $(if $guard:expr)?) => {
        let found = errors($change);
        assert!(found.iter().any(|e| matches!(e, $pattern $(if $guard)?)), "found only {found:#?}");
    };
}

fn remove(i: usize) -> impl FnOnce(&mut Plan) {
    move |p| {
        p.commands.remove(i);
    }
}

fn operands(p: &mut Plan, i: usize) -> (&mut [BufId], &mut [BufId], &mut Option<BufId>, &mut Op) {
    match &mut p.commands[i] {
        Command::Launch { op, inputs, outputs, workspace, .. } => (inputs, outputs, workspace, op),
        _ => panic!("c{i} is a launch"),
    }
}

#[test]
fn the_sound_plan_passes() {
    let stats = check(&sound()).unwrap();
    assert_eq!((stats.commands, stats.launches, stats.copies, stats.waits), (16, 5, 2, 4));
    assert_eq!((stats.bytes_copied_d2h, stats.bytes_copied_h2d), (Bytes(256), Bytes(256)));
    assert_eq!((stats.device_peak, stats.host_peak), (Bytes(1836), Bytes(256)));
}

// ---- structure

#[test]
fn ids_must_exist() {
    rejects!(|p| operands(p, 0).0[0] = BufId(99), PlanError::Unknown { entity, .. } if entity == "b99");
    rejects!(|p| p.inputs[0].buf = BufId(99), PlanError::Unknown { entity, .. } if entity == "b99");
    rejects!(
        |p| p.commands[3] = Command::Copy { stream: StreamId(7), form: CopyForm::Plain, src: BufId(2), dst: BufId(3) },
        PlanError::Unknown { entity, .. } if entity == "s7"
    );
    rejects!(
        |p| p.commands[15] = Command::Record { stream: StreamId(0), event: EventId(4) },
        PlanError::Unknown { entity, .. } if entity == "e4"
    );
}

#[test]
fn stream_zero_is_compute() {
    rejects!(|p| p.streams.clear(), PlanError::NoComputeStream);
    rejects!(|p| p.streams[0] = StreamKind::D2h, PlanError::NoComputeStream);
    rejects!(|p| p.streams.resize(40, StreamKind::D2h), PlanError::TooManyStreams { count: 40, .. });
}

#[test]
fn names_are_unique() {
    rejects!(|p| p.outputs.push(p.outputs[0].clone()), PlanError::DuplicateName { what: "output", .. });
}

#[test]
fn events_are_recorded_once_and_before_their_waits() {
    rejects!(
        |p| p.commands[15] = Command::Record { stream: StreamId(0), event: EventId(1) },
        PlanError::RecordedTwice { event: EventId(1), first: CmdId(4), second: CmdId(15) }
    );
    rejects!(remove(1), PlanError::WaitBeforeRecord { event: EventId(0), .. });
    rejects!(|p| p.commands.swap(1, 2), PlanError::WaitBeforeRecord { at: CmdId(1), event: EventId(0) });
    rejects!(|p| p.n_events = u32::MAX, PlanError::TooManyEvents { .. });
}

#[test]
fn commands_run_on_their_kind_of_stream() {
    let on = |i: usize, s: u32| {
        move |p: &mut Plan| match &mut p.commands[i] {
            Command::Launch { stream, .. } | Command::Copy { stream, .. } => *stream = StreamId(s),
            _ => {}
        }
    };
    rejects!(on(0, 1), PlanError::WrongStream { at: CmdId(0), kind: StreamKind::D2h, .. });
    rejects!(on(3, 2), PlanError::WrongStream { at: CmdId(3), kind: StreamKind::H2d, .. });
    rejects!(on(3, 0), PlanError::WrongStream { at: CmdId(3), kind: StreamKind::Compute, .. });
}

#[test]
fn copies_join_equal_buffers_of_two_arenas() {
    rejects!(
        |p| p.commands[3] =
            Command::Copy { stream: StreamId(1), form: CopyForm::Plain, src: BufId(2), dst: BufId(7) },
        PlanError::CopyInPlace { at: CmdId(3) }
    );
    rejects!(|p| p.buffers[BufId(3)].ty = TensorType::f32([8, 8]), PlanError::CopyTypes { at: CmdId(3), .. });
}

/// The sound plan, with `a` packed on the host.
fn packed() -> Plan {
    let mut plan = sound();
    plan.buffers[BufId(3)].ty = vdnn_ir::packed::packed_type(&TensorType::f32([64]));
    plan.host.bytes = Bytes(8448);
    set_form(&mut plan, 3, CopyForm::Pack);
    set_form(&mut plan, 10, CopyForm::Unpack);
    plan
}

fn set_form(plan: &mut Plan, i: usize, to: CopyForm) {
    match &mut plan.commands[i] {
        Command::Copy { form, .. } => *form = to,
        _ => panic!("c{i} is a copy"),
    }
}

fn packed_with(change: impl FnOnce(&mut Plan)) -> Vec<PlanError> {
    let mut plan = packed();
    change(&mut plan);
    check(&plan).err().map(|e| e.errors).unwrap_or_default()
}

#[test]
fn packed_tensors_come_back_as_they_were() {
    let stats = check(&packed()).unwrap();
    assert_eq!((stats.bytes_copied_d2h, stats.bytes_copied_h2d), (Bytes(256), Bytes(256)));
    let text = packed().to_string();
    assert!(text.contains("c3 s1 pack b2 -> b3") && text.contains("c10 s2 unpack b3 -> b6"), "{text}");
    assert_eq!(parse_plan(&text).unwrap(), packed());

    // The two forms do not mix, and both have the one packed type.
    for i in [3, 10] {
        let errors = packed_with(|p| set_form(p, i, CopyForm::Plain));
        assert!(matches!(errors[..], [PlanError::CopyTypes { .. }, ..]), "{errors:?}");
    }
    let errors = packed_with(|p| p.buffers[BufId(3)].ty.dims[0] -= 1);
    assert!(errors.iter().filter(|e| matches!(e, PlanError::CopyTypes { .. })).count() == 2, "{errors:?}");
    // Packed is only what the host holds.
    let errors = packed_with(|p| set_form(p, 3, CopyForm::Unpack));
    assert!(errors.contains(&PlanError::CopyInPlace { at: CmdId(3) }), "{errors:?}");
    // What was never packed, or packed as elements of another type, does not come back.
    let errors = packed_with(|p| {
        p.commands.remove(3);
        let bytes = p.buffers[BufId(3)].clone();
        p.inputs.push(Binding { name: "z".into(), buf: p.buffers.push(bytes) });
    });
    assert!(errors.iter().any(|e| matches!(e, PlanError::NotPacked { at: CmdId(9), .. })), "{errors:?}");
    let term = Sig::input("x");
    assert_ne!(term.packed(DType::F32), term.packed(DType::BF16));
    assert_ne!(term.packed(DType::F32), term);
}

#[test]
fn launches_are_well_typed_kernels_on_device_buffers() {
    rejects!(
        |p| operands(p, 8).0[0] = BufId(3),
        PlanError::WrongSpace { buf: BufId(3), needed: Space::Device, .. }
    );
    rejects!(|p| *operands(p, 8).3 = Op::OffloadStart, PlanError::NotAKernel { at: CmdId(8), .. });
    rejects!(
        |p| *operands(p, 8).3 = Op::Reshape { dims: [4, 4].as_slice().into() },
        PlanError::IllTyped { .. }
    );
    rejects!(
        |p| *operands(p, 8).3 = Op::Reshape { dims: [8, 8].as_slice().into() },
        PlanError::OutputType { index: 0, .. }
    );
    rejects!(
        |p| if let Command::Launch { algo, .. } = &mut p.commands[8] {
            *algo = Some(vdnn_ir::graph::ConvAlgo::Fft.into());
        },
        PlanError::Algorithm { at: CmdId(8) }
    );
    rejects!(|p| *operands(p, 8).2 = Some(BufId(7)), PlanError::WorkspaceType { buf: BufId(7), .. });
}

#[test]
fn setup_program_is_well_typed() {
    let load = r#"load u0 f32[64] initializer "v""#;
    let op = "setup unary(neg) (u0) -> (u1:f32[64])";
    let with = |lines: &str, source: &str| {
        let text = sound().to_string().replace("initializer expect", &format!("{source} expect"));
        parse_plan(&text.replace("c0 s0", &format!("{lines}\nc0 s0"))).unwrap()
    };
    check(&with(&format!("{load}\n{op}"), "u1")).unwrap();
    check(&with("load u4 f32[2] inline=0000000000000000 \"\"", "initializer")).unwrap();
    let reject = |lines: &str, source: &str| check(&with(lines, source)).unwrap_err().errors;
    assert!(matches!(reject(op, "u1")[..], [PlanError::SetupUse { id: SetupId(0), .. }]));
    assert!(matches!(reject(load, "u1")[..], [PlanError::SetupUse { id: SetupId(1), .. }]));
    assert!(matches!(
        reject(&format!("{load}\n{load}"), "u0")[..],
        [PlanError::SetupRedefined { id: SetupId(0), .. }]
    ));
    let narrow = "load u0 f32[2] inline=0000000000000000 \"\"";
    assert!(matches!(reject(narrow, "u0")[..], [PlanError::Source { .. }]));
    let short = "load u0 f32[64] inline=00 \"\"";
    assert!(matches!(reject(short, "u0")[..], [PlanError::Source { .. }]));
    let wrong = format!("{load}\nsetup unary(neg) (u0) -> (u1:f32[63])");
    assert!(matches!(reject(&wrong, "u0")[..], [PlanError::OutputType { .. }]));
    rejects!(|p| p.params[0].source = ParamSource::Inline(vec![0; 4]), PlanError::Source { .. });
}

// ---- bounds

#[test]
fn buffers_are_inside_their_arena() {
    rejects!(|p| p.device.bytes = Bytes(1024), PlanError::OutOfBounds { site, .. } if site.buf == BufId(7));
    rejects!(
        |p| p.buffers[BufId(7)].offset = Bytes(u64::MAX - 255),
        PlanError::OutOfBounds { site, .. } if site.buf == BufId(7)
    );
    rejects!(|p| p.buffers[BufId(7)].offset = Bytes(1284), PlanError::Misaligned { .. });
    rejects!(|p| p.device.budget = Some(Bytes(2047)), PlanError::OverBudget { .. });
    rejects!(|p| p.buffers[BufId(9)].ty.dims[0] = u64::MAX, PlanError::OutOfBounds { .. });
    rejects!(|p| p.buffers[BufId(7)].ty.dims[0] = u64::MAX, PlanError::BadSize { buf: BufId(7), .. });
    rejects!(|p| p.buffers[BufId(9)].ty.dims[0] = 0, PlanError::BadSize { buf: BufId(9), .. });
}

#[test]
fn parameters_own_their_bytes() {
    // A buffer that reaches into the parameter.
    rejects!(
        |p| {
            p.buffers[BufId(9)].offset = Bytes(256);
            p.buffers[BufId(9)].ty.dims[0] = 100;
        },
        PlanError::ParamShared { other, .. } if other.buf == BufId(9)
    );
    rejects!(|p| p.inputs[0].buf = BufId(8), PlanError::ParamShared { .. });
    rejects!(
        |p| {
            let mut second = p.params[0].clone();
            second.name = "v".into();
            second.buf = BufId(8);
            p.params.push(second);
        },
        PlanError::ParamShared { .. }
    );
    rejects!(|p| p.params[0].buf = BufId(3), PlanError::WrongSpace { buf: BufId(3), .. });
}

#[test]
fn inputs_are_disjoint() {
    rejects!(
        |p| {
            let mut second = p.inputs[0].clone();
            second.name = "z".into();
            p.inputs.push(second);
        },
        PlanError::InputsOverlap { .. }
    );
}

// ---- one launch

#[test]
fn a_launch_does_not_clobber_its_operands() {
    // The workspace over the operand.
    rejects!(|p| p.buffers[BufId(9)].offset = Bytes(512), PlanError::LaunchOverlap { at: CmdId(5), .. });
    // The workspace over the output.
    rejects!(|p| p.buffers[BufId(9)].offset = Bytes(768), PlanError::LaunchOverlap { at: CmdId(5), .. });
    // Softmax may not run in place at all.
    rejects!(
        |p| {
            *operands(p, 8).3 = Op::Softmax { axis: 0 };
            operands(p, 8).1[0] = BufId(4);
        },
        PlanError::LaunchOverlap { at: CmdId(8), .. }
    );
    // add(w, w) in place: the kernel would read what it wrote.
    rejects!(|p| operands(p, 14).0[1] = BufId(1), PlanError::LaunchOverlap { at: CmdId(14), .. });
}

#[test]
fn in_place_needs_the_same_range() {
    let mut plan = sound();
    for b in [2, 3, 5, 6] {
        plan.buffers[BufId(b)].ty = TensorType::f32([128]);
    }
    for b in [0, 1, 4, 7, 8] {
        plan.buffers[BufId(b)].ty = TensorType::f32([128]);
        plan.buffers[BufId(b)].offset = Bytes(plan.buffers[BufId(b)].offset.0 * 2 + 4096);
    }
    for (b, at) in [(2, 0), (5, 256), (6, 1024), (9, 2048)] {
        plan.buffers[BufId(b)].offset = Bytes(at);
    }
    plan.device.bytes = Bytes(1 << 20);
    plan.device.budget = None;
    plan.host.bytes = Bytes(512);
    operands(&mut plan, 8).0[0] = BufId(2);
    let found = check(&plan).unwrap_err().errors;
    let shifted = |e: &PlanError| matches!(e, PlanError::LaunchOverlap { at: CmdId(8), .. });
    assert!(found.iter().any(shifted), "{found:#?}");
}

// ---- races

#[test]
fn dropping_any_needed_event_is_a_race() {
    // The offload may start before its source is written.
    rejects!(remove(2), PlanError::Race { first: CmdId(0), .. });
    // The release may come before the offload has read.
    rejects!(remove(6), PlanError::Race { first: CmdId(3), second: CmdId(6), .. });
    // The prefetch may come before the offload.
    rejects!(remove(9), PlanError::Race { first: CmdId(3), second: CmdId(9), .. });
    // The product may come before the prefetch.
    rejects!(remove(12), PlanError::Race { first: CmdId(10), second: CmdId(12), .. });
}

#[test]
fn order_through_a_third_stream_counts() {
    // The d2h stream waits for e0, the h2d stream for the d2h stream: the prefetch may
    // overwrite what c0 wrote, without an event of its own.
    let mut plan = sound();
    plan.commands.truncate(5);
    plan.commands.push(Command::Wait { stream: StreamId(2), event: EventId(1) });
    plan.commands.push(Command::Free { stream: StreamId(2), buf: BufId(2) });
    plan.outputs.clear();
    plan.params[0].expect = Sig::param("w");
    check(&plan).unwrap();
    plan.commands.remove(5);
    assert!(check(&plan).unwrap_err().errors.iter().any(|e| matches!(e, PlanError::Race { .. })));
}

#[test]
fn reads_do_not_race() {
    // Compute reads the buffer while the offload reads it: c3 and c5, unordered, are fine
    // in the sound plan. A write in c5's place is not.
    rejects!(
        |p| {
            p.buffers[BufId(4)].offset = Bytes(512);
        },
        PlanError::Race { first: CmdId(3), second: CmdId(5), .. }
    );
}

// ---- contents

#[test]
fn contents_are_followed() {
    // A launch is missing.
    rejects!(remove(8), PlanError::BadRead { at: CmdId(12), found: Found::Freed(CmdId(7)), .. });
    // A copy is missing.
    rejects!(remove(10), PlanError::BadRead { at: CmdId(12), found: Found::Nothing, .. });
    // The release comes before the last use.
    rejects!(
        |p| {
            let free = p.commands.remove(7);
            p.commands.insert(5, free);
        },
        PlanError::BadRead { at: CmdId(6), found: Found::Freed(CmdId(5)), .. }
    );
    // A workspace over a live value.
    rejects!(
        |p| p.commands[12] = Command::Launch {
            stream: StreamId(0),
            op: Op::Unary(UnaryKind::Relu),
            inputs: [BufId(0)].as_slice().into(),
            outputs: [BufId(6)].as_slice().into(),
            workspace: Some(BufId(9)),
            algo: None,
            stage: vdnn_ir::Stage::Forward,
            node: vdnn_ir::NodeId(9),
            name: String::new(),
        },
        PlanError::Race { .. }
    );
    // The wrong operand.
    rejects!(|p| operands(p, 8).0[0] = BufId(0), PlanError::WrongResult { what: "output", .. });
    // Operands exchanged: a term is not symmetric.
    rejects!(
        |p| operands(p, 13).0.swap(0, 1),
        PlanError::WrongResult { what: "output", by: Some(CmdId(13)), .. }
    );
    // The update is missing or done twice.
    rejects!(remove(14), PlanError::WrongResult { what: "parameter", by: None, .. });
    rejects!(
        |p| {
            let twice = p.commands[14].clone();
            p.commands.push(twice);
        },
        PlanError::WrongResult { what: "parameter", by: Some(CmdId(16)), .. }
    );
    // An output whose bytes were released.
    rejects!(
        |p| p.commands.push(Command::Free { stream: StreamId(0), buf: BufId(7) }),
        PlanError::BadResult { what: "output", found: Found::Freed(CmdId(16)), .. }
    );
    // The stated term is of another computation.
    rejects!(|p| p.outputs[0].expect = Sig([0; 16]), PlanError::WrongResult { what: "output", .. });
}

#[test]
fn a_shifted_address_is_found() {
    // The prefetch lands on the value the product needs.
    rejects!(|p| p.buffers[BufId(6)].offset = Bytes(512), PlanError::Race { second: CmdId(10), .. });
    // `n` written over `r`'s neighbour: the read through b5 moves along, so only a third
    // buffer can notice; here it is `y`'s operand.
    rejects!(
        |p| p.buffers[BufId(5)].offset = Bytes(1024),
        PlanError::Race { first: CmdId(8), second: CmdId(10), .. }
    );
}

#[test]
fn part_of_a_value_is_not_a_value() {
    let mut plan = sound();
    plan.buffers[BufId(3)].offset = Bytes(0);
    plan.host.bytes = Bytes(512);
    // A second host buffer that starts in the middle of the range the offload wrote.
    let big = TensorType::f32([128]);
    for b in [0, 1, 2, 3, 4, 5, 6, 7, 8] {
        plan.buffers[BufId(b)].ty = big.clone();
        plan.buffers[BufId(b)].offset = Bytes(plan.buffers[BufId(b)].offset.0 * 2);
    }
    plan.buffers[BufId(9)].offset = Bytes(4096);
    plan.device.bytes = Bytes(8192);
    plan.device.budget = None;
    plan.host.bytes = Bytes(1024);
    let late = plan.buffers.push(crate::plan::Buffer {
        space: Space::Host,
        offset: Bytes(256),
        ty: big,
        name: "shifted".into(),
    });
    plan.commands[10] =
        Command::Copy { stream: StreamId(2), form: CopyForm::Plain, src: late, dst: BufId(6) };
    let found = check(&plan).unwrap_err().errors;
    assert!(
        found.iter().any(|e| matches!(e, PlanError::BadRead { at: CmdId(10), found: Found::Nothing, .. })),
        "{found:#?}"
    );
}

#[test]
fn the_type_a_value_is_read_as_is_part_of_the_term() {
    // Softmax over the last axis of the same bytes as [8,8] instead of [4,16].
    let term = |dims: [u64; 2]| {
        let ty = TensorType::f32(dims);
        Sig::apply(&Op::Softmax { axis: 1 }, &[(Sig::input("x"), &ty)], 0)
    };
    let mut plan = sound();
    plan.commands.truncate(1);
    plan.params.clear();
    plan.outputs[0].buf = BufId(2);
    *operands(&mut plan, 0).3 = Op::Softmax { axis: 1 };
    if let Command::Launch { inputs, .. } = &mut plan.commands[0] {
        inputs.truncate(1);
    }
    let view = plan.buffers.push(plan.buffers[BufId(0)].clone());
    operands(&mut plan, 0).0[0] = view;
    for b in [view, BufId(2)] {
        plan.buffers[b].ty = TensorType::f32([4, 16]);
    }
    plan.n_events = 0;
    plan.outputs[0].expect = term([4, 16]);
    check(&plan).unwrap();
    plan.outputs[0].expect = term([8, 8]);
    assert!(matches!(check(&plan).unwrap_err().errors[..], [PlanError::WrongResult { .. }]));
}

#[test]
fn a_launched_reshape_keeps_the_term() {
    let mut plan = sound();
    plan.commands.truncate(1);
    plan.params.clear();
    plan.n_events = 0;
    plan.buffers[BufId(2)].ty = TensorType::f32([8, 8]);
    *operands(&mut plan, 0).3 = Op::Reshape { dims: [8, 8].as_slice().into() };
    if let Command::Launch { inputs, .. } = &mut plan.commands[0] {
        inputs.truncate(1);
    }
    plan.outputs[0].buf = BufId(2);
    plan.outputs[0].expect = Sig::input("x");
    check(&plan).unwrap();
}

#[test]
fn errors_are_bounded_and_draw_the_commands() {
    let mut plan = sound();
    for _ in 0..300 {
        let bad = Command::Free { stream: StreamId(0), buf: BufId(1000) };
        plan.commands.push(bad);
    }
    let found = check(&plan).unwrap_err();
    assert_eq!(found.errors.len(), PlanErrors::LIMIT);
    assert_eq!(found.suppressed, 200);
    let mut plan = sound();
    plan.commands.remove(2);
    let text = check(&plan).unwrap_err().to_string();
    assert!(text.contains("c0 s0 launch n0 binary(add) forward (b0, b1) -> (b2) \"a\""), "{text}");
    assert!(text.contains("c2 s1 copy b2 -> b3"), "{text}");
}

#[test]
fn micro_batches_are_of_the_whole_batch_and_change_nothing_else() {
    let op: Op = "conv(kernel:[1],strides:[1],before:[0],after:[0],dilations:[1],groups:1)".parse().unwrap();
    let (x, w) = (Sig::input("x"), Sig::param("w"));
    let types = [TensorType::f32([4, 1, 2]), TensorType::f32([1, 1, 1])];
    let y = Sig::apply(&op, &[(x, &types[0]), (w, &types[1])], 0);
    let plan = |algo: &str| {
        let text = format!(
            r#"vplan 1
model "tiny"
mode infer
batch 4
policy "none"
algo "memory"
device "cpu"
predicted step=0 compute=0 stall=0 lower_bound=0
arena device 1024
arena host 0
stream s0 compute
events 0
buffer b0 device 0 f32[4,1,2] "x"
buffer b1 device 256 f32[1,1,1] "w"
buffer b2 device 512 f32[4,1,2] "y"
input "x" b0
output "y" b2 expect={y}
param "w" b1 frozen initializer expect={w}
c0 s0 launch n0 {op} algo={algo} forward (b0, b1) -> (b2) "c"
"#
        );
        parse_plan(&text).unwrap()
    };
    for sound in ["gemm", "gemm@4", "gemm@1x3+fft@1", "gemm@3+eng5_k2=3@1"] {
        let plan = plan(sound);
        assert!(check(&plan).is_ok(), "{sound}: {:?}", check(&plan));
        assert_eq!(parse_plan(&plan.to_string()).as_ref(), Ok(&plan));
    }
    for wrong in ["gemm@3", "gemm@5", "gemm@2+fft@3", "gemm@18446744073709551615x2"] {
        let PlanErrors { errors, .. } = check(&plan(wrong)).expect_err(wrong);
        assert!(matches!(errors[..], [PlanError::Division { at: CmdId(0), images: 4, .. }]), "{errors:?}");
        assert!(errors[0].to_string().contains(wrong));
    }
}
