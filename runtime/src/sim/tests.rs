//! Tests of the simulator.

use super::*;
use vdnn_cost::Precision;
use vdnn_ir::graph::{NodeId, Stage};
use vdnn_ir::id::PrimaryMap;
use vdnn_ir::op::UnaryKind;
use vdnn_ir::{DType, Mode, Op, ParamRole, TensorType};
use vdnn_plan::plan::{Header, Param, ParamSource, Predicted};
use vdnn_plan::{Arena, Binding, CopyForm, Sig, StreamKind};

/// A device on which a launch takes so many microseconds and a kernel then 2 ns per byte of its
/// operand; copies run at so many bytes per nanosecond, at a share of that both at once, and slow
/// kernels by a share.
pub(super) fn device(name: &str, launch: f64, [rate, both_ways, kernel_loss]: [f64; 3]) -> CostModel {
    let text = format!(
        r#"
        name = "{name}"
        memory = {{ capacity = "1GiB", bandwidth_gbps = 1.0 }}
        peak = {{ f32_tflops = 1000.0 }}
        launch = {{ overhead_us = {launch:?} }}
        gemm = {{ f32 = 1.0 }}
        [copy]
        d2h_gbps = {rate:?}
        h2d_gbps = {rate:?}
        latency_us = 0.0
        both_ways = {both_ways:?}
        kernel_loss = {kernel_loss:?}
        [conv]
        bandwidth = 1.0
        depthwise = 1.0
        [conv.f32]
        result_tile = 1
        reduction_tile = 1
        fprop = {{ implicit_gemm = 1.0 }}
        dgrad = {{ implicit_gemm = 1.0 }}
        wgrad = {{ implicit_gemm = 1.0 }}
        "#
    );
    CostModel::from_toml(&text, Precision::F32).expect("valid profile")
}

/// A device on which launches take no time and a copy takes 1 ns per byte.
fn unit_device(both_ways: f64, kernel_loss: f64) -> CostModel {
    device("unit", 0.0, [1.0, both_ways, kernel_loss])
}

const COMPUTE: StreamId = StreamId(0);
const D2H: StreamId = StreamId(1);
const H2D: StreamId = StreamId(2);

/// Builds plans; every buffer gets bytes of its own.
struct Builder(Plan);

impl Builder {
    fn new() -> Self {
        Self(Plan {
            header: Header {
                model_name: String::new(),
                mode: Mode::Infer,
                batch: 1,
                policy: String::new(),
                algo: String::new(),
                device: String::new(),
                precision: vdnn_ir::Precision::F32,
                engines: None,
                model: None,
                options: Vec::new(),
            },
            device: Arena::default(),
            host: Arena::default(),
            streams: vec![StreamKind::Compute, StreamKind::D2h, StreamKind::H2d],
            n_events: 0,
            buffers: PrimaryMap::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            params: Vec::new(),
            setup_loads: Vec::new(),
            setup: Vec::new(),
            commands: Vec::new(),
            predicted: Predicted::default(),
        })
    }
    fn buf(&mut self, space: Space, bytes: u64) -> BufId {
        let arena = if space == Space::Device { &mut self.0.device } else { &mut self.0.host };
        let offset = arena.bytes;
        arena.bytes += Bytes(bytes);
        let name = format!("v{}", self.0.buffers.len());
        self.0.buffers.push(Buffer { space, offset, ty: TensorType::new(DType::U8, [bytes]), name })
    }
    fn device(&mut self, bytes: u64) -> BufId {
        self.buf(Space::Device, bytes)
    }
    fn host(&mut self, bytes: u64) -> BufId {
        self.buf(Space::Host, bytes)
    }
    fn input(&mut self, bytes: u64) -> BufId {
        let buf = self.device(bytes);
        self.0.inputs.push(Binding { name: "x".into(), buf });
        buf
    }
    fn command(&mut self, command: Command) -> CmdId {
        self.0.commands.push(command);
        CmdId::from_index(self.0.commands.len() - 1)
    }
    fn launch_with(&mut self, input: BufId, output: BufId, workspace: Option<BufId>) -> CmdId {
        self.command(Command::Launch {
            stream: COMPUTE,
            op: Op::Unary(UnaryKind::Relu),
            inputs: [input].into_iter().collect(),
            outputs: [output].into_iter().collect(),
            workspace,
            algo: None,
            stage: Stage::Forward,
            node: NodeId(0),
            name: format!("k{}", self.0.commands.len()),
        })
    }
    fn launch(&mut self, input: BufId, output: BufId) -> CmdId {
        self.launch_with(input, output, None)
    }
    fn copy(&mut self, stream: StreamId, src: BufId, dst: BufId) -> CmdId {
        self.command(Command::Copy { stream, form: CopyForm::Plain, src, dst })
    }
    fn free(&mut self, buf: BufId) {
        self.command(Command::Free { stream: COMPUTE, buf });
    }
    fn record(&mut self, stream: StreamId) -> EventId {
        let event = EventId(self.0.n_events);
        self.0.n_events += 1;
        self.command(Command::Record { stream, event });
        event
    }
    fn wait(&mut self, stream: StreamId, event: EventId) -> CmdId {
        self.command(Command::Wait { stream, event })
    }
    fn simulate(&self, cost: &CostModel) -> SimResult {
        let result = simulate(&self.0, cost).expect("simulates");
        check_laws(&self.0, cost, &result);
        result
    }
}

