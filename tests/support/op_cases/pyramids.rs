//! Layers fused into pyramids: stems with their pool, pairs of convolutions, bottlenecks with their
//! residual, with borders and sizes that no tile divides.

use super::{Case, Generator};
use vdnn_ir::op::{
    ConvAttrs, Op, PoolAttrs, PyramidAttrs, PyramidKind, PyramidLayer, PyramidStep, PyramidUse,
};
use vdnn_ir::{Dims, Real};

/// True if kernels for matrix units take it, too: nothing but convolutions of one group with bias
/// and ReLU, one after the other, a max pool at the end, a residual in the last layer.
pub fn is_plain(pyramid: &PyramidAttrs) -> bool {
    let step = |s: &PyramidStep| !matches!(s, PyramidStep::Clip { .. });
    let kind = |(i, layer): (usize, &PyramidLayer)| match &layer.kind {
        PyramidKind::Conv { conv, bias } => {
            *bias && conv.groups == 1 && conv.dilations.iter().all(|&d| d == 1)
        }
        PyramidKind::MaxPool(_) => i + 1 == pyramid.layers.len(),
        PyramidKind::AvgPool { .. } => false,
    };
    pyramid.is_chain()
        && pyramid.layers.iter().enumerate().all(kind)
        && pyramid.layers.iter().flat_map(|l| &l.then).all(step)
}

fn pair(n: u64) -> Dims {
    Dims::from_slice(&[n, n])
}

fn attrs(kernel: u64, stride: u64, pad: u64, groups: u64, dilation: u64) -> ConvAttrs {
    ConvAttrs { groups, ..ConvAttrs::square(kernel, stride, pad, dilation) }
}

fn window(kernel: u64, stride: u64, pad: u64, ceil_mode: bool) -> PoolAttrs {
    PoolAttrs {
        kernel: pair(kernel),
        strides: pair(stride),
        before: pair(pad),
        after: pair(pad),
        dilations: pair(1),
        ceil_mode,
    }
}

fn layer(kind: PyramidKind, then: &[PyramidStep]) -> PyramidLayer {
    PyramidLayer { from: None, kind, then: then.iter().copied().collect() }
}

impl Generator {
    /// A stage of blocks of 64 channels in and 256 out. It has a configuration: only then plans
    /// have the workspace that its kernel needs.
    fn stage(&mut self, x: [u64; 4], blocks: u32, side: bool) {
        let pyramid = PyramidAttrs::stage(blocks, side).with_config("stage rings 3 3 4 3 3 blocks 132");
        let mut operands = vec![self.any(&x)];
        // Channels of the values.
        let mut channels = vec![x[1]];
        for (i, layer) in pyramid.layers.iter().enumerate() {
            let PyramidKind::Conv { conv, .. } = &layer.kind else { continue };
            let wide = layer.then.len() != 1;
            let out = if wide { 256 } else { 64 };
            operands.push(self.any(&[out, channels[layer.reads(i)], conv.kernel[0], conv.kernel[1]]));
            operands.push(self.any(&[out]));
            channels.push(out);
        }
        self.cases.push(Case { op: Op::Pyramid(pyramid), operands, outputs: 1, sources: vec![] });
    }

    /// A pyramid of layers with the output channels that convolutions have.
    fn pyramid(&mut self, x: [u64; 4], layers: Vec<(PyramidLayer, u64)>) {
        let mut operands = vec![self.any(&x)];
        let channels: Vec<u64> = layers.iter().map(|(_, out)| *out).collect();
        let pyramid = PyramidAttrs {
            layers: layers.into_iter().map(|(layer, _)| layer).collect(),
            config: String::new(),
        };
        let mut before = x[1];
        for (layer, out) in pyramid.layers.iter().zip(channels) {
            if let PyramidKind::Conv { conv, bias } = &layer.kind {
                let w = [out, before / conv.groups, conv.kernel[0], conv.kernel[1]];
                operands.push(self.any(&w));
                if *bias {
                    operands.push(self.any(&[out]));
                }
                before = out;
            }
        }
        // The residual of the last layer, of the result's shape: what the rules say of the rest.
        if pyramid.uses().len() > operands.len() {
            let without = PyramidAttrs {
                layers: pyramid
                    .layers
                    .iter()
                    .map(|l| PyramidLayer {
                        then: l.then.iter().copied().filter(|s| *s != PyramidStep::Add).collect(),
                        ..l.clone()
                    })
                    .collect(),
                config: String::new(),
            };
            let types: Vec<_> = operands.iter().map(super::Operand::ty).collect();
            let parts = without.typed(&types.iter().collect::<Vec<_>>()).expect("a legal pyramid");
            operands.push(self.any(&parts.last().expect("a part").result.dims));
        }
        assert_eq!(pyramid.uses().len(), operands.len());
        assert_eq!(pyramid.uses()[0], PyramidUse::Image);
        // Not differentiable: a model of inference has it.
        self.cases.push(Case { op: Op::Pyramid(pyramid), operands, outputs: 1, sources: vec![] });
    }

