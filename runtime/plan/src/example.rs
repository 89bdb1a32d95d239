//! A small sound plan for the tests of this crate.

use crate::parse::parse_plan;
use crate::plan::Plan;
use crate::sig::Sig;
use vdnn_ir::op::{BinaryKind, UnaryKind};
use vdnn_ir::{Op, TensorType};

/// `a = x + w; r = relu(a); n = -r; y = n * a; w' = w + y`, with `a` offloaded after its
/// definition and prefetched for the product; `n` takes the bytes of `a` meanwhile.
pub(crate) fn sound() -> Plan {
    let ty = TensorType::f32([64]);
    let apply = |op: Op, operands: &[Sig]| {
        let operands: Vec<_> = operands.iter().map(|&s| (s, &ty)).collect();
        Sig::apply(&op, &operands, 0)
    };
    let (x, w) = (Sig::input("x"), Sig::param("w"));
    let a = apply(Op::Binary(BinaryKind::Add), &[x, w]);
    let n = apply(Op::Unary(UnaryKind::Neg), &[apply(Op::Unary(UnaryKind::Relu), &[a])]);
    let y = apply(Op::Binary(BinaryKind::Mul), &[n, a]);
    let w1 = apply(Op::Binary(BinaryKind::Add), &[w, y]);
    let text = format!(
        r#"vplan 1
model "tiny"
mode train
batch 64
policy "all"
algo "memory"
device "cpu"
predicted step=0 compute=0 stall=0 lower_bound=0
arena device 2048 budget=2048
arena host 256
stream s0 compute
stream s1 d2h
stream s2 h2d
events 4
buffer b0 device 0 f32[64] "x"
buffer b1 device 256 f32[64] "w"
buffer b2 device 512 f32[64] "a"
buffer b3 host 0 f32[64] "a.host"
buffer b4 device 768 f32[64] "r"
buffer b5 device 512 f32[64] "n"
buffer b6 device 1024 f32[64] "a.back"
buffer b7 device 1280 f32[64] "y"
buffer b8 device 256 f32[64] "w.next"
buffer b9 device 1536 u8[300] "scratch"
input "x" b0
output "y" b7 expect={y}
param "w" b1 trainable initializer expect={w1}
c0 s0 launch n0 binary(add) forward (b0, b1) -> (b2) "a"
c1 s0 record e0
c2 s1 wait e0
c3 s1 copy b2 -> b3
c4 s1 record e1
c5 s0 launch n1 unary(relu) forward (b2) -> (b4) ws=b9 "r"
c6 s0 wait e1
c7 s0 free b2
c8 s0 launch n2 unary(neg) forward (b4) -> (b5) "n"
c9 s2 wait e1
c10 s2 copy b3 -> b6
c11 s2 record e2
c12 s0 wait e2
c13 s0 launch n3 binary(mul) forward (b5, b6) -> (b7) "y"
c14 s0 launch n4 binary(add) update (b1, b7) -> (b8) "w.next"
c15 s0 record e3
"#
    );
    parse_plan(&text).expect("the test plan parses")
}
