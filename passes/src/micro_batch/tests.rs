//! Menus of convolutions, and the rules that choose from them.

use super::*;
use crate::options::{AlgoMode, Workspace};
use crate::pass::{PassCtx, run_pass};
use crate::select_conv::SelectConv;
use std::collections::BTreeMap;
use vdnn_cost::{Measured, MeasuredRow, Precision};
use vdnn_ir::graph::{EngineConfig, NodeSpec};
use vdnn_ir::op::ConvAttrs;
use vdnn_ir::slices::conv_slice;
use vdnn_ir::{NodeId, Op, ParamRole, Phase};

fn cost() -> CostModel {
    CostModel::named("v100", Precision::F32).expect("shipped profile")
}

fn attrs(kernel: u64, dilation: u64, groups: u64) -> ConvAttrs {
    ConvAttrs { groups, ..ConvAttrs::square(kernel, 1, dilation * (kernel / 2), dilation) }
}

/// A 5x5 convolution of 64 to 64 channels at 27x27, its gradients, then the same shapes dilated
/// and grouped, then an image of odd size.
fn graph(batch: u64) -> (Graph, Vec<NodeId>) {
    let mut g = Graph::new("t");
    g.phase = Phase::Joint;
    let x = g.add_input("x", TensorType::f32([batch, 64, 27, 27]));
    let odd = g.add_input("odd", TensorType::f32([batch, 1, 27, 27]));
    let w = g.add_param("w", TensorType::f32([64, 64, 5, 5]), ParamRole::Frozen);
    let v = g.add_param("v", TensorType::f32([64, 32, 5, 5]), ParamRole::Frozen);
    let u = g.add_param("u", TensorType::f32([1, 1, 5, 5]), ParamRole::Frozen);
    let a = g.add(Op::Conv(attrs(5, 1, 1)), &[x, w], NodeSpec::forward("a")).unwrap();
    let y = g.node(a).outputs[0];
    let dgrad = Op::ConvDgrad { conv: attrs(5, 1, 1), x_dims: g.ty(x).dims.clone() };
    let dx = g.add(dgrad, &[y, w], NodeSpec::backward("dx", a)).unwrap();
    let wgrad = Op::ConvWgrad { conv: attrs(5, 1, 1), w_dims: g.ty(w).dims.clone() };
    let dw = g.add(wgrad, &[x, y], NodeSpec::backward("dw", a)).unwrap();
    let dilated = g.add(Op::Conv(attrs(5, 2, 1)), &[x, w], NodeSpec::forward("dilated")).unwrap();
    let grouped = g.add(Op::Conv(attrs(5, 1, 2)), &[x, v], NodeSpec::forward("grouped")).unwrap();
    let odd = g.add(Op::Conv(attrs(5, 1, 1)), &[odd, u], NodeSpec::forward("odd")).unwrap();
    let nodes = vec![a, dx, dw, dilated, grouped, odd];
    for (i, &n) in nodes.iter().enumerate() {
        let value = g.node(n).outputs[0];
        g.outputs.push(vdnn_ir::Output { name: format!("o{i}"), value });
    }
    (g, nodes)
}

/// True if `fast` takes more than `100 - percent` percent of the time of `slow`.
fn gains_less(fast: &Choice, slow: &Choice, percent: u64) -> bool {
    fast.time.0 * 100 > slow.time.0 * (100 - percent)
}

