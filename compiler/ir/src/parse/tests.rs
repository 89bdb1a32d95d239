//! Round trips, error places, and texts that are not graphs.

use super::*;

const TEXT: &str = r#"graph "a \"b\"\n" phase=selected mode=train values=60 nodes=30 {
  input %0 "x" : f32[2,3,8,8]
  param %7 "w.é" trainable : f32[4,3,3,3]
  param %1 "running" statistic : f32[4]
  const %2 : f32[1] = 0x0000803f
  const %3 "shape" : i64[2] = 0x01000000000000000200000000000000
  n4: %10 "hint" : f32[2,4,8,8] = conv(kernel:[3,3],strides:[1,1],before:[1,1],after:[1,1],dilations:[1,1],groups:1) (%0, %7) forward "c" algo=fft workspace=123
  n2: %11 : f32[2,4,4,4], %12 : u8[2,4,4,4] = max_pool(kernel:[2,2],strides:[2,2],before:[0,0],after:[0,0],dilations:[1,1],ceil_mode:false) (%10) forward "p"
  n9: %20 : f32[2,4,4,4] host = offload_start (%11) backward "o" origin=n2
  n10: %21 : f32[1] = binary(add) (%2, %2) update "" inplace=0:0
  n11: %22 : f32[] = fill(value:-inf,dims:[]) () setup ""
  n12: %23 : i64[2] = binary(max) (%3, %3) setup "k"
  output "y" = %11
  update %7 = %10
}
"#;

#[test]
fn text_round_trips() {
    let graph = parse_graph(TEXT).unwrap();
    assert_eq!(graph.to_string(), TEXT);
    assert_eq!(graph.value_bound(), 60);
    assert_eq!(graph.node_bound(), 30);
    assert_eq!(graph.params(), [ValueId(7), ValueId(1)]);
    assert_eq!(graph.value(ValueId(2)).users(), [NodeId(10)]);
    assert_eq!(graph.value(ValueId(20)).space, Space::Host);
    assert_eq!(graph.node(NodeId(9)).origin, Some(NodeId(2)));
}

#[test]
fn comments_and_blanks_do_not_matter() {
    let text = TEXT.replace("  ", " ; c\n\t").replace('}', "}; end\n;").replace(" (%", "(%");
    // Only blanks between tokens were touched, so the printed form is the same.
    assert_eq!(parse_graph(&text).unwrap().to_string(), TEXT);
}

fn error(from: &str, to: &str) -> String {
    assert!(TEXT.contains(from), "{from}");
    parse_graph(&TEXT.replacen(from, to, 1)).unwrap_err().to_string()
}

#[test]
fn errors_say_where_and_what() {
    assert_eq!(
        error("input", "inptu"),
        "line 2, column 3: expected input, param, const, a node such as `n0:`, output, update or `}`, found `inptu`"
    );
    assert_eq!(
        error("phase=selected", "phase=chosen"),
        "line 1, column 25: `chosen` is not a phase; phases are imported, simplified, joint, selected, placed, scheduled"
    );
    assert!(
        error("\"x\" : f32", "\"x\" : f31").starts_with("line 2, column 18: `f31` is not an element type")
    );
    assert!(error("(%0, %7)", "(%0, %8)").ends_with("nothing defines %8"));
    assert!(error("(%0, %7)", "(%0, %2)").contains("n4: conv: expected w of rank 4"));
    assert!(error("f32[2,4,8,8]", "f32[2,4,8,9]").contains("expected outputs of type f32[2,4,8,8]"));
    assert!(error("0x0000803f", "0x0000803").contains("hexadecimal"));
    assert!(error("0x0000803f", "0x0000803f00").contains("expected 4 bytes for f32[1], found 5"));
    assert!(error("%12", "%11").contains("%11 is defined twice"));
    assert!(error("n2", "n4").contains("n4 is defined twice"));
    assert!(error("%12", "%4000000000").contains("expected an id below"));
    assert!(error("values=60", "values=99999999999").contains("expected a bound of at most"));
    assert!(error("groups:1)", "groups:1").contains("a closing `)`"));
    assert!(error("conv(", "conf(").contains("not an op"));
    assert!(error("%0 \"x\" :", "%0 \"x :").contains("expected"));
    assert!(error("\"p\"\n", "\"p\n").contains("before the line ends"));
    assert!(error("f32[2,3,8,8]", "f32[2,99999999999999999,8,8]").contains("at most"));
    assert_eq!(
        parse_graph(&format!("{TEXT}x")).unwrap_err().message,
        "expected the end of the text, found `x`"
    );
    assert_eq!(
        parse_graph("").unwrap_err().to_string(),
        "line 1, column 1: expected `graph`, found the end of the text"
    );
}

