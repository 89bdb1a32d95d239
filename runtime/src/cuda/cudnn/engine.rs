//! Engines: which configurations cuDNN offers for a graph, what they promise, and a
//! configuration made again from its numbers.
//!
//! # Strict f32
//! Whether an engine multiplies in TF32 is told by its numerical notes, not by the compute
//! type: for f32 tensors and f32 compute type, engines that use TF32 tensor cores carry
//! `TENSOR_CORE`, engines that convert to a half type `DOWN_CONVERT_INPUTS`. PyTorch
//! (`Conv_v8.cpp`) and TensorFlow tell them apart the same way. Strict f32 takes neither;
//! TF32 takes the first and not the second. FFT and Winograd are f32 arithmetic in another
//! order with another error; they are allowed and reported.

use super::desc::{AttrType, Desc, Kind, Target, attr};
use super::graph::Graph;
use crate::cuda::error::CudaError;
use std::fmt;
use vdnn_cost::Precision;
use vdnn_ir::Bytes;
use vdnn_ir::graph::EngineConfig;

/// Knob of our own in a configuration of a convolution with bias: the engine is one of the
/// convolution alone, and the bias is added in a second step. cuDNN has 44 kinds of knob.
pub(super) const BIAS_APART: u8 = 255;

/// What an engine says of its arithmetic: a set of `cudnnBackendNumericalNote_t`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes(u64);

impl Notes {
    /// Uses tensor cores: for f32 operands, products in TF32.
    pub const TENSOR_CORE: Self = Self(1);
    /// Converts f32 operands to a 16-bit type.
    pub const DOWN_CONVERT_INPUTS: Self = Self(1 << 1);
    /// Adds up in less than f32.
    pub const REDUCED_PRECISION_REDUCTION: Self = Self(1 << 2);
    /// By Fourier transforms.
    pub const FFT: Self = Self(1 << 3);
    /// Two runs may differ in the last bits.
    pub const NONDETERMINISTIC: Self = Self(1 << 4);
    /// By Winograd's minimal filtering.
    pub const WINOGRAD: Self = Self(1 << 5);

    const NAMES: [(Self, &'static str); 6] = [
        (Self::TENSOR_CORE, "tensor-core"),
        (Self::DOWN_CONVERT_INPUTS, "down-convert"),
        (Self::REDUCED_PRECISION_REDUCTION, "reduced-reduction"),
        (Self::FFT, "fft"),
        (Self::NONDETERMINISTIC, "nondeterministic"),
        (Self::WINOGRAD, "winograd"),
    ];

    pub(super) fn of(numbers: &[i32]) -> Self {
        Self(numbers.iter().filter(|n| (0..64).contains(*n)).fold(0, |set, &n| set | 1 << n))
    }

    /// True if all of `other` are in it.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Names of those that are known, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(note, _)| self.contains(*note)).map(|(_, name)| name)
    }

    /// Why an engine with these notes must not run, if it must not.
    pub fn refusal(self, precision: Precision, deterministic: bool) -> Option<&'static str> {
        if deterministic && self.contains(Self::NONDETERMINISTIC) {
            return Some("its results differ from run to run");
        }
        if self.contains(Self::DOWN_CONVERT_INPUTS) {
            return Some("it converts its operands to narrower ones");
        }
        if self.contains(Self::REDUCED_PRECISION_REDUCTION) {
            return Some("it adds up in less than f32");
        }
        if self.contains(Self::TENSOR_CORE) && precision == Precision::F32 {
            return Some("it multiplies in TF32");
        }
        None
    }
}

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.names().enumerate() {
            write!(f, "{}{name}", if i > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

/// Where a configuration was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// Heuristic mode A: by expected time, fastest first.
    ModeA,
    /// Heuristic mode B: the slower, learned one.
    ModeB,
    /// What runs if nothing else does; no order.
    Fallback,
    /// Every engine there is, with its default knobs, by index. The heuristics rank engines
    /// that use tensor cores first and never offer the Fourier and Winograd ones of f32.
    Exhaustive,
}

impl Source {
    /// `cudnnBackendHeurMode_t`.
    fn mode(self) -> Option<i32> {
        match self {
            Self::ModeA => Some(3),
            Self::ModeB => Some(1),
            Self::Fallback => Some(2),
            Self::Exhaustive => None,
        }
    }
}

/// A way to run a convolution that cuDNN offers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Engine and knobs.
    pub config: EngineConfig,
    /// Scratch it needs.
    pub workspace: Bytes,
    /// Its numerical notes.
    pub notes: Notes,
    /// Which list it is from.
    pub source: Source,
}

/// An engine configuration of a graph.
#[derive(Debug)]
pub(super) struct Config {
    pub desc: Desc,
    pub notes: Notes,
    /// Descriptors the configuration was made of.
    _parts: Vec<Desc>,
}

/// Every engine of a graph with default knobs; those that do not take the graph are left out.
fn every(target: &Target, graph: &Graph) -> Result<Vec<Candidate>, CudaError> {
    let count = graph.desc.get_i64(attr::GRAPH_ENGINE_COUNT)?;
    let configs = (0..u16::try_from(count).unwrap_or(u16::MAX)).filter_map(|e| EngineConfig::new(e, &[]));
    let of = |config: EngineConfig| {
        let built = rebuild(target, graph, config).ok()?;
        let workspace = u64::try_from(built.desc.get_i64(attr::CONFIG_WORKSPACE_SIZE).ok()?).ok()?;
        let (notes, source) = (built.notes, Source::Exhaustive);
        Some(Candidate { config, workspace: Bytes(workspace), notes, source })
    };
    Ok(configs.filter_map(of).collect())
}

