//! Names of passes, for text tests and tools.
//!
//! A pass is written as its name and options: `autodiff keep_gradients=true`. To register one,
//! add a line to [`PASSES`].

use crate::autodiff::Autodiff;
use crate::channels_last::ChannelsLast;
use crate::fuse::FuseEpilogues;
use crate::fuse_elementwise::FuseElementwise;
use crate::fuse_pyramids::{DEPTH, FusePyramids, Rule};
use crate::fuse_stages::FuseStages;
use crate::group_updates::GroupUpdates;
use crate::inplace::Inplace;
use crate::join_batch_norms::JoinBatchNorms;
use crate::micro_batch::Menu;
use crate::mixed_precision::MixedPrecision;
use crate::nest_concats::NestConcats;
use crate::offload::InsertOffload;
use crate::pass::Pass;
use crate::recompute::Recompute;
use crate::schedule::Schedule;
use crate::select_conv::SelectConv;
use crate::simplify::{FoldBatchNorm, MarkSetup, Simplify};
use crate::slice_batch::{SliceBatch, Slicing};
use crate::sparsify::{
    Facts, KeepZeros, PackWeights, ParamFacts, SkipZeroInputs, Sparse, SparseMode, Sparsify,
};
use crate::{AlgoMode, BatchSizes, Packing, Policy, SyncMode, Workspace};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::str::FromStr;

/// A registered pass.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// [`Pass::name`].
    pub name: &'static str,
    /// Makes the pass from its options.
    pub make: fn(&Options<'_>) -> Result<Box<dyn Pass>, RegistryError>,
}

/// Every pass, in the order of the pipeline.
pub const PASSES: &[Entry] = &[
    Entry { name: "simplify", make: |_| Ok(Box::new(Simplify)) },
    Entry { name: "nest-concats", make: |_| Ok(Box::new(NestConcats)) },
    Entry {
        name: "autodiff",
        make: |o| Ok(Box::new(Autodiff { keep_gradients: o.or("keep_gradients", false)? })),
    },
    Entry { name: "keep-zeros", make: |_| Ok(Box::new(KeepZeros)) },
    Entry { name: "sparsify", make: |o| Ok(Box::new(Sparsify(sparse(o)?))) },
    Entry { name: "fold-batch-norm", make: |_| Ok(Box::new(FoldBatchNorm)) },
    Entry { name: "mark-setup", make: |_| Ok(Box::new(MarkSetup)) },
    Entry { name: "pack-weights", make: |o| Ok(Box::new(PackWeights(sparse(o)?))) },
    Entry { name: "skip-zero-inputs", make: |o| Ok(Box::new(SkipZeroInputs(sparse(o)?))) },
    Entry { name: "mixed-precision", make: |_| Ok(Box::new(MixedPrecision)) },
    Entry { name: "fuse-epilogues", make: |_| Ok(Box::new(FuseEpilogues)) },
    Entry { name: "join-batch-norms", make: |_| Ok(Box::new(JoinBatchNorms)) },
    Entry { name: "channels-last", make: |_| Ok(Box::new(ChannelsLast)) },
    Entry {
        name: "fuse-pyramids",
        make: |o| {
            let rule = if o.or("fitted", false)? { Rule::Fitted } else { Rule::Predicted };
            let (depth, footprint) = (o.or("depth", DEPTH)?, o.get("footprint")?);
            Ok(Box::new(FusePyramids { depth, rule, footprint }))
        },
    },
    Entry { name: "fuse-stages", make: |_| Ok(Box::new(FuseStages)) },
    Entry { name: "fuse-elementwise", make: |_| Ok(Box::new(FuseElementwise)) },
    Entry {
        name: "slice-batch",
        make: |o| {
            let (count, target, least) = (o.or("count", 2)?, o.get("target")?, o.or("least", 1)?);
            let slicing = target.map_or(Slicing::Count(count), |bytes| Slicing::Target { bytes, least });
            let halved = o.get("halved")?.unwrap_or_default();
            Ok(Box::new(SliceBatch { batch: o.or("batch", 4)?, slicing, halved }))
        },
    },
    Entry { name: "recompute", make: |o| Ok(Box::new(Recompute { within: o.get("within")? })) },
    Entry { name: "group-updates", make: |_| Ok(Box::new(GroupUpdates)) },
    Entry {
        name: "select-conv",
        make: |o| {
            let mode = o.or("mode", AlgoMode::Memory)?;
            let limit = o.get("workspace_limit")?.map(Workspace::Limit);
            let total = o.get("workspace_total")?.map(Workspace::Total);
            let workspace = limit.or(total).unwrap_or_default();
            let menu = Rc::new(Menu::new(o.or("micro_batch", BatchSizes::Undivided)?));
            Ok(Box::new(SelectConv { mode, overrides: BTreeMap::new(), workspace, menu }))
        },
    },
    Entry {
        name: "insert-offload",
        make: |o| {
            let (policy, sync) = (o.or("policy", Policy::All)?, o.or("sync", SyncMode::Event)?);
            let packing = o.or("pack", Packing::Off)?;
            Ok(Box::new(InsertOffload { policy, sync, lag: o.or("lag", 1)?, packing }))
        },
    },
    Entry { name: "schedule", make: |_| Ok(Box::new(Schedule)) },
    Entry { name: "inplace", make: |_| Ok(Box::new(Inplace)) },
];

