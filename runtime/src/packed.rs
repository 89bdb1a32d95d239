//! What packed copies ([`vdnn_ir::packed`]) put on the link, read off what they left on the host.

use crate::backend::Backend;
use crate::error::RunError;
use crate::program::{Program, Span};
use vdnn_ir::packed::{MASK, of_slot, slot};
use vdnn_ir::{Bytes, Space};
use vdnn_plan::{BufId, Command, CopyForm};

/// Tensors that a step packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Their bytes on the device.
    pub tensors: Bytes,
    /// Bytes of their masks and elements, which crossed the link.
    pub on_link: Bytes,
}

/// Looks at the host arena after a step. Packed tensors whose bytes a later copy had are left out.
pub(crate) fn look(program: &Program, backend: &dyn Backend) -> Result<Packed, RunError> {
    let plan = program.plan();
    let mut found = Packed::default();
    for (i, command) in plan.commands.iter().enumerate() {
        let Command::Copy { form: CopyForm::Pack, src, dst, .. } = command else { continue };
        let host = program.span(*dst);
        let again = |later: &BufId| program.span(*later).overlaps(&host);
        let gone =
            plan.commands[i + 1..].iter().any(|c| matches!(c, Command::Copy { dst, .. } if again(dst)));
        if gone {
            continue;
        }
        let ty = &plan.buffers[*src].ty;
        let mut mask = [0; MASK.0 as usize];
        for start in (host.start..host.start + host.len).step_by(slot(ty.dtype).0 as usize) {
            backend.read(Span { space: Space::Host, start, len: mask.len() }, &mut mask)?;
            found.on_link += of_slot(&mask, ty.dtype.bytes() as usize);
        }
        found.tensors += ty.bytes();
    }
    Ok(found)
}
