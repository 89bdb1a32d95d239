//! Which weights pruning sets to zero.

use super::Layer;
use std::fmt;
use std::str::FromStr;

/// How weights to prune are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The smallest weights of a layer (Han et al., NeurIPS 2015).
    Magnitude,
    /// Of every four neighbouring channels at one tap the two smallest (Mishra et al., arXiv
    /// 2104.08378).
    TwoOfFour,
    /// The blocks of filters and channels with the smallest sum of magnitudes.
    Block([usize; 2]),
    /// The filters with the smallest sum of magnitudes (Li et al., ICLR 2017).
    Channel,
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Magnitude => "magnitude",
            Self::TwoOfFour => "2:4",
            Self::Block(_) => "block",
            Self::Channel => "channel",
        })
    }
}

impl FromStr for Method {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "magnitude" => Ok(Self::Magnitude),
            "2:4" => Ok(Self::TwoOfFour),
            "block" => Ok(Self::Block(super::BLOCK)),
            "channel" => Ok(Self::Channel),
            _ => Err(format!("`{text}` is not magnitude, 2:4, block or channel")),
        }
    }
}

/// The `count` smallest of some scores, ties by index.
fn smallest(scores: &[f64], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(a.cmp(&b)));
    order.truncate(count);
    order
}

/// Sets the share `sparsity` of all these weights to zero, the smallest first, rounded down; at
/// least one stays. Of weights of one magnitude the first go first.
pub fn smallest_weights(layers: &mut [&mut [f32]], sparsity: f64) {
    let mut sizes: Vec<f32> = layers.iter().flat_map(|l| l.iter().map(|w| w.abs())).collect();
    let count = ((sizes.len() as f64 * sparsity).floor() as usize).min(sizes.len().saturating_sub(1));
    if count == 0 {
        return;
    }
    // What is below the limit goes, and so many of what is at it.
    let (below, &mut limit, _) = sizes.select_nth_unstable_by(count, f32::total_cmp);
    let mut at = count - below.iter().filter(|s| **s < limit).count();
    for w in layers.iter_mut().flat_map(|l| l.iter_mut()) {
        if w.abs() < limit {
            *w = 0.0;
        } else if w.abs() == limit && at > 0 {
            at -= 1;
            *w = 0.0;
        }
    }
}

/// Sets the share `sparsity` of a layer's weights to zero: rounded down to whole weights, blocks
/// or filters, of which at least one stays. 2:4 knows only a half. Returns the filters that became
/// zero by [`Method::Channel`].
pub fn prune(layer: &Layer, data: &mut [f32], method: Method, sparsity: f64) -> Vec<usize> {
    let [filters, channels, taps] = layer.shape;
    let share = |of: usize| ((of as f64 * sparsity).floor() as usize).min(of.saturating_sub(1));
    match method {
        Method::Magnitude => smallest_weights(&mut [data], sparsity),
        Method::TwoOfFour => {
            for (m, t) in (0..filters).flat_map(|m| (0..taps).map(move |t| (m, t))) {
                for first in (0..channels).step_by(4) {
                    let group: Vec<usize> =
                        (first..(first + 4).min(channels)).map(|c| layer.index(m, c, t)).collect();
                    let scores: Vec<f64> = group.iter().map(|&i| f64::from(data[i].abs())).collect();
                    for i in smallest(&scores, group.len().saturating_sub(2)) {
                        data[group[i]] = 0.0;
                    }
                }
            }
        }
        Method::Block([height, width]) => {
            let across = channels.div_ceil(width);
            let mut scores = vec![0.0; filters.div_ceil(height) * across];
            let block = |m: usize, c: usize| m / height * across + c / width;
            each(layer, |m, c, i| scores[block(m, c)] += f64::from(data[i].abs()));
            let mut gone = vec![false; scores.len()];
            smallest(&scores, share(scores.len())).into_iter().for_each(|b| gone[b] = true);
            each(layer, |m, c, i| {
                if gone[block(m, c)] {
                    data[i] = 0.0;
                }
            });
        }
        Method::Channel => {
            let mut scores = vec![0.0; filters];
            each(layer, |m, _, i| scores[m] += f64::from(data[i].abs()));
            let gone = smallest(&scores, share(filters));
            for &m in &gone {
                for c in 0..channels {
                    (0..taps).for_each(|t| data[layer.index(m, c, t)] = 0.0);
                }
            }
            return gone;
        }
    }
    Vec::new()
}

fn each(layer: &Layer, mut f: impl FnMut(usize, usize, usize)) {
    let [filters, channels, taps] = layer.shape;
    for m in 0..filters {
        for c in 0..channels {
            (0..taps).for_each(|t| f(m, c, layer.index(m, c, t)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sparsity::Zeros;

    fn layer() -> Layer {
        Layer {
            name: String::new(),
            weight: String::new(),
            op: String::new(),
            shape: [8, 12, 3],
            turned: false,
        }
    }

    fn data() -> Vec<f32> {
        (0..288u64).map(|i| (vdnn_ir::random::splitmix64(3, i) >> 40) as f32 + 1.0).collect()
    }

    #[test]
    fn every_method_leaves_its_pattern() {
        let layer = layer();
        let pruned = |method, sparsity| {
            let mut w = data();
            prune(&layer, &mut w, method, sparsity);
            (Zeros::of(&layer, &w), w)
        };
        let (z, w) = pruned(Method::Magnitude, 0.9);
        assert_eq!(z.zeros, 259);
        let least = w.iter().filter(|w| **w != 0.0).fold(f32::MAX, |a, &b| a.min(b));
        let most = data().iter().zip(&w).filter(|p| *p.1 == 0.0).fold(0.0, |a: f32, p| a.max(*p.0));
        assert!(most <= least, "what is gone is smaller than what stays");
        let (z, _) = pruned(Method::TwoOfFour, 0.5);
        assert_eq!((z.zeros, z.two_of_four), (144, 1.0));
        let (z, _) = pruned(Method::Block([4, 4]), 0.5);
        assert_eq!(z.zeros, 3 * 4 * 4 * 3);
        let (z, _) = pruned(Method::Channel, 0.25);
        assert_eq!((z.filters, z.zeros), (2, 72));
        assert_eq!(pruned(Method::Channel, 1.0).0.filters, 7, "one filter stays");
        let (mut a, mut b) = ([5.0, -1.0, 2.0], [2.0, 0.5, 2.0]);
        smallest_weights(&mut [&mut a, &mut b], 0.7);
        assert_eq!((a, b), ([5.0, 0.0, 0.0], [0.0, 0.0, 2.0]), "over all layers, ties in order");
    }
}
