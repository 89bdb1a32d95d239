//! Convolution algorithms, workspaces and the division of batches into micro-batches (vDNN,
//! MICRO 2016, section III-C: the memory-optimal and performance-optimal choices; the dynamic
//! one is a search of the driver on top of [`SelectConv::overrides`], [`SelectConv::workspace`]
//! and [`downgrade`]. Divisions: [`crate::micro_batch`]).

use crate::micro_batch::{Choice, Menu, wd};
use crate::options::{AlgoMode, Workspace};
use crate::pass::{Outcome, Pass, PassCtx, PassError, Stats};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::rc::Rc;
use vdnn_cost::{ConvOption, CostModel, rings};
use vdnn_ir::graph::ConvAlgo;
use vdnn_ir::{Bytes, ConvSchedule, Graph, Node, NodeId, Phase, Stage, TensorType};

/// Gives every convolution, forward and backward, an algorithm and its workspace, or several
/// on parts of its batch. Nodes of the setup stage run on the host at load and get none. A stage of
/// blocks gets its rings as workspace ([`rings`]): there is nothing to choose, and no limit applies.
#[derive(Clone, Debug)]
pub struct SelectConv {
    /// The rule.
    pub mode: AlgoMode,
    /// Algorithms fixed from outside; they win over the rule.
    pub overrides: BTreeMap<NodeId, ConvSchedule>,
    /// Bound of the workspaces for the performance and dynamic rules.
    pub workspace: Workspace,
    /// The ways to run a convolution, with the sizes of micro-batches that are allowed.
    pub menu: Rc<Menu>,
}

impl SelectConv {
    /// The choice the rule makes: the fastest within its limit. If none is (measured engines
    /// may all need workspace), the one with the smallest workspace, an undivided one if there
    /// is one, so that the memory rule always is the leanest choice. `choices` are fastest
    /// first.
    fn pick(&self, choices: &[Choice]) -> Option<Choice> {
        let limit = match (self.mode, self.workspace) {
            (AlgoMode::Memory, _) => Bytes::ZERO,
            (_, Workspace::Limit(limit)) => limit,
            (_, Workspace::Planned | Workspace::Total(_)) => Bytes(u64::MAX),
        };
        let fits = choices.iter().find(|c| c.workspace <= limit);
        let leanest = || choices.iter().min_by_key(|c| (c.schedule.is_divided(), c.workspace));
        fits.or_else(leanest).cloned()
    }

    /// The shares of one pool: what each convolution is to run, by node. Empty if the rule is
    /// another.
    fn shares(&self, graph: &Graph, cost: &CostModel) -> Result<BTreeMap<NodeId, Choice>, PassError> {
        let Workspace::Total(total) = self.workspace else { return Ok(BTreeMap::new()) };
        if matches!(self.mode, AlgoMode::Memory | AlgoMode::Only(_)) {
            return Ok(BTreeMap::new());
        }
        let mut pool = total;
        let (mut nodes, mut menus, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        for (id, node) in graph.nodes().filter(|(_, n)| n.op.is_conv() && n.stage != Stage::Setup) {
            if let Some(schedule) = self.overrides.get(&id) {
                let price = self.menu.price(graph, cost, node, schedule);
                pool = pool.saturating_sub(price.map_or(Bytes::ZERO, |c| c.workspace));
                continue;
            }
            let choices = self.menu.choices(graph, cost, node);
            let item = |c: &Choice| wd::Item { workspace: c.workspace, time: c.time };
            lists.push(choices.iter().map(item).collect::<Vec<_>>());
            menus.push(choices);
            nodes.push(id);
        }
        let taken = wd::divide_pool(&lists, pool).ok_or_else(|| {
            PassError::Unsupported(format!(
                "the convolutions need more than {total} of workspace with their leanest algorithms; allow \
                 more in all, or give a limit for each"
            ))
        })?;
        let choices = menus.iter().zip(taken).map(|(menu, at)| menu[at].clone());
        Ok(nodes.into_iter().zip(choices).collect())
    }
}

/// The options of a convolution node, undivided, fastest first.
pub fn options(graph: &Graph, cost: &CostModel, node: &Node) -> Vec<ConvOption> {
    let inputs: SmallVec<[&TensorType; 4]> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
    let outputs: SmallVec<[&TensorType; 4]> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
    cost.conv_options(&node.op, &inputs, &outputs)
}

/// The next step down for an undivided convolution whose workspace does not fit: the fastest
/// option that is slower than the node's current one and needs strictly less workspace. `None`
/// if there is no such option, the node has no algorithm yet or is no convolution.
///
/// Repeated, this is the paper's greedy downgrade: it ends at the smallest workspace there is.
pub fn downgrade(graph: &Graph, cost: &CostModel, node: NodeId) -> Option<ConvOption> {
    let node = graph.get_node(node)?;
    let current = node.algo.as_ref()?.whole()?;
    let options = options(graph, cost, node);
    let at = options.iter().position(|o| o.algo == current)?;
    options[at + 1..].iter().copied().find(|o| o.workspace < options[at].workspace)
}

impl SelectConv {
    /// The one algorithm that is allowed, whatever was measured of others.
    fn only(graph: &Graph, cost: &CostModel, id: NodeId, algo: ConvAlgo) -> Result<Choice, PassError> {
        let node = graph.node(id);
        let inputs: SmallVec<[&TensorType; 4]> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
        let outputs: SmallVec<[&TensorType; 4]> = node.outputs.iter().map(|&v| graph.ty(v)).collect();
        cost.classic_option(&node.op, &inputs, &outputs, algo).map(Choice::from).ok_or_else(|| {
            PassError::Unsupported(format!(
                "node {id} `{}`: --algo {} cannot run this convolution on {}; choose another algorithm",
                node.name,
                AlgoMode::Only(algo),
                cost.device_name()
            ))
        })
    }

