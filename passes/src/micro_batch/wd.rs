//! One pool of workspace divided over many convolutions: a multiple-choice knapsack.
//!
//! *Workspace division* (WD) of Oyama et al. (CLUSTER 2018, section III-D): of every
//! convolution's front one element is taken, the sum of times is to be least and the sum of
//! workspaces at most the pool. They solve an integer program; a dynamic program over the pool
//! in units of 64 KiB (Dudziński and Walukiewicz, 1987) is exact as soon as workspaces are
//! multiples of the unit, and never takes too much otherwise, since they are rounded up.

use super::pareto::{Front, Priced};
use vdnn_ir::{Bytes, Nanos};

/// What the pool is counted in.
pub const UNIT: Bytes = Bytes(64 << 10);

/// Units a pool is counted in at most; a larger one is counted in larger units.
const MAX_UNITS: u64 = 1 << 17;

/// One element of a convolution's front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Workspace.
    pub workspace: Bytes,
    /// Time.
    pub time: Nanos,
}

/// An item in units, and where it was.
#[derive(Clone, Copy, Debug)]
struct Weighed {
    units: u64,
    time: u64,
    at: usize,
}

impl Priced for Weighed {
    fn workspace(&self) -> Bytes {
        Bytes(self.units)
    }
    fn time(&self) -> Nanos {
        Nanos(self.time)
    }
}

/// For every list the index of the item to take, so that the sum of times is least within the
/// pool. `None` if a list is empty or even the leanest items need more than the pool.
pub fn divide_pool(lists: &[Vec<Item>], pool: Bytes) -> Option<Vec<usize>> {
    let mut unit = UNIT.0;
    let demand = |list: &Vec<Item>| list.iter().map(|i| i.workspace.0.div_ceil(UNIT.0)).max();
    let most = lists.iter().try_fold(0u64, |sum, list| Some(sum.saturating_add(demand(list)?)))?;
    if pool.0 / UNIT.0 >= most {
        let fastest = |list: &Vec<Item>| {
            list.iter().enumerate().min_by_key(|(_, i)| (i.time, i.workspace)).map(|(at, _)| at)
        };
        return lists.iter().map(fastest).collect();
    }
    while pool.0 / unit > MAX_UNITS {
        unit *= 2;
    }
    let fronts: Vec<Vec<Weighed>> = lists.iter().map(|list| weighed(list, unit)).collect();
    // What every list takes at least is set aside; the rest is what the program divides.
    let least: u64 = fronts.iter().try_fold(0u64, |sum, f| sum.checked_add(f.first()?.units))?;
    let spare = usize::try_from((pool.0 / unit).checked_sub(least)?).ok()?;

    // times[c]: least time of the lists so far with c units beyond the least.
    let mut times = vec![0u64; spare + 1];
    let mut choices: Vec<Vec<u16>> = Vec::with_capacity(fronts.len());
    for front in &fronts {
        let base = front[0].units;
        let mut next = vec![u64::MAX; spare + 1];
        let mut choice = vec![0u16; spare + 1];
        for (index, item) in front.iter().enumerate() {
            let extra = usize::try_from(item.units - base).unwrap_or(usize::MAX);
            if extra > spare {
                break;
            }
            let (index, time) = (u16::try_from(index).ok()?, item.time);
            for ((next, choice), &before) in next[extra..].iter_mut().zip(&mut choice[extra..]).zip(&times) {
                let here = before.saturating_add(time);
                if here < *next {
                    *next = here;
                    *choice = index;
                }
            }
        }
        times = next;
        choices.push(choice);
    }
    let mut left = spare;
    let mut taken = vec![0; fronts.len()];
    for (i, front) in fronts.iter().enumerate().rev() {
        let item = front[usize::from(choices[i][left])];
        taken[i] = item.at;
        left -= usize::try_from(item.units - front[0].units).ok()?;
    }
    Some(taken)
}

/// The items that no other of the list beats, in units, by units.
fn weighed(list: &[Item], unit: u64) -> Vec<Weighed> {
    let units = |i: &Item| i.workspace.0.div_ceil(unit);
    let items = list.iter().enumerate().map(|(at, i)| Weighed { units: units(i), time: i.time.0, at });
    let mut front = items.collect::<Front<_>>().into_vec();
    // An index is 16 bits; fronts have some dozens of elements.
    front.truncate(usize::from(u16::MAX));
    front
}

#[cfg(test)]
#[path = "wd_tests.rs"]
mod tests;
