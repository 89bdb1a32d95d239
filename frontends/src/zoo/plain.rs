//! Chains of a few layers: LeNet-5, AlexNet, OverFeat.

use super::build::{Net, Sequential, Window};

/// LeCun et al., "Gradient-based learning applied to document recognition" (1998), fig. 2, as
/// it is taught today: ReLU, max-pooling, every feature map connected to every filter.
pub(super) fn lenet(classes: u64) -> Net {
    let (mut net, x) = Net::new(1, 28);
    let pool = Window::new(2).stride(2);
    let x = net.conv("conv1", &x, 6, Window::new(5).pad(2), true);
    let x = net.relu("relu1", &x);
    let x = net.max_pool("pool1", &x, pool);
    let x = net.conv("conv2", &x, 16, Window::new(5), true);
    let x = net.relu("relu2", &x);
    let x = net.max_pool("pool2", &x, pool);
    let x = net.flatten("flatten", &x);
    let x = net.linear("fc1", &x, 120);
    let x = net.relu("relu3", &x);
    let x = net.linear("fc2", &x, 84);
    let x = net.relu("relu4", &x);
    net.classify("fc3", &x, classes)
}

/// The one-tower AlexNet of Krizhevsky, "One weird trick for parallelizing convolutional neural
/// networks" (2014): the one torchvision and vDNN use.
pub(super) fn alexnet(classes: u64) -> Net {
    let pool = Window::new(3).stride(2);
    let same = Window::new(3).pad(1);
    Sequential::new("features", 224)
        .conv_relu(64, Window::new(11).stride(4).pad(2))
        .max_pool(pool)
        .conv_relu(192, Window::new(5).pad(2))
        .max_pool(pool)
        .conv_relu(384, same)
        .conv_relu(256, same)
        .conv_relu(256, same)
        .max_pool(pool)
        .flatten("classifier")
        .skip()
        .linear_relu(4096)
        .skip()
        .linear_relu(4096)
        .classify(classes)
}

/// Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural
/// networks" (2012), the widths of both towers joined, without groups or LRN.
pub(super) fn alexnet_seed(classes: u64) -> Net {
    let pool = Window::new(3).stride(2);
    let same = Window::new(3).pad(1);
    Sequential::new("features", 227)
        .conv_relu(96, Window::new(11).stride(4))
        .max_pool(pool)
        .conv_relu(256, Window::new(5).pad(2))
        .max_pool(pool)
        .conv_relu(384, same)
        .conv_relu(384, same)
        .conv_relu(256, same)
        .max_pool(pool)
        .flatten("classifier")
        .linear_relu(4096)
        .linear_relu(4096)
        .classify(classes)
}

/// The accurate model of Sermanet et al., "OverFeat" (2013), table 3.
pub(super) fn overfeat(classes: u64) -> Net {
    let same = Window::new(3).pad(1);
    Sequential::new("features", 221)
        .conv_relu(96, Window::new(7).stride(2))
        .max_pool(Window::new(3).stride(3))
        .conv_relu(256, Window::new(7))
        .max_pool(Window::new(2).stride(2))
        .conv_relu(512, same)
        .conv_relu(512, same)
        .conv_relu(1024, same)
        .conv_relu(1024, same)
        .max_pool(Window::new(3).stride(3))
        .flatten("classifier")
        .linear_relu(4096)
        .linear_relu(4096)
        .classify(classes)
}

/// The fast model of Sermanet et al., "OverFeat" (2013), table 1.
pub(super) fn overfeat_fast(classes: u64) -> Net {
    let pool = Window::new(2).stride(2);
    let same = Window::new(3).pad(1);
    Sequential::new("features", 231)
        .conv_relu(96, Window::new(11).stride(4))
        .max_pool(pool)
        .conv_relu(256, Window::new(5))
        .max_pool(pool)
        .conv_relu(512, same)
        .conv_relu(1024, same)
        .conv_relu(1024, same)
        .max_pool(pool)
        .flatten("classifier")
        .linear_relu(3072)
        .linear_relu(4096)
        .classify(classes)
}