#[test]
fn no_prefix_and_no_damaged_byte_panics() {
    for end in 0..TEXT.len() {
        if TEXT.is_char_boundary(end) {
            assert!(parse_graph(&TEXT[..end]).is_err() || end + 1 >= TEXT.len());
        }
    }
    for at in 0..TEXT.len() {
        for byte in [b'(', b')', b'"', b'\\', b'%', b'9', b' ', b'\n', b'{', b';', 0xc3, 0] {
            let mut bytes = TEXT.as_bytes().to_vec();
            bytes[at] = byte;
            if let Ok(text) = std::str::from_utf8(&bytes) {
                let _ = parse_graph(text);
            }
        }
    }
}

/// Splitmix64, so the random graphs are the same everywhere.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

fn random_graph(seed: u64) -> Graph {
    use crate::graph::NodeSpec;
    use crate::op::{BinaryKind, UnaryKind};
    use crate::types::{DType, Real};
    let mut rng = Rng(seed);
    let names = ["a", "", "q\"\\\n\u{7f}\u{85}é", "layer.0;x", "}"];
    let mut g = Graph::new(names[rng.below(5)]);
    let ty = || TensorType::f32([2, 3]);
    let mut values = vec![g.add_input("x", ty())];
    for i in 0..30 {
        let pick = |rng: &mut Rng, values: &[ValueId]| values[rng.below(values.len())];
        let a = pick(&mut rng, &values);
        let name = names[rng.below(5)];
        let spec =
            NodeSpec { name: name.into(), stage: Stage::ALL[rng.below(4)], origin: None, n_outputs: 1 };
        let v = match rng.below(8) {
            0 => g.add_param(format!("p{i}"), ty(), ParamRole::ALL[rng.below(4)]),
            1 => g.add_const(TensorType::new(DType::U8, [3]), vec![i as u8, 0, 255]),
            2 => {
                let alpha = Real(f32::from_bits(rng.below(1 << 31) as u32 & 0xff7f_ffff));
                g.add1(Op::Unary(UnaryKind::LeakyRelu { alpha }), &[a], spec).unwrap()
            }
            3 => {
                let op = Op::Split { axis: 0, sizes: [1, 1].as_slice().into() };
                let n = g.add(op, &[a], spec.outputs(2)).unwrap();
                let outs = g.node(n).outputs.clone();
                let op = Op::Concat { axis: 0 };
                g.add1(op, &[outs[1], outs[0]], NodeSpec::backward("", n)).unwrap()
            }
            _ => {
                let b = pick(&mut rng, &values);
                let at = g.add(Op::Binary(BinaryKind::Add), &[a, b], spec).unwrap();
                *g.annotate(at).workspace = Bytes(rng.below(2) as u64 * 77);
                if rng.below(2) == 0 {
                    g.annotate(at).inplace.push((0, 1));
                }
                g.node(at).outputs[0]
            }
        };
        if *g.ty(v) == ty() {
            g.set_name(
                v,
                if matches!(g.value(v).def, Def::Node { .. }) { name.into() } else { format!("v{i}") },
            );
            values.push(v);
        }
    }
    for _ in 0..2 {
        let value = values[rng.below(values.len())];
        g.outputs.push(Output { name: format!("o{}", value.0), value });
    }
    if let Some(&param) = g.params().first() {
        g.updates.push(Update { param, value: *values.last().unwrap() });
    }
    for (old, new) in [(3, 1), (5, 2)] {
        if values.len() > old {
            g.replace_all_uses(values[old], values[new]);
        }
    }
    g.remove_dead_nodes();
    g.remove_dead_params();
    g.phase = Phase::ALL[rng.below(6)];
    g
}

#[test]
fn random_graphs_round_trip_in_every_field() {
    for seed in 0..300 {
        let g = random_graph(seed);
        let text = g.to_string();
        let h = parse_graph(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{text}"));
        assert_eq!(h.to_string(), text);
        assert_eq!((&h.name, h.phase, h.mode), (&g.name, g.phase, g.mode));
        assert_eq!((&h.outputs, &h.updates), (&g.outputs, &g.updates));
        assert_eq!((h.inputs(), h.params(), h.order()), (g.inputs(), g.params(), g.order()));
        assert_eq!((h.value_bound(), h.node_bound()), (g.value_bound(), g.node_bound()));
        let mut live: Vec<ValueId> = g.inputs().iter().chain(g.params()).copied().collect();
        for (id, n) in g.nodes() {
            let m = h.node(id);
            assert_eq!((&m.op, &m.inputs, &m.outputs, &m.name), (&n.op, &n.inputs, &n.outputs, &n.name));
            assert_eq!((m.stage, m.origin, &m.algo, m.workspace), (n.stage, n.origin, &n.algo, n.workspace));
            assert_eq!(m.inplace, n.inplace);
            assert_eq!(h.dag_inputs(id), g.dag_inputs(id));
            live.extend(n.inputs.iter().chain(&n.outputs));
        }
        for v in live {
            let (a, b) = (g.value(v), h.value(v));
            assert_eq!((&a.ty, a.space, &a.def, &a.name), (&b.ty, b.space, &b.def, &b.name));
            assert_eq!(a.users(), b.users());
        }
    }
}
