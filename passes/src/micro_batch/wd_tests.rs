//! The knapsack against brute force and against an integer program.

use super::*;
use good_lp::{Expression, ProblemVariables, Solution, SolverModel, constraint, microlp, variable};
use vdnn_ir::random::splitmix64;

/// Lists of items whose workspaces are multiples of the unit.
fn instance(seed: u64, lists: u64, items: u64, most_units: u64) -> Vec<Vec<Item>> {
    let draw = |i: u64, n: u64| splitmix64(seed, i) % n;
    (0..lists)
        .map(|l| {
            (0..1 + draw(1000 * l, items))
                .map(|i| Item {
                    workspace: Bytes(UNIT.0 * draw(1000 * l + 2 * i + 1, most_units)),
                    time: Nanos(1 + draw(1000 * l + 2 * i + 2, 1000)),
                })
                .collect()
        })
        .collect()
}

fn total(lists: &[Vec<Item>], taken: &[usize]) -> (u64, u64) {
    let items = || lists.iter().zip(taken).map(|(list, &at)| list[at]);
    (items().map(|i| i.time.0).sum(), items().map(|i| i.workspace.0).sum())
}

/// Least time by trying everything.
fn brute(lists: &[Vec<Item>], pool: u64) -> Option<u64> {
    let Some((first, rest)) = lists.split_first() else { return Some(0) };
    let with = |i: &Item| Some(i.time.0 + brute(rest, pool.checked_sub(i.workspace.0)?)?);
    first.iter().filter_map(with).min()
}

/// The paper's integer program: a binary variable per item, one of each list, within the pool.
fn integer_program(lists: &[Vec<Item>], pool: u64) -> Option<u64> {
    let mut variables = ProblemVariables::new();
    let chosen: Vec<Vec<_>> =
        lists.iter().map(|l| l.iter().map(|_| variables.add(variable().binary())).collect()).collect();
    let sum = |of: &dyn Fn(&Item) -> f64| -> Expression {
        lists.iter().zip(&chosen).flat_map(|(l, v)| l.iter().zip(v)).map(|(i, &x)| of(i) * x).sum()
    };
    let mut model = variables.minimise(sum(&|i| i.time.0 as f64)).using(microlp);
    for list in &chosen {
        model = model.with(constraint!(list.iter().sum::<Expression>() == 1.0));
    }
    let units = sum(&|i| (i.workspace.0 / UNIT.0) as f64);
    let solution = model.with(constraint!(units <= (pool / UNIT.0) as f64)).solve().ok()?;
    let taken: Vec<usize> =
        chosen.iter().filter_map(|l| l.iter().position(|&x| solution.value(x) > 0.5)).collect();
    let (time, used) = total(lists, &taken);
    assert!(used <= pool && taken.len() == lists.len());
    Some(time)
}

#[test]
fn knapsack_integer_program_and_brute_force_agree() {
    let mut infeasible = 0;
    for seed in 0..1200u64 {
        let lists = instance(seed, 1 + splitmix64(seed, 77) % 5, 4, 12);
        let pool = UNIT.0 * (splitmix64(seed, 78) % 40);
        let expected = brute(&lists, pool);
        infeasible += u32::from(expected.is_none());
        let taken = divide_pool(&lists, Bytes(pool));
        assert_eq!(taken.as_ref().map(|t| total(&lists, t).0), expected, "seed {seed}");
        assert!(taken.is_none_or(|t| total(&lists, &t).1 <= pool), "seed {seed}");
        assert_eq!(integer_program(&lists, pool), expected, "seed {seed}");
    }
    assert!((20..600).contains(&infeasible), "{infeasible} have no solution; both kinds should be met");
}

#[test]
fn workspaces_between_units_are_rounded_up() {
    let item = |workspace, time| Item { workspace: Bytes(workspace), time: Nanos(time) };
    let lists = [vec![item(0, 9), item(UNIT.0 + 1, 1)], vec![item(0, 9), item(UNIT.0 - 1, 2)]];
    assert_eq!(divide_pool(&lists, Bytes(3 * UNIT.0)), Some(vec![1, 1]));
    assert_eq!(divide_pool(&lists, Bytes(3 * UNIT.0 - 1)), Some(vec![1, 0]));
    assert_eq!(divide_pool(&lists, Bytes(2 * UNIT.0 - 1)), Some(vec![0, 1]));
    assert_eq!(divide_pool(&lists, Bytes(0)), Some(vec![0, 0]));
    assert_eq!(divide_pool(&[vec![item(1, 1)]], Bytes(0)), None);
    assert_eq!(divide_pool(&[vec![]], UNIT), None);
    assert_eq!(divide_pool(&[], UNIT), Some(vec![]));
    // A pool of all the memory there is costs no more than what is asked for.
    let huge = [vec![item(1 << 40, 1), item(0, 9)], vec![item(1 << 50, 1), item(5, 9)]];
    assert_eq!(divide_pool(&huge, Bytes(u64::MAX)), Some(vec![0, 0]));
    assert_eq!(divide_pool(&huge, Bytes(1 << 41)), Some(vec![0, 1]));
}
