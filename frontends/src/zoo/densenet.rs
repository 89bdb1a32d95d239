//! Densely connected networks: Huang et al., "Densely connected convolutional networks"
//! (2016), the bottlenecked and compressed form (DenseNet-BC), table 1.

use super::build::{Map, Net, Window};

/// A DenseNet with `growth` new maps per layer, `stem` maps before the first block, and this
/// many layers in each of its four blocks.
pub(super) fn densenet(growth: u64, stem: u64, depths: [u64; 4], classes: u64) -> Net {
    let (mut net, x) = Net::new(3, 224);
    let x = net.conv("features.conv0", &x, stem, Window::new(7).stride(2).pad(3), false);
    let x = net.batch_norm("features.norm0", &x, 1.0);
    let x = net.relu("features.relu0", &x);
    let mut x = net.max_pool("features.pool0", &x, Window::new(3).stride(2).pad(1));
    for (block, depth) in depths.into_iter().enumerate() {
        let number = block + 1;
        x = dense_block(&mut net, &format!("features.denseblock{number}"), x, depth, growth);
        if number < depths.len() {
            x = transition(&mut net, &format!("features.transition{number}"), &x);
        }
    }
    let x = net.batch_norm("features.norm5", &x, 1.0);
    let x = net.relu("features.relu5", &x);
    let x = net.global_average_pool("avgpool", &x);
    let x = net.flatten("flatten", &x);
    net.classify("classifier", &x, classes)
}

/// Every layer sees the maps of all before it.
fn dense_block(net: &mut Net, name: &str, x: Map, depth: u64, growth: u64) -> Map {
    let mut parts = vec![x.clone()];
    let mut all = x;
    for number in 1..=depth {
        let layer = format!("{name}.denselayer{number}");
        let y = net.batch_norm(&format!("{layer}.norm1"), &all, 1.0);
        let y = net.relu(&format!("{layer}.relu1"), &y);
        let y = net.conv(&format!("{layer}.conv1"), &y, 4 * growth, Window::new(1), false);
        let y = net.batch_norm(&format!("{layer}.norm2"), &y, 1.0);
        let y = net.relu(&format!("{layer}.relu2"), &y);
        let y = net.conv(&format!("{layer}.conv2"), &y, growth, Window::new(3).pad(1), false);
        parts.push(y);
        all = net.concat(&format!("{layer}.concat"), &parts);
    }
    all
}

/// Halves channels, height and width.
fn transition(net: &mut Net, name: &str, x: &Map) -> Map {
    let y = net.batch_norm(&format!("{name}.norm"), x, 1.0);
    let y = net.relu(&format!("{name}.relu"), &y);
    let y = net.conv(&format!("{name}.conv"), &y, x.channels / 2, Window::new(1), false);
    net.average_pool(&format!("{name}.pool"), &y, Window::new(2).stride(2))
}
