//! Static memory layout: every byte of a step gets its address before the step runs.
//!
//! The device arena holds a persistent block at the bottom (parameters, optimizer state,
//! literals) and above it everything else, packed by [`pack`] so that storages whose
//! lifetimes overlap never share a byte. The pinned host arena is packed the same way. Where
//! concats grow row by row, `stepped.rs` packs their parts at the times these begin.

pub mod baseline;
mod climb;
mod greedy;
pub mod pack;
mod stepped;
pub mod storage;
mod sweep;

#[cfg(test)]
pub(crate) mod testnet;
#[cfg(test)]
mod tests;

pub use stepped::Part;
pub use storage::{Storage, StorageId, StorageKind, Storages};

use crate::streams::{self, Lanes};
use pack::Block;
use std::fmt::Write as _;
use stepped::Shape;
use vdnn_ir::graph::{Graph, NodeId, ValueId};
use vdnn_ir::id::{EntityId, PrimaryMap, SecondaryMap};
use vdnn_ir::{Bytes, Space};
use vdnn_plan::plan::ALIGNMENT;

/// How to lay out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayoutOptions {
    /// Network-wide allocation, the baseline vDNN compares with ([`baseline`]), instead of
    /// reuse of bytes as soon as they are dead. Slices and concats of rows are copies then.
    pub baseline: bool,
    /// Where rows make the packing hard, search longer (`climb.rs`): about a second.
    pub thorough: bool,
}

/// Why a graph has no layout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The sizes add up to more than 2^64 bytes.
    #[error("the model needs more than 2^64 bytes of memory; use a smaller batch")]
    TooLarge,
    /// Two persistent tensors would take the same bytes.
    #[error("parameters `{first}` and `{second}` would share bytes; give each its own update")]
    SharedParams {
        /// One.
        first: String,
        /// The other.
        second: String,
    },
}

/// A complete layout of both arenas.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Every storage with its offset.
    pub storages: PrimaryMap<StorageId, Storage>,
    /// The storage of each value that has bytes.
    pub storage_of: SecondaryMap<ValueId, Option<StorageId>>,
    /// Where in its storage each value starts.
    pub within: SecondaryMap<ValueId, Bytes>,
    /// The workspace storage of each node that has one.
    pub workspace_of: SecondaryMap<NodeId, Option<StorageId>>,
    /// Size of the device arena.
    pub device_bytes: Bytes,
    /// Size of the pinned host arena.
    pub host_bytes: Bytes,
    /// The persistent block at the bottom of the device arena.
    pub persistent_bytes: Bytes,
    /// The largest workspace.
    pub workspace_bytes: Bytes,
    /// Largest sum of live aligned device bytes at one position; no layout that keeps every
    /// live byte can be smaller. For the baseline, where all buffers live throughout, the arena.
    pub lower_bound: Bytes,
    /// The same for the host arena.
    pub host_lower_bound: Bytes,
    /// Live aligned device bytes at each program-order position.
    pub live_profile: Vec<Bytes>,
    /// The first position at which the profile is largest.
    pub peak_position: u32,
}

/// One of the storages that make the peak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contributor {
    /// What it is, for people.
    pub name: String,
    /// Its aligned size.
    pub bytes: Bytes,
    /// Its kind.
    pub kind: StorageKind,
}

impl Layout {
    /// The byte range of a value: arena and offset; `None` if it has no bytes.
    pub fn place(&self, value: ValueId) -> Option<(Space, Bytes)> {
        let s = &self.storages[self.storage_of[value]?];
        Some((s.space, s.offset + self.within[value]))
    }

