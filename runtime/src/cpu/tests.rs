//! The executor on the CPU backend with a four-op kernel set.

use super::{CpuBackend, CpuMode, CpuOptions};
use crate::error::RunError;
use crate::executor::{Executor, LoadParamError, ParamLoader};
use std::collections::BTreeMap;
use std::sync::Arc;
use vdnn_ir::kernel::{KernelError, Kernels, Operand, TensorMut};
use vdnn_ir::op::{BinaryKind, SliceAttrs, UnaryKind};
use vdnn_ir::{Bytes, Op, Tensor, TensorType};
use vdnn_plan::{Command, EventId, ParamSource, Plan, Sig, StreamId, parse_plan};

/// add, mul, neg and relu; `exp` fails and `log` panics.
struct Tiny;

impl Kernels for Tiny {
    fn launch(
        &self,
        op: &Op,
        inputs: &[Operand<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<(), KernelError> {
        let y = outputs[0].f32();
        let read = |n: usize, y: &[f32], i: usize| match inputs[n] {
            Operand::Ref(t) => t.f32()[i],
            Operand::InPlace(_) => y[i],
        };
        for i in 0..y.len() {
            y[i] = match op {
                Op::Binary(BinaryKind::Add) => read(0, y, i) + read(1, y, i),
                Op::Binary(BinaryKind::Mul) => read(0, y, i) * read(1, y, i),
                Op::Unary(UnaryKind::Neg) => -read(0, y, i),
                Op::Unary(UnaryKind::Relu) => read(0, y, i).max(0.0),
                Op::Unary(UnaryKind::Log) => panic!("log"),
                _ => return Err(KernelError::BadData("no such op".into())),
            };
        }
        Ok(())
    }
}

struct Loader;

impl ParamLoader for Loader {
    fn load(&self, name: &str, ty: &TensorType) -> Result<Tensor, LoadParamError> {
        match name {
            "w" => Ok(Tensor::from_f32([64], &[0.5; 64])),
            "bad" => Ok(Tensor::from_f32([2], &[0.0; 2])),
            _ => Err(LoadParamError::wrong_type(name, ty, ty)),
        }
    }
}

/// `a = x + w; r = relu(a); n = -r; y = n * a; w' = w + y`: `a` goes to the host and comes
/// back, `n` takes its bytes meanwhile, `w'` is written over `w`.
fn plan() -> Plan {
    let ty = TensorType::f32([64]);
    let apply = |op: Op, operands: &[Sig]| {
        let operands: Vec<_> = operands.iter().map(|&s| (s, &ty)).collect();
        Sig::apply(&op, &operands, 0)
    };
    let (x, w) = (Sig::input("x"), Sig::param("w"));
    let a = apply(Op::Binary(BinaryKind::Add), &[x, w]);
    let n = apply(Op::Unary(UnaryKind::Neg), &[apply(Op::Unary(UnaryKind::Relu), &[a])]);
    let y = apply(Op::Binary(BinaryKind::Mul), &[n, a]);
    let w1 = apply(Op::Binary(BinaryKind::Add), &[w, y]);
    parse_plan(&format!(
        r#"vplan 1
model "tiny"
mode train
batch 64
policy "all"
algo "memory"
device "cpu"
predicted step=0 compute=0 stall=0 lower_bound=0
arena device 2048
arena host 256
stream s0 compute
stream s1 d2h
stream s2 h2d
events 3
buffer b0 device 0 f32[64] "x"
buffer b1 device 256 f32[64] "w"
buffer b2 device 512 f32[64] "a"
buffer b3 host 0 f32[64] "a.host"
buffer b4 device 768 f32[64] "r"
buffer b5 device 512 f32[64] "n"
buffer b6 device 1024 f32[64] "a.back"
buffer b7 device 1280 f32[64] "y"
buffer b8 device 256 f32[64] "w.next"
buffer b9 device 1536 u8[300] "scratch"
input "x" b0
output "y" b7 expect={y}
param "w" b1 trainable initializer expect={w1}
c0 s0 launch n0 binary(add) forward (b0, b1) -> (b2) "a"
c1 s0 record e0
c2 s1 wait e0
c3 s1 copy b2 -> b3
c4 s1 record e1
c5 s0 launch n1 unary(relu) forward (b2) -> (b4) ws=b9 "r"
c6 s0 wait e1
c7 s0 free b2
c8 s0 launch n2 unary(neg) forward (b4) -> (b5) "n"
c9 s2 wait e1
c10 s2 copy b3 -> b6
c11 s2 record e2
c12 s0 wait e2
c13 s0 launch n3 binary(mul) forward (b5, b6) -> (b7) "y"
c14 s0 launch n4 binary(add) update (b1, b7) -> (b8) "w.next"
"#
    ))
    .unwrap()
}

fn backend(mode: CpuMode, poison: bool) -> CpuBackend {
    CpuBackend::with_kernels(Arc::new(Tiny), CpuOptions { poison, mode, ..CpuOptions::default() })
}

fn inputs() -> BTreeMap<String, Tensor> {
    let x: Vec<f32> = (0..64).map(|i| i as f32 - 31.5).collect();
    BTreeMap::from([("x".to_owned(), Tensor::from_f32([64], &x))])
}

/// Output and parameter bytes of three steps.
fn run(mut executor: Executor<CpuBackend>) -> Result<Vec<Vec<u8>>, RunError> {
    let mut seen = Vec::new();
    for _ in 0..3 {
        let y = executor.step(&inputs())?.remove("y").unwrap();
        seen.push(y.bytes().to_vec());
        seen.push(executor.read_param("w")?.bytes().to_vec());
    }
    Ok(seen)
}

fn expected() -> Vec<Vec<u8>> {
    let mut w = [0.5f32; 64];
    let mut seen = Vec::new();
    for _ in 0..3 {
        let y: Vec<f32> = inputs()["x"]
            .f32()
            .iter()
            .zip(&w)
            .map(|(x, w)| {
                let a = x + w;
                -a.max(0.0) * a
            })
            .collect();
        w.iter_mut().zip(&y).for_each(|(w, y)| *w += y);
        seen.push(y.iter().flat_map(|v| v.to_le_bytes()).collect());
        seen.push(w.iter().flat_map(|v| v.to_le_bytes()).collect());
    }
    seen
}

fn modes() -> impl Iterator<Item = CpuMode> {
    [CpuMode::Serial, CpuMode::Threads].into_iter().chain((0..40).map(|seed| CpuMode::Interleaved { seed }))
}

#[test]
fn every_order_gives_the_same_bytes() {
    for mode in modes() {
        for poison in [false, true] {
            let executor = Executor::load(plan(), &Loader, backend(mode, poison)).unwrap();
            assert_eq!(run(executor).unwrap(), expected(), "{mode:?}, poison {poison}");
        }
    }
}

#[test]
fn orders_differ_and_a_dropped_wait_shows() {
    let seeds = |plan: Plan| {
        (0..40)
            .filter(|&seed| {
                let b = backend(CpuMode::Interleaved { seed }, true);
                let e = Executor::load_unchecked_for_tests(plan.clone(), &Loader, b).unwrap();
                run(e).unwrap() != expected()
            })
            .count()
    };
    assert_eq!(seeds(plan()), 0);
    for dropped in [2, 6, 9, 12] {
        let mut p = plan();
        p.commands.remove(dropped);
        let refused = Executor::load(p.clone(), &Loader, backend(CpuMode::Serial, false));
        assert!(matches!(refused, Err(RunError::Unsound(_))));
        assert!(seeds(p) > 0, "without c{dropped} some order changes the result");
    }
}

#[test]
fn unchecked_plans_stay_on_one_thread_and_in_their_memory() {
    let load = |p: Plan, mode| Executor::load_unchecked_for_tests(p, &Loader, backend(mode, true));
    assert!(matches!(load(plan(), CpuMode::Threads), Err(RunError::NeedsCheckedPlan)));
    let mut outside = plan();
    outside.device.bytes = Bytes(1024);
    assert!(matches!(load(outside, CpuMode::Serial), Err(RunError::Unsound(_))));
    // The workspace over the operand of c5: the operand is lost.
    let mut p = plan();
    p.buffers[vdnn_plan::BufId(9)].offset = Bytes(512);
    assert_ne!(run(load(p, CpuMode::Serial).unwrap()).unwrap(), expected());
}

#[test]
fn errors_and_panics_of_kernels_end_the_step_in_every_mode() {
    for mode in modes() {
        for (kind, at) in [(UnaryKind::Exp, 5), (UnaryKind::Exp, 8), (UnaryKind::Log, 5)] {
            if kind == UnaryKind::Log && mode != CpuMode::Threads {
                continue;
            }
            let mut p = plan();
            if let Command::Launch { op, .. } = &mut p.commands[at] {
                *op = Op::Unary(kind);
            }
            // The terms change with the op; state the new ones.
            p.outputs.clear();
            restate(&mut p, kind, at);
            let mut e = Executor::load(p, &Loader, backend(mode, false)).unwrap();
            match (kind, e.step(&inputs())) {
                (UnaryKind::Exp, Err(RunError::Kernel { at: c, .. })) => assert_eq!(c.0 as usize, at),
                (UnaryKind::Log, Err(RunError::Thread(_))) => {}
                (_, other) => panic!("{other:?}"),
            }
            assert!(matches!(e.step(&inputs()), Err(RunError::Poisoned)));
        }
    }
}

fn restate(p: &mut Plan, kind: UnaryKind, at: usize) {
    let ty = TensorType::f32([64]);
    let one = |k, s| Sig::apply(&Op::Unary(k), &[(s, &ty)], 0);
    let two = |k, s, t| Sig::apply(&Op::Binary(k), &[(s, &ty), (t, &ty)], 0);
    let (x, w) = (Sig::input("x"), Sig::param("w"));
    let a = two(BinaryKind::Add, x, w);
    let (relu, neg) = if at == 5 { (kind, UnaryKind::Neg) } else { (UnaryKind::Relu, kind) };
    let y = two(BinaryKind::Mul, one(neg, one(relu, a)), a);
    p.params[0].expect = two(BinaryKind::Add, w, y);
}

#[test]
fn a_wait_before_its_record_is_never_run() {
    let mut p = plan();
    p.commands.insert(0, Command::Wait { stream: StreamId(1), event: EventId(2) });
    let e = Executor::load_unchecked_for_tests(p, &Loader, backend(CpuMode::Serial, false));
    assert!(matches!(e, Err(RunError::Unsound(_))));
}

#[test]
fn inputs_are_validated() {
    let mut e = Executor::load(plan(), &Loader, backend(CpuMode::Serial, false)).unwrap();
    let refuse = |e: &mut Executor<CpuBackend>, i: &BTreeMap<String, Tensor>| match e.step(i) {
        Err(RunError::Input { name, why }) => format!("{name}: {why}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(refuse(&mut e, &BTreeMap::new()), "x: missing; the plan needs f32[64]");
    let mut more = inputs();
    more.insert("z".into(), Tensor::from_f32([1], &[0.0]));
    assert_eq!(refuse(&mut e, &more), "z: the plan has no such input; its inputs are x");
    let small = BTreeMap::from([("x".to_owned(), Tensor::from_f32([2], &[0.0; 2]))]);
    assert_eq!(refuse(&mut e, &small), "x: it is f32[2], but the plan needs f32[64]");
    assert!(e.step(&inputs()).is_ok(), "a refused input leaves the executor usable");
}

#[test]
fn parameters_are_read_and_written() {
    let mut e = Executor::load(plan(), &Loader, backend(CpuMode::Serial, true)).unwrap();
    assert_eq!(e.read_param("w").unwrap(), Tensor::from_f32([64], &[0.5; 64]));
    let ones = Tensor::from_f32([64], &[1.0; 64]);
    e.write_param("w", &ones).unwrap();
    assert_eq!(e.read_param("w").unwrap(), ones);
    let small = Tensor::from_f32([2], &[1.0; 2]);
    assert!(matches!(e.write_param("w", &small), Err(RunError::ParamType { .. })));
    assert!(matches!(e.read_param("v"), Err(RunError::NoSuchParam(n)) if n == "v"));
    let mut p = plan();
    p.params[0].name = "bad".into();
    p.params[0].expect = Sig([0; 16]);
    assert!(matches!(
        Executor::load_unchecked_for_tests(p, &Loader, backend(CpuMode::Serial, true)),
        Err(RunError::Param(LoadParamError::WrongType { .. }))
    ));
}

#[test]
fn the_setup_program_makes_parameters() {
    let setup = "load u0 f32[64] initializer \"w\"\n\
                 setup binary(add) (u0, u0) -> (u1:f32[64])\n\
                 setup reshape(dims:[8,8]) (u1) -> (u2:f32[8,8])\n\
                 setup reshape(dims:[64]) (u2) -> (u3:f32[64])\nc0 s0";
    let text = plan().to_string().replace("c0 s0", setup);
    let p = parse_plan(&text.replace("trainable initializer", "trainable u3")).unwrap();
    let e = Executor::load(p, &Loader, backend(CpuMode::Serial, true)).unwrap();
    assert_eq!(e.read_param("w").unwrap().f32(), [1.0; 64]);
    let mut p = plan();
    p.params[0].source = ParamSource::Zero;
    let e = Executor::load(p, &Loader, backend(CpuMode::Serial, true)).unwrap();
    assert_eq!(e.read_param("w").unwrap().f32(), [0.0; 64]);
}

#[test]
fn an_arena_that_does_not_fit_is_an_error() {
    for bytes in [1 << 60, u64::MAX] {
        let mut p = plan();
        p.device.bytes = Bytes(bytes);
        let e = Executor::load(p, &Loader, backend(CpuMode::Serial, false));
        assert!(matches!(e, Err(RunError::OutOfMemory { arena: "device", .. })));
    }
}

/// `y = concat(relu(x[0..2]), -x[2..4])`; `second` is where the second half is made.
fn rows(second: u64) -> Plan {
    let (all, half) = (TensorType::f32([4, 64]), TensorType::f32([2, 64]));
    let slice = |first: u64| {
        let (starts, lens) = ([first, 0].into_iter().collect(), [2, 64].into_iter().collect());
        let op = Op::Slice(SliceAttrs { starts, steps: [1, 1].into_iter().collect(), lens });
        (Sig::apply(&op, &[(Sig::input("x"), &all)], 0), op)
    };
    let [(a, first), (b, last)] = [slice(0), slice(2)];
    let a = Sig::apply(&Op::Unary(UnaryKind::Relu), &[(a, &half)], 0);
    let b = Sig::apply(&Op::Unary(UnaryKind::Neg), &[(b, &half)], 0);
    let y = Sig::apply(&Op::Concat { axis: 0 }, &[(a, &half), (b, &half)], 0);
    parse_plan(&format!(
        r#"vplan 1
model "rows"
mode infer
batch 4
policy "none"
algo "memory"
device "cpu"
predicted step=0 compute=0 stall=0 lower_bound=0
arena device 4096
arena host 0
stream s0 compute
events 0
buffer b0 device 0 f32[4,64] "x"
buffer b1 device 0 f32[2,64] "s0"
buffer b2 device 512 f32[2,64] "s1"
buffer b3 device 1024 f32[2,64] "a"
buffer b4 device {second} f32[2,64] "b"
buffer b5 device 1024 f32[4,64] "y"
input "x" b0
output "y" b5 expect={y}
c0 s0 launch n0 {first} forward (b0) -> (b1) "s0"
c1 s0 launch n1 {last} forward (b0) -> (b2) "s1"
c2 s0 launch n2 unary(relu) forward (b1) -> (b3) "a"
c3 s0 launch n3 unary(neg) forward (b2) -> (b4) "b"
c4 s0 launch n4 concat(axis:0) forward (b3, b4) -> (b5) "y"
c5 s0 free b0
"#
    ))
    .unwrap()
}

#[test]
fn rows_in_place_run_no_kernel_and_the_others_are_moved() {
    // The kernels know neither slices nor concats.
    let x: Vec<f32> = (0..256).map(|i| i as f32 - 100.0).collect();
    let expected: Vec<f32> =
        x.iter().enumerate().map(|(i, &x)| if i < 128 { x.max(0.0) } else { -x }).collect();
    let inputs = BTreeMap::from([("x".to_owned(), Tensor::from_f32([4, 64], &x))]);
    for second in [1536, 2048] {
        let mut executor = Executor::load(rows(second), &Loader, backend(CpuMode::Serial, true)).unwrap();
        for _ in 0..2 {
            assert_eq!(executor.step(&inputs).unwrap()["y"].f32(), expected);
        }
    }
    // Where they overlap but not in place, the first to be clobbered is the result.
    let wrong = Executor::load_unchecked_for_tests(rows(1280), &Loader, backend(CpuMode::Serial, true));
    assert!(wrong.unwrap().step(&inputs).is_err());
}