    /// What is fixed from outside, priced.
    fn fixed(
        &self,
        graph: &Graph,
        cost: &CostModel,
        id: NodeId,
        schedule: &ConvSchedule,
    ) -> Result<Choice, PassError> {
        let node = graph.node(id);
        if let AlgoMode::Only(algo) = self.mode
            && *schedule == ConvSchedule::Whole(algo)
        {
            return Self::only(graph, cost, id, algo);
        }
        self.menu.price(graph, cost, node, schedule).ok_or_else(|| {
            let can: Vec<_> = options(graph, cost, node).iter().map(|o| o.algo.kind()).collect();
            PassError::Unsupported(format!(
                "node {id} `{}`: {schedule} cannot run this convolution on {}; choose one of {}",
                node.name,
                cost.device_name(),
                can.join(", ")
            ))
        })
    }
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
        let mut shares = self.shares(graph, cx.cost)?;
        for id in graph.order().to_vec() {
            let node = graph.node(id);
            if node.stage == Stage::Setup {
                continue;
            }
            if !node.op.is_conv() {
                let workspace = {
                    let inputs: Vec<&TensorType> = node.inputs.iter().map(|&v| graph.ty(v)).collect();
                    rings(&node.op, &inputs)
                };
                if node.workspace != workspace {
                    outcome.changed = true;
                    *graph.annotate(id).workspace = workspace;
                }
                largest = largest.max(workspace);
                continue;
            }
            let choice = match (self.overrides.get(&id), shares.remove(&id)) {
                (Some(schedule), _) => self.fixed(graph, cx.cost, id, schedule)?,
                (None, Some(share)) => share,
                (None, None) => match self.mode {
                    AlgoMode::Only(algo) => Self::only(graph, cx.cost, id, algo)?,
                    _ => self.pick(&self.menu.choices(graph, cx.cost, node)).ok_or_else(|| {
                        PassError::Unsupported(format!(
                            "node {id} `{}`: device profile {} has no algorithm within the workspace limit",
                            node.name,
                            cx.cost.device_name()
                        ))
                    })?,
                },
            };
            let schedule = Some(choice.schedule);
            outcome.changed |= node.algo != schedule || node.workspace != choice.workspace;
            *outcome.stats.entry(schedule.as_ref().map_or("none", ConvSchedule::kind)).or_default() += 1;
            let notes = graph.annotate(id);
            *notes.algo = schedule;
            *notes.workspace = choice.workspace;
            largest = largest.max(choice.workspace);
        }
        outcome.stats.insert("max_workspace_bytes", largest.0);
        Ok(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::BatchSizes;
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
        let attrs = |k: u64, s: u64, p: u64| ConvAttrs::square(k, s, p, 1);
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
        let workspace = limit.map_or(Workspace::Planned, Workspace::Limit);
        let menu = Rc::new(Menu::new(BatchSizes::Undivided));
        SelectConv { mode, overrides: BTreeMap::new(), workspace, menu }
    }