    /// The layout as a table for people and text tests: one line per arena, then one per
    /// storage in order of arena, offset and start.
    pub fn table(&self, graph: &Graph) -> String {
        let mut out = format!(
            "device {} bound={} persistent={} peak_at={}\nhost {} bound={}\n",
            self.device_bytes.0,
            self.lower_bound.0,
            self.persistent_bytes.0,
            self.peak_position,
            self.host_bytes.0,
            self.host_lower_bound.0
        );
        let mut all: Vec<(StorageId, &Storage)> = self.storages.iter().collect();
        all.sort_by_key(|(id, s)| (s.space, s.offset, s.live.start, id.index()));
        for (id, s) in all {
            let space = if s.space == Space::Host { "host" } else { "device" };
            let kept = if s.kept { " kept" } else { "" };
            let live = &s.live;
            let values: Vec<String> = s
                .values
                .iter()
                .map(|&v| match self.within[v] {
                    Bytes(0) => v.to_string(),
                    Bytes(at) => format!("{v}+{at}"),
                })
                .collect();
            let name = s.values.first().map_or("workspace".into(), |&v| storage::describe(graph, v));
            let _ = writeln!(
                out,
                "{id} {space} {}+{} [{},{}) {}{kept} ({}) {name:?}",
                s.offset.0,
                s.bytes.0,
                live.start,
                live.end,
                s.kind,
                values.join(", ")
            );
        }
        out
    }

    /// The largest `count` storages in use at the peak position, largest first, with the
    /// persistent block as one entry; for messages about a budget that is too small.
    pub fn peak_contributors(&self, graph: &Graph, count: usize) -> Vec<Contributor> {
        let mut all = vec![Contributor {
            name: "parameters".into(),
            bytes: self.persistent_bytes,
            kind: StorageKind::Persistent,
        }];
        let p = self.peak_position;
        for s in self.storages.values() {
            if s.space == Space::Device && s.kind != StorageKind::Persistent && s.live.contains(&p) {
                let name = match s.values.first() {
                    Some(&v) => storage::describe(graph, v),
                    None => graph.order().get(p as usize).map_or_else(
                        || "workspace".into(),
                        |&n| format!("workspace of {}", graph.node(n).name),
                    ),
                };
                all.push(Contributor { name, bytes: s.bytes_at(p), kind: s.kind });
            }
        }
        all.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.name.cmp(&b.name)));
        all.truncate(count);
        all
    }
}

/// Lays out both arenas of a scheduled graph. Deterministic; the arena is at least the
/// lower bound and, for networks, within two percent of it.
///
/// # Errors
/// If a size overflows, or updates make two parameters share bytes.
pub fn layout(graph: &Graph, options: &LayoutOptions) -> Result<Layout, LayoutError> {
    place(graph, storage::storages(graph, !options.baseline)?, options)
}

fn place(graph: &Graph, storages: Storages, options: &LayoutOptions) -> Result<Layout, LayoutError> {
    let Storages { all: mut storages, of, within, workspace } = storages;
    let total = storages
        .values()
        .try_fold(Bytes::ZERO, |sum, s| sum.checked_add(s.bytes.align_up(ALIGNMENT)))
        .filter(|t| t.0 < u64::MAX / 2);
    if total.is_none() {
        return Err(LayoutError::TooLarge);
    }
    let workspace_bytes = storages
        .values()
        .filter(|s| s.kind == StorageKind::Workspace)
        .map(|s| s.bytes.align_up(ALIGNMENT))
        .max()
        .unwrap_or_default();

    let mut persistent_bytes = Bytes::ZERO;
    for s in storages.values_mut().filter(|s| s.kind == StorageKind::Persistent) {
        s.offset = persistent_bytes;
        persistent_bytes += s.bytes.align_up(ALIGNMENT);
    }
    let (host_bytes, host_lower_bound) = pack_space(&mut storages, Space::Host, Bytes::ZERO, options);

    let positions = graph.order().len().max(1);
    let (device_bytes, lower_bound, live_profile);
    if options.baseline {
        device_bytes = baseline::place(&mut storages, persistent_bytes);
        lower_bound = device_bytes;
        live_profile = vec![device_bytes; positions];
    } else {
        (device_bytes, lower_bound) = pack_space(&mut storages, Space::Device, persistent_bytes, options);
        live_profile = profile(&storages, positions, persistent_bytes);
        debug_assert_eq!(live_profile.iter().max(), Some(&lower_bound));
    }
    let peak_position = live_profile.iter().position(|&b| b == lower_bound).map_or(0, |p| p as u32);
    Ok(Layout {
        storages,
        storage_of: of,
        within,
        workspace_of: workspace,
        device_bytes,
        host_bytes,
        persistent_bytes,
        workspace_bytes,
        lower_bound,
        host_lower_bound,
        live_profile,
        peak_position,
    })
}

