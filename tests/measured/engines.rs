//! Plans for a GPU at hand: whose engines they have, and made anew for another.

use super::*;

/// LeNet in a file, and its plan for the made-up GPU with this cuDNN.
fn lenet(dir: &Path, cudnn: &str, options: &CompileOptions) -> (PathBuf, vdnn_plan::Plan) {
    let path = dir.join("lenet.onnx");
    if !path.exists() {
        works(&["zoo", "lenet", "-o", text(&path)]);
    }
    let model = load::model(&path, Some(4), &options.dims, options.mode == Mode::Train).expect("the model");
    let cost = made_up(dir, cudnn).cost(&model.imported.graph, options).expect("times");
    let reference = model.reference().expect("its hash");
    let plan = model.compile(Some(reference), options, &cost).expect("a plan").plan;
    (path, plan)
}

fn made_up(dir: &Path, cudnn: &str) -> Target {
    let cost = CostModel::named("h200", Precision::Tf32).expect("a shipped profile");
    Target::measured(
        cost,
        on(cudnn),
        dir.join("made-up.sqlite"),
        Box::new(Fake { asked: Rc::default(), lost_at: 0, packed: [Nanos(1); 2] }),
    )
}

fn origin(cudnn: &str) -> EngineOrigin {
    EngineOrigin { device: "Made-up GPU".to_owned(), cudnn: cudnn.to_owned() }
}

#[test]
fn a_plan_of_another_cudnn_is_refused_or_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let given = CompileOptions {
        memory: Some(Bytes(64 << 20)),
        policy: Policy::All,
        keep_gradients: true,
        ..options(Precision::Tf32)
    };
    let (_, plan) = lenet(dir.path(), "9.19.0", &given);
    assert_eq!(plan.header.engines, Some(origin("9.19.0")));
    assert!(plan.uses_engines());
    let path = dir.path().join("lenet.vplan");
    std::fs::write(&path, plan.to_string()).expect("a file");
    assert!(plan.to_string().contains("\nengines \"Made-up GPU\" cudnn=\"9.19.0\"\n"));
    assert_eq!(load::plan(&path).expect("the plan"), plan);

    let must = |here: &EngineOrigin, anew| replan::must_replan(&plan, &path, here, anew);
    assert!(!must(&origin("9.19.0"), false).expect("it fits"));
    assert!(!must(&origin("9.19.0"), true).expect("it fits"), "nothing is planned anew without need");
    let refusal = must(&origin("9.20.0"), false).expect_err("another cuDNN").to_string();
    for part in ["lenet.vplan", "cuDNN 9.19.0", "cuDNN 9.20.0", "--replan"] {
        assert!(refusal.contains(part), "{refusal}");
    }
    assert!(must(&origin("9.20.0"), true).expect("permitted"));

    let strict = replan::options(&plan, &shared(&["--deterministic"])).expect("options");
    assert!(strict.deterministic, "what is asked for now");
    let shared = shared(&[]);
    let options = replan::options(&plan, &shared).expect("options");
    let (new, weights) =
        replan::again(&plan, &path, options, &mut made_up(dir.path(), "9.20.0")).expect("a plan");
    assert_eq!(new.header.engines, Some(origin("9.20.0")));
    let same = |p: &vdnn_plan::Plan| {
        let h = p.header.clone();
        (h.policy, h.algo, h.batch, h.mode, h.precision, h.model, p.device.budget, p.outputs.len())
    };
    assert_eq!(same(&new), same(&plan));
    assert!(!weights.tensors.is_empty());

    // A model that changed since is not planned for the old one's plan.
    works(&["zoo", "lenet", "--seed", "1", "-o", text(&dir.path().join("lenet.onnx"))]);
    let options = replan::options(&plan, &shared).expect("options");
    let failure = replan::again(&plan, &path, options, &mut made_up(dir.path(), "9.20.0"));
    assert!(failure.expect_err("another model").message.contains("is not the model the plan was made from"));
}

#[test]
fn a_plan_made_anew_is_what_its_options_make_there() {
    let dir = tempfile::tempdir().unwrap();
    let made = [
        CompileOptions { fuse: Fuse::Off, ..options(Precision::Tf32) },
        CompileOptions {
            recompute: Recompute::Cheap,
            slices: vdnnc::slicing::Slices::Count(2),
            ..options(Precision::Tf32)
        },
        CompileOptions { mode: Mode::Infer, fuse: Fuse::All, ..options(Precision::Tf32) },
    ];
    let mut plans = Vec::new();
    for given in made {
        let (path, plan) = lenet(dir.path(), "9.19.0", &given);
        let options = replan::options(&plan, &shared(&[])).expect("options");
        let (anew, _) =
            replan::again(&plan, &path, options, &mut made_up(dir.path(), "9.20.0")).expect("a plan");
        assert!(anew == lenet(dir.path(), "9.20.0", &given).1, "{:?}", plan.header.options);
        assert_eq!(anew.header.options, plan.header.options);
        plans.push(anew);
    }
    assert!(plans[0].commands.len() != plans[1].commands.len());
}