/// What holds for every plan: a step is no shorter than any engine's work alone nor than
/// the longest chain of stream order and waits; spans of one stream and of one engine do
/// not overlap; the parts add up; the same again gives the same.
fn check_laws(plan: &Plan, cost: &CostModel, result: &SimResult) {
    let tasks = tasks(plan, cost).expect("resolves");
    let mut end_in_stream = vec![0u64; plan.streams.len()];
    let mut end = vec![0u64; tasks.len()];
    let mut work = [0u64; 3];
    for (i, task) in tasks.iter().enumerate() {
        let stream = plan.commands[i].stream().index();
        let mut t = end_in_stream[stream];
        match *task {
            Task::Work { engine, time, .. } => {
                t += time.0;
                work[engine as usize] += time.0;
            }
            Task::Wait(record, _) => t = t.max(end[record.index()]),
            Task::Free(_) | Task::InPlace | Task::Record => {}
        }
        end[i] = t;
        end_in_stream[stream] = t;
    }
    let bound = work.into_iter().chain(end_in_stream).max().unwrap_or(0);
    assert!(result.step.0 >= bound, "step {} is under the bound {bound}", result.step);
    assert_eq!(result.compute.0, work[0]);
    assert_eq!(result.compute + result.contention + result.stall, result.step);
    assert!(result.average_live <= result.peak_live);
    assert_eq!(result.trace.makespan(), result.step);
    assert!(result.trace.memory.is_sorted_by(|a, b| a.0 < b.0));
    for (a, b) in result
        .trace
        .spans
        .iter()
        .enumerate()
        .flat_map(|(i, a)| result.trace.spans[i + 1..].iter().map(move |b| (a, b)))
    {
        let overlap = a.start < b.end && b.start < a.end;
        let exclusive = a.stream == b.stream || (a.kind == b.kind && a.kind == SpanKind::Kernel);
        assert!(!(overlap && exclusive), "{a:?} and {b:?}");
    }
    assert_eq!(simulate(plan, cost).as_ref(), Ok(result), "a second run differs");
}

fn spans(result: &SimResult) -> Vec<(u32, u64, u64)> {
    result.trace.spans.iter().map(|s| (s.cmd.0, s.start.0, s.end.0)).collect()
}

#[test]
fn an_empty_plan_takes_no_time() {
    let mut b = Builder::new();
    b.input(64);
    let r = b.simulate(&unit_device(1.0, 0.0));
    assert_eq!((r.step, r.peak_live, r.average_live), (Nanos(0), Bytes(64), Bytes(64)));
}

#[test]
fn a_copy_overlaps_the_kernel_it_does_not_wait_for() {
    let mut b = Builder::new();
    let (x, y, h) = (b.input(100), b.device(100), b.host(100));
    let copy = b.copy(D2H, x, h);
    let kernel = b.launch(x, y);
    let r = b.simulate(&unit_device(1.0, 0.0));
    assert_eq!(spans(&r), [(copy.0, 0, 100), (kernel.0, 0, 200)]);
    assert_eq!((r.step, r.compute, r.stall), (Nanos(200), Nanos(200), Nanos(0)));
    assert_eq!(r.trace.copied(D2H), Bytes(100));
}

