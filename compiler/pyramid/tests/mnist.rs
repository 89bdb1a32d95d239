//! The example's network on real test images: however its convolutions are fused, the features
//! have the same bits and the images the same classes as layer by layer.

#[path = "../examples/mnist/network.rs"]
mod network;

use network::{Classifier, Network, folder, images};

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn fused_convolutions_classify_real_images_as_layers_do() {
    let Some(folder) = folder() else {
        eprintln!("skipped: needs ../shared/data/mnist");
        return;
    };
    let (fitted, tried) = (500, 50);
    let all = images(&folder, fitted + tried).expect("images");
    assert_eq!((all.pixels.len(), all.labels.len()), (fitted + tried, fitted + tried));
    let network = Network::new(1);
    let variants = network.variants();
    assert_eq!(variants.len(), 7);
    let features = |v: usize, image: &[f32]| network.features(&variants[v], image).expect("features");
    let known: Vec<Vec<f32>> = all.pixels[..fitted].iter().map(|i| features(0, i).0).collect();
    let classifier = Classifier::fit(&known, &all.labels[..fitted]);
    let mut right = 0;
    for (image, &label) in all.pixels[fitted..].iter().zip(&all.labels[fitted..]) {
        let (wanted, layers) = features(0, image);
        let digit = classifier.classify(&wanted);
        right += usize::from(digit == label);
        for (v, variant) in variants.iter().enumerate().skip(1) {
            let (x, counts) = features(v, image);
            assert_eq!(x, wanted, "{}", variant.name);
            assert_eq!(classifier.classify(&x), digit, "{}", variant.name);
            assert!(counts.len() < layers.len(), "{}", variant.name);
        }
    }
    // Chance is a tenth.
    assert!(right > tried / 2, "{right} of {tried} right");
    let macs: u64 = features(0, &all.pixels[0]).1.iter().map(|c| c.total_macs()).sum();
    assert_eq!(macs, network.macs());
}
