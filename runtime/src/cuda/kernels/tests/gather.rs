//! Convolutions with packed weights by both kernels, whichever would be chosen.

use super::super::sparse_conv::{GATHERED, ONLY, Only};
use super::*;
use vdnn_ir::sparse::SparseForm;

/// The staged way, then some of the others.
fn all() -> impl Iterator<Item = Only> {
    std::iter::once(Only::Staged).chain((0..GATHERED).map(Only::Gathered))
}

/// With one kernel alone, on this thread.
fn with<T>(only: Only, run: impl FnOnce() -> T) -> T {
    ONLY.set(Some(only));
    let result = run();
    ONLY.set(None);
    result
}

/// Convolutions over two axes, row-major.
fn convolutions() -> Vec<Case> {
    let rows =
        |op: &Op| matches!(op, Op::SparseConv { conv, form: SparseForm::Csr, .. } if !conv.kernel.is_empty());
    cases::all().into_iter().filter(|c| rows(&c.op)).collect()
}

/// Adds the kernels of all ways.
pub(super) fn kernels(to: &mut BTreeMap<Source, Vec<Kernel>>) {
    let cases = convolutions();
    for (source, kernels) in all().flat_map(|only| with(only, || all_kernels(&cases))) {
        let known = to.entry(source).or_default();
        known.extend(kernels);
        known.sort();
        known.dedup();
    }
}

#[test]
fn every_way_agrees_with_the_naive_kernels() {
    let Some(compiler) = std::env::var_os("VDNNC_EMULATOR_CXX") else { return };
    let cases = convolutions();
    let mut needed = BTreeMap::new();
    kernels(&mut needed);
    let lanes = |kernel: &Kernel| {
        let mut words = kernel.name.rsplit('_').skip(2).map(str::to_owned);
        (words.next(), words.next())
    };
    let taken: std::collections::BTreeSet<_> = needed[&Source::SparseGather].iter().map(lanes).collect();
    for (wide, run) in [("1", "1"), ("1", "2"), ("1", "4"), ("1", "8"), ("4", "1"), ("4", "2")] {
        assert!(taken.contains(&(Some(wide.to_owned()), Some(run.to_owned()))), "{run} of {wide}: {taken:?}");
    }
    let mut emulator = Emulator::build(&compiler, &needed);
    let failures: Vec<String> = all()
        .flat_map(|only| cases.iter().map(move |case| (only, case)))
        .filter_map(|(only, case)| with(only, || check(&mut emulator, case)).err().map(|e| (only, e)))
        .map(|(only, e)| format!("{only:?}: {e}"))
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