#[test]
fn compute_waits_for_a_copy_and_the_wait_is_the_stall() {
    let mut b = Builder::new();
    let (x, y, z, h) = (b.input(100), b.device(10), b.device(10), b.host(100));
    b.copy(D2H, x, h); // 0..100
    let done = b.record(D2H);
    b.launch(y, y); // 0..20
    let wait = b.wait(COMPUTE, done); // 20..100
    b.free(x);
    b.launch(y, z); // 100..120
    let r = b.simulate(&unit_device(1.0, 0.0));
    assert_eq!((r.step, r.compute, r.stall), (Nanos(120), Nanos(40), Nanos(80)));
    let held = r.trace.spans.iter().find(|s| s.cmd == wait).expect("a span");
    assert_eq!((held.kind, held.start, held.end), (SpanKind::Wait, Nanos(20), Nanos(100)));
    // x and y until 100, then y and z.
    assert_eq!(r.trace.memory, [(Nanos(0), Bytes(110), Bytes(100)), (Nanos(100), Bytes(20), Bytes(100))]);
    assert_eq!(r.peak_live, Bytes(110));
    assert_eq!(r.average_live, Bytes((110 * 100 + 20 * 20) / 120));
}

#[test]
fn a_chain_of_waits_passes_through_three_streams() {
    let mut b = Builder::new();
    let (x, h, y, z) = (b.input(50), b.host(50), b.device(50), b.device(50));
    b.launch(x, x); // 0..100
    let ready = b.record(COMPUTE);
    b.wait(D2H, ready);
    b.copy(D2H, x, h); // 100..150
    let out = b.record(D2H);
    b.wait(H2D, out);
    b.copy(H2D, h, y); // 150..200
    let back = b.record(H2D);
    b.wait(COMPUTE, back);
    b.launch(y, z); // 200..300
    let r = b.simulate(&unit_device(0.5, 0.2));
    // Nothing ever overlaps, so nothing slows down.
    assert_eq!((r.step, r.compute, r.stall, r.contention), (Nanos(300), Nanos(200), Nanos(100), Nanos(0)));
}

#[test]
fn both_directions_share_the_link_while_both_run() {
    let mut b = Builder::new();
    let (x, h, g, y) = (b.input(100), b.host(100), b.host(300), b.device(300));
    let out = b.copy(D2H, x, h);
    let back = b.copy(H2D, g, y);
    // Half rate each: 100 bytes in 200 ns; the other has 200 of 300 left and runs alone.
    let r = b.simulate(&unit_device(0.5, 0.0));
    assert_eq!(spans(&r), [(out.0, 0, 200), (back.0, 0, 400)]);
    assert_eq!((r.step, r.stall), (Nanos(400), Nanos(400)));
}

#[test]
fn copies_slow_kernels_while_they_run() {
    let mut b = Builder::new();
    let (x, y, h) = (b.input(100), b.device(100), b.host(80));
    let small = b.device(80);
    b.copy(D2H, small, h); // 0..80
    b.launch(x, y); // 64 of 200 ns of work by 80, then 136 alone
    let r = b.simulate(&unit_device(1.0, 0.2));
    assert_eq!((r.step, r.compute, r.contention, r.stall), (Nanos(216), Nanos(200), Nanos(16), Nanos(0)));
}

#[test]
fn fractions_of_a_nanosecond_end_at_the_next_whole_one() {
    let mut b = Builder::new();
    let (x, h, g, y) = (b.input(1), b.host(1), b.host(1), b.device(1));
    b.copy(D2H, x, h);
    b.copy(H2D, g, y);
    assert_eq!(b.simulate(&unit_device(0.7, 0.0)).step, Nanos(2));
}

#[test]
fn one_direction_is_one_engine_first_come_first_served() {
    let mut b = Builder::new();
    b.0.streams.push(StreamKind::D2h);
    let second = StreamId(3);
    let (x, h, g) = (b.input(100), b.host(100), b.host(100));
    let late = b.copy(second, x, g);
    let early = b.copy(D2H, x, h);
    let r = b.simulate(&unit_device(0.5, 0.0));
    // Both ready at 0: the lower stream goes first. No second direction, so no sharing.
    assert_eq!(spans(&r), [(early.0, 0, 100), (late.0, 100, 200)]);
}

