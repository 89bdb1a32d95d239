//! Puts a network together node by node, following the shapes.

use crate::onnx::proto::attribute_proto::AttributeType;
use crate::onnx::proto::tensor_proto::DataType;
use crate::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use crate::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};

/// Names of the model's input and output.
const INPUT: &str = "input";
const OUTPUT: &str = "logits";

/// ONNX versions written: IR 8 and opset 17 go together (ONNX 1.12).
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;

/// What a parameter starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fill {
    /// Every element the same.
    Constant(f32),
    /// He et al.: variance `2 / fan_in`.
    He {
        /// Inputs summed into one output.
        fan_in: u64,
    },
}

/// A parameter: f32, row-major.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    pub(super) name: String,
    pub(super) dims: Vec<u64>,
    pub(super) fill: Fill,
}

impl Weight {
    pub(super) fn elements(&self) -> u64 {
        self.dims.iter().product()
    }
    pub(super) fn bytes(&self) -> u64 {
        4 * self.elements()
    }
}

/// A feature map `[N,channels,height,width]`; after flattening, `[N,channels]` with 1x1 maps.
#[derive(Clone, Debug)]
pub(super) struct Map {
    name: String,
    pub(super) channels: u64,
    pub(super) height: u64,
    pub(super) width: u64,
}

/// A square sliding window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    size: u64,
    stride: u64,
    pad: u64,
    ceil: bool,
}

impl Window {
    /// A window of this size, stride 1, no padding.
    pub(super) fn new(size: u64) -> Self {
        Self { size, stride: 1, pad: 0, ceil: false }
    }
    pub(super) fn stride(self, stride: u64) -> Self {
        Self { stride, ..self }
    }
    pub(super) fn pad(self, pad: u64) -> Self {
        Self { pad, ..self }
    }
    /// Partial windows at the far edge count (pooling only).
    pub(super) fn ceil(self) -> Self {
        Self { ceil: true, ..self }
    }

    fn output(self, extent: u64) -> u64 {
        let span = extent + 2 * self.pad - self.size;
        if !self.ceil {
            return span / self.stride + 1;
        }
        let count = span.div_ceil(self.stride) + 1;
        // A window that would start in the far padding is dropped.
        if (count - 1) * self.stride >= extent + self.pad { count - 1 } else { count }
    }

    fn attributes(self) -> Vec<AttributeProto> {
        let ints = |n: usize, v: u64| vec![v as i64; n];
        let mut list = vec![
            attribute_ints("kernel_shape", ints(2, self.size)),
            attribute_ints("strides", ints(2, self.stride)),
            attribute_ints("pads", ints(4, self.pad)),
        ];
        if self.ceil {
            list.push(attribute_int("ceil_mode", 1));
        }
        list
    }
}

/// A network under construction or finished: its graph without weight data, and the weights.
#[derive(Debug, Default)]
pub(super) struct Net {
    nodes: Vec<NodeProto>,
    input: [u64; 3],
    classes: u64,
    pub(super) weights: Vec<Weight>,
}

impl Net {
    /// Starts with an image `[N,channels,size,size]`.
    pub(super) fn new(channels: u64, size: u64) -> (Self, Map) {
        let net = Self { input: [channels, size, size], ..Self::default() };
        (net, Map { name: INPUT.to_owned(), channels, height: size, width: size })
    }

    pub(super) fn conv(&mut self, name: &str, x: &Map, filters: u64, window: Window, bias: bool) -> Map {
        let fan_in = x.channels * window.size * window.size;
        let dims = vec![filters, x.channels, window.size, window.size];
        let mut inputs = vec![x.name.clone(), self.weight(name, "weight", dims, Fill::He { fan_in })];
        if bias {
            inputs.push(self.weight(name, "bias", vec![filters], Fill::Constant(0.0)));
        }
        self.node("Conv", name, inputs, window.attributes());
        slide(name, x, filters, window)
    }

