//! Device memory as the vDNN paper accounts for it (MICRO 2016, sections III and V-A).
//!
//! The figures of the paper are not those of a plan: they count the allocations of a pool at
//! the grain of layers and leave out what the paper's runtime does not manage. The rules,
//! the same for every network, batch and policy:
//!
//! - One buffer per feature map; activations are in place; the branches of an inception
//!   module write into their joined map.
//! - Weights are counted once: no weight gradients, no momentum.
//! - Network-wide allocation: every map and every weight of the whole network, two gradient
//!   buffers of the largest map and one workspace of the largest request.
//! - vDNN: maps, gradients, weights and workspaces of the feature extractor alone. A layer's Y
//!   is allocated when it runs, an offloaded X released at the end of the last layer that
//!   reads it. Backward, a convolution needs X, an activation Y, a pool both; a map is
//!   released after the last of its readers, a gradient after the layer that consumes it.
//! - A prefetch is allocated when it is issued: at the start of a layer's backward pass, for
//!   the layer figure 10 finds. A pool, too short to hide a copy, does not search: inferred
//!   from figure 11, whose maxima under `all` are those of the first pool's backward pass
//!   with nothing more on the device.
//! - Usage is sampled once per layer and direction, when the layer holds most: its workspace
//!   is there and nothing is released yet. The average is the mean of the samples.

use super::layers::{Kind, Map, Network};
use vdnn_ir::Bytes;
use vdnn_passes::Policy;

/// Device memory over one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usage {
    /// Mean of the samples, bytes.
    pub average: f64,
    /// The largest sample.
    pub maximum: Bytes,
}

/// Network-wide allocation of a whole network.
pub fn network_wide(net: &Network) -> Bytes {
    let input = net.layers.first().map_or(0, |l| l.x);
    let gradient = net.maps.iter().enumerate().filter(|&(m, _)| m != input).map(|(_, &b)| b).max();
    let maps: Bytes = net.maps.iter().copied().sum();
    let gradients = Bytes(2 * gradient.unwrap_or_default().0);
    maps + gradients + net.weights(0..net.layers.len()) + net.workspace()
}

struct Pool<'a> {
    net: &'a Network,
    live: Bytes,
    /// Whether each map, and each map's gradient, is allocated.
    here: Vec<bool>,
    gradient: Vec<bool>,
    samples: Vec<Bytes>,
}

impl Pool<'_> {
    fn take(&mut self, m: Map) {
        if !std::mem::replace(&mut self.here[m], true) {
            self.live += self.net.maps[m];
        }
    }
    fn release(&mut self, m: Map) {
        if std::mem::replace(&mut self.here[m], false) {
            self.live -= self.net.maps[m];
        }
    }
    fn take_gradient(&mut self, m: Map) {
        if !std::mem::replace(&mut self.gradient[m], true) {
            self.live += self.net.maps[m];
        }
    }
    fn release_gradient(&mut self, m: Map) {
        if std::mem::replace(&mut self.gradient[m], false) {
            self.live -= self.net.maps[m];
        }
    }
}

/// Figure 10 of the paper: the nearest layer before `from` with a mark it has not used yet,
/// looking no further back than the next convolution.
pub fn find_prefetch_layer(
    from: usize,
    marked: &[bool],
    used: &mut [bool],
    is_conv: impl Fn(usize) -> bool,
) -> Option<usize> {
    for id in (0..from).rev() {
        if marked[id] && !used[id] {
            used[id] = true;
            return Some(id);
        }
        if is_conv(id) {
            return None;
        }
    }
    None
}

/// Memory of the feature extractor under `none`, `all` or `conv`.
pub fn managed(net: &Network, policy: Policy) -> Usage {
    let layers = &net.layers[..net.extractor];
    let moves = |kind: Kind| match policy {
        Policy::All => matches!(kind, Kind::Conv | Kind::Pool),
        Policy::Conv => kind == Kind::Conv,
        _ => false,
    };
    let n = net.maps.len();
    let (mut away, mut last_reader, mut last_need, mut producer) =
        (vec![false; n], vec![0; n], vec![usize::MAX; n], vec![usize::MAX; n]);
    for (i, l) in layers.iter().enumerate() {
        away[l.x] |= moves(l.kind);
        last_reader[l.x] = i;
        for m in needs(l.kind, l.x, l.y) {
            last_need[m] = last_need[m].min(i);
        }
        if l.x != l.y {
            producer[l.y] = producer[l.y].min(i);
        }
    }
    let live = net.weights(0..net.extractor);
    let mut pool = Pool { net, live, here: vec![false; n], gradient: vec![false; n], samples: Vec::new() };

    for (i, l) in layers.iter().enumerate() {
        pool.take(l.x);
        pool.take(l.y);
        pool.samples.push(pool.live + l.forward_workspace);
        if away[l.x] && last_reader[l.x] == i {
            pool.release(l.x);
        }
    }
    let marked: Vec<bool> = layers.iter().map(|l| moves(l.kind)).collect();
    let mut used = vec![false; layers.len()];
    if let Some(l) = layers.last() {
        pool.take_gradient(l.y);
    }
    for (i, l) in layers.iter().enumerate().rev() {
        for m in needs(l.kind, l.x, l.y) {
            pool.take(m);
        }
        if l.kind != Kind::Pool
            && let Some(found) =
                find_prefetch_layer(i, &marked, &mut used, |id| layers[id].kind == Kind::Conv)
        {
            pool.take(layers[found].x);
        }
        if i > 0 {
            pool.take_gradient(l.x);
        }
        pool.samples.push(pool.live + l.backward_workspace);
        for m in [l.x, l.y] {
            // Maps that backward never needs go with their producer.
            if last_need[m] == i || (last_need[m] == usize::MAX && producer[m] == i) {
                pool.release(m);
            }
            if producer[m] == i {
                pool.release_gradient(m);
            }
        }
    }
    let count = pool.samples.len().max(1) as f64;
    Usage {
        average: pool.samples.iter().map(|b| b.as_f64()).sum::<f64>() / count,
        maximum: pool.samples.iter().copied().max().unwrap_or_default(),
    }
}

/// The maps a layer's backward pass reads.
fn needs(kind: Kind, x: Map, y: Map) -> Vec<Map> {
    match kind {
        Kind::Conv | Kind::Dense => vec![x],
        Kind::Activation | Kind::Softmax => vec![y],
        Kind::Pool => vec![x, y],
    }
}
