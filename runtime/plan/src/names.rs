//! Words of the text form for the closed enums of the IR.

use crate::plan::{CopyForm, StreamKind};
use vdnn_ir::graph::Stage;
use vdnn_ir::{ParamRole, Space};

/// Declares the words of an enum: a total function to the word, and its partial inverse.
macro_rules! words {
    ($to:ident, $from:ident, $ty:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        pub(crate) fn $to(x: $ty) -> &'static str {
            match x { $($ty::$variant => $word),+ }
        }
        pub(crate) fn $from(word: &str) -> Option<$ty> {
            match word { $($word => Some($ty::$variant),)+ _ => None }
        }
    };
}

words!(space, space_from, Space { Device = "device", Host = "host" });
words!(copy_form, copy_form_from, CopyForm { Plain = "copy", Pack = "pack", Unpack = "unpack" });
words!(stream_kind, stream_kind_from, StreamKind { Compute = "compute", D2h = "d2h", H2d = "h2d" });
words!(role, role_from, ParamRole {
    Trainable = "trainable",
    Frozen = "frozen",
    Statistic = "statistic",
    Momentum = "momentum",
});
words!(stage, stage_from, Stage {
    Setup = "setup",
    Forward = "forward",
    Backward = "backward",
    Update = "update",
});