#[test]
fn choices_fall_in_workspace_as_they_slow_down_and_cost_what_they_say() {
    let (g, nodes) = graph(100);
    let (menu, cost) = (Menu::new(BatchSizes::PowerOfTwo), cost());
    let mut divided = 0;
    for &n in &nodes {
        let choices = menu.choices(&g, &cost, g.node(n));
        assert!(choices.windows(2).all(|c| c[0].workspace > c[1].workspace));
        // A division that hardly gains comes behind the whole batch.
        let hardly = |c: &[Choice]| {
            !c[0].schedule.is_divided() && c[1].schedule.is_divided() && gains_less(&c[1], &c[0], 10)
        };
        assert!(choices.windows(2).all(|c| c[0].time < c[1].time || hardly(c)));
        let whole = crate::select_conv::options(&g, &cost, g.node(n));
        for c in choices.iter() {
            assert_eq!(menu.price(&g, &cost, g.node(n), &c.schedule).as_ref(), Some(c));
            if c.schedule.is_divided() {
                divided += 1;
                // Whatever else fits where it is taken is further behind.
                let before =
                    choices.iter().take_while(|other| other != &c).map(|other| other.workspace).min();
                for w in whole.iter().filter(|w| before.is_none_or(|b| w.workspace < b)) {
                    assert!(!gains_less(c, &Choice::from(*w), 10), "{c:?} gains too little over {w:?}");
                }
            }
        }
        // Nothing whole is lost but what is beaten.
        for w in whole {
            let beaten = |c: &Choice| c.workspace <= w.workspace && c.time <= w.time;
            assert!(choices.iter().any(beaten), "{w:?}");
        }
    }
    assert!(divided > 3, "the tiled FFT's workspace grows with the batch: {divided}");
    let undivided = Menu::new(BatchSizes::Undivided);
    let all = undivided.choices(&g, &cost, g.node(nodes[0]));
    let whole = crate::select_conv::options(&g, &cost, g.node(nodes[0]));
    assert_eq!(all.to_vec(), whole.into_iter().map(Choice::from).collect::<Vec<_>>());
}

#[test]
fn dilation_and_groups_are_part_of_what_is_remembered() {
    let (g, nodes) = graph(64);
    let (menu, cost) = (Menu::new(BatchSizes::PowerOfTwo), cost());
    let of = |n: NodeId| menu.choices(&g, &cost, g.node(n));
    let (plain, dilated, grouped) = (of(nodes[0]), of(nodes[3]), of(nodes[4]));
    assert!(plain != dilated && plain != grouped && dilated != grouped);
    let fresh = Menu::new(BatchSizes::PowerOfTwo);
    assert_eq!(fresh.choices(&g, &cost, g.node(nodes[3])), dilated);
    assert!(Rc::ptr_eq(&plain, &of(nodes[0])), "asked twice, computed once");
}

#[test]
fn slices_begin_at_aligned_addresses() {
    let (g, nodes) = graph(255);
    let slice = |n: NodeId| {
        let node = g.node(n);
        let types = |list: &[vdnn_ir::ValueId]| list.iter().map(|&v| g.ty(v).clone()).collect();
        ConvSlice { op: node.op.clone(), inputs: types(&node.inputs), outputs: types(&node.outputs) }
    };
    assert_eq!(sizes(&slice(nodes[0]), BatchSizes::PowerOfTwo), [1, 2, 4, 8, 16, 32, 64, 128, 255]);
    // 27 x 27 floats: four images are the first multiple of 16 bytes.
    assert_eq!(sizes(&slice(nodes[5]), BatchSizes::PowerOfTwo), [4, 8, 16, 32, 64, 128, 255]);
    let mut narrow = slice(nodes[2]);
    assert_eq!(sizes(&narrow, BatchSizes::All).len(), 255);
    narrow.outputs[0].dtype = DType::BF16;
    assert_eq!(sizes(&narrow, BatchSizes::All), [255], "sums of 16 bits");
    assert_eq!(BatchSizes::All.of(5000).len(), 999 + 13 + 1);
}

fn rule(sizes: BatchSizes, workspace: Workspace) -> SelectConv {
    let menu = Rc::new(Menu::new(sizes));
    SelectConv { mode: AlgoMode::Performance, overrides: BTreeMap::new(), workspace, menu }
}

/// Sum of times, sum of workspaces, largest workspace.
fn select(g: &mut Graph, nodes: &[NodeId], rule: &SelectConv) -> (u64, u64, u64) {
    let cost = cost();
    run_pass(rule, g, &PassCtx { cost: &cost }).expect("selects");
    let of = |n: &NodeId| {
        let node = g.node(*n);
        let schedule = node.algo.as_ref().expect("selected");
        let price = rule.menu.price(g, &cost, node, schedule).expect("can run");
        assert_eq!(price.workspace, node.workspace);
        (price.time.0, price.workspace.0)
    };
    let all: Vec<(u64, u64)> = nodes.iter().map(of).collect();
    (all.iter().map(|a| a.0).sum(), all.iter().map(|a| a.1).sum(), all.iter().map(|a| a.1).max().unwrap_or(0))
}

