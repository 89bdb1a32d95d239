//! Classifies MNIST's test images with convolutions fused by tile programs in several ways, and
//! layer by layer: `cargo run --release -p vdnn-pyramid --example mnist [FOLDER] [IMAGES]`.

mod network;

use network::{Classifier, Network, folder, images};
use std::path::PathBuf;

#[expect(clippy::print_stdout, reason = "an example's result")]
fn main() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let at = args.next().map(PathBuf::from).or_else(folder);
    let at = at.ok_or("no images at ../shared/data/mnist; give the folder of t10k-images-idx3-ubyte.gz")?;
    let n = args.next().map_or(Ok(1000), |n| n.parse()).map_err(|e| format!("IMAGES: {e}"))?;
    let all = images(&at, 2 * n)?;
    if n == 0 || all.pixels.len() < 2 * n {
        return Err(format!("{} has no {} images", at.display(), 2 * n));
    }
    let network = Network::new(1);
    let variants = network.variants();
    let features = |v: usize, image: &Vec<f32>| network.features(&variants[v], image);
    let fitted: Vec<Vec<f32>> =
        all.pixels[..n].iter().map(|i| features(0, i).map(|f| f.0)).collect::<Result<_, _>>()?;
    let classifier = Classifier::fit(&fitted, &all.labels[..n]);
    println!("fitted to {n} images, tried on the next {n}\n");
    println!(
        "{:<18}{:>10}{:>12}{:>14}{:>14}{:>10}{:>14}",
        "convolutions", "kernels", "operations", "shared bytes", "moved bytes", "right", "as by layers"
    );
    let mut wanted: Vec<i64> = Vec::new();
    for (v, variant) in variants.iter().enumerate() {
        let mut digits = Vec::new();
        let mut line = String::new();
        for image in &all.pixels[n..2 * n] {
            let (x, counts) = features(v, image)?;
            digits.push(classifier.classify(&x));
            if line.is_empty() {
                let macs: u64 = counts.iter().map(|c| c.total_macs()).sum();
                let shared = counts.iter().map(|c| c.shared.0).max().unwrap_or(0);
                let moved: u64 = counts.iter().map(|c| c.loaded.0 + c.stored.0).sum();
                let again = macs as f64 / network.macs() as f64;
                line = format!("{:>10}{again:>11.2}x{shared:>14}{moved:>14}", counts.len());
            }
        }
        let right = digits.iter().zip(&all.labels[n..]).filter(|(d, l)| d == l).count();
        if wanted.is_empty() {
            wanted.clone_from(&digits);
        }
        let same = digits.iter().zip(&wanted).filter(|(d, w)| d == w).count();
        println!("{:<18}{line}{:>9.1}%{:>10}/{n}", variant.name, 100.0 * right as f64 / n as f64, same);
        if same < n {
            return Err(format!("{}: {} images are classified otherwise", variant.name, n - same));
        }
    }
    Ok(())
}
