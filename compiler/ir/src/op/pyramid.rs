//! Pyramids: chains of convolutions and pools that one kernel computes tile by tile, what lies
//! between them never stored (Alwani, Chen, Ferdman and Milder, *Fused-Layer CNN Accelerators*,
//! MICRO 2016).
//!
//! A pyramid means its layers one after the other, as [`PyramidAttrs::ops`] lists them. Which
//! tiles a kernel cuts it into is a text that those who print kernels read; it changes no value.

use super::Op;
use super::attrs::{BinaryKind, ConvAttrs, PoolAttrs, UnaryKind};
use super::infer::{InferError, infer};
use crate::types::{DType, Real, TensorType};
use serde::{Deserialize, Serialize};
use smallvec::{SmallVec, smallvec};

/// Most layers of a pyramid.
pub const MAX_LAYERS: usize = 16;

/// Longest text of a configuration.
pub const MAX_CONFIG: usize = 128;

/// A function of each element of a layer's result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PyramidStep {
    /// `max(y, 0)`.
    Relu,
    /// `min(max(y, lo), hi)`.
    Clip {
        /// Lower bound.
        lo: Real,
        /// Upper bound.
        hi: Real,
    },
    /// `y + r`, r an operand of y's type.
    Add,
}

/// What a layer slides over the image.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PyramidKind {
    /// [`Op::Conv`]; operands w and, with `bias`, b.
    Conv {
        /// The convolution.
        conv: ConvAttrs,
        /// Adds b.
        bias: bool,
    },
    /// [`Op::MaxPool`].
    MaxPool(PoolAttrs),
    /// [`Op::AvgPool`].
    AvgPool {
        /// Window geometry.
        pool: PoolAttrs,
        /// As in [`Op::AvgPool`].
        count_include_pad: bool,
    },
}

/// A convolution or pool with what follows it before the next one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PyramidLayer {
    /// The window.
    pub kind: PyramidKind,
    /// Applied to its result, in order.
    #[serde(default, skip_serializing_if = "SmallVec::is_empty")]
    pub then: SmallVec<[PyramidStep; 2]>,
}

/// A chain of layers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PyramidAttrs {
    /// The layers, each of the one before; the first of x.
    pub layers: Vec<PyramidLayer>,
    /// How a kernel cuts it into tiles: letters, digits, blanks and `_=.:+-`. Empty: none is chosen,
    /// which host kernels do not mind. Last, so that ops that differ in it alone are neighbours.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub config: String,
}

/// What an operand of a pyramid is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PyramidUse {
    /// x or another summand: a row per image.
    Image,
    /// Of a convolution.
    Weight,
    /// Of a convolution; f32 whatever the images are.
    Bias,
}

/// Where a part of a pyramid takes an operand from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartOperand {
    /// An operand of the pyramid, by its place.
    Input(usize),
    /// The result of an earlier part, by its place.
    Part(usize),
}

impl PyramidLayer {
    /// Operands besides the layer's input: weight, bias, other summands, in this order.
    pub fn operands(&self) -> usize {
        let own = match self.kind {
            PyramidKind::Conv { bias, .. } => 1 + usize::from(bias),
            _ => 0,
        };
        own + self.then.iter().filter(|s| **s == PyramidStep::Add).count()
    }

    /// True for a convolution.
    pub fn is_conv(&self) -> bool {
        matches!(self.kind, PyramidKind::Conv { .. })
    }
}

impl PyramidAttrs {
    /// Number of operands: x, then per layer those of [`PyramidLayer::operands`].
    pub fn operands(&self) -> usize {
        1 + self.layers.iter().map(PyramidLayer::operands).sum::<usize>()
    }

    /// The same with another configuration.
    #[must_use]
    pub fn with_config(&self, config: impl Into<String>) -> Self {
        Self { layers: self.layers.clone(), config: config.into() }
    }

