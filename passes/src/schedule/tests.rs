//! Tests of the schedule.

use super::{PASS, Schedule};
use crate::memory::testnet::*;
use crate::offload::InsertOffload;
use crate::pass::{PassCtx, PassError, Stats, run_pass};
use crate::{Policy, SyncMode};
use vdnn_ir::{Graph, NodeId, Op, Phase, Stage};

fn run(graph: &mut Graph, policy: Policy) -> Stats {
    let cost = cost();
    let cx = PassCtx { cost: &cost };
    run_pass(&InsertOffload::new(policy, SyncMode::Event), graph, &cx).expect("insert");
    run_pass(&Schedule, graph, &cx).expect("schedule").stats
}

fn position(graph: &Graph, name: &str) -> usize {
    graph.nodes().position(|(_, n)| n.name == name).expect(name)
}

#[test]
fn an_optimizer_step_follows_its_gradient_and_all_readers_of_the_weight() {
    let mut g = selected(vgg(2, 16, &[(4, 2)]), true, false);
    // As late as possible first: every optimizer step at the end.
    let is_update = |g: &Graph, id: NodeId| g.node(id).stage == Stage::Update;
    let (mut order, updates): (Vec<NodeId>, Vec<NodeId>) =
        g.order().iter().partition(|&&id| !is_update(&g, id));
    order.extend(&updates);
    g.set_order(order);
    let stats = run(&mut g, Policy::None);
    // The last of them has nothing to move past.
    assert_eq!(stats["updates_moved"], updates.len() as u64 - 1);
    let at = g.positions();
    for &id in &updates {
        let node = g.node(id);
        let p = at[id.0 as usize];
        let gradient = g.def_node(node.inputs[2]).expect("a gradient");
        assert!(p > at[gradient.0 as usize]);
        for &reader in g.value(node.inputs[0]).users() {
            assert!(reader == id || at[reader.0 as usize] < p, "{} reads a new weight", g.node(reader).name);
        }
        // Nothing but other updates between the last of those and the step.
        let last = g.value(node.inputs[0]).users().iter().filter(|&&r| r != id).chain([&gradient]);
        let last = last.map(|r| at[r.0 as usize]).max().expect("a reader");
        for q in last + 1..p {
            assert!(is_update(&g, g.order()[q as usize]));
        }
    }
}

#[test]
fn a_weight_gradient_that_frees_x_comes_before_the_data_gradient() {
    // The X of conv2 is the output of a pool: nothing but the weight gradient reads it.
    let net = || {
        let mut n = Net::new("t");
        let x = n.input([2, 3, 16, 16]);
        let x = n.conv(x, 4, 3, 1, 1);
        let x = n.max_pool(x, 2, 2, 0);
        let x = n.conv(x, 4, 3, 1, 1);
        let x = n.global_pool(x);
        selected(n.finish(x), true, false)
    };
    let mut g = net();
    // Data gradient first, whatever autodiff prefers.
    let mut order = g.order().to_vec();
    let (d, w) = (position(&g, "conv3/dgrad"), position(&g, "conv3/wgrad"));
    if w < d {
        order.swap(d, w);
    }
    g.set_order(order);
    let stats = run(&mut g, Policy::None);
    assert_eq!(stats["weight_gradients_moved"], 1);
    assert!(position(&g, "conv3/wgrad") < position(&g, "conv3/dgrad"));
}

#[test]
fn scheduling_twice_changes_nothing() {
    for net in [resnet(2, 32, &[1, 1]), inception(2, 32, 2)] {
        let mut g = selected(net, true, false);
        run(&mut g, Policy::Conv);
        let order = g.order().to_vec();
        let cost = cost();
        let outcome = run_pass(&Schedule, &mut g, &PassCtx { cost: &cost }).expect("schedule");
        assert!(!outcome.changed);
        assert_eq!(g.order(), order);
    }
}

#[test]
fn a_parameter_read_after_its_update_is_refused() {
    let mut g = selected(vgg(2, 16, &[(4, 1)]), true, false);
    g.phase = Phase::Placed;
    // A running statistic cannot be updated later; make somebody read it afterwards.
    let fc = g.nodes().find(|(_, n)| n.op == Op::SgdUpdate).map(|(_, n)| (n.inputs[0], n.outputs[0]));
    let (param, new) = fc.expect("an update");
    let reader = g
        .add1(
            Op::Binary(vdnn_ir::op::BinaryKind::Add),
            &[param, new],
            vdnn_ir::graph::NodeSpec::forward("late"),
        )
        .expect("late");
    g.outputs.push(vdnn_ir::Output { name: "late".into(), value: reader });
    let cost = cost();
    let error = Schedule.run_checked(&mut g, &cost);
    assert!(
        matches!(&error, Err(PassError::Broke { pass, errors }) if *pass == PASS && errors.0[0].contains("late")),
        "{error:?}"
    );
}

impl Schedule {
    fn run_checked(&self, g: &mut Graph, cost: &vdnn_cost::CostModel) -> Result<(), PassError> {
        crate::pass::Pass::run(self, g, &PassCtx { cost }).map(|_| ())
    }
}
