//! A short, repeatable run of every fuzz target, and every case they ever found.
//!
//! `VDNN_FUZZ` multiplies the number of inputs. The same targets run under libFuzzer from
//! `tests/fuzz`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vdnn_tests::arbitrary::Rng;
use vdnn_tests::data::root;
use vdnn_tests::fuzzing::{TARGETS, standalone};

/// No input may take longer.
const HANG: Duration = Duration::from_secs(10);

/// Files under `tests/corpus/NAME`, sorted.
fn corpus(name: &str) -> Vec<PathBuf> {
    let folder = root().join("tests/corpus").join(name);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    files.sort();
    files
}

/// Runs one input; the message of a panic gives the case to keep.
fn survive(name: &str, body: fn(&[u8]), input: &[u8]) {
    let start = Instant::now();
    if let Err(panic) = std::panic::catch_unwind(|| body(input)) {
        let hex: String = standalone(name, input).iter().map(|b| format!("{b:02x}")).collect();
        let what = (panic.downcast_ref::<String>().map(String::as_str))
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic");
        panic!("{name} fails on the input {hex}: {what}");
    }
    assert!(start.elapsed() < HANG, "{name} takes {:?}", start.elapsed());
}

/// Random bytes, mostly few, with runs of one value.
fn input(rng: &mut Rng) -> Vec<u8> {
    let n = if rng.one_in(8) { rng.range(0, 300) } else { rng.range(1, 40) };
    let mut bytes: Vec<u8> = (0..n).map(|_| rng.next_u64() as u8).collect();
    if rng.one_in(4) {
        let (value, from) = (rng.next_u64() as u8, rng.range(0, n) as usize);
        bytes.iter_mut().skip(from).take(9).for_each(|b| *b = value);
    }
    bytes
}

#[expect(clippy::print_stderr, reason = "the counts are the result")]
fn smoke(name: &str, rounds: u64) {
    let body = TARGETS.iter().find(|t| t.0 == name).expect("a target of that name").1;
    let times = std::env::var("VDNN_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let start = Instant::now();
    let mut rng = Rng::named(0, name);
    for _ in 0..rounds * times {
        survive(name, body, &input(&mut rng));
    }
    eprintln!("{name}: {} inputs in {:?}", rounds * times, start.elapsed());
}

#[test]
fn onnx_import_survives_random_models() {
    smoke("onnx_import", 1000);
}

#[test]
fn graph_parse_survives_random_texts() {
    smoke("graph_parse", 400);
}

#[test]
fn plan_parse_survives_random_texts() {
    smoke("plan_parse", 400);
}

#[test]
fn plan_load_survives_random_files() {
    smoke("plan_load", 400);
}

#[test]
fn external_data_survives_random_locations() {
    smoke("external_data", 2000);
}

#[test]
fn pipeline_gives_the_interpreters_bytes_under_random_options() {
    smoke("pipeline", 30);
}

#[test]
fn every_case_found_so_far_is_survived() {
    for (name, body) in TARGETS {
        for path in corpus(name) {
            let bytes = std::fs::read(&path).expect("a case");
            survive(&format!("{name} {}", file_name(&path)), body, &bytes);
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("a file").to_string_lossy().into_owned()
}
