//! Random chains, tilings and tensors from seeds.

mod source;

pub use source::Source;
use vdnn_ir::types::Real;
use vdnn_pyramid::{Chain, Kind, Layer, Mode, Pointwise, Shape, Tiling, Window};

fn window(s: &mut Source, pool: bool) -> Window {
    let mut w = Window::square(1, 1, 0);
    let square = !s.once_in(3);
    for axis in 0..2 {
        if square && axis == 1 {
            for list in [&mut w.kernel, &mut w.strides, &mut w.before, &mut w.after, &mut w.dilations] {
                list[1] = list[0];
            }
            break;
        }
        let most = if s.once_in(4) { 5 } else { 3 };
        w.kernel[axis] = s.within(if pool { 2 } else { 1 }, most);
        w.strides[axis] = if s.once_in(3) { s.within(2, 4) } else { 1 };
        w.dilations[axis] = if s.once_in(5) { s.within(2, 3) } else { 1 };
        let span = (w.kernel[axis] - 1) * w.dilations[axis] + 1;
        let most = if pool { span - 1 } else { span };
        w.before[axis] = if s.once_in(4) { 0 } else { s.within(0, most.min(3)) };
        w.after[axis] = if s.once_in(3) { s.within(0, most.min(3)) } else { w.before[axis].min(most) };
    }
    w.ceil = pool && s.once_in(4);
    w
}

fn pointwise(s: &mut Source, last: bool) -> Vec<Pointwise> {
    let mut list = Vec::new();
    for _ in 0..s.within(0, 2) {
        list.push(match s.within(0, 3) {
            0 | 1 => Pointwise::Relu,
            2 => Pointwise::Scale,
            // Zero is not kept: it must not reach the padding.
            _ => Pointwise::Clip { lo: Real(0.125), hi: Real(0.75) },
        });
    }
    if last && s.once_in(4) {
        list.push(Pointwise::Add);
    }
    list
}

/// A chain of one to four layers over a small image.
pub fn chain(s: &mut Source) -> Chain {
    loop {
        let depth = s.within(1, 4);
        let input = Shape { channels: s.within(1, 4), height: s.within(1, 17), width: s.within(1, 17) };
        let mut channels = input.channels;
        let mut layers = Vec::new();
        for i in 0..depth {
            let kind = match s.within(0, 9) {
                0 | 1 => Kind::MaxPool { window: window(s, true) },
                2 => Kind::AvgPool { window: window(s, true), count_include_pad: s.once_in(2) },
                _ => {
                    let groups = if s.once_in(3) { channels } else { 1 };
                    let out = groups * s.within(1, if groups > 1 { 2 } else { 4 });
                    channels = out;
                    Kind::Conv { window: window(s, false), groups, out, bias: !s.once_in(3) }
                }
            };
            layers.push(Layer { kind, then: pointwise(s, i + 1 == depth) });
        }
        let prologue = if s.once_in(4) { pointwise(s, false) } else { Vec::new() };
        if let Ok(chain) = Chain::new(input, prologue, layers) {
            return chain;
        }
    }
}

/// A tiling of a chain's result.
pub fn tiling(s: &mut Source, chain: &Chain) -> Tiling {
    let out = chain.output();
    let rows = if s.once_in(3) { out.height } else { s.within(1, out.height) };
    let cols = if s.once_in(3) { out.width } else { s.within(1, out.width) };
    let mode = if s.once_in(2) { Mode::Recompute } else { Mode::Reuse { step: s.within(1, rows) } };
    Tiling { rows, cols, mode }
}

/// Values for everything a chain reads.
pub fn operands(s: &mut Source, chain: &Chain) -> Vec<Vec<f32>> {
    chain.operands().iter().map(|o| s.tensor(o.elements)).collect()
}

/// The same as slices.
pub fn slices(operands: &[Vec<f32>]) -> Vec<&[f32]> {
    operands.iter().map(Vec::as_slice).collect()
}