    /// The parts in order, the last one the result. A convolution with bias takes the sum and the
    /// ReLU right behind it into itself ([`Op::ConvEpilogue`]), so that with bf16 tensors each
    /// layer rounds once; with `narrow`, for those, the biases are cast first.
    pub fn ops(&self, narrow: bool) -> Vec<(Op, SmallVec<[PartOperand; 4]>)> {
        let mut all: Vec<(Op, SmallVec<[PartOperand; 4]>)> = Vec::new();
        let mut last = PartOperand::Input(0);
        let mut next = 1;
        let mut take = || {
            next += 1;
            PartOperand::Input(next - 1)
        };
        for layer in &self.layers {
            let mut then = layer.then.as_slice();
            match &layer.kind {
                PyramidKind::Conv { conv, bias } => {
                    let mut operands: SmallVec<[PartOperand; 4]> = smallvec![last, take()];
                    if *bias {
                        let b = take();
                        operands.push(if narrow { PartOperand::Part(all.len()) } else { b });
                        if narrow {
                            all.push((Op::Cast { to: DType::BF16 }, smallvec![b]));
                        }
                    }
                    let mut relu = false;
                    if *bias {
                        if let [PyramidStep::Add, rest @ ..] = then {
                            operands.push(take());
                            then = rest;
                        }
                        if let [PyramidStep::Relu, rest @ ..] = then {
                            relu = true;
                            then = rest;
                        }
                    }
                    let op = if relu || operands.len() > 3 {
                        Op::ConvEpilogue { conv: conv.clone(), relu }
                    } else {
                        Op::Conv(conv.clone())
                    };
                    all.push((op, operands));
                }
                PyramidKind::MaxPool(pool) => all.push((Op::MaxPool(pool.clone()), smallvec![last])),
                PyramidKind::AvgPool { pool, count_include_pad } => {
                    let op = Op::AvgPool { pool: pool.clone(), count_include_pad: *count_include_pad };
                    all.push((op, smallvec![last]));
                }
            }
            last = PartOperand::Part(all.len() - 1);
            for step in then {
                all.push(match *step {
                    PyramidStep::Relu => (Op::Unary(UnaryKind::Relu), smallvec![last]),
                    PyramidStep::Clip { lo, hi } => (Op::Unary(UnaryKind::Clip { lo, hi }), smallvec![last]),
                    PyramidStep::Add => (Op::Binary(BinaryKind::Add), smallvec![last, take()]),
                });
                last = PartOperand::Part(all.len() - 1);
            }
        }
        all
    }

    /// What each operand is.
    pub fn uses(&self) -> Vec<PyramidUse> {
        let mut all = vec![PyramidUse::Image];
        for layer in &self.layers {
            if let PyramidKind::Conv { bias, .. } = layer.kind {
                all.push(PyramidUse::Weight);
                all.extend(bias.then_some(PyramidUse::Bias));
            }
            let adds = layer.then.iter().filter(|s| **s == PyramidStep::Add);
            all.extend(adds.map(|_| PyramidUse::Image));
        }
        all
    }

    /// The parts with the types of their operands and results. `inputs` are the pyramid's.
    ///
    /// # Errors
    /// If there are no layers, too many or as many operands as they do not have, the
    /// configuration has other characters, the image is not of rank 4, or a part does not take
    /// its operands.
    pub fn typed(&self, inputs: &[&TensorType]) -> Result<Vec<TypedPart>, InferError> {
        let fail = |text: String| Err(InferError(format!("pyramid: {text}")));
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return fail(format!("expected 1 to {MAX_LAYERS} layers, found {}", self.layers.len()));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || " _=.:+-".contains(c);
        if self.config.len() > MAX_CONFIG || !self.config.chars().all(plain) {
            return fail(format!("expected a short configuration of plain words, found `{}`", self.config));
        }
        if inputs.len() != self.operands() {
            return fail(format!("expected {} inputs, found {}", self.operands(), inputs.len()));
        }
        if inputs[0].rank() != 4 {
            return fail(format!("expected x of rank 4, found {}", inputs[0]));
        }
        for (ty, of) in inputs.iter().zip(self.uses()) {
            if of == PyramidUse::Bias && ty.dtype != DType::F32 {
                return fail(format!("expected b of type f32, found {ty}"));
            }
        }
        let mut all: Vec<TypedPart> = Vec::new();
        for (op, operands) in self.ops(inputs[0].dtype == DType::BF16) {
            let types: SmallVec<[TensorType; 4]> = operands
                .iter()
                .map(|operand| match operand {
                    PartOperand::Input(i) => inputs[*i].clone(),
                    PartOperand::Part(i) => all[*i].result.clone(),
                })
                .collect();
            let refs: SmallVec<[&TensorType; 4]> = types.iter().collect();
            // A summand of fewer dimensions would broadcast.
            if matches!(op, Op::Binary(_)) && refs[0] != refs[1] {
                return fail(format!("expected another summand of type {}, found {}", refs[0], refs[1]));
            }
            let mut results = infer(&op, &refs, 1).map_err(|e| InferError(format!("pyramid: {e}")))?;
            let result = results.swap_remove(0);
            drop(refs);
            all.push(TypedPart { op, operands: types, result });
        }
        Ok(all)
    }
}