    pub(super) fn pyramids(&mut self) {
        use PyramidStep::{Add, Clip, Relu};
        let conv = |kernel, stride, pad, then: &[PyramidStep]| {
            layer(PyramidKind::Conv { conv: attrs(kernel, stride, pad, 1, 1), bias: true }, then)
        };
        let pool = |kernel, stride, pad| layer(PyramidKind::MaxPool(window(kernel, stride, pad, false)), &[]);
        for x in [[2, 3, 35, 35], [1, 3, 64, 50], [3, 3, 21, 40]] {
            self.pyramid(x, vec![(conv(7, 2, 3, &[Relu]), 64), (pool(3, 2, 1), 0)]);
        }
        for x in [[2, 3, 32, 32], [1, 3, 19, 37]] {
            let layers = vec![(conv(3, 1, 1, &[Relu]), 64), (conv(3, 1, 1, &[Relu]), 64), (pool(2, 2, 0), 0)];
            self.pyramid(x, layers);
        }
        for x in [[2, 64, 28, 28], [1, 64, 15, 9]] {
            self.pyramid(x, vec![(conv(3, 1, 1, &[Relu]), 64), (pool(2, 2, 0), 0)]);
            self.pyramid(x, vec![(conv(1, 1, 0, &[Relu]), 64), (conv(3, 1, 1, &[Relu]), 64)]);
        }
        for x in [[2, 256, 14, 14], [1, 64, 13, 11], [2, 256, 7, 7]] {
            let layers = vec![
                (conv(1, 1, 0, &[Relu]), 64),
                (conv(3, 1, 1, &[Relu]), 64),
                (conv(1, 1, 0, &[Add, Relu]), 256),
            ];
            self.pyramid(x, layers);
        }
        for x in [[2, 64, 14, 14], [1, 64, 13, 11]] {
            self.pyramid(x, vec![(conv(3, 1, 1, &[Relu]), 64), (conv(1, 1, 0, &[Add, Relu]), 256)]);
        }
        self.stage([2, 64, 8, 16], 2, true);
        // What plain loops alone take: groups, dilation, no bias, averages, bounds, uneven windows.
        let bare = |attrs, then: &[PyramidStep]| layer(PyramidKind::Conv { conv: attrs, bias: false }, then);
        let clip = Clip { lo: Real(-1.0), hi: Real(6.0) };
        let uneven = ConvAttrs {
            kernel: Dims::from_slice(&[5, 2]),
            strides: Dims::from_slice(&[1, 2]),
            before: Dims::from_slice(&[0, 1]),
            after: Dims::from_slice(&[3, 0]),
            dilations: pair(1),
            groups: 1,
        };
        for x in [[2, 8, 17, 19], [1, 8, 30, 12]] {
            let average = PyramidKind::AvgPool { pool: window(3, 2, 1, true), count_include_pad: false };
            let layers = vec![
                (bare(attrs(3, 1, 2, 4, 2), &[clip]), 12),
                (layer(PyramidKind::MaxPool(window(3, 1, 1, false)), &[]), 0),
                (bare(attrs(1, 1, 0, 1, 1), &[Add, clip]), 6),
            ];
            self.pyramid(x, layers);
            let layers = vec![(bare(uneven.clone(), &[Relu]), 5), (layer(average, &[Relu]), 0)];
            self.pyramid(x, layers);
        }
    }
}