    fn whole(node: &Node) -> Option<ConvAlgo> {
        node.algo.as_ref().and_then(ConvSchedule::whole)
    }

    #[test]
    fn memory_takes_no_workspace_and_performance_the_fastest() {
        let (mut g, convs, setup) = graph();
        let outcome = select(&mut g, &rule(AlgoMode::Memory, None)).unwrap();
        assert_eq!(outcome.stats.get("implicit_gemm"), Some(&4));
        assert_eq!(outcome.stats.get("max_workspace_bytes"), Some(&0));
        assert!(outcome.changed && g.phase == Phase::Selected);
        assert!(convs.iter().all(|&n| g.node(n).workspace == Bytes::ZERO));
        assert_eq!((whole(g.node(setup)), g.node(setup).workspace), (None, Bytes::ZERO));

        let outcome = select(&mut g, &rule(AlgoMode::Performance, None)).unwrap();
        for n in convs {
            let fastest = options(&g, &cost(), g.node(n))[0];
            assert_eq!((whole(g.node(n)), g.node(n).workspace), (Some(fastest.algo), fastest.workspace));
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
            let faster = options(&g, &cost(), node).into_iter().take_while(|o| Some(o.algo) != whole(node));
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
        pass.overrides.insert(a, ConvAlgo::Gemm.into());
        select(&mut g, &pass).unwrap();
        assert_eq!(whole(g.node(a)), Some(ConvAlgo::Gemm));
        assert_eq!(g.node(a).workspace, Bytes(4 * 64 * 9 * 56 * 56));
        pass.overrides.insert(b, ConvAlgo::Winograd.into());
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
            assert!(!matches!(whole(g.node(b)), Some(ConvAlgo::Engine(_))), "b was not measured");
            (whole(g.node(a)), g.node(a).workspace)
        };
        assert_eq!(chosen(AlgoMode::Performance, None), (Some(fast), Bytes(4096)));
        assert_eq!(chosen(AlgoMode::Memory, None), (Some(lean), Bytes(512)));
        assert_eq!(chosen(AlgoMode::Dynamic, Some(Bytes(4095))), (Some(lean), Bytes(512)));
        assert_eq!(chosen(AlgoMode::Dynamic, Some(Bytes(100))), (Some(lean), Bytes(512)));
        assert_eq!(downgrade(&g, &cost, a), None);
        let mut pass = rule(AlgoMode::Memory, None);
        pass.overrides.insert(a, ConvAlgo::Gemm.into());
        let error = run_pass(&pass, &mut g, &PassCtx { cost: &cost }).unwrap_err().to_string();
        assert!(error.contains("gemm cannot run this convolution"), "{error}");
    }

    #[test]
    fn one_algorithm_for_all_ignores_what_was_measured_and_names_who_cannot_have_it() {
        let (mut g, [a, b, ..], setup) = graph();
        let (cost, _) = measured(&g, a);
        let mut run = |algo| {
            run_pass(&rule(AlgoMode::Only(algo), None), &mut g, &PassCtx { cost: &cost }).map(|_| g.clone())
        };
        let only = run(ConvAlgo::ImplicitGemm).expect("it runs everything");
        assert!(
            only.nodes()
                .filter(|(id, n)| n.op.is_conv() && *id != setup)
                .all(|(_, n)| { whole(n) == Some(ConvAlgo::ImplicitGemm) && n.workspace == Bytes::ZERO })
        );
        assert_eq!(whole(only.node(setup)), None, "it runs on the host");
        let error = run(ConvAlgo::Gemm).unwrap_err().to_string();
        assert!(error.contains("`dx`") && error.contains("only=gemm cannot run"), "{error}");
        let error = run(ConvAlgo::WinogradNonfused).unwrap_err().to_string();
        assert!(error.contains("`b`"), "a 1x1 convolution with stride: {error}");
        // What a search has fixed to the same is priced the same.
        let mut pass = rule(AlgoMode::Only(ConvAlgo::ImplicitGemm), None);
        pass.overrides.insert(a, ConvAlgo::ImplicitGemm.into());
        run_pass(&pass, &mut g, &PassCtx { cost: &cost }).expect("the same");
        assert_eq!(whole(g.node(b)), Some(ConvAlgo::ImplicitGemm));
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
                (*notes.algo, *notes.workspace) = (Some(next.algo.into()), next.workspace);
            }
            assert_eq!(g.node(n).workspace, Bytes::ZERO);
        }
    }
}