/// What one heuristic offers for a graph, in its order. Configurations that cannot be written
/// down (more than 16 knobs, values beyond 32 bits) are left out.
pub(super) fn offered(target: &Target, graph: &Graph, source: Source) -> Result<Vec<Candidate>, CudaError> {
    let Some(mode) = source.mode() else { return every(target, graph) };
    let heuristic = Desc::new(&target.session, Kind::EngineHeuristic)?;
    heuristic.set_descs(attr::HEUR_OPERATION_GRAPH, &[&graph.desc])?;
    heuristic.set_enum(attr::HEUR_MODE, AttrType::HeurMode, mode)?;
    target.bind(&heuristic, None, Some(attr::HEUR_DEVICE))?;
    let heuristic = heuristic.finalize()?;
    let count = heuristic.count(attr::HEUR_RESULTS)?;
    let configs = heuristic.get_descs(attr::HEUR_RESULTS, Kind::EngineConfig, count)?;
    Ok(configs.iter().filter_map(|c| candidate(c, source).ok().flatten()).collect())
}

fn candidate(desc: &Desc, source: Source) -> Result<Option<Candidate>, CudaError> {
    let engines = desc.get_descs(attr::CONFIG_ENGINE, Kind::Engine, 1)?;
    let Some(engine) = engines.first() else { return Ok(None) };
    let index = engine.get_i64(attr::ENGINE_GLOBAL_INDEX)?;
    let notes = Notes::of(&engine.get_enums(attr::ENGINE_NUMERICAL_NOTE, AttrType::NumericalNote)?);
    let mut knobs = Vec::new();
    for choice in desc.get_descs(attr::CONFIG_KNOB_CHOICES, Kind::KnobChoice, 64)? {
        let kind = u8::try_from(choice.get_enum(attr::KNOB_CHOICE_TYPE, AttrType::KnobType)?).ok();
        let value = i32::try_from(choice.get_i64(attr::KNOB_CHOICE_VALUE)?).ok();
        let (Some(kind), Some(value)) = (kind, value) else { return Ok(None) };
        knobs.push((kind, value));
    }
    let config = u16::try_from(index).ok().and_then(|e| EngineConfig::new(e, &knobs));
    let workspace = desc.get_i64(attr::CONFIG_WORKSPACE_SIZE)?;
    Ok(config.zip(u64::try_from(workspace).ok()).map(|(config, workspace)| Candidate {
        config,
        workspace: Bytes(workspace),
        notes,
        source,
    }))
}

/// The configuration of a graph that `config` names.
///
/// # Errors
/// If this cuDNN has no such engine for the graph or the engine does not take the knobs.
pub(super) fn rebuild(target: &Target, graph: &Graph, config: EngineConfig) -> Result<Config, CudaError> {
    let count = graph.desc.get_i64(attr::GRAPH_ENGINE_COUNT)?;
    let index = i64::from(config.engine());
    if index >= count {
        return Err(CudaError::BadPlan { why: format!("engine {index} of {count} for this convolution") });
    }
    let session = &target.session;
    let engine = Desc::new(session, Kind::Engine)?;
    engine.set_descs(attr::ENGINE_OPERATION_GRAPH, &[&graph.desc])?;
    engine.set_i64(attr::ENGINE_GLOBAL_INDEX, &[index])?;
    target.bind(&engine, None, Some(attr::ENGINE_DEVICE))?;
    let engine = engine.finalize()?;
    let notes = Notes::of(&engine.get_enums(attr::ENGINE_NUMERICAL_NOTE, AttrType::NumericalNote)?);

    let mut choices = Vec::new();
    for &(kind, value) in config.knobs() {
        if kind == BIAS_APART {
            continue;
        }
        let choice = Desc::new(session, Kind::KnobChoice)?;
        choice.set_enum(attr::KNOB_CHOICE_TYPE, AttrType::KnobType, i32::from(kind))?;
        choice.set_i64(attr::KNOB_CHOICE_VALUE, &[i64::from(value)])?;
        choices.push(choice.finalize()?);
    }
    let desc = Desc::new(session, Kind::EngineConfig)?;
    desc.set_descs(attr::CONFIG_ENGINE, &[&engine])?;
    if !choices.is_empty() {
        desc.set_descs(attr::CONFIG_KNOB_CHOICES, &choices.iter().collect::<Vec<_>>())?;
    }
    let desc = desc.finalize()?;
    choices.push(engine);
    Ok(Config { desc, notes, _parts: choices })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_f32_takes_no_tensor_core_and_tf32_no_conversion() {
        let none = Notes::default();
        let tf32 = Notes::of(&[0, 9]);
        let half = Notes::of(&[0, 1]);
        let transforms = Notes::of(&[3, 5, 6]);
        for precision in [Precision::F32, Precision::Tf32] {
            assert_eq!(none.refusal(precision, true), None);
            assert_eq!(transforms.refusal(precision, true), None);
            assert!(half.refusal(precision, false).is_some());
            assert!(Notes::of(&[2]).refusal(precision, false).is_some());
            assert_eq!(Notes::of(&[4]).refusal(precision, false), None);
            assert!(Notes::of(&[4]).refusal(precision, true).is_some());
        }
        assert_eq!(tf32.refusal(Precision::F32, false), Some("it multiplies in TF32"));
        assert_eq!(tf32.refusal(Precision::Tf32, true), None);
    }

    #[test]
    fn notes_unknown_to_us_are_kept_apart_from_known_ones() {
        let notes = Notes::of(&[3, 40, -1, 70]);
        assert_eq!(notes.to_string(), "fft");
        assert!(notes.contains(Notes::FFT) && !notes.contains(Notes::TENSOR_CORE));
        assert_eq!(Notes::of(&[4, 0]).to_string(), "tensor-core,nondeterministic");
    }
}
