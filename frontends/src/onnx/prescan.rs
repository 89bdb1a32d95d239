//! What decoding would cost, before it is done.
//!
//! An empty message takes two bytes of a file and several hundred in memory, so a small file
//! can ask for a lot. The scan walks the encoded model as the decoder will, with a table of
//! the schema's repeated fields, and adds up what the decoded form takes; bytes fields cost
//! nothing, because they stay slices of the file. Anything malformed ends the scan early:
//! the decoder stops there too, and says why.

use super::proto::{
    AttributeProto, DeviceConfigurationProto, FunctionProto, GraphProto, IntIntListEntryProto, ModelProto,
    NodeDeviceConfigurationProto, NodeProto, OperatorSetIdProto, ShardedDimProto, ShardingSpecProto,
    SimpleShardedDimProto, SparseTensorProto, StringStringEntryProto, TensorAnnotation, TensorProto,
    TensorShapeProto, TrainingInfoProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use std::mem::size_of;
use vdnn_ir::Bytes;

/// A message type: its size in memory and those of its fields that take more.
struct Schema {
    size: usize,
    fields: &'static [(u32, Field)],
}

#[derive(Clone, Copy)]
enum Field {
    /// Held inside its parent.
    One(&'static Schema),
    /// An element of a list, or a message behind a pointer.
    Many(&'static Schema),
    /// Strings: a list's element, and a copy of the text.
    Text,
    /// A list of numbers of variable length, packed or not.
    Numbers,
}

use Field::{Many, Numbers, One, Text};

static MODEL: Schema = Schema {
    size: size_of::<ModelProto>(),
    fields: &[
        (7, One(&GRAPH)),
        (8, Many(&OPERATOR_SET)),
        (14, Many(&ENTRY)),
        (20, Many(&TRAINING)),
        (25, Many(&FUNCTION)),
        (26, Many(&DEVICE)),
    ],
};
static GRAPH: Schema = Schema {
    size: size_of::<GraphProto>(),
    fields: &[
        (1, Many(&NODE)),
        (5, Many(&TENSOR)),
        (11, Many(&VALUE_INFO)),
        (12, Many(&VALUE_INFO)),
        (13, Many(&VALUE_INFO)),
        (14, Many(&ANNOTATION)),
        (15, Many(&SPARSE)),
        (16, Many(&ENTRY)),
    ],
};
static NODE: Schema = Schema {
    size: size_of::<NodeProto>(),
    fields: &[
        (1, Text),
        (2, Text),
        (3, Text),
        (4, Text),
        (5, Many(&ATTRIBUTE)),
        (6, Text),
        (7, Text),
        (9, Many(&ENTRY)),
        (10, Many(&NODE_DEVICE)),
    ],
};
static ATTRIBUTE: Schema = Schema {
    size: size_of::<AttributeProto>(),
    fields: &[
        (5, One(&TENSOR)),
        (6, One(&GRAPH)),
        (7, Numbers),
        (8, Numbers),
        (9, Text),
        (10, Many(&TENSOR)),
        (11, Many(&GRAPH)),
        (14, One(&TYPE)),
        (15, Many(&TYPE)),
        (22, One(&SPARSE)),
        (23, Many(&SPARSE)),
    ],
};
static TENSOR: Schema = Schema {
    size: size_of::<TensorProto>(),
    fields: &[
        (1, Numbers),
        (4, Numbers),
        (5, Numbers),
        (6, Text),
        (7, Numbers),
        (10, Numbers),
        (11, Numbers),
        (13, Many(&ENTRY)),
        (16, Many(&ENTRY)),
    ],
};
static SPARSE: Schema = Schema {
    size: size_of::<SparseTensorProto>(),
    fields: &[(1, One(&TENSOR)), (2, One(&TENSOR)), (3, Numbers)],
};
static VALUE_INFO: Schema =
    Schema { size: size_of::<ValueInfoProto>(), fields: &[(2, One(&TYPE)), (4, Many(&ENTRY))] };
static TYPE: Schema = Schema {
    size: size_of::<TypeProto>(),
    fields: &[(1, One(&SHAPED)), (4, One(&LIST)), (5, One(&MAP)), (8, One(&SHAPED)), (9, One(&LIST))],
};
static SHAPED: Schema = Schema { size: size_of::<type_proto::Tensor>(), fields: &[(2, One(&SHAPE))] };
static LIST: Schema = Schema { size: size_of::<type_proto::Sequence>(), fields: &[(1, Many(&TYPE))] };
static MAP: Schema = Schema { size: size_of::<type_proto::Map>(), fields: &[(2, Many(&TYPE))] };
static SHAPE: Schema = Schema { size: size_of::<TensorShapeProto>(), fields: &[(1, Many(&DIMENSION))] };
static DIMENSION: Schema =
    Schema { size: size_of::<tensor_shape_proto::Dimension>(), fields: &[(2, Text), (3, Text)] };
static FUNCTION: Schema = Schema {
    size: size_of::<FunctionProto>(),
    fields: &[
        (4, Text),
        (5, Text),
        (6, Text),
        (7, Many(&NODE)),
        (9, Many(&OPERATOR_SET)),
        (11, Many(&ATTRIBUTE)),
        (12, Many(&VALUE_INFO)),
        (14, Many(&ENTRY)),
    ],
};
static TRAINING: Schema = Schema {
    size: size_of::<TrainingInfoProto>(),
    fields: &[(1, One(&GRAPH)), (2, One(&GRAPH)), (3, Many(&ENTRY)), (4, Many(&ENTRY))],
};
static ANNOTATION: Schema = Schema { size: size_of::<TensorAnnotation>(), fields: &[(2, Many(&ENTRY))] };
static OPERATOR_SET: Schema = Schema { size: size_of::<OperatorSetIdProto>(), fields: &[(1, Text)] };
static ENTRY: Schema = Schema { size: size_of::<StringStringEntryProto>(), fields: &[(1, Text), (2, Text)] };
static DEVICE: Schema = Schema { size: size_of::<DeviceConfigurationProto>(), fields: &[(3, Text)] };
static NODE_DEVICE: Schema =
    Schema { size: size_of::<NodeDeviceConfigurationProto>(), fields: &[(2, Many(&SHARDING))] };
static SHARDING: Schema = Schema {
    size: size_of::<ShardingSpecProto>(),
    fields: &[(2, Numbers), (3, Many(&INT_LIST)), (4, Many(&SHARDED_DIM))],
};
static INT_LIST: Schema = Schema { size: size_of::<IntIntListEntryProto>(), fields: &[(2, Numbers)] };
static SHARDED_DIM: Schema = Schema { size: size_of::<ShardedDimProto>(), fields: &[(2, Many(&SIMPLE_DIM))] };
static SIMPLE_DIM: Schema = Schema { size: size_of::<SimpleShardedDimProto>(), fields: &[(2, Text)] };

/// Deepest nesting the decoder follows.
const MAX_DEPTH: u32 = 100;

/// What a model of this many bytes may take: plenty for any real one, whose nodes take some
/// hundred bytes in the file and some thousand in memory.
pub(super) fn limit(encoded: usize) -> Bytes {
    Bytes((encoded as u64).saturating_mul(64).saturating_add(256 << 20).min(2 << 30))
}

/// True if the decoded model takes no more than [`limit`] allows, as far as it can be decoded.
pub(super) fn is_affordable(model: &[u8]) -> bool {
    let mut left = limit(model.len()).0;
    scan(&MODEL, model, MAX_DEPTH, &mut left).is_some()
}

/// Spends what the lists of one message cost; `None` if too little is left.
fn scan(schema: &Schema, mut bytes: &[u8], depth: u32, left: &mut u64) -> Option<()> {
    // A list's first element makes room for four, later ones double the room when it is full.
    let mut begun = 0u64;
    while !bytes.is_empty() {
        let Some((key, body)) = next(&mut bytes) else { return Some(()) };
        let Some(place) = schema.fields.iter().position(|(n, _)| *n == key) else { continue };
        let room = if begun >> place & 1 == 0 { 4 } else { 2 };
        begun |= 1 << place;
        let (cost, inner) = match (schema.fields[place].1, body) {
            (One(inner), Some(body)) => (0, Some((inner, body))),
            (Many(inner), Some(body)) => (room * inner.size, Some((inner, body))),
            (Text, Some(body)) => (room * size_of::<String>() + body.len(), None),
            (Numbers, Some(body)) => (16 * body.len(), None),
            (Numbers, None) => (room * 8, None),
            (_, None) => (0, None),
        };
        *left = left.checked_sub(cost as u64)?;
        if let Some((inner, body)) = inner
            && depth > 0
        {
            scan(inner, body, depth - 1, left)?;
        }
    }
    Some(())
}

/// The number of the next field, and its content if that has a length; `None` at anything
/// malformed.
fn next<'a>(bytes: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let tag = varint(bytes)?;
    let key = u32::try_from(tag >> 3).ok()?;
    let length = match tag & 7 {
        0 => {
            varint(bytes)?;
            return Some((key, None));
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        // A group's fields follow as if they were this message's own; no field of the schema is one.
        3 | 4 => 0,
        _ => return None,
    };
    let (body, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some((key, (tag & 7 == 2).then_some(body)))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for i in 0..10 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    /// A field with a length.
    fn field(key: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![key << 3 | 2];
        prost::encoding::encode_varint(body.len() as u64, &mut out);
        out.extend_from_slice(body);
        out
    }

    #[test]
    fn ten_million_empty_messages_are_too_much() {
        for element in [field(1, &[]), field(1, &field(5, &[])), field(13, &field(2, &[])), field(5, &[])] {
            let graph = field(7, &element.repeat(10_000_000));
            assert!(!is_affordable(&graph), "{element:?}");
            let graph = field(7, &element.repeat(1_000));
            assert!(is_affordable(&graph), "{element:?}");
        }
        // Graphs in graphs, as deep as the decoder goes.
        let mut graph = field(1, &[]).repeat(200_000);
        for _ in 0..20 {
            graph = field(1, &field(5, &field(6, &graph)));
        }
        assert!(is_affordable(&field(7, &graph)));
        assert!(!is_affordable(&field(7, &graph.repeat(50))));
    }

    #[test]
    fn weights_and_ordinary_nodes_cost_little() {
        let node = NodeProto {
            input: vec!["a".into(), "b".into()],
            output: vec!["c".into()],
            name: Some("a node".into()),
            op_type: Some("Add".into()),
            ..NodeProto::default()
        };
        let weights = TensorProto { raw_data: Some(vec![9; 64 << 20].into()), ..TensorProto::default() };
        let graph =
            GraphProto { node: vec![node; 100_000], initializer: vec![weights], ..GraphProto::default() };
        assert!(is_affordable(&ModelProto { graph: Some(graph), ..ModelProto::default() }.encode_to_vec()));
    }

    #[test]
    fn malformed_bytes_end_the_scan() {
        for bytes in
            [&[0xff; 40][..], &[7 << 3 | 2, 5, 1], &[7 << 3 | 6], &[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 1]]
        {
            assert!(is_affordable(bytes));
        }
    }
}
