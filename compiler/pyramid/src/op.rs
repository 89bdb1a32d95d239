//! Chains and the attributes of [`vdnn_ir::Op::Pyramid`]: the same layers, once without and once
//! with a graph around them. Operands stand in the same order in both.

use crate::chain::{Chain, Kind, Layer, Pointwise, Shape, Window};
use smallvec::SmallVec;
use vdnn_ir::op::{ConvAttrs, PoolAttrs, PyramidAttrs, PyramidKind, PyramidLayer, PyramidStep};
use vdnn_ir::{Dims, TensorType};

/// The chain of one image of a pyramid; `inputs` are the types of its operands. `None` if it has
/// no such operands, layers that read or add others than the one before them, or the chain would
/// have numbers outside what chains may have.
pub fn chain_of(pyramid: &PyramidAttrs, inputs: &[&TensorType]) -> Option<Chain> {
    let &[_, channels, height, width] = inputs.first()?.dims.as_slice() else { return None };
    let mut next = 1;
    let mut layers = Vec::new();
    if !pyramid.is_chain() {
        return None;
    }
    for layer in &pyramid.layers {
        let weight = inputs.get(next);
        next += layer.operands();
        let kind = match &layer.kind {
            PyramidKind::Conv { conv, bias } => Kind::Conv {
                window: convolution(conv)?,
                groups: conv.groups,
                out: *weight?.dims.first()?,
                bias: *bias,
            },
            PyramidKind::MaxPool(pool) => Kind::MaxPool { window: pooling(pool)? },
            PyramidKind::AvgPool { pool, count_include_pad } => {
                Kind::AvgPool { window: pooling(pool)?, count_include_pad: *count_include_pad }
            }
        };
        let step = |s: &PyramidStep| match *s {
            PyramidStep::Relu => Some(Pointwise::Relu),
            PyramidStep::Clip { lo, hi } => Some(Pointwise::Clip { lo, hi }),
            PyramidStep::Add => Some(Pointwise::Add),
            PyramidStep::AddLayer { .. } => None,
        };
        layers.push(Layer { kind, then: layer.then.iter().map(step).collect::<Option<_>>()? });
    }
    Chain::new(Shape { channels, height, width }, Vec::new(), layers).ok()
}

/// The pyramid that a chain is, without a configuration; `None` if it scales channels or has
/// functions in front of its first layer, which no graph's pyramid has.
pub fn pyramid_of(chain: &Chain) -> Option<PyramidAttrs> {
    if !chain.prologue().is_empty() {
        return None;
    }
    let layer = |layer: &Layer| {
        let kind = match layer.kind {
            Kind::Conv { window, groups, bias, .. } => PyramidKind::Conv { conv: conv(window, groups), bias },
            Kind::MaxPool { window } => PyramidKind::MaxPool(pool(window)),
            Kind::AvgPool { window, count_include_pad } => {
                PyramidKind::AvgPool { pool: pool(window), count_include_pad }
            }
        };
        let step = |p: &Pointwise| match *p {
            Pointwise::Relu => Some(PyramidStep::Relu),
            Pointwise::Clip { lo, hi } => Some(PyramidStep::Clip { lo, hi }),
            Pointwise::Add => Some(PyramidStep::Add),
            Pointwise::Scale => None,
        };
        let then = layer.then.iter().map(step).collect::<Option<SmallVec<[PyramidStep; 2]>>>()?;
        Some(PyramidLayer { from: None, kind, then })
    };
    let layers = chain.layers().iter().map(layer).collect::<Option<_>>()?;
    Some(PyramidAttrs { layers, config: String::new() })
}

fn pair(dims: &Dims) -> Option<[u64; 2]> {
    dims.as_slice().try_into().ok()
}

fn convolution(conv: &ConvAttrs) -> Option<Window> {
    Some(Window {
        kernel: pair(&conv.kernel)?,
        strides: pair(&conv.strides)?,
        before: pair(&conv.before)?,
        after: pair(&conv.after)?,
        dilations: pair(&conv.dilations)?,
        ceil: false,
    })
}

