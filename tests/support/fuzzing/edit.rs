//! Edits of well-formed input, chosen by the fuzzer's bytes: most random bytes are refused
//! at once, a valid model with one wrong number gets much further.

use vdnn_frontends::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto,
    tensor_shape_proto, type_proto,
};

/// Numbers at which arithmetic and limits break.
const NUMBERS: [i64; 28] = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    64,
    127,
    128,
    255,
    256,
    512,
    65_535,
    65_536,
    -1,
    -2,
    -3,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 32,
    1 << 40,
    (1 << 46) + 4,
    i64::MAX,
    i64::MIN,
    i64::MAX / 4,
];

/// Operators an edited node may become.
const OPERATORS: [&str; 56] = [
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "Div",
    "Dropout",
    "Elu",
    "Equal",
    "Expand",
    "Flatten",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "If",
    "LRN",
    "LeakyRelu",
    "Less",
    "LogSoftmax",
    "MatMul",
    "MaxPool",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "SequenceAt",
    "Shape",
    "Sigmoid",
    "Slice",
    "Softmax",
    "SoftmaxCrossEntropyLoss",
    "Split",
    "SplitToSequence",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// The fuzzer's bytes as a stream of choices; zeros when it has ended.
#[derive(Clone, Debug)]
pub struct Choices<'a>(&'a [u8]);

impl<'a> Choices<'a> {
    /// Choices from the start of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }
    /// True if nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }
    /// The next eight bytes.
    pub fn word(&mut self) -> u64 {
        (0..8).fold(0, |n, _| n << 8 | u64::from(self.byte()))
    }
    /// An index below `n`, 0 if `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        let wide = if n > 256 { usize::from(self.byte()) << 8 } else { 0 } | usize::from(self.byte());
        wide.checked_rem(n).unwrap_or(0)
    }
    /// One of the items, `None` if there are none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> Option<T> {
        items.get(self.below(items.len())).copied()
    }
    /// A small or an extreme number.
    pub fn number(&mut self) -> i64 {
        let choice = usize::from(self.byte());
        NUMBERS.get(choice).copied().unwrap_or((choice as i64 - 128) / 4)
    }
}

// ---- text ------------------------------------------------------------------------------

/// The tokens of a line: runs of word characters, and everything else one by one.
fn tokens(line: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
    let mut out = Vec::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let n =
            if is_word(first) { rest.find(|c| !is_word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
        out.push(&rest[..n]);
        rest = &rest[n..];
    }
    out
}

/// A text with up to eight lines or tokens changed.
pub fn edit_text(seed: &str, choices: &mut Choices<'_>) -> String {
    let mut lines: Vec<String> = seed.lines().map(str::to_owned).collect();
    for _ in 0..8 {
        if choices.is_empty() || lines.is_empty() {
            break;
        }
        let kind = choices.byte() % 8;
        let at = choices.below(lines.len());
        let other = choices.below(lines.len());
        match kind {
            0 => drop(lines.remove(at)),
            1 => {
                let line = lines[at].clone();
                lines.insert(other, line);
            }
            2 => lines.swap(at, other),
            kind => {
                let (line, donor) = (lines[at].clone(), lines[other].clone());
                let (mut parts, donor) = (tokens(&line), tokens(&donor));
                let number;
                let numeric = |t: &&str| t.trim_start_matches(char::is_alphabetic).parse::<u64>().is_ok();
                let candidates: Vec<usize> = match kind {
                    // Mostly numbers: that is where sizes, addresses and ids are.
                    3..=5 => (0..parts.len()).filter(|&i| numeric(&parts[i])).collect(),
                    _ => (0..parts.len()).collect(),
                };
                let Some(token) = choices.pick(&candidates) else { continue };
                match kind {
                    3 | 4 => {
                        let prefix = parts[token].trim_end_matches(|c: char| c.is_ascii_digit());
                        number = format!("{prefix}{}", choices.number());
                        parts[token] = &number;
                    }
                    5 | 6 => parts[token] = choices.pick(&donor).unwrap_or_default(),
                    _ => drop(parts.remove(token)),
                }
                lines[at] = parts.concat();
            }
        }
    }
    lines.join("\n") + "\n"
}

/// Bytes with up to eight of them changed, dropped or repeated.
pub fn edit_bytes(seed: &[u8], choices: &mut Choices<'_>) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..8 {
        if choices.is_empty() || bytes.is_empty() {
            break;
        }
        let at = choices.word() as usize % bytes.len();
        match choices.byte() % 6 {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, choices.byte()),
            2 => bytes[at] ^= 1 << (choices.byte() % 8),
            3 => bytes.truncate(at),
            _ => bytes[at] = choices.byte(),
        }
    }
    bytes
}

// ---- ONNX ------------------------------------------------------------------------------

/// A model with up to eight fields changed.
pub fn edit_model(model: &mut ModelProto, choices: &mut Choices<'_>) {
    for _ in 0..8 {
        if choices.is_empty() {
            break;
        }
        if choices.byte().is_multiple_of(32) {
            let opset = choices.number();
            model.opset_import.iter_mut().for_each(|o| o.version = Some(opset));
        }
        if let Some(graph) = &mut model.graph {
            edit_graph(graph, choices);
        }
    }
}

