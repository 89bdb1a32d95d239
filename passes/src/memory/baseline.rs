//! The network-wide allocation vDNN compares with (MICRO 2016, section IV): every feature
//! map has its own bytes throughout, gradient maps share the minimum number of buffers (two
//! on a chain), convolutions share one workspace. Weight gradients have their own bytes.

use super::storage::{Storage, StorageId, StorageKind};
use vdnn_ir::id::{EntityId, PrimaryMap};
use vdnn_ir::{Bytes, Space};
use vdnn_plan::plan::ALIGNMENT;

/// Sets the offset of every device storage above the persistent block; returns the size of
/// the arena.
pub(super) fn place(storages: &mut PrimaryMap<StorageId, Storage>, base: Bytes) -> Bytes {
    let mut top = base;
    let mut take = |bytes: Bytes| {
        let offset = top;
        top += bytes.align_up(ALIGNMENT);
        offset
    };
    for s in storages.values_mut().filter(|s| s.space == Space::Device) {
        if matches!(s.kind, StorageKind::Input | StorageKind::Activation | StorageKind::WeightGradient) {
            s.offset = take(s.bytes);
        }
    }
    let gradients: Vec<StorageId> = storages
        .iter()
        .filter(|(_, s)| s.space == Space::Device && s.kind == StorageKind::Gradient)
        .map(|(id, _)| id)
        .collect();
    let (colour, sizes) = colours(storages, &gradients);
    let offsets: Vec<Bytes> = sizes.iter().map(|&b| take(b)).collect();
    for (&id, &c) in gradients.iter().zip(&colour) {
        storages[id].offset = offsets[c];
    }
    let workspaces = || storages.iter().filter(|(_, s)| s.kind == StorageKind::Workspace);
    let largest = workspaces().map(|(_, s)| s.bytes).max().unwrap_or_default();
    let shared = take(largest);
    let ids: Vec<StorageId> = workspaces().map(|(id, _)| id).collect();
    for id in ids {
        storages[id].offset = shared;
    }
    top
}

/// Colours the lifetimes with as few colours as possible (left-edge algorithm: intervals by
/// start, each into a buffer that is free; optimal in number because interval graphs are
/// perfect). Among the free buffers the one whose size grows or is exceeded least is taken.
/// Returns the colour of each storage and the size of each colour.
fn colours(storages: &PrimaryMap<StorageId, Storage>, ids: &[StorageId]) -> (Vec<usize>, Vec<Bytes>) {
    let mut by_start: Vec<usize> = (0..ids.len()).collect();
    by_start.sort_by_key(|&i| (storages[ids[i]].live.start, ids[i].index()));
    let mut colour = vec![0; ids.len()];
    let mut buffers: Vec<(u32, Bytes)> = Vec::new();
    for i in by_start {
        let s = &storages[ids[i]];
        let free = buffers
            .iter()
            .enumerate()
            .filter(|(_, (end, _))| *end <= s.live.start)
            .min_by_key(|(at, (_, size))| (s.bytes.saturating_sub(*size), size.saturating_sub(s.bytes), *at))
            .map(|(at, _)| at);
        let at = free.unwrap_or_else(|| {
            buffers.push((0, Bytes::ZERO));
            buffers.len() - 1
        });
        buffers[at] = (s.live.end, buffers[at].1.max(s.bytes));
        colour[i] = at;
    }
    (colour, buffers.into_iter().map(|(_, size)| size).collect())
}
