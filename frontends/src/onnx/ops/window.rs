//! Window geometry shared by convolutions and pools.

use super::super::error::{Fail, invalid};
use super::super::node::{Node, extent};
use vdnn_ir::Dims;

/// Padding as the node asks for it.
pub(super) struct Padding {
    pub before: Dims,
    pub after: Dims,
    /// Written out, not derived from the input's extents.
    pub explicit: bool,
}

/// Resolves `pads` or `auto_pad` for an input with these spatial extents.
///
/// SAME gives `ceil(in / stride)` outputs; SAME_LOWER puts an odd element in front (ONNX
/// operator specification, Conv).
pub(super) fn padding(
    node: &Node<'_>,
    spatial: &[u64],
    kernel: &[u64],
    strides: &[u64],
    dilations: &[u64],
) -> Result<Padding, Fail> {
    let n = spatial.len();
    let pads = node.ints("pads")?;
    let none = || Padding { before: Dims::from_elem(0, n), after: Dims::from_elem(0, n), explicit: false };
    let mode = node.string("auto_pad")?.unwrap_or("NOTSET");
    let lower = match mode {
        "NOTSET" | "" => {
            let Some(pads) = pads else { return Ok(Padding { explicit: true, ..none() }) };
            if pads.len() != 2 * n {
                return invalid(format!(
                    "attribute pads has {} entries where {} are expected",
                    pads.len(),
                    2 * n
                ));
            }
            let all: Dims = pads.iter().map(|&p| extent("pads", p, 0)).collect::<Result<_, _>>()?;
            return Ok(Padding { before: all[..n].into(), after: all[n..].into(), explicit: true });
        }
        "VALID" => return Ok(none()),
        "SAME_UPPER" => false,
        "SAME_LOWER" => true,
        other => return invalid(format!("attribute auto_pad is `{other}`")),
    };
    if pads.is_some_and(|p| p.iter().any(|&x| x != 0)) {
        return invalid("it has both pads and auto_pad");
    }
    let mut padding = none();
    for i in 0..n {
        // Extents are below 2^46 and attributes below 2^31, but a product of two could pass 2^64.
        let windows = spatial[i].div_ceil(strides[i]);
        let span = (kernel[i].saturating_sub(1)).saturating_mul(dilations[i]).saturating_add(1);
        let needed = windows.saturating_sub(1).saturating_mul(strides[i]).saturating_add(span);
        let total = needed.saturating_sub(spatial[i]);
        let (small, large) = (total / 2, total - total / 2);
        (padding.before[i], padding.after[i]) = if lower { (large, small) } else { (small, large) };
    }
    Ok(padding)
}

/// The spatial extents of an image tensor `[N,C,..]`.
pub(super) fn spatial(dims: &[u64]) -> Result<&[u64], Fail> {
    match dims {
        [_, _, rest @ ..] if !rest.is_empty() => Ok(rest),
        _ => invalid(format!("its input has shape {dims:?} instead of [N, C, spatial..]")),
    }
}