/// Lays out both arenas of a scheduled graph whose nodes run on several compute streams: nobody
/// takes over bytes of a node that it is not ordered after ([`crate::streams`]).
///
/// # Errors
/// As [`layout`].
pub fn layout_on(graph: &Graph, options: &LayoutOptions, lanes: &Lanes) -> Result<Layout, LayoutError> {
    let mut storages = storage::storages(graph, !options.baseline)?;
    streams::extend(graph, &mut storages, lanes);
    place(graph, storages, options)
}

/// Live aligned device bytes at each program-order position of a scheduled graph; what
/// [`Layout::live_profile`] is, without packing.
///
/// # Errors
/// If a size overflows, or updates make two parameters share bytes.
pub fn live_profile(graph: &Graph) -> Result<Vec<Bytes>, LayoutError> {
    let storages = storage::storages(graph, true)?.all;
    let persistent = storages.values().filter(|s| s.kind == StorageKind::Persistent);
    let base = persistent.map(|s| s.bytes.align_up(ALIGNMENT)).sum();
    Ok(profile(&storages, graph.order().len().max(1), base))
}

/// Packs the transient storages of one arena above `base`; returns the arena's size and
/// its lower bound.
fn pack_space(
    storages: &mut PrimaryMap<StorageId, Storage>,
    space: Space,
    base: Bytes,
    options: &LayoutOptions,
) -> (Bytes, Bytes) {
    let ids: Vec<StorageId> = storages
        .iter()
        .filter(|(_, s)| s.space == space && s.kind != StorageKind::Persistent)
        .map(|(id, _)| id)
        .collect();
    let blocks: Vec<Block> = ids
        .iter()
        .map(|&id| Block { size: storages[id].bytes.align_up(ALIGNMENT), live: storages[id].live.clone() })
        .collect();
    let mut packing = pack::pack(&blocks);
    if ids.iter().any(|&id| !storages[id].parts.is_empty()) {
        let shapes: Vec<Shape> = ids.iter().map(|&id| storages[id].shape()).collect();
        let positions = shapes.iter().map(Shape::until).max().unwrap_or(0) as usize;
        let live = pack::live_profile(shapes.iter().flat_map(Shape::blocks), positions);
        packing.lower_bound = live.into_iter().max().unwrap_or_default();
        let mut found = stepped::pack(&shapes, packing.lower_bound);
        let met = |height: Bytes| height <= packing.lower_bound;
        if options.thorough && !met(packing.height) && !found.as_ref().is_some_and(|f| met(f.1)) {
            let other = climb::pack(&shapes, packing.lower_bound);
            found = found.into_iter().chain(other).min_by_key(|f| f.1);
        }
        if let Some((offsets, height)) = found
            && height < packing.height
        {
            (packing.offsets, packing.height) = (offsets, height);
        }
    }
    for (&id, &offset) in ids.iter().zip(&packing.offsets) {
        storages[id].offset = base + offset;
    }
    (base + packing.height, base + packing.lower_bound)
}

/// Live aligned device bytes at each position.
fn profile(storages: &PrimaryMap<StorageId, Storage>, positions: usize, base: Bytes) -> Vec<Bytes> {
    let transients =
        storages.values().filter(|s| s.space == Space::Device && s.kind != StorageKind::Persistent);
    let shapes: Vec<Shape> = transients.map(Storage::shape).collect();
    pack::live_profile(shapes.iter().flat_map(Shape::blocks), positions)
        .into_iter()
        .map(|b| base + b)
        .collect()
}
