//! Convolutional networks of the literature as ONNX models, made on the spot.
//!
//! Every model is opset 17, f32, with input `input` `[N,C,H,W]` and output `logits` `[N,K]`.
//! Parameters are named as torchvision names them where it has the network. Weights are He
//! uniform from a seed, biases zero, batch normalisations the identity.

mod build;
mod densenet;
mod googlenet;
mod init;
mod plain;
mod resnet;
mod vgg;
mod write;

pub use write::{INLINE_LIMIT, write};

use crate::onnx::proto::ModelProto;
use crate::safe_file::SafeFileError;
use build::Net;
use std::path::Path;

/// What can be chosen about a network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZooOptions {
    /// Batch size; `None` leaves it symbolic, as `N`.
    pub batch: Option<u64>,
    /// Number of classes; `None` is the network's own (10 for `lenet`, else 1000).
    pub classes: Option<u64>,
    /// Seed of the weights: the same seed, name and classes give the same bytes.
    pub seed: u64,
}

/// Why a model could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ZooError {
    /// No such network.
    #[error("there is no `{name}` in the zoo{hint}; choose one of {}", names().join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// `, did you mean ...` or nothing.
        hint: String,
    },
    /// A batch size or class count out of range.
    #[error("{what} must be between 1 and {limit}, not {value}")]
    OutOfRange {
        /// The option.
        what: &'static str,
        /// Its value.
        value: u64,
        /// The largest value taken.
        limit: u64,
    },
    /// The model could not be written.
    #[error(transparent)]
    Write(#[from] SafeFileError),
}

/// Largest batch: extents and element counts stay far from overflow.
const BATCH_LIMIT: u64 = 1 << 24;
/// Largest class count: bounds the last layer to 2 GiB.
const CLASS_LIMIT: u64 = 1 << 17;

/// Makes a network for a number of classes.
type Maker = fn(u64) -> Net;

/// Name, classes, maker.
const NETS: &[(&str, u64, Maker)] = &[
    ("alexnet", 1000, plain::alexnet),
    ("alexnet-seed", 1000, plain::alexnet_seed),
    ("densenet121", 1000, |k| densenet::densenet(32, 64, [6, 12, 24, 16], k)),
    ("densenet161", 1000, |k| densenet::densenet(48, 96, [6, 12, 36, 24], k)),
    ("densenet169", 1000, |k| densenet::densenet(32, 64, [6, 12, 32, 32], k)),
    ("densenet201", 1000, |k| densenet::densenet(32, 64, [6, 12, 48, 32], k)),
    ("googlenet", 1000, |k| googlenet::googlenet(false, k)),
    ("googlenet-bn", 1000, |k| googlenet::googlenet(true, k)),
    ("lenet", 10, plain::lenet),
    ("overfeat", 1000, plain::overfeat),
    ("overfeat-fast", 1000, plain::overfeat_fast),
    ("resnet18", 1000, |k| resnet::resnet(resnet::Block::Basic, [2, 2, 2, 2], k)),
    ("resnet34", 1000, |k| resnet::resnet(resnet::Block::Basic, [3, 4, 6, 3], k)),
    ("resnet50", 1000, |k| resnet::resnet(resnet::Block::Bottleneck, [3, 4, 6, 3], k)),
    ("resnet101", 1000, |k| resnet::resnet(resnet::Block::Bottleneck, [3, 4, 23, 3], k)),
    ("resnet152", 1000, |k| resnet::resnet(resnet::Block::Bottleneck, [3, 8, 36, 3], k)),
    ("vgg11", 1000, |k| vgg::vgg([1, 1, 2, 2, 2], k)),
    ("vgg13", 1000, |k| vgg::vgg([2, 2, 2, 2, 2], k)),
    ("vgg16", 1000, |k| vgg::vgg([2, 2, 3, 3, 3], k)),
    ("vgg19", 1000, |k| vgg::vgg([2, 2, 4, 4, 4], k)),
    ("vgg116", 1000, |k| vgg::very_deep(20, k)),
    ("vgg216", 1000, |k| vgg::very_deep(40, k)),
    ("vgg316", 1000, |k| vgg::very_deep(60, k)),
    ("vgg416", 1000, |k| vgg::very_deep(80, k)),
];

/// The names [`build()`] knows, family by family.
pub fn names() -> Vec<&'static str> {
    NETS.iter().map(|(name, _, _)| *name).collect()
}

/// Makes a model with its weights in memory.
///
/// # Errors
/// If the name is unknown or an option out of range.
pub fn build(name: &str, options: &ZooOptions) -> Result<ModelProto, ZooError> {
    let (net, mut model) = describe(name, options)?;
    for (tensor, weight) in write::initializers(&mut model).iter_mut().zip(&net.weights) {
        tensor.raw_data = Some(init::bytes(options.seed, weight).into());
    }
    Ok(model)
}

/// As [`build()`], but every weight is zero: costs neither time nor, until it is read, memory.
/// For planning, which looks at shapes alone.
///
/// # Errors
/// If the name is unknown or an option out of range.
pub fn build_zeroed(name: &str, options: &ZooOptions) -> Result<ModelProto, ZooError> {
    let (net, mut model) = describe(name, options)?;
    for (tensor, weight) in write::initializers(&mut model).iter_mut().zip(&net.weights) {
        tensor.raw_data = Some(vec![0; weight.bytes() as usize].into());
    }
    Ok(model)
}

/// Makes a model straight into a file: the bytes of [`build()`] then [`write()`], without holding
/// the weights in memory.
///
/// # Errors
/// If the name is unknown, an option out of range, or the file cannot be written.
pub fn generate(name: &str, options: &ZooOptions, path: &Path) -> Result<(), ZooError> {
    let (net, model) = describe(name, options)?;
    let mut buffer = Vec::new();
    let mut payloads = write::Payloads {
        bytes: &|i| Some(net.weights[i].bytes()),
        write: &mut |i, out| init::stream(options.seed, &net.weights[i], &mut buffer, out),
    };
    write::stream(model, path, &mut payloads, INLINE_LIMIT)?;
    Ok(())
}

/// The network, and its model without weight data.
fn describe(name: &str, options: &ZooOptions) -> Result<(Net, ModelProto), ZooError> {
    let Some((name, classes, maker)) = NETS.iter().find(|(n, _, _)| *n == name) else {
        let near = names().into_iter().find(|n| alike(n, name));
        let hint = near.map_or_else(String::new, |n| format!(", did you mean `{n}`"));
        return Err(ZooError::Unknown { name: name.to_owned(), hint });
    };
    let classes = options.classes.unwrap_or(*classes);
    let range = |what, value, limit| match value {
        v if (1..=limit).contains(&v) => Ok(()),
        value => Err(ZooError::OutOfRange { what, value, limit }),
    };
    range("the number of classes", classes, CLASS_LIMIT)?;
    range("the batch size", options.batch.unwrap_or(1), BATCH_LIMIT)?;
    let net = maker(classes);
    let model = net.model(name, options.batch);
    Ok((net, model))
}

/// True if the names differ only in case and punctuation.
fn alike(a: &str, b: &str) -> bool {
    let plain = |s: &str| -> String {
        s.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
    };
    plain(a) == plain(b)
}

#[cfg(test)]
mod tests;