/// What passes about zeros know of a graph alone: its literals.
fn sparse(o: &Options<'_>) -> Result<Sparse, RegistryError> {
    let facts = Rc::new(Facts::new([(String::new(), ParamFacts::default())]));
    let (mode, dead_tolerance) = (o.or("mode", SparseMode::Auto)?, o.or("tolerance", 0.0)?);
    Ok(Sparse { mode, dead_tolerance, facts, on_host: o.or("on_host", true)?, ..Sparse::default() })
}

/// Why a text is not a pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// No pass has this name.
    #[error("there is no pass `{name}`; passes are {}", names())]
    Unknown {
        /// The name.
        name: String,
    },
    /// An option is not of the form `key=value`, or is given twice.
    #[error("`{text}` is not an option of the form key=value, given once")]
    Malformed {
        /// The word.
        text: String,
    },
    /// The pass has no such option.
    #[error("pass `{pass}` has no option `{key}`")]
    NoOption {
        /// The pass.
        pass: String,
        /// The option.
        key: String,
    },
    /// The option cannot have this value.
    #[error("option `{key}` cannot be `{value}`: {why}")]
    Value {
        /// The option.
        key: String,
        /// What was given.
        value: String,
        /// What is wrong with it.
        why: String,
    },
}

/// The options of one pass; remembers which were asked for.
#[derive(Debug, Default)]
pub struct Options<'a> {
    given: BTreeMap<&'a str, &'a str>,
    known: RefCell<Vec<&'static str>>,
}

impl Options<'_> {
    /// The value of an option, if it is given.
    ///
    /// # Errors
    /// If the value does not parse.
    pub fn get<T: FromStr<Err: ToString>>(&self, key: &'static str) -> Result<Option<T>, RegistryError> {
        self.known.borrow_mut().push(key);
        let Some(text) = self.given.get(key) else { return Ok(None) };
        text.parse().map(Some).map_err(|e: T::Err| RegistryError::Value {
            key: key.to_owned(),
            value: (*text).to_owned(),
            why: e.to_string(),
        })
    }

    /// The value of an option, or `default` if it is not given.
    ///
    /// # Errors
    /// If the value does not parse.
    pub fn or<T: FromStr<Err: ToString>>(&self, key: &'static str, default: T) -> Result<T, RegistryError> {
        Ok(self.get(key)?.unwrap_or(default))
    }
}

/// Makes the pass that `text` describes: a name, then `key=value` words.
///
/// # Errors
/// If the name, an option or a value is not known.
pub fn make(text: &str) -> Result<Box<dyn Pass>, RegistryError> {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap_or_default();
    let entry = PASSES
        .iter()
        .find(|e| e.name == name)
        .ok_or_else(|| RegistryError::Unknown { name: name.to_owned() })?;
    let mut options = Options::default();
    for word in words {
        let malformed = || RegistryError::Malformed { text: word.to_owned() };
        let (key, value) = word.split_once('=').ok_or_else(malformed)?;
        if options.given.insert(key, value).is_some() {
            return Err(malformed());
        }
    }
    let pass = (entry.make)(&options)?;
    let known = options.known.borrow();
    match options.given.keys().find(|k| !known.contains(k)) {
        Some(key) => Err(RegistryError::NoOption { pass: name.to_owned(), key: (*key).to_owned() }),
        None => Ok(pass),
    }
}

fn names() -> String {
    PASSES.iter().map(|e| e.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_makes_the_pass_of_its_name() {
        for entry in PASSES {
            let pass = make(entry.name).expect(entry.name);
            assert_eq!(pass.name(), entry.name);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| make(text).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error("autodif").contains("passes are simplify, nest-concats, autodiff"));
        assert!(error("autodiff keep_gradients").contains("key=value"));
        assert!(error("autodiff keep_gradients=true keep_gradients=true").contains("once"));
        assert!(error("autodiff keep=true").contains("no option `keep`"));
        assert!(error("autodiff keep_gradients=maybe").contains("cannot be `maybe`"));
        assert_eq!(error("autodiff keep_gradients=true"), "");
    }
}