#[test]
fn a_plan_made_anew_leaves_out_the_channels_that_its_weights_leave_out() {
    let dir = tempfile::tempdir().unwrap();
    let (dense, path) = (dir.path().join("dense.onnx"), dir.path().join("lenet.onnx"));
    works(&["zoo", "lenet", "-o", text(&dense)]);
    works(&["prune", text(&dense), "--method", "channel", "--sparsity", "0.5", "-o", text(&path)]);
    let plan = |zeros: bool| {
        let mut options = CompileOptions { mode: Mode::Infer, ..options(Precision::Tf32) };
        let model = load::model(&path, Some(4), &options.dims, false).expect("the model");
        if zeros {
            model.note_zeros(&mut options);
        }
        let cost = made_up(dir.path(), "9.19.0").cost(&model.imported.graph, &options).expect("times");
        let reference = model.reference().expect("its hash");
        model.compile(Some(reference), &options, &cost).expect("a plan").plan
    };
    let weights = |plan: &vdnn_plan::Plan| vdnn_plan::stats::stats(plan).weights_bytes;
    let (whole, small) = (plan(false), plan(true));
    assert!(weights(&small) < weights(&whole));
    let options = replan::options(&small, &shared(&[])).expect("options");
    let mut target = made_up(dir.path(), "9.20.0");
    let (anew, _) = replan::again(&small, &path, options, &mut target).expect("a plan");
    assert_eq!(weights(&anew), weights(&small));
}

#[test]
fn plans_without_engines_are_nobodys() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("lenet.onnx");
    works(&["zoo", "lenet", "-o", text(&model)]);
    // The shipped times have no LeNet: its convolutions run by classic algorithms.
    let printed = works(&[text(&model), "--batch", "4", "--emit", "plan"]);
    let plan = vdnn_plan::parse_plan(&printed).expect("a plan");
    assert_eq!((plan.header.engines.clone(), plan.uses_engines()), (None, false));
    assert_eq!(plan.engines_differ(&origin("1.0")), None);
}

#[test]
fn engines_of_two_libraries_are_not_mixed() {
    let dir = tempfile::tempdir().unwrap();
    let mut given = options(Precision::Tf32);
    let (path, plan) = lenet(dir.path(), "9.19.0", &given);
    let engines = plan.commands.iter().filter_map(|c| match c {
        vdnn_plan::Command::Launch { node, algo: Some(algo), .. } => Some((*node, algo.clone())),
        _ => None,
    });
    given.kernels = engines.take(1).collect();
    given.kernels_made_for = plan.header.engines.clone();
    // The same library: fine. Another one for the rest: not.
    lenet(dir.path(), "9.19.0", &given);
    let model = load::model(&path, Some(4), &given.dims, true).expect("the model");
    let cost = made_up(dir.path(), "9.20.0").cost(&model.imported.graph, &given).expect("times");
    match model.compile(None, &given, &cost) {
        Err(driver::NoPlan::Failed(f)) => {
            assert!(f.message.contains("9.19.0") && f.message.contains("9.20.0"), "{f}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn host_memory_has_a_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (model, plan) = (dir.path().join("lenet.onnx"), dir.path().join("lenet.vplan"));
    works(&["zoo", "lenet", "-o", text(&model)]);
    let args = [text(&model), "--batch", "64", "-o", text(&plan)];
    let message = fails(&[&args[..], &["--policy", "conv", "--host-memory", "256KiB"]].concat());
    let need = 4 * 64 * (28 * 28 + 6 * 14 * 14);
    assert!(message.contains(&format!("({need} bytes) of pinned host memory")), "{message}");
    assert!(message.contains("256.0KiB (262144 bytes)") && !plan.exists(), "{message}");
    let exact = need.to_string();
    works(&[&args[..], &["--policy", "conv", "--host-memory", &exact]].concat());
    assert_eq!(load::plan(&plan).expect("the plan").host.budget, Some(Bytes(need)));
    // Left to itself, the search offloads no more than may be.
    works(&[&args[..], &["--host-memory", "0"]].concat());
    assert_eq!(load::plan(&plan).expect("the plan").host.bytes, Bytes::ZERO);
}
