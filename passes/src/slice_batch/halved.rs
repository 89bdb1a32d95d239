//! Which slices run in two halves.

use std::collections::BTreeMap;
use std::str::FromStr;
use vdnn_ir::NodeId;
use vdnn_ir::id::EntityId;

/// How a slice runs in two halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    /// Both before the next node.
    Both,
    /// Each is followed by that of the next node, if that slice of it is halved, too.
    Each,
}

/// Slices that run in two halves, by node and number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Halved(BTreeMap<(NodeId, u64), Half>);

impl Halved {
    /// How slice `slice` of a node runs in two halves, if it does.
    pub fn get(&self, node: NodeId, slice: u64) -> Option<Half> {
        self.0.get(&(node, slice)).copied()
    }

    /// Lets a slice of a node run in two halves.
    pub fn insert(&mut self, node: NodeId, slice: u64, half: Half) {
        self.0.insert((node, slice), half);
    }

    /// How many slices.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of nodes that meet a condition.
    pub(super) fn of(&self, nodes: impl Fn(NodeId) -> bool) -> Self {
        Self(
            self.0
                .iter()
                .filter(|((node, _), _)| nodes(*node))
                .map(|(slice, half)| (*slice, *half))
                .collect(),
        )
    }
}

impl FromStr for Halved {
    type Err = String;

    /// Reads `n1:0+,n2:0`, slices of nodes; `+` if each half is followed by that of the next node.
    fn from_str(text: &str) -> Result<Self, String> {
        let one = |word: &str| {
            let (slice, half) = match word.strip_suffix('+') {
                Some(slice) => (slice, Half::Each),
                None => (word, Half::Both),
            };
            let (node, slice) = slice.strip_prefix('n')?.split_once(':')?;
            let node: u32 = node.parse().ok()?;
            Some(((NodeId::from_index(node as usize), slice.parse().ok()?), half))
        };
        let all: Option<BTreeMap<_, _>> = text.split(',').map(one).collect();
        all.map(Self).ok_or_else(|| format!("`{text}` is not slices of nodes, such as `n1:0+,n2:0`"))
    }
}
