//! Small models made by hand.

use vdnn_frontends::onnx::proto::attribute_proto::AttributeType;
use vdnn_frontends::onnx::proto::tensor_proto::DataType;
use vdnn_frontends::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use vdnn_frontends::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};
use vdnn_frontends::onnx::{ImportErrors, ImportOptions, Imported, import_model};

/// A node named after its first output.
pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let strings = |list: &[&str]| list.iter().map(|&s| s.to_owned()).collect();
    NodeProto {
        op_type: Some(op.into()),
        input: strings(inputs),
        output: strings(outputs),
        ..Default::default()
    }
}

/// The value of an attribute.
pub enum Attr<'a> {
    Int(i64),
    Ints(&'a [i64]),
    Float(f32),
    Text(&'a str),
    Tensor(TensorProto),
    Graph(GraphProto),
}

/// Adds an attribute to a node.
pub fn attr(mut node: NodeProto, name: &str, value: Attr<'_>) -> NodeProto {
    let mut a = AttributeProto { name: Some(name.into()), ..Default::default() };
    let ty = match value {
        Attr::Int(i) => {
            a.i = Some(i);
            AttributeType::Int
        }
        Attr::Ints(list) => {
            a.ints = list.to_vec();
            AttributeType::Ints
        }
        Attr::Float(f) => {
            a.f = Some(f);
            AttributeType::Float
        }
        Attr::Text(s) => {
            a.s = Some(s.as_bytes().to_vec().into());
            AttributeType::String
        }
        Attr::Tensor(t) => {
            a.t = Some(t);
            AttributeType::Tensor
        }
        Attr::Graph(g) => {
            a.g = Some(g);
            AttributeType::Graph
        }
    };
    a.r#type = Some(ty.into());
    node.attribute.push(a);
    node
}

/// An extent: a number or a name.
#[derive(Clone, Copy)]
pub enum Dim<'a> {
    N(i64),
    Name(&'a str),
    Open,
}

/// A graph input or output.
pub fn info(name: &str, ty: DataType, dims: &[Dim<'_>]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|d| Dimension {
            denotation: None,
            value: match *d {
                Dim::N(n) => Some(dimension::Value::DimValue(n)),
                Dim::Name(s) => Some(dimension::Value::DimParam(s.into())),
                Dim::Open => None,
            },
        })
        .collect();
    let tensor = type_proto::Tensor { elem_type: Some(ty.into()), shape: Some(TensorShapeProto { dim }) };
    let value = Some(type_proto::Value::TensorType(tensor));
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { denotation: None, value }),
        ..Default::default()
    }
}

pub fn floats(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float.into()),
        raw_data: Some(data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()),
        ..Default::default()
    }
}

pub fn ints(name: &str, dims: &[i64], data: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Int64.into()),
        int64_data: data.to_vec(),
        ..Default::default()
    }
}

/// A graph with one f32 input `x` of the given shape and one output.
pub fn graph(x: &[Dim<'_>], weights: Vec<TensorProto>, nodes: Vec<NodeProto>, output: &str) -> GraphProto {
    GraphProto {
        name: Some("test".into()),
        input: vec![info("x", DataType::Float, x)],
        output: vec![info(output, DataType::Float, &[])],
        initializer: weights,
        node: nodes,
        ..Default::default()
    }
}

pub fn model(opset: i64, graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(opset) }],
        graph: Some(graph),
        ..Default::default()
    }
}

pub fn import(model: &ModelProto, options: &ImportOptions) -> Result<Imported, ImportErrors> {
    import_model(model.clone(), None, options)
}

/// Imports a graph at the file's batch.
pub fn import_graph(opset: i64, graph: GraphProto) -> Result<Imported, ImportErrors> {
    import(&model(opset, graph), &ImportOptions::default())
}

/// The ops of the imported graph in program order, and the shape of its first output.
pub fn lowered(opset: i64, graph: GraphProto) -> (Vec<String>, Vec<u64>) {
    let imported = import_graph(opset, graph).unwrap_or_else(|e| panic!("{e}"));
    let g = &imported.graph;
    let ops = g.nodes().map(|(_, n)| n.op.to_string()).collect();
    (ops, g.ty(g.outputs[0].value).dims.to_vec())
}
