//! Residual networks: He et al., "Deep residual learning for image recognition" (2015), with
//! the stride in the 3x3 convolution as in torchvision ("v1.5").

use super::build::{Map, Net, Window};

/// The two kinds of residual block.
#[derive(Clone, Copy)]
pub(super) enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3, and a 1x1 that widens four times.
    Bottleneck,
}

/// Scale of the last batch normalisation of a block. A small one starts every block near the
/// identity, so that activations do not double with each block (Goyal et al., "Accurate, large
/// minibatch SGD", 2017, section 5.1, use zero; then, however, the first step would leave most
/// weights without a gradient).
const LAST_SCALE: f32 = 0.2;

/// A residual network with this many blocks in each of its four stages.
pub(super) fn resnet(block: Block, depths: [u64; 4], classes: u64) -> Net {
    let (mut net, x) = Net::new(3, 224);
    let x = net.conv("conv1", &x, 64, Window::new(7).stride(2).pad(3), false);
    let x = net.batch_norm("bn1", &x, 1.0);
    let x = net.relu("relu", &x);
    let mut x = net.max_pool("maxpool", &x, Window::new(3).stride(2).pad(1));
    for (stage, depth) in depths.into_iter().enumerate() {
        for index in 0..depth {
            let name = format!("layer{}.{index}", stage + 1);
            let stride = if stage > 0 && index == 0 { 2 } else { 1 };
            x = residual(&mut net, &name, &x, block, 64 << stage, stride);
        }
    }
    let x = net.global_average_pool("avgpool", &x);
    let x = net.flatten("flatten", &x);
    net.classify("fc", &x, classes)
}

fn residual(net: &mut Net, name: &str, x: &Map, block: Block, width: u64, stride: u64) -> Map {
    let one = Window::new(1);
    let three = Window::new(3).pad(1);
    let (layers, out) = match block {
        Block::Basic => (vec![(width, three.stride(stride)), (width, three)], width),
        Block::Bottleneck => (vec![(width, one), (width, three.stride(stride)), (4 * width, one)], 4 * width),
    };
    let mut y = x.clone();
    for (i, &(filters, window)) in layers.iter().enumerate() {
        let (number, last) = (i + 1, i + 1 == layers.len());
        y = net.conv(&format!("{name}.conv{number}"), &y, filters, window, false);
        y = net.batch_norm(&format!("{name}.bn{number}"), &y, if last { LAST_SCALE } else { 1.0 });
        if !last {
            y = net.relu(&format!("{name}.relu{number}"), &y);
        }
    }
    let shortcut = if stride == 1 && x.channels == out {
        x.clone()
    } else {
        let x = net.conv(&format!("{name}.downsample.0"), x, out, one.stride(stride), false);
        net.batch_norm(&format!("{name}.downsample.1"), &x, 1.0)
    };
    let sum = net.add(&format!("{name}.add"), &y, &shortcut);
    net.relu(&format!("{name}.relu"), &sum)
}
