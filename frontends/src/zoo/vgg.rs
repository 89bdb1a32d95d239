//! VGG: Simonyan, Zisserman, "Very deep convolutional networks for large-scale image
//! recognition" (2014), table 1, and the deeper ones of vDNN (Rhu et al., 2016, section V-E).

use super::build::{Net, Sequential, Window};

/// Filters of the five groups.
const WIDTHS: [u64; 5] = [64, 128, 256, 512, 512];

/// Convolutions per group of configuration E, VGG-19: the net vDNN calls "VGG-16".
const CONFIGURATION_E: [u64; 5] = [2, 2, 4, 4, 4];

/// A VGG with this many convolutions in each group.
pub(super) fn vgg(depths: [u64; 5], classes: u64) -> Net {
    let mut net = Sequential::new("features", 224);
    for (width, depth) in WIDTHS.into_iter().zip(depths) {
        for _ in 0..depth {
            net = net.conv_relu(width, Window::new(3).pad(1));
        }
        net = net.max_pool(Window::new(2).stride(2));
    }
    // The skipped numbers are torchvision's Dropout layers.
    net.flatten("classifier").linear_relu(4096).skip().linear_relu(4096).skip().classify(classes)
}

/// VGG-19 with `extra` more convolutions in each group.
pub(super) fn very_deep(extra: u64, classes: u64) -> Net {
    vgg(CONFIGURATION_E.map(|depth| depth + extra), classes)
}