#[test]
fn shared_bytes_count_once_and_workspace_only_while_its_kernel_runs() {
    let mut b = Builder::new();
    let x = b.input(100);
    let alias = b.0.buffers.push(b.0.buffers[x].clone());
    let ws = b.device(50);
    b.launch_with(x, alias, Some(ws)); // in place, 0..200
    b.launch(alias, x); // 200..400
    let param = b.device(7);
    b.0.params.push(Param {
        name: "w".into(),
        buf: param,
        role: ParamRole::Frozen,
        source: ParamSource::Zero,
        expect: Sig::param("w"),
    });
    let r = b.simulate(&unit_device(1.0, 0.0));
    assert_eq!(r.trace.memory, [(Nanos(0), Bytes(157), Bytes(0)), (Nanos(200), Bytes(107), Bytes(0))]);
    assert_eq!((r.peak_live, r.average_live), (Bytes(157), Bytes(132)));
}

/// Twenty layers of X -> Y; the copy of X starts with the layer's kernel and the layer ends
/// when both are done, as in vDNN's layer-end synchronisation; backward fetches one layer
/// ahead.
fn layer_synchronous(bytes: u64, layers: usize) -> Builder {
    let mut b = Builder::new();
    let mut xs = vec![b.input(bytes)];
    let mut hosts = Vec::new();
    for i in 0..layers {
        let y = b.device(bytes);
        let h = b.host(bytes);
        let ready = b.record(COMPUTE);
        b.wait(D2H, ready);
        b.copy(D2H, xs[i], h);
        let done = b.record(D2H);
        b.launch(xs[i], y);
        b.wait(COMPUTE, done);
        b.free(xs[i]);
        xs.push(y);
        hosts.push(h);
    }
    let mut gradient = xs[layers];
    let mut fetched: Option<(BufId, EventId)> = None;
    for i in (0..layers).rev() {
        let start = b.record(COMPUTE);
        b.wait(H2D, start);
        let x = b.device(bytes);
        b.copy(H2D, hosts[i], x);
        let done = b.record(H2D);
        let previous = fetched.replace((x, done));
        if let Some((x, done)) = previous {
            b.wait(COMPUTE, done);
            let dx = b.device(bytes);
            b.launch(x, dx);
            b.free(x);
            b.free(gradient);
            gradient = dx;
        }
    }
    let (x, done) = fetched.expect("a layer");
    b.wait(COMPUTE, done);
    b.launch(x, gradient);
    b
}

#[test]
fn twenty_layers_with_layer_end_synchronisation() {
    let b = layer_synchronous(1000, 20);
    // A layer's kernel (2000) hides its copy (1000). Backward: the first fetch is exposed,
    // its kernel overlaps the next one.
    let r = b.simulate(&unit_device(1.0, 0.0));
    assert_eq!(r.compute, Nanos(2 * 20 * 2000));
    assert_eq!((r.step, r.stall), (Nanos(2 * 20 * 2000 + 1000), Nanos(1000)));
    assert_eq!(r.trace.copied(D2H), Bytes(20_000));
    // X and Y of one layer forward; two fetched X and two gradients backward.
    assert_eq!(r.peak_live, Bytes(4000));
    // With the copies slower than the kernels, the copies are the critical path.
    let slow = device("slow link", 0.0, [0.25, 1.0, 0.0]);
    let r = b.simulate(&slow);
    assert_eq!(r.step, Nanos(20 * 4000 + 20 * 4000 + 2000));
}

#[test]
fn random_plans_obey_the_laws() {
    let mut state = 7u64;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let cost = unit_device(0.6, 0.13);
    for _ in 0..200 {
        let mut b = Builder::new();
        let device: Vec<_> = (0..6).map(|_| b.device(1 + next(300))).collect();
        let host: Vec<_> = (0..6).map(|_| b.host(1 + next(300))).collect();
        let mut events = Vec::new();
        for _ in 0..60 {
            let (d, h) = (device[next(6) as usize], host[next(6) as usize]);
            let stream = StreamId(next(3) as u32);
            match next(6) {
                0 => drop(b.launch(d, device[next(6) as usize])),
                1 => drop(b.copy(D2H, d, h)),
                2 => drop(b.copy(H2D, h, d)),
                3 => events.push(b.record(stream)),
                4 if !events.is_empty() => drop(b.wait(stream, events[next(events.len() as u64) as usize])),
                _ => b.free(d),
            }
        }
        b.simulate(&cost);
    }
}

