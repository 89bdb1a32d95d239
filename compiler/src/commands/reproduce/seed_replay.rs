//! Memory of the open implementation of vDNN (`james98kr/vDNN_Implementation`), replayed from
//! the rules of its allocation calls: one linear chain of layers, activations not in place.
//!
//! - `BASELINE`: every Y from construction on, never freed; two gradient buffers of the
//!   largest X; one workspace.
//! - Otherwise, forward: Y on entry of the layer; at its end, after both streams are
//!   synchronised, an offloaded X is freed, except the input, which is copied for nothing.
//! - Backward: dX on entry of the layer; the prefetch found by the paper's figure 10 is
//!   allocated on entry too; at the end Y and dY are freed. The prefetched copy of the input
//!   replaces a buffer that is never freed.
//! - One pinned host buffer per offloaded X. `VDNN_ALL` offloads every layer but the last,
//!   `VDNN_CONV` the convolutions.
//! - Workspaces live around one call; each is counted here while its layer runs.

use super::layers::{Kind, Network};
use super::replay::find_prefetch_layer;
use vdnn_ir::Bytes;
use vdnn_passes::Policy;

/// What a run allocates.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Allocated {
    /// Most device memory at once.
    pub peak: Bytes,
    /// Mean device memory over the ends of layers, forward and backward, in bytes.
    pub average: f64,
    /// Pinned host memory.
    pub pinned: Bytes,
}

/// Replays one step. `BASELINE`, `VDNN_NONE`, `VDNN_ALL` and `VDNN_CONV` are `baseline`,
/// `none`, `all` and `conv`.
pub fn replay(net: &Network, policy: Policy) -> Allocated {
    let layers = &net.layers;
    let size = |m: usize| net.maps[m];
    let weights = net.weights(0..layers.len());
    let Some((first, last)) = layers.first().zip(layers.last()) else {
        return Allocated { peak: weights, average: weights.as_f64(), pinned: Bytes::ZERO };
    };
    if policy == Policy::Baseline {
        let largest = layers.iter().map(|l| size(l.x)).max().unwrap_or_default();
        let maps: Bytes = net.maps.iter().copied().sum();
        let all = weights + maps + largest + largest + net.workspace();
        return Allocated { peak: all, average: all.as_f64(), pinned: Bytes::ZERO };
    }
    let offloaded: Vec<bool> = layers
        .iter()
        .enumerate()
        .map(|(i, l)| match policy {
            Policy::All => i + 1 < layers.len(),
            Policy::Conv => l.kind == Kind::Conv,
            _ => false,
        })
        .collect();
    let pinned = layers.iter().zip(&offloaded).filter(|(_, o)| **o).map(|(l, _)| size(l.x)).sum();

    let mut live = weights + size(first.x);
    let mut peak = live;
    let mut samples = Vec::with_capacity(2 * layers.len());
    for (i, l) in layers.iter().enumerate() {
        live += size(l.y);
        peak = peak.max(live + l.forward_workspace);
        if i != 0 && offloaded[i] {
            live -= size(l.x);
        }
        samples.push(live);
    }
    live += size(last.y);
    let mut used = vec![false; layers.len()];
    for (i, l) in layers.iter().enumerate().rev() {
        live += size(l.x);
        if let Some(p) = find_prefetch_layer(i, &offloaded, &mut used, |id| layers[id].kind == Kind::Conv) {
            live += size(layers[p].x);
        }
        peak = peak.max(live + l.backward_workspace);
        live = live - size(l.y) - size(l.y);
        samples.push(live);
    }
    let average = samples.iter().map(|b| b.as_f64()).sum::<f64>() / samples.len() as f64;
    Allocated { peak, average, pinned }
}