fn pooling(pool: &PoolAttrs) -> Option<Window> {
    Some(Window {
        kernel: pair(&pool.kernel)?,
        strides: pair(&pool.strides)?,
        before: pair(&pool.before)?,
        after: pair(&pool.after)?,
        dilations: pair(&pool.dilations)?,
        ceil: pool.ceil_mode,
    })
}

fn dims(pair: [u64; 2]) -> Dims {
    Dims::from_slice(&pair)
}

fn conv(window: Window, groups: u64) -> ConvAttrs {
    ConvAttrs {
        kernel: dims(window.kernel),
        strides: dims(window.strides),
        before: dims(window.before),
        after: dims(window.after),
        dilations: dims(window.dilations),
        groups,
    }
}

fn pool(window: Window) -> PoolAttrs {
    PoolAttrs {
        kernel: dims(window.kernel),
        strides: dims(window.strides),
        before: dims(window.before),
        after: dims(window.after),
        dilations: dims(window.dilations),
        ceil_mode: window.ceil,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdnn_ir::Real;

    #[test]
    fn a_chain_and_its_pyramid_are_the_same_layers() {
        let conv = |window, out, bias| Kind::Conv { window, groups: 2, out, bias };
        let clip = Pointwise::Clip { lo: Real(0.0), hi: Real(6.0) };
        let layers = vec![
            Layer { kind: conv(Window::square(3, 2, 1), 8, true), then: vec![Pointwise::Relu] },
            Layer { kind: Kind::MaxPool { window: Window::square(3, 1, 1) }, then: vec![clip] },
            Layer { kind: conv(Window::square(1, 1, 0), 4, false), then: vec![Pointwise::Add, clip] },
        ];
        let input = Shape { channels: 6, height: 9, width: 11 };
        let chain = Chain::new(input, vec![], layers).expect("a chain");
        let pyramid = pyramid_of(&chain).expect("no scale");
        let types: Vec<TensorType> =
            ["f32[5,6,9,11]", "f32[8,3,3,3]", "f32[8]", "f32[4,4,1,1]", "f32[5,4,5,6]"]
                .map(|t| t.parse().expect("a type"))
                .to_vec();
        let types: Vec<&TensorType> = types.iter().collect();
        assert_eq!(pyramid.operands(), chain.operands().len());
        assert_eq!(chain_of(&pyramid, &types), Some(chain));
        let parts = pyramid.typed(&types).expect("its operands");
        assert_eq!(parts.last().expect("parts").result.to_string(), "f32[5,4,5,6]");
    }

    #[test]
    fn what_a_graph_cannot_have_is_no_pyramid() {
        let kind = Kind::MaxPool { window: Window::square(2, 2, 0) };
        let input = Shape { channels: 1, height: 4, width: 4 };
        let scaled = Chain::new(input, vec![], vec![Layer { kind, then: vec![Pointwise::Scale] }]);
        assert_eq!(pyramid_of(&scaled.expect("a chain")), None);
        let prologue = Chain::new(input, vec![Pointwise::Relu], vec![Layer { kind, then: vec![] }]);
        assert_eq!(pyramid_of(&prologue.expect("a chain")), None);
    }

    #[test]
    fn what_reads_or_adds_other_layers_is_no_chain() {
        let kind = Kind::MaxPool { window: Window::square(1, 1, 0) };
        let layer = Layer { kind, then: vec![] };
        let input = Shape { channels: 1, height: 4, width: 4 };
        let chain = Chain::new(input, vec![], vec![layer.clone(), layer]).expect("a chain");
        let pyramid = pyramid_of(&chain).expect("no scale");
        let x: TensorType = "f32[1,1,4,4]".parse().expect("a type");
        let of = |from, then: &[PyramidStep]| {
            let mut pyramid = pyramid.clone();
            pyramid.layers[1].from = from;
            pyramid.layers[1].then.extend_from_slice(then);
            chain_of(&pyramid, &[&x])
        };
        assert_eq!(of(None, &[]), Some(chain.clone()));
        assert_eq!(of(Some(1), &[]), Some(chain), "the one before it by its number");
        assert_eq!(of(Some(0), &[]), None);
        assert_eq!(of(None, &[PyramidStep::AddLayer { of: 0 }]), None);
    }
}