fn edit_graph(graph: &mut GraphProto, choices: &mut Choices<'_>) {
    let sparse = graph.sparse_initializer.iter().filter_map(|s| s.values.as_ref());
    let names: Vec<String> = (graph.initializer.iter().chain(sparse).map(|t| t.name().to_owned()))
        .chain(graph.input.iter().map(|i| i.name().to_owned()))
        .chain(graph.node.iter().flat_map(|n| n.output.iter().cloned()))
        .chain([String::new()])
        .collect();
    let name = names[choices.below(names.len())].clone();
    match choices.byte() % 8 {
        0 => {
            let dense = graph.initializer.len();
            let i = choices.below(dense + graph.sparse_initializer.len());
            if let Some(t) = graph.initializer.get_mut(i) {
                edit_tensor(t, choices);
            } else if let Some(s) = graph.sparse_initializer.get_mut(i - dense) {
                edit_sparse(s, choices);
            }
        }
        1 => {
            let i = choices.below(graph.input.len() + graph.output.len());
            if let Some(info) = graph.input.iter_mut().chain(&mut graph.output).nth(i) {
                edit_info(info, choices);
            }
        }
        2 => {
            let i = choices.below(graph.node.len());
            if i < graph.node.len() {
                let node = graph.node.remove(i);
                if choices.byte().is_multiple_of(2) {
                    graph.node.push(node.clone());
                    graph.node.push(node);
                }
            }
        }
        3 => {
            let i = choices.below(graph.output.len());
            if let Some(output) = graph.output.get_mut(i) {
                output.name = Some(name);
            }
        }
        _ => {
            let i = choices.below(graph.node.len());
            if let Some(node) = graph.node.get_mut(i) {
                edit_node(node, name, choices);
            }
        }
    }
}

fn edit_sparse(s: &mut SparseTensorProto, choices: &mut Choices<'_>) {
    match choices.byte() % 4 {
        0 => s.values.iter_mut().for_each(|t| edit_tensor(t, choices)),
        1 => s.indices.iter_mut().for_each(|t| edit_tensor(t, choices)),
        2 => {
            let data = s.indices.iter_mut().flat_map(|t| &mut t.int64_data);
            let numbers: Vec<&mut i64> = data.collect();
            let i = choices.below(numbers.len());
            numbers.into_iter().skip(i).take(1).for_each(|x| *x = choices.number());
        }
        _ => {
            let i = choices.below(s.dims.len());
            match s.dims.get_mut(i) {
                Some(d) => *d = choices.number(),
                None => s.dims.push(choices.number()),
            }
        }
    }
}

fn edit_node(node: &mut NodeProto, name: String, choices: &mut Choices<'_>) {
    match choices.byte() % 8 {
        0 => node.op_type = choices.pick(&OPERATORS).map(str::to_owned),
        1 => {
            let i = choices.below(node.input.len() + 1);
            match node.input.get_mut(i) {
                Some(input) => *input = name,
                None => node.input.push(name),
            }
        }
        2 => drop(node.input.pop()),
        3 => node.output.push(format!("{name}'")),
        4 => {
            let i = choices.below(node.attribute.len());
            if i < node.attribute.len() {
                node.attribute.swap_remove(i);
            }
        }
        _ => {
            let i = choices.below(node.attribute.len());
            if let Some(attribute) = node.attribute.get_mut(i) {
                edit_attribute(attribute, choices);
            }
        }
    }
}

fn edit_attribute(a: &mut AttributeProto, choices: &mut Choices<'_>) {
    match choices.byte() % 8 {
        0 => a.r#type = Some(choices.number() as i32),
        1 => a.ints.push(choices.number()),
        2 => drop(a.ints.pop()),
        3 => a.f = Some([f32::NAN, f32::INFINITY, -1.0, 0.0, 1e-45][choices.below(5)]),
        4 => a.s = Some(vec![choices.byte(); 3].into()),
        5 if a.g.is_some() => a.g.iter_mut().for_each(|g| edit_graph(g, choices)),
        5 => a.t.iter_mut().for_each(|t| edit_tensor(t, choices)),
        _ => {
            let i = choices.below(a.ints.len());
            match a.ints.get_mut(i) {
                Some(x) => *x = choices.number(),
                None => a.i = Some(choices.number()),
            }
        }
    }
}

fn edit_tensor(t: &mut TensorProto, choices: &mut Choices<'_>) {
    match choices.byte() % 6 {
        0 => t.data_type = Some(choices.number() as i32),
        1 => t.dims.push(choices.number()),
        2 => drop(t.dims.pop()),
        3 => {
            let n = choices.below(600);
            t.raw_data = Some(vec![choices.byte(); n].into());
        }
        4 => t.int64_data.iter_mut().for_each(|x| *x = choices.number()),
        _ => {
            let i = choices.below(t.dims.len());
            if let Some(d) = t.dims.get_mut(i) {
                *d = choices.number();
            }
        }
    }
}

fn edit_info(info: &mut ValueInfoProto, choices: &mut Choices<'_>) {
    let Some(type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
    else {
        return;
    };
    if choices.byte().is_multiple_of(8) {
        tensor.elem_type = Some(choices.number() as i32);
    }
    let Some(shape) = &mut tensor.shape else { return };
    let i = choices.below(shape.dim.len() + 1);
    let n = choices.number();
    match shape.dim.get_mut(i) {
        Some(dim) => dim.value = Some(tensor_shape_proto::dimension::Value::DimValue(n)),
        None => drop(shape.dim.pop()),
    }
}
