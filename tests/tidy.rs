//! The invariants of ARCHITECTURE.md that rustc does not enforce by itself, and the house
//! rules, as tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use vdnn_tests::data::root;

fn files(dir: &Path, extension: &str, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() {
            if name != "target" && name != ".git" && name != ".carry" {
                files(&path, extension, out);
            }
        } else if path.extension().is_some_and(|e| e == extension) {
            out.push(path);
        }
    }
    out.sort();
}

fn sources() -> Vec<PathBuf> {
    let mut out = Vec::new();
    for dir in ["compiler", "frontends", "passes", "runtime", "tests"] {
        files(&root().join(dir), "rs", &mut out);
    }
    out
}

/// Package name to the packages of ours it depends on, dev-dependencies apart.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let mut manifests = Vec::new();
    for dir in ["compiler", "frontends", "passes", "runtime", "tests"] {
        files(&root().join(dir), "toml", &mut manifests);
    }
    let mut all = BTreeMap::new();
    for manifest in manifests.iter().filter(|m| m.ends_with("Cargo.toml")) {
        let text = std::fs::read_to_string(manifest).expect("a manifest");
        let mut name = String::new();
        let mut section = String::new();
        let mut deps = BTreeSet::new();
        for line in text.lines() {
            if line.starts_with('[') {
                section = line.to_owned();
            } else if section == "[package]" && line.starts_with("name") {
                name = line.split('"').nth(1).expect("a name").to_owned();
            } else if section == "[dependencies]" && line.starts_with("vdnn") {
                deps.insert(line.split(['.', ' ', '=']).next().expect("a name").to_owned());
            }
        }
        all.insert(name, deps);
    }
    all
}

/// A unit-test module in a file of its own.
fn is_test(path: &Path) -> bool {
    path.components().any(|c| c.as_os_str() == "tests")
        || path.file_stem().and_then(|s| s.to_str()).is_some_and(|s| s.ends_with("tests"))
}

#[test]
fn crates_depend_only_on_what_the_architecture_allows() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("vdnn-ir", &[][..]),
        ("vdnn-cost", &["vdnn-ir", "vdnn-pyramid"]),
        ("vdnn-benchdb", &["vdnn-cost", "vdnn-ir"]),
        ("vdnn-interp", &["vdnn-ir"]),
        ("vdnn-plan", &["vdnn-ir"]),
        ("vdnn-pyramid", &["vdnn-ir"]),
        ("vdnn-frontends", &["vdnn-ir"]),
        ("vdnn-passes", &["vdnn-cost", "vdnn-ir", "vdnn-plan"]),
        ("vdnn-runtime", &["vdnn-cost", "vdnn-ir", "vdnn-plan", "vdnn-pyramid"]),
    ]);
    let real = dependencies();
    for (package, allowed) in allowed {
        let deps = &real[package];
        assert!(deps.iter().all(|d| allowed.contains(&d.as_str())), "{package} depends on {deps:?}");
    }
    for (package, deps) in &real {
        assert!(!deps.contains("vdnnc") || package == "vdnn-tests", "{package} depends on the driver");
    }
}

#[test]
fn unsafe_code_stays_in_its_rooms() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let relative = path.strip_prefix(root()).expect("inside the workspace");
        let allowed = relative.starts_with("runtime/src")
            || relative.starts_with("frontends/src/onnx/mmap.rs")
            || relative.starts_with("tests/tidy.rs");
        if !allowed {
            let uses = text.lines().any(|l| {
                let code = l.split("//").next().unwrap_or_default();
                code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
            });
            assert!(!uses, "unsafe in {}", relative.display());
        }
        for (i, line) in text.lines().enumerate().filter(|_| !relative.starts_with("tests")) {
            if line.trim_start().starts_with("unsafe {") || line.contains("= unsafe {") {
                let before: Vec<&str> = text.lines().take(i).collect();
                let reason = before.iter().rev().take(8).any(|l| l.contains("SAFETY:"));
                assert!(reason, "{}:{}: no SAFETY comment", relative.display(), i + 1);
            }
        }
    }
}

#[test]
fn passes_see_no_files_clocks_or_environment() {
    let mut out = Vec::new();
    files(&root().join("passes/src"), "rs", &mut out);
    files(&root().join("compiler/ir/src"), "rs", &mut out);
    files(&root().join("compiler/cost/src"), "rs", &mut out);
    files(&root().join("compiler/pyramid/src"), "rs", &mut out);
    for path in out {
        if is_test(&path) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("a source file");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for word in
            ["std::fs", "std::env", "Instant::now", "SystemTime", "collections::HashMap", "thread_rng"]
        {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn the_checker_shares_no_code_with_the_planner() {
    let deps = dependencies();
    assert!(!deps["vdnn-plan"].contains("vdnn-passes") && !deps["vdnn-plan"].contains("vdnn-cost"));
}

#[test]
fn every_source_file_is_reachable_and_names_its_purpose() {
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let first = text.lines().find(|l| !l.starts_with("// @generated") && !l.trim().is_empty());
        let generated = text.contains("@generated");
        assert!(
            generated || first.is_some_and(|l| l.starts_with("//!")),
            "{} does not say what it is for",
            path.display()
        );
        let stem = path.file_stem().and_then(|s| s.to_str()).expect("a name");
        let parent = path.parent().expect("a folder");
        if ["lib", "main", "mod", "build"].contains(&stem)
            || !path.components().any(|c| c.as_os_str() == "src")
        {
            continue;
        }
        let declares = |file: PathBuf| {
            std::fs::read_to_string(file)
                .is_ok_and(|t| t.contains(&format!("mod {stem};")) || t.contains(&format!("\"{stem}.rs\"")))
        };
        let up = parent.with_extension("rs");
        let beside = stem.strip_suffix("_tests").map(|s| parent.join(format!("{s}.rs")));
        assert!(
            ["mod.rs", "lib.rs", "main.rs"].iter().any(|f| declares(parent.join(f)))
                || declares(up)
                || beside.is_some_and(declares),
            "{} is in no module",
            path.display()
        );
    }
}

#[test]
fn documents_name_only_files_that_exist() {
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"] {
        let text = std::fs::read_to_string(root().join(name)).expect("the document");
        for word in text.split('`').skip(1).step_by(2) {
            let looks_like_path = word.contains('/')
                && !word.contains([' ', '*', '{', '<', '…', '$'])
                && ["compiler/", "frontends/", "passes/", "runtime/", "tests/", ".ci/"]
                    .iter()
                    .any(|p| word.starts_with(p));
            assert!(
                !looks_like_path || root().join(word).exists(),
                "{name} names {word}, which is not there"
            );
        }
    }
}

#[test]
fn ci_runs_the_test_command_of_the_readme() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let mut inside = false;
    let mut commands = Vec::new();
    for line in readme.lines() {
        if line.starts_with("```") {
            inside = !inside;
        } else if inside && line.starts_with("cargo ") {
            commands.push(line);
        }
    }
    let ci = std::fs::read_to_string(root().join(".ci/run")).expect(".ci/run");
    assert!(ci.lines().any(|l| l.trim() == commands[1]), "CI does not run `{}`", commands[1]);
}