#[test]
fn unknown_ids_and_impossible_waits_are_refused() {
    let cost = unit_device(1.0, 0.0);
    let with = |build: &dyn Fn(&mut Builder)| {
        let mut b = Builder::new();
        b.input(8);
        build(&mut b);
        simulate(&b.0, &cost).expect_err("refused")
    };
    let x = BufId(0);
    let error = with(&|b| {
        b.launch(x, BufId(9));
    });
    assert_eq!(error, SimError::UnknownBuffer { user: "command c0".into(), buf: BufId(9), count: 1 });
    let error = with(&|b| b.free(BufId(9)));
    assert!(matches!(error, SimError::UnknownBuffer { .. }));
    let error = with(&|b| b.0.inputs[0].buf = BufId(3));
    assert!(error.to_string().contains("input `x`"));
    let error = with(&|b| {
        b.command(Command::Free { stream: StreamId(3), buf: x });
    });
    assert_eq!(error, SimError::UnknownStream { cmd: CmdId(0), stream: StreamId(3), count: 3 });
    let error = with(&|b| {
        b.wait(COMPUTE, EventId(0));
    });
    assert_eq!(error, SimError::UnknownEvent { cmd: CmdId(0), event: EventId(0), count: 0 });
    let error = with(&|b| {
        b.0.n_events = 1;
        b.wait(COMPUTE, EventId(0));
    });
    assert_eq!(error, SimError::NeverRecorded { cmd: CmdId(0), event: EventId(0) });
    let error = with(&|b| {
        b.copy(D2H, x, x);
    });
    assert_eq!(error, SimError::SameArena { cmd: CmdId(0), src: x, dst: x });
    // Two streams that wait for each other.
    let error = with(&|b| {
        b.0.n_events = 2;
        b.wait(COMPUTE, EventId(0));
        b.wait(D2H, EventId(1));
        b.command(Command::Record { stream: D2H, event: EventId(0) });
        b.command(Command::Record { stream: COMPUTE, event: EventId(1) });
    });
    assert_eq!(error, SimError::Deadlock { cmd: CmdId(0), event: EventId(0), record: CmdId(2) });
}

/// Kernels of a plan without a setup program.
#[derive(Debug)]
struct NoKernels;

impl vdnn_ir::kernel::Kernels for NoKernels {
    fn launch(
        &self,
        op: &Op,
        _: &[vdnn_ir::kernel::Operand<'_>],
        _: &mut [vdnn_ir::kernel::TensorMut<'_>],
    ) -> Result<(), vdnn_ir::kernel::KernelError> {
        Err(vdnn_ir::kernel::KernelError::Unsupported { op: op.to_string(), why: "none".into() })
    }
}

struct NoParams;

impl crate::executor::ParamLoader for NoParams {
    fn load(&self, name: &str, _: &TensorType) -> Result<vdnn_ir::Tensor, crate::error::LoadParamError> {
        Err(crate::error::LoadParamError::missing(name))
    }
}

#[test]
fn the_executor_drives_it_and_outputs_are_zeros() {
    let mut b = Builder::new();
    let (x, y) = (b.input(256), b.device(256));
    for buf in [x, y] {
        b.0.buffers[buf].ty = TensorType::f32([64]);
    }
    b.launch(x, y);
    b.0.outputs.push(vdnn_plan::Output { name: "y".into(), buf: y, expect: Sig::input("x") });
    let cost = unit_device(1.0, 0.0);
    let load = |plan: Plan| {
        let backend = SimBackend::new(cost.clone(), NoKernels);
        crate::executor::Executor::load_unchecked_for_tests(plan, &NoParams, backend)
    };
    let mut executor = load(b.0.clone()).expect("loads");
    assert_eq!(executor.backend().result(), Some(&b.simulate(&cost)));
    let input = vdnn_ir::Tensor::from_f32([64], &[1.0; 64]);
    let outputs = executor.step(&[("x".to_owned(), input)].into_iter().collect()).expect("runs");
    assert!(outputs["y"].bytes().iter().all(|&byte| byte == 0));

    b.0.device.bytes = Bytes(2 << 30);
    assert!(matches!(load(b.0), Err(crate::error::RunError::OutOfMemory { arena: "device", .. })));
}
