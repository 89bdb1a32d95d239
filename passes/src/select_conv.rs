//! Convolution algorithms and workspaces (vDNN, MICRO 2016, section III-C: the memory-optimal
//! and performance-optimal choices; the dynamic one is a search of the driver on top of
//! [`SelectConv::overrides`], [`SelectConv::workspace_limit`] and [`downgrade`]).

use crate::options::AlgoMode;
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use vdnn_cost::{ConvOption, CostModel};
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::{Bytes, Graph, Node, NodeId, Phase, Stage, TensorType};

/// Gives every convolution, forward and backward, an algorithm and its workspace. Nodes of
/// the setup stage run on the host at load and get none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectConv {
    /// The rule.
    pub mode: AlgoMode,
    /// Algorithms fixed from outside; they win over the rule.
    pub overrides: BTreeMap<NodeId, ConvAlgo>,
    /// Largest workspace of the dynamic rule; without one it is the performance rule.
    pub workspace_limit: Option<Bytes>,
}

impl SelectConv {
    /// The option the rule picks: the fastest within its limit. If none is (measured engines
    /// may all need workspace), the one with the smallest workspace, so that the memory rule
    /// always is the leanest choice. `options` are those of the cost model, fastest first.
    fn pick(&self, options: &[ConvOption]) -> Option<ConvOption> {
        let limit = match self.mode {
            AlgoMode::Memory => Bytes::ZERO,
            AlgoMode::Performance => Bytes(u64::MAX),
            AlgoMode::Dynamic => self.workspace_limit.unwrap_or(Bytes(u64::MAX)),
        };
        let fits = options.iter().find(|o| o.workspace <= limit);
        fits.or_else(|| options.iter().min_by_key(|o| o.workspace)).copied()
    }
}

/// The options of a convolution node, fastest first.
pub fn options(graph: &Graph, cost: &CostModel, node: &Node) -> Vec<ConvOption> {
    let inputs: SmallVec<[&TensorType; 4]> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
    let outputs: SmallVec<[&TensorType; 4]> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
    cost.conv_options(&node.op, &inputs, &outputs)
}

/// The next step down for a convolution whose workspace does not fit: the fastest option
/// that is slower than the node's current one and needs strictly less workspace. `None` if
/// there is no such option, the node has no algorithm yet or is no convolution.
///
/// Repeated, this is the paper's greedy downgrade: it ends at the smallest workspace there is.
pub fn downgrade(graph: &Graph, cost: &CostModel, node: NodeId) -> Option<ConvOption> {
    let node = graph.get_node(node)?;
    let current = node.algo?;
    let options = options(graph, cost, node);
    let at = options.iter().position(|o| o.algo == current)?;
    options[at + 1..].iter().copied().find(|o| o.workspace < options[at].workspace)
}