#[test]
fn limits_hold_and_divisions_make_them_cheaper() {
    let (mut g, nodes) = graph(128);
    for mib in [1u64, 8, 64, 256] {
        let limit = mib << 20;
        let mut with = |sizes, workspace| select(&mut g, &nodes, &rule(sizes, workspace));
        let reuse = with(BatchSizes::PowerOfTwo, Workspace::Limit(Bytes(limit)));
        let undivided = with(BatchSizes::Undivided, Workspace::Limit(Bytes(limit)));
        assert!(reuse.2 <= limit && undivided.2 <= limit && reuse.0 <= undivided.0, "{mib}");
        let shared = with(BatchSizes::PowerOfTwo, Workspace::Total(Bytes(limit)));
        assert!(shared.1 <= limit, "{mib}");
        // A limit per convolution of a share each is one way to divide the pool.
        let each = Bytes(limit / nodes.len() as u64 / wd::UNIT.0 * wd::UNIT.0);
        let equal = with(BatchSizes::PowerOfTwo, Workspace::Limit(each));
        assert!(shared.0 <= equal.0, "{mib}: {shared:?} {equal:?}");
    }
    let [tight, wide] = [BatchSizes::Undivided, BatchSizes::PowerOfTwo]
        .map(|sizes| select(&mut g, &nodes, &rule(sizes, Workspace::Limit(Bytes(64 << 20)))).0);
    assert!(wide * 10 < tight * 9, "{wide} {tight}");
}

#[test]
fn a_pool_below_the_leanest_is_refused() {
    let (mut g, nodes) = graph(8);
    let mut table = Measured::default();
    for &n in &nodes {
        let node = g.node(n);
        let inputs: Vec<_> = node.inputs.iter().map(|&v| g.ty(v)).collect();
        let outputs: Vec<_> = node.outputs.iter().map(|&v| g.ty(v)).collect();
        for (images, workspace, time) in [(8, 1u64 << 20, 80), (4, 1 << 19, 45), (2, 1 << 18, 50)] {
            let algo = Some(ConvAlgo::Engine(EngineConfig::new(1, &[]).expect("no knobs")));
            let s = conv_slice(&node.op, &inputs, &outputs, images).expect("a convolution");
            let row =
                MeasuredRow { algo, workspace: Bytes(workspace), time: Some(Nanos(time)), flags: vec![] };
            let (i, o) = s.types();
            table.insert(&s.op, &i, &o, Precision::F32, row);
        }
    }
    let cost = cost().with_measured(table);
    let menu = Menu::new(BatchSizes::PowerOfTwo);
    let texts = |n: NodeId| -> Vec<String> {
        menu.choices(&g, &cost, g.node(n)).iter().map(|c| c.schedule.to_string()).collect()
    };
    // Twice 45 is slower than 80; a size that was not measured is not offered.
    assert_eq!(texts(nodes[0]), ["eng1", "eng1@4x2", "eng1@2x4"]);
    assert_eq!(texts(nodes[2]), ["eng1"], "this engine does not add to its result");
    let pass = rule(BatchSizes::PowerOfTwo, Workspace::Total(Bytes(1 << 20)));
    let error = run_pass(&pass, &mut g, &PassCtx { cost: &cost }).unwrap_err().to_string();
    assert!(error.contains("more than 1 MiB") || error.contains("more than 1.0"), "{error}");
}

#[test]
fn a_division_from_outside_is_priced_or_refused() {
    let (mut g, nodes) = graph(8);
    let mut pass = rule(BatchSizes::Undivided, Workspace::Planned);
    pass.overrides.insert(nodes[2], "implicit_gemm@6+fft_tiling@2".parse().expect("a division"));
    let cost = cost();
    run_pass(&pass, &mut g, &PassCtx { cost: &cost }).expect("selects");
    let text = g.node(nodes[2]).algo.as_ref().map(ToString::to_string);
    assert_eq!(text.as_deref(), Some("implicit_gemm@6+fft_tiling@2"));
    for bad in ["implicit_gemm@6", "gemm@4x2"] {
        pass.overrides.insert(nodes[2], bad.parse().expect("a division"));
        let error = run_pass(&pass, &mut g, &PassCtx { cost: &cost }).unwrap_err().to_string();
        assert!(error.contains("`dw`") && error.contains(bad), "{error}");
    }
}
