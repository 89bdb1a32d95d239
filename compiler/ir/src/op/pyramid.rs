//! Pyramids: chains of convolutions and pools that one kernel computes tile by tile, what lies
//! between them never stored (Alwani, Chen, Ferdman and Milder, *Fused-Layer CNN Accelerators*,
//! MICRO 2016).
//!
//! A pyramid means its layers one after the other, as [`PyramidAttrs::ops`] lists them. Its values
//! are numbered: 0 is x, `i + 1` the result of layer `i`. A layer reads the value before it unless
//! it names an earlier one, and may add earlier ones to its result, so that a stage of blocks with
//! their own residuals is a pyramid, too. Which tiles a kernel cuts it into is a text that those who
//! print kernels read; it changes no value.

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
    /// `y + v`, v an earlier value of the pyramid, of y's type. It rounds like [`Self::Add`].
    AddLayer {
        /// The value's number, at most that of the layer's position.
        of: u32,
    },
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
    /// Number of the value that it reads, at most its own position; `None`: of the one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u32>,
    /// The window.
    pub kind: PyramidKind,
    /// Applied to its result, in order.
    #[serde(default, skip_serializing_if = "SmallVec::is_empty")]
    pub then: SmallVec<[PyramidStep; 2]>,
}

/// Layers, each of earlier values.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PyramidAttrs {
    /// The layers; the last one's result is the pyramid's.
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

    /// Number of the value that it reads as the layer at a position.
    pub fn reads(&self, position: usize) -> usize {
        self.from.map_or(position, |of| of as usize)
    }

    /// Numbers of the earlier values that are added to its result, in order.
    pub fn added(&self) -> impl Iterator<Item = usize> + '_ {
        self.then.iter().filter_map(|s| match s {
            PyramidStep::AddLayer { of } => Some(*of as usize),
            _ => None,
        })
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

    /// So many bottleneck blocks of stride 1 (He, Zhang, Ren and Sun, *Deep Residual Learning for Image
    /// Recognition*, CVPR 2016, figure 5, right), without a configuration: a 1x1 convolution with ReLU, a
    /// 3x3 one with ReLU, and a 1x1 one to which the block's input is added in front of its ReLU; in the
    /// first block with `side` another 1x1 convolution of the input, the layer in front of that, instead.
    pub fn stage(blocks: u32, side: bool) -> Self {
        use PyramidStep::{AddLayer, Relu};
        let layer = |from, kernel: u64, then: &[PyramidStep]| PyramidLayer {
            from,
            kind: PyramidKind::Conv { conv: ConvAttrs::square(kernel, 1, kernel / 2, 1), bias: true },
            then: SmallVec::from_slice(then),
        };
        let mut layers = Vec::new();
        // The number of the block's input.
        let mut input = 0;
        for block in 0..blocks {
            layers.extend([layer(None, 1, &[Relu]), layer(None, 3, &[Relu])]);
            if side && block == 0 {
                layers.push(layer(Some(input), 1, &[]));
                layers.push(layer(Some(input + 2), 1, &[AddLayer { of: input + 3 }, Relu]));
                input += 4;
            } else {
                layers.push(layer(None, 1, &[AddLayer { of: input }, Relu]));
                input += 3;
            }
        }
        Self { layers, config: String::new() }
    }

    /// True if every layer reads the one before it and adds no other: one after the other.
    pub fn is_chain(&self) -> bool {
        self.layers.iter().enumerate().all(|(i, l)| l.reads(i) == i && l.added().next().is_none())
    }

    /// The parts in order, the last one the result. A convolution with bias takes the sum and the
    /// ReLU right behind it into itself ([`Op::ConvEpilogue`]), so that with bf16 tensors each
    /// layer rounds once; with `narrow`, for those, the biases are cast first. A value that is not
    /// an earlier one, which [`Self::typed`] refuses, is a part that there is not.
    pub fn ops(&self, narrow: bool) -> Vec<(Op, SmallVec<[PartOperand; 4]>)> {
        let mut all: Vec<(Op, SmallVec<[PartOperand; 4]>)> = Vec::new();
        // By number.
        let mut values = vec![PartOperand::Input(0)];
        let value = |values: &[PartOperand], of: usize| {
            values.get(of).copied().unwrap_or(PartOperand::Part(usize::MAX))
        };
        let mut next = 1;
        let mut take = || {
            next += 1;
            PartOperand::Input(next - 1)
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let mut last = value(&values, layer.reads(i));
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
                        match then {
                            [PyramidStep::Add, rest @ ..] => {
                                operands.push(take());
                                then = rest;
                            }
                            [PyramidStep::AddLayer { of }, rest @ ..] => {
                                operands.push(value(&values, *of as usize));
                                then = rest;
                            }
                            _ => {}
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
                    PyramidStep::AddLayer { of } => {
                        (Op::Binary(BinaryKind::Add), smallvec![last, value(&values, of as usize)])
                    }
                });
                last = PartOperand::Part(all.len() - 1);
            }
            values.push(last);
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
    /// configuration has other characters, a layer reads or adds a value that is not an earlier one,
    /// the image is not of rank 4, or a part does not take its operands.
    pub fn typed(&self, inputs: &[&TensorType]) -> Result<Vec<TypedPart>, InferError> {
        let fail = |text: String| Err(InferError(format!("pyramid: {text}")));
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS {
            return fail(format!("expected 1 to {MAX_LAYERS} layers, found {}", self.layers.len()));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || " _=.:+-".contains(c);
        if self.config.len() > MAX_CONFIG || !self.config.chars().all(plain) {
            return fail(format!("expected a short configuration of plain words, found `{}`", self.config));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            if let Some(of) = std::iter::once(layer.reads(i)).chain(layer.added()).find(|&of| of > i) {
                return fail(format!("layer {i}: expected one of the values 0 to {i}, found {of}"));
            }
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

    /// A block whose residual is another convolution of x, and one whose residual is its input.
    const BLOCKS: &str = "pyramid(layers:[(kind:CONV,then:[relu]),(from:Some(0),kind:CONV),\
        (from:Some(1),kind:CONV,then:[add_layer(of:2),relu]),(kind:CONV,then:[add_layer(of:3),relu])])";
    const CONV: &str = "conv(conv:(kernel:[1,1],strides:[1,1],before:[0,0],after:[0,0],dilations:[1,1],\
        groups:1),bias:true)";

    fn blocks() -> PyramidAttrs {
        match BLOCKS.replace("CONV", CONV).parse() {
            Ok(Op::Pyramid(pyramid)) => pyramid,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn layers_may_read_and_add_earlier_values() {
        let pyramid = blocks();
        assert_eq!(Op::Pyramid(pyramid.clone()).to_string(), BLOCKS.replace("CONV", CONV));
        assert!(!pyramid.is_chain() && stem().is_chain());
        assert_eq!((pyramid.operands(), pyramid.uses().len()), (9, 9));
        let reads: Vec<usize> = pyramid.layers.iter().enumerate().map(|(i, l)| l.reads(i)).collect();
        assert_eq!(reads, [0, 0, 1, 3]);
        use PartOperand::{Input, Part};
        let parts = pyramid.ops(false);
        let operands: Vec<&[PartOperand]> = parts.iter().map(|(_, o)| o.as_slice()).collect();
        assert_eq!(operands[0], [Input(0), Input(1), Input(2)]);
        assert_eq!(operands[1], [Input(0), Input(3), Input(4)]);
        assert_eq!(operands[2], [Part(0), Input(5), Input(6), Part(1)]);
        assert_eq!(operands[3], [Part(2), Input(7), Input(8), Part(2)]);
        let sums = |(op, _): &(Op, _)| matches!(op, Op::ConvEpilogue { relu: true, .. });
        assert_eq!(parts.iter().map(sums).collect::<Vec<_>>(), [true, false, true, true]);
        let x = ["f32[2,4,8,8]", "f32[4,4,1,1]", "f32[4]", "f32[4,4,1,1]", "f32[4]"];
        let x: Vec<&str> = x.into_iter().chain(x[1..].iter().copied()).collect();
        let typed = typed(&pyramid, &x).expect("its operands");
        assert_eq!(typed.last().expect("parts").result.to_string(), "f32[2,4,8,8]");
    }

    #[test]
    fn a_sum_with_an_earlier_value_behind_others_is_a_part_of_its_own() {
        let mut pyramid = blocks();
        pyramid.layers[2].then = smallvec![PyramidStep::Relu, PyramidStep::AddLayer { of: 2 }];
        let parts = pyramid.ops(true);
        // Of 0 and 1 the cast bias and the convolution each; then those of 2, and its sum.
        assert_eq!(parts[6].0, Op::Binary(BinaryKind::Add));
        assert_eq!(parts[6].1.as_slice(), [PartOperand::Part(5), PartOperand::Part(3)]);
        assert_eq!(parts[8].1[0], PartOperand::Part(6), "the last layer reads the sum");
    }

    #[test]
    fn values_that_are_not_earlier_are_named() {
        let x = ["f32[2,4,8,8]", "f32[4,4,1,1]", "f32[4]", "f32[4,4,1,1]", "f32[4]"];
        let x: Vec<&str> = x.into_iter().chain(x[1..].iter().copied()).collect();
        for (layer, of) in [(0, 1), (1, 2), (2, u32::MAX), (3, 4)] {
            let mut reads = blocks();
            reads.layers[layer].from = Some(of);
            let mut adds = blocks();
            adds.layers[layer].then.insert(0, PyramidStep::AddLayer { of });
            for wrong in [reads, adds] {
                let error = typed(&wrong, &x).expect_err("no such value");
                assert!(
                    error.contains(&format!("layer {layer}:")) && error.contains(&of.to_string()),
                    "{error}"
                );
                assert!(wrong.ops(false).len() >= 4);
            }
        }
        // One of another shape.
        let mut narrow = x.clone();
        narrow[3] = "f32[1,4,1,1]";
        narrow[4] = "f32[1]";
        assert!(typed(&blocks(), &narrow).is_err());
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
