//! GoogLeNet: Szegedy et al., "Going deeper with convolutions" (2014), table 1, without LRN,
//! Dropout and the auxiliary heads; optionally with batch normalisation after each convolution
//! (Ioffe, Szegedy, 2015), then without biases.

use super::build::{Map, Net, Window};

/// Filters of one inception module: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection.
type Widths = [u64; 6];

/// The inception modules between two poolings, by name.
const STAGES: [&[(&str, Widths)]; 3] = [
    &[("inception3a", [64, 96, 128, 16, 32, 32]), ("inception3b", [128, 128, 192, 32, 96, 64])],
    &[
        ("inception4a", [192, 96, 208, 16, 48, 64]),
        ("inception4b", [160, 112, 224, 24, 64, 64]),
        ("inception4c", [128, 128, 256, 24, 64, 64]),
        ("inception4d", [112, 144, 288, 32, 64, 64]),
        ("inception4e", [256, 160, 320, 32, 128, 128]),
    ],
    &[("inception5a", [256, 160, 320, 32, 128, 128]), ("inception5b", [384, 192, 384, 48, 128, 128])],
];

/// GoogLeNet, plain or batch-normalised.
pub(super) fn googlenet(normalised: bool, classes: u64) -> Net {
    let (net, x) = Net::new(3, 224);
    let mut net = Builder { net, normalised };
    let pool = Window::new(3).stride(2).ceil();
    let x = net.conv("conv1", &x, 64, Window::new(7).stride(2).pad(3));
    let x = net.net.max_pool("maxpool1", &x, pool);
    let x = net.conv("conv2", &x, 64, Window::new(1));
    let mut x = net.conv("conv3", &x, 192, Window::new(3).pad(1));
    for (stage, modules) in STAGES.into_iter().enumerate() {
        x = net.net.max_pool(&format!("maxpool{}", stage + 2), &x, pool);
        for (name, widths) in modules {
            x = net.inception(name, &x, *widths);
        }
    }
    let x = net.net.global_average_pool("avgpool", &x);
    let x = net.net.flatten("flatten", &x);
    net.net.classify("fc", &x, classes)
}

struct Builder {
    net: Net,
    normalised: bool,
}

impl Builder {
    fn conv(&mut self, name: &str, x: &Map, filters: u64, window: Window) -> Map {
        let mut y = self.net.conv(&format!("{name}.conv"), x, filters, window, !self.normalised);
        if self.normalised {
            y = self.net.batch_norm(&format!("{name}.bn"), &y, 1.0);
        }
        self.net.relu(&format!("{name}.relu"), &y)
    }

    fn inception(&mut self, name: &str, x: &Map, widths: Widths) -> Map {
        let [one, reduce3, three, reduce5, five, project] = widths;
        let b1 = self.conv(&format!("{name}.branch1"), x, one, Window::new(1));
        let b2 = self.conv(&format!("{name}.branch2.0"), x, reduce3, Window::new(1));
        let b2 = self.conv(&format!("{name}.branch2.1"), &b2, three, Window::new(3).pad(1));
        let b3 = self.conv(&format!("{name}.branch3.0"), x, reduce5, Window::new(1));
        let b3 = self.conv(&format!("{name}.branch3.1"), &b3, five, Window::new(5).pad(2));
        let b4 = self.net.max_pool(&format!("{name}.branch4.0"), x, Window::new(3).pad(1));
        let b4 = self.conv(&format!("{name}.branch4.1"), &b4, project, Window::new(1));
        self.net.concat(&format!("{name}.concat"), &[b1, b2, b3, b4])
    }
}