    /// Batch normalisation that starts as `x -> scale * x`.
    pub(super) fn batch_norm(&mut self, name: &str, x: &Map, scale: f32) -> Map {
        let mut inputs = vec![x.name.clone()];
        for (part, value) in [("weight", scale), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)] {
            inputs.push(self.weight(name, part, vec![x.channels], Fill::Constant(value)));
        }
        let attributes = vec![attribute_float("epsilon", 1e-5), attribute_float("momentum", 0.9)];
        self.node("BatchNormalization", name, inputs, attributes);
        Map { name: name.to_owned(), ..x.clone() }
    }

    pub(super) fn relu(&mut self, name: &str, x: &Map) -> Map {
        self.node("Relu", name, vec![x.name.clone()], vec![]);
        Map { name: name.to_owned(), ..x.clone() }
    }

    pub(super) fn max_pool(&mut self, name: &str, x: &Map, window: Window) -> Map {
        self.node("MaxPool", name, vec![x.name.clone()], window.attributes());
        slide(name, x, x.channels, window)
    }

    pub(super) fn average_pool(&mut self, name: &str, x: &Map, window: Window) -> Map {
        self.node("AveragePool", name, vec![x.name.clone()], window.attributes());
        slide(name, x, x.channels, window)
    }

    pub(super) fn global_average_pool(&mut self, name: &str, x: &Map) -> Map {
        self.node("GlobalAveragePool", name, vec![x.name.clone()], vec![]);
        Map { name: name.to_owned(), channels: x.channels, height: 1, width: 1 }
    }

    pub(super) fn concat(&mut self, name: &str, parts: &[Map]) -> Map {
        let inputs = parts.iter().map(|p| p.name.clone()).collect();
        self.node("Concat", name, inputs, vec![attribute_int("axis", 1)]);
        Map {
            name: name.to_owned(),
            channels: parts.iter().map(|p| p.channels).sum(),
            height: parts[0].height,
            width: parts[0].width,
        }
    }

    pub(super) fn add(&mut self, name: &str, a: &Map, b: &Map) -> Map {
        self.node("Add", name, vec![a.name.clone(), b.name.clone()], vec![]);
        Map { name: name.to_owned(), ..a.clone() }
    }

    pub(super) fn flatten(&mut self, name: &str, x: &Map) -> Map {
        self.node("Flatten", name, vec![x.name.clone()], vec![attribute_int("axis", 1)]);
        let channels = x.channels * x.height * x.width;
        Map { name: name.to_owned(), channels, height: 1, width: 1 }
    }

    /// A fully connected layer on a flattened map.
    pub(super) fn linear(&mut self, name: &str, x: &Map, units: u64) -> Map {
        let fill = Fill::He { fan_in: x.channels };
        let weight = self.weight(name, "weight", vec![units, x.channels], fill);
        let bias = self.weight(name, "bias", vec![units], Fill::Constant(0.0));
        self.node("Gemm", name, vec![x.name.clone(), weight, bias], vec![attribute_int("transB", 1)]);
        Map { name: name.to_owned(), channels: units, height: 1, width: 1 }
    }

    /// The last fully connected layer, whose output is the model's.
    pub(super) fn classify(mut self, name: &str, x: &Map, classes: u64) -> Self {
        self.linear(name, x, classes);
        if let Some(node) = self.nodes.last_mut() {
            node.output = vec![OUTPUT.to_owned()];
        }
        self.classes = classes;
        self
    }

    /// The ONNX model; its initializers have no data yet, in the order of `weights`.
    pub(super) fn model(&self, name: &str, batch: Option<u64>) -> ModelProto {
        let [c, h, w] = self.input;
        let initializer = self
            .weights
            .iter()
            .map(|weight| TensorProto {
                name: Some(weight.name.clone()),
                dims: weight.dims.iter().map(|&d| d as i64).collect(),
                data_type: Some(DataType::Float as i32),
                ..TensorProto::default()
            })
            .collect();
        ModelProto {
            ir_version: Some(IR_VERSION),
            opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
            producer_name: Some("vdnnc".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(GraphProto {
                name: Some(name.to_owned()),
                node: self.nodes.clone(),
                initializer,
                input: vec![value_info(INPUT, batch, &[c, h, w])],
                output: vec![value_info(OUTPUT, batch, &[self.classes])],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        }
    }

    fn weight(&mut self, layer: &str, part: &str, dims: Vec<u64>, fill: Fill) -> String {
        let name = format!("{layer}.{part}");
        self.weights.push(Weight { name: name.clone(), dims, fill });
        name
    }

    /// A node; its output has its name.
    fn node(&mut self, op: &str, name: &str, input: Vec<String>, attribute: Vec<AttributeProto>) {
        self.nodes.push(NodeProto {
            op_type: Some(op.to_owned()),
            name: Some(name.to_owned()),
            input,
            output: vec![name.to_owned()],
            attribute,
            ..NodeProto::default()
        });
    }
}

/// Layers one after the other, numbered `prefix.0`, `prefix.1`, ... like torch's `Sequential`.
pub(super) struct Sequential {
    net: Net,
    prefix: &'static str,
    next: usize,
    x: Map,
}

impl Sequential {
    pub(super) fn new(prefix: &'static str, size: u64) -> Self {
        let (net, x) = Net::new(3, size);
        Self { net, prefix, next: 0, x }
    }

    fn name(&mut self) -> String {
        let name = format!("{}.{}", self.prefix, self.next);
        self.next += 1;
        name
    }

    /// A convolution with bias, then ReLU: two numbers.
    pub(super) fn conv_relu(mut self, filters: u64, window: Window) -> Self {
        let name = self.name();
        self.x = self.net.conv(&name, &self.x, filters, window, true);
        self.relu()
    }

    pub(super) fn max_pool(mut self, window: Window) -> Self {
        let name = self.name();
        self.x = self.net.max_pool(&name, &self.x, window);
        self
    }

    pub(super) fn linear_relu(mut self, units: u64) -> Self {
        let name = self.name();
        self.x = self.net.linear(&name, &self.x, units);
        self.relu()
    }

    fn relu(mut self) -> Self {
        let name = self.name();
        self.x = self.net.relu(&name, &self.x);
        self
    }

    /// Leaves out a number: torchvision has a Dropout there, which starts at ratio 0.
    pub(super) fn skip(mut self) -> Self {
        self.next += 1;
        self
    }

    /// Flattens and starts counting anew under another prefix.
    pub(super) fn flatten(mut self, prefix: &'static str) -> Self {
        self.x = self.net.flatten("flatten", &self.x);
        self.prefix = prefix;
        self.next = 0;
        self
    }

    pub(super) fn classify(mut self, classes: u64) -> Net {
        let name = self.name();
        self.net.classify(&name, &self.x, classes)
    }
}

fn slide(name: &str, x: &Map, channels: u64, window: Window) -> Map {
    let (height, width) = (window.output(x.height), window.output(x.width));
    Map { name: name.to_owned(), channels, height, width }
}

fn value_info(name: &str, batch: Option<u64>, dims: &[u64]) -> ValueInfoProto {
    let batch = match batch {
        Some(n) => dimension::Value::DimValue(n as i64),
        None => dimension::Value::DimParam("N".to_owned()),
    };
    let rest = dims.iter().map(|&d| dimension::Value::DimValue(d as i64));
    let dim =
        std::iter::once(batch).chain(rest).map(|v| Dimension { value: Some(v), denotation: None }).collect();
    let tensor =
        type_proto::Tensor { elem_type: Some(DataType::Float as i32), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto {
        name: Some(name.to_owned()),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None }),
        ..ValueInfoProto::default()
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_owned()), r#type: Some(kind as i32), ..AttributeProto::default() }
}

fn attribute_ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { ints, ..attribute(name, AttributeType::Ints) }
}

fn attribute_int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, AttributeType::Int) }
}

fn attribute_float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f: Some(f), ..attribute(name, AttributeType::Float) }
}