/// A part of a pyramid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedPart {
    /// The op.
    pub op: Op,
    /// Types of its operands.
    pub operands: SmallVec<[TensorType; 4]>,
    /// Type of its result.
    pub result: TensorType,
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEM: &str = "pyramid(layers:[(kind:conv(conv:(kernel:[3,3],strides:[2,2],before:[1,1],after:[1,1],\
        dilations:[1,1],groups:1),bias:true),then:[add,relu]),(kind:max_pool(kernel:[2,2],strides:[2,2],\
        before:[0,0],after:[0,0],dilations:[1,1],ceil_mode:false),then:[clip(lo:0.0,hi:6.0)])],\
        config:\"loops recompute 8x8\")";

    fn stem() -> PyramidAttrs {
        match STEM.parse() {
            Ok(Op::Pyramid(pyramid)) => pyramid,
            other => panic!("{other:?}"),
        }
    }

    fn typed(pyramid: &PyramidAttrs, inputs: &[&str]) -> Result<Vec<TypedPart>, String> {
        let inputs: Vec<TensorType> = inputs.iter().map(|t| t.parse().expect("a type")).collect();
        pyramid.typed(&inputs.iter().collect::<Vec<_>>()).map_err(|e| e.0)
    }

    #[test]
    fn a_pyramid_prints_and_parses_with_and_without_a_configuration() {
        assert_eq!(Op::Pyramid(stem()).to_string(), STEM);
        let bare = Op::Pyramid(stem().with_config(""));
        assert!(!bare.to_string().contains("config"));
        assert_eq!(bare.to_string().parse(), Ok(bare.clone()));
        // What a configuration is looked up by: those of one pyramid are neighbours.
        assert!(bare < Op::Pyramid(stem()));
    }

    #[test]
    fn the_parts_are_the_layers_with_their_sums_and_relus() {
        let x = ["f32[2,3,8,8]", "f32[4,3,3,3]", "f32[4]", "f32[2,4,4,4]"];
        let parts = typed(&stem(), &x).expect("its operands");
        let names: Vec<String> = parts.iter().map(|p| p.op.name()).collect();
        assert_eq!(names, ["conv_epilogue", "max_pool", "unary"]);
        assert_eq!(parts[2].result.to_string(), "f32[2,4,2,2]");
        use PyramidUse::{Bias, Image, Weight};
        assert_eq!(stem().uses(), [Image, Weight, Bias, Image]);
        assert_eq!(stem().operands(), 4);
        // In bf16 the bias stays f32 and is cast; the layer rounds once.
        let narrow = ["bf16[2,3,8,8]", "bf16[4,3,3,3]", "f32[4]", "bf16[2,4,4,4]"];
        let parts = typed(&stem(), &narrow).expect("its operands");
        let names: Vec<String> = parts.iter().map(|p| p.op.name()).collect();
        assert_eq!(names, ["cast", "conv_epilogue", "max_pool", "unary"]);
        assert_eq!(parts[3].result.to_string(), "bf16[2,4,2,2]");
    }

    #[test]
    fn operands_that_do_not_fit_are_named() {
        let wrong = |inputs: &[&str], text: &str| {
            let error = typed(&stem(), inputs).expect_err("it is wrong");
            assert!(error.contains(text), "{error}");
        };
        wrong(&["f32[2,3,8,8]", "f32[4,3,3,3]", "f32[4]"], "4 inputs");
        wrong(&["f32[2,3,8]", "f32[4,3,3,3]", "f32[4]", "f32[2,4,4,4]"], "rank 4");
        wrong(&["f32[2,3,8,8]", "f32[4,3,3,3]", "f32[4]", "f32[2,4,4,1]"], "f32[2,4,4,1]");
        wrong(&["bf16[2,3,8,8]", "bf16[4,3,3,3]", "bf16[4]", "bf16[2,4,4,4]"], "b of type f32");
        wrong(&["f32[2,3,8,8]", "f32[4,2,3,3]", "f32[4]", "f32[2,4,4,4]"], "pyramid: conv");
        let x = ["f32[2,3,8,8]", "f32[4,3,3,3]", "f32[4]", "f32[2,4,4,4]"];
        for config in ["a;b", "(a)", &"a".repeat(MAX_CONFIG + 1)] {
            let error = typed(&stem().with_config(config), &x).expect_err("no such configuration");
            assert!(error.contains("plain words"), "{error}");
        }
        let many =
            PyramidAttrs { layers: vec![stem().layers[1].clone(); MAX_LAYERS + 1], config: String::new() };
        assert!(typed(&many, &x[..1]).expect_err("too many").contains("layers"));
        let none = PyramidAttrs { layers: vec![], config: String::new() };
        assert!(typed(&none, &x[..1]).is_err());
    }
}