impl Pass for SelectConv {
    fn name(&self) -> &'static str {
        "select-conv"
    }

    fn requires(&self) -> Phase {
        Phase::Joint
    }

    fn produces(&self) -> Phase {
        Phase::Selected
    }

    fn run(&self, graph: &mut Graph, cx: &PassCtx<'_>) -> Result<Outcome, PassError> {
        let mut outcome = Outcome { changed: false, stats: Stats::new() };
        let mut largest = Bytes::ZERO;
        for id in graph.order().to_vec() {
            let node = graph.node(id);
            if !node.op.is_conv() || node.stage == Stage::Setup {
                continue;
            }
            let options = options(graph, cx.cost, node);
            let option = match self.overrides.get(&id) {
                Some(&algo) => options.iter().copied().find(|o| o.algo == algo).ok_or_else(|| {
                    let can: Vec<_> = options.iter().map(|o| o.algo.kind()).collect();
                    PassError::Unsupported(format!(
                        "node {id} `{}`: {} cannot run this convolution on {}; choose one of {}",
                        node.name,
                        algo,
                        cx.cost.device_name(),
                        can.join(", ")
                    ))
                })?,
                None => self.pick(&options).ok_or_else(|| {
                    PassError::Unsupported(format!(
                        "node {id} `{}`: device profile {} has no algorithm within the workspace limit",
                        node.name,
                        cx.cost.device_name()
                    ))
                })?,
            };
            outcome.changed |= node.algo != Some(option.algo) || node.workspace != option.workspace;
            let notes = graph.annotate(id);
            *notes.algo = Some(option.algo);
            *notes.workspace = option.workspace;
            largest = largest.max(option.workspace);
            *outcome.stats.entry(option.algo.kind()).or_default() += 1;
        }
        outcome.stats.insert("max_workspace_bytes", largest.0);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::run_pass;
    use vdnn_cost::{Measured, MeasuredRow, Precision};
    use vdnn_ir::graph::{EngineConfig, NodeSpec};
    use vdnn_ir::op::ConvAttrs;
    use vdnn_ir::{Nanos, Op, ParamRole, TensorType};

    fn cost() -> CostModel {
        CostModel::named("v100", Precision::F32).expect("shipped profile")
    }

    /// A 3x3 and a strided 1x1 convolution, the backward passes of the first, and a third one
    /// in the setup stage.
    fn graph() -> (Graph, [NodeId; 4], NodeId) {
        let attrs = |k: u64, s: u64, p: u64| ConvAttrs {
            kernel: [k, k].as_slice().into(),
            strides: [s, s].as_slice().into(),
            before: [p, p].as_slice().into(),
            after: [p, p].as_slice().into(),
            dilations: [1, 1].as_slice().into(),
            groups: 1,
        };
        let mut g = Graph::new("t");
        g.phase = Phase::Joint;
        let x = g.add_input("x", TensorType::f32([16, 64, 56, 56]));
        let w = g.add_param("w", TensorType::f32([64, 64, 3, 3]), ParamRole::Frozen);
        let v = g.add_param("v", TensorType::f32([128, 64, 1, 1]), ParamRole::Frozen);
        let a = g.add(Op::Conv(attrs(3, 1, 1)), &[x, w], NodeSpec::forward("a")).unwrap();
        let y = g.node(a).outputs[0];
        let b = g.add(Op::Conv(attrs(1, 2, 0)), &[y, v], NodeSpec::forward("b")).unwrap();
        let dgrad = Op::ConvDgrad { conv: attrs(3, 1, 1), x_dims: g.ty(x).dims.clone() };
        let dx = g.add(dgrad, &[y, w], NodeSpec::backward("dx", a)).unwrap();
        let wgrad = Op::ConvWgrad { conv: attrs(3, 1, 1), w_dims: g.ty(w).dims.clone() };
        let dw = g.add(wgrad, &[x, y], NodeSpec::backward("dw", a)).unwrap();
        let mut setup = NodeSpec::forward("s");
        setup.stage = Stage::Setup;
        let p = g.add_param("p", TensorType::f32([1, 64, 8, 8]), ParamRole::Frozen);
        let s = g.add(Op::Conv(attrs(3, 1, 1)), &[p, w], setup).unwrap();
        for (i, n) in [b, dx, dw, s].into_iter().enumerate() {
            let value = g.node(n).outputs[0];
            g.outputs.push(vdnn_ir::Output { name: format!("o{i}"), value });
        }
        (g, [a, b, dx, dw], s)
    }

    fn select(g: &mut Graph, pass: &SelectConv) -> Result<Outcome, PassError> {
        let cost = cost();
        run_pass(pass, g, &PassCtx { cost: &cost })
    }

    fn rule(mode: AlgoMode, limit: Option<Bytes>) -> SelectConv {
        SelectConv { mode, overrides: BTreeMap::new(), workspace_limit: limit }
    }

    #[test]
    fn memory_takes_no_workspace_and_performance_the_fastest() {
        let (mut g, convs, setup) = graph();
        let outcome = select(&mut g, &rule(AlgoMode::Memory, None)).unwrap();
        assert_eq!(outcome.stats.get("implicit_gemm"), Some(&4));
        assert_eq!(outcome.stats.get("max_workspace_bytes"), Some(&0));
        assert!(outcome.changed && g.phase == Phase::Selected);
        assert!(convs.iter().all(|&n| g.node(n).workspace == Bytes::ZERO));
        assert_eq!((g.node(setup).algo, g.node(setup).workspace), (None, Bytes::ZERO));

        let outcome = select(&mut g, &rule(AlgoMode::Performance, None)).unwrap();
        for n in convs {
            let fastest = options(&g, &cost(), g.node(n))[0];
            assert_eq!((g.node(n).algo, g.node(n).workspace), (Some(fastest.algo), fastest.workspace));
        }
        let largest = convs.iter().map(|&n| g.node(n).workspace.0).max();
        assert_eq!(outcome.stats.get("max_workspace_bytes").copied(), largest);
        assert!(largest > Some(0));
        let again = select(&mut g, &rule(AlgoMode::Performance, None)).unwrap();
        assert!(!again.changed, "the same choice again changes nothing");
    }

    #[test]
    fn dynamic_is_the_fastest_within_the_limit() {
        let (mut g, convs, _) = graph();
        let limit = Bytes(1 << 20);
        select(&mut g, &rule(AlgoMode::Dynamic, Some(limit))).unwrap();
        for n in convs {
            let node = g.node(n);
            assert!(node.workspace <= limit);
            let faster = options(&g, &cost(), node).into_iter().take_while(|o| Some(o.algo) != node.algo);
            assert!(faster.into_iter().all(|o| o.workspace > limit), "a faster one fits");
        }
        let mut unlimited = graph().0;
        select(&mut unlimited, &rule(AlgoMode::Dynamic, None)).unwrap();
        let mut fastest = graph().0;
        select(&mut fastest, &rule(AlgoMode::Performance, None)).unwrap();
        for n in convs {
            assert_eq!(unlimited.node(n).algo, fastest.node(n).algo);
        }
    }

    #[test]
    fn overrides_win_and_an_impossible_one_is_refused_by_name() {
        let (mut g, [a, b, ..], _) = graph();
        let mut pass = rule(AlgoMode::Performance, None);
        pass.overrides.insert(a, ConvAlgo::Gemm);
        select(&mut g, &pass).unwrap();
        assert_eq!(g.node(a).algo, Some(ConvAlgo::Gemm));
        assert_eq!(g.node(a).workspace, Bytes(4 * 64 * 9 * 56 * 56));
        pass.overrides.insert(b, ConvAlgo::Winograd);
        let error = select(&mut g, &pass).unwrap_err().to_string();
        assert!(error.contains("`b`") && error.contains("winograd") && error.contains("gemm"), "{error}");
    }

    /// A model in which the first convolution of [`graph`] was measured, and every engine
    /// needs workspace.
    fn measured(g: &Graph, node: NodeId) -> (CostModel, [ConvAlgo; 3]) {
        let algos = [4, 7, 2].map(|n| ConvAlgo::Engine(EngineConfig::new(n, &[]).expect("no knobs")));
        let mut table = Measured::default();
        let n = g.node(node);
        let (inputs, outputs): (Vec<_>, Vec<_>) =
            (n.inputs.iter().map(|&v| g.ty(v)).collect(), n.outputs.iter().map(|&v| g.ty(v)).collect());
        for (algo, (workspace, time)) in algos.into_iter().zip([(4096, 10), (512, 20), (2048, 30)]) {
            let time = Some(Nanos(time));
            let row = MeasuredRow { algo: Some(algo), workspace: Bytes(workspace), time, flags: vec![] };
            table.insert(&n.op, &inputs, &outputs, Precision::F32, row);
        }
        (cost().with_measured(table), algos)
    }

    #[test]
    fn measured_engines_that_all_need_workspace_leave_the_leanest() {
        let (mut g, [a, b, ..], _) = graph();
        let (cost, [fast, lean, _]) = measured(&g, a);
        let mut chosen = |mode, limit| {
            run_pass(&rule(mode, limit), &mut g, &PassCtx { cost: &cost }).expect("a choice");
            assert!(!matches!(g.node(b).algo, Some(ConvAlgo::Engine(_))), "b was not measured");
            (g.node(a).algo, g.node(a).workspace)
        };
        assert_eq!(chosen(AlgoMode::Performance, None), (Some(fast), Bytes(4096)));
        assert_eq!(chosen(AlgoMode::Memory, None), (Some(lean), Bytes(512)));
        assert_eq!(chosen(AlgoMode::Dynamic, Some(Bytes(4095))), (Some(lean), Bytes(512)));
        assert_eq!(chosen(AlgoMode::Dynamic, Some(Bytes(100))), (Some(lean), Bytes(512)));
        assert_eq!(downgrade(&g, &cost, a), None);
        let mut pass = rule(AlgoMode::Memory, None);
        pass.overrides.insert(a, ConvAlgo::Gemm);
        let error = run_pass(&pass, &mut g, &PassCtx { cost: &cost }).unwrap_err().to_string();
        assert!(error.contains("gemm cannot run this convolution"), "{error}");
    }

    #[test]
    fn downgrading_ends_without_workspace() {
        let (mut g, convs, setup) = graph();
        let cost = cost();
        assert_eq!(downgrade(&g, &cost, convs[0]), None, "nothing selected yet");
        select(&mut g, &rule(AlgoMode::Performance, None)).unwrap();
        assert_eq!(downgrade(&g, &cost, setup), None);
        for n in convs {
            let mut time = options(&g, &cost, g.node(n))[0].time;
            while let Some(next) = downgrade(&g, &cost, n) {
                assert!(next.workspace < g.node(n).workspace && next.time >= time);
                time = next.time;
                let notes = g.annotate(n);
                (*notes.algo, *notes.workspace) = (Some(next.algo), next.workspace);
            }
            assert_eq!(g.node(n).workspace, Bytes::ZERO);
        }
    }
}
