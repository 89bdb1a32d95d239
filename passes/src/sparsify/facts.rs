//! What is known of parameters when a plan is made: where their zeros are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use vdnn_ir::graph::Def;
use vdnn_ir::sparse::blocks::{BLOCK, BlockShape};
use vdnn_ir::sparse::two_four;
use vdnn_ir::{DType, Graph, ValueId};

/// Elements up to which the values of a vector are kept.
const VECTOR: u64 = 1 << 20;

/// The zeros of one parameter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ParamFacts {
    /// Elements that are not zero.
    pub nonzeros: u64,
    /// All elements.
    pub elements: u64,
    /// Blocks ([`vdnn_ir::sparse::blocks`]) of a parameter of rank 2 or more that hold something
    /// other than zeros.
    pub blocks: u64,
    /// Of a parameter `[M, C, ..]`: at most two of every four `c` at a tap hold something other than
    /// zero ([`vdnn_ir::sparse::two_four`]); and of one `[M, C]`, at most two of every four `m`.
    pub two_four: [bool; 2],
    /// The values of a parameter of rank 0 or 1.
    values: Option<Vec<f32>>,
    /// Of a parameter of shape `[M, C, ..]`: which `[m, c]` hold something other than zeros, row
    /// by row; of rank 2 with more than `VECTOR` elements only `rows` and `columns` are kept.
    alive: Option<Vec<bool>>,
    /// Which `[m]` hold something other than zeros.
    rows: Vec<bool>,
    /// Which `[_, c]` hold something other than zeros.
    columns: Vec<bool>,
}

impl ParamFacts {
    /// The facts of a parameter of shape `dims`, from its elements.
    pub fn of(dims: &[u64], data: &[f32]) -> Self {
        let nonzeros = data.iter().filter(|v| **v != 0.0).count() as u64;
        let elements = data.len() as u64;
        let &[m, c, ref rest @ ..] = dims else {
            let values = (data.len() as u64 <= VECTOR).then(|| data.to_vec());
            return Self { nonzeros, elements, values, ..Self::default() };
        };
        let slice = rest.iter().product::<u64>().max(1) as usize;
        let (m, c) = (m as usize, c as usize);
        let (mut rows, mut columns) = (vec![false; m], vec![false; c]);
        let mut alive = (!rest.is_empty() || (m * c) as u64 <= VECTOR).then(|| vec![false; m * c]);
        for (i, taps) in data.chunks_exact(slice).enumerate() {
            if taps.iter().any(|v| *v != 0.0) {
                rows[i / c] = true;
                columns[i % c] = true;
                if let Some(alive) = &mut alive {
                    alive[i] = true;
                }
            }
        }
        let shape = BlockShape::of(dims);
        let blocks = shape.map_or(0, |shape| shape.count(data));
        // Weights without such zeros are told by their first row. A matrix is two of four the other
        // way around if it is so as a filter of as many taps as it has columns.
        let turned = shape.filter(|_| rest.is_empty());
        let turned = turned.map(|s| BlockShape { filters: 1, channels: s.filters, taps: s.channels });
        let two_four = [shape, turned].map(|s| s.is_some_and(|s| two_four::holds(s, data)));
        Self { nonzeros, elements, blocks, two_four, values: None, alive, rows, columns }
    }

    /// Of each `[m, c]` whether it holds something other than zeros, row by row; `None` if that is
    /// not known.
    pub fn alive(&self) -> Option<&[bool]> {
        self.alive.as_deref()
    }

    /// The values of a vector.
    pub fn values(&self) -> Option<&[f32]> {
        self.values.as_deref()
    }

    /// True unless `[m, c]` is known to hold zeros only.
    pub fn is_alive(&self, m: usize, c: usize) -> bool {
        match &self.alive {
            Some(alive) => alive.get(m * self.columns.len() + c).copied().unwrap_or(true),
            None => self.row_alive(m) && self.column_alive(c),
        }
    }

    /// True unless all of `[m]` is known to be zero.
    pub fn row_alive(&self, m: usize) -> bool {
        self.rows.get(m).copied().unwrap_or(true)
    }

    /// True unless all of `[_, c]` is known to be zero.
    pub fn column_alive(&self, c: usize) -> bool {
        self.columns.get(c).copied().unwrap_or(true)
    }
}

/// The zeros of a model's parameters, by name. Who reads the weights makes it; passes do not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    params: BTreeMap<String, ParamFacts>,
}

impl Facts {
    /// Facts of these parameters.
    pub fn new(params: impl IntoIterator<Item = (String, ParamFacts)>) -> Self {
        Self { params: params.into_iter().collect() }
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.params.is_empty()
    }

    /// The share of weights other than zero, of all parameters of two dimensions or more; `None` if
    /// there are none.
    pub fn density(&self) -> Option<f64> {
        let weights = self.params.values().filter(|p| !p.rows.is_empty());
        let [nonzeros, all] =
            weights.fold([0.0; 2], |[n, all], p| [n + p.nonzeros as f64, all + p.elements as f64]);
        (all > 0.0).then(|| nonzeros / all)
    }

    /// True if a parameter of two dimensions or more has at most this share of weights other than
    /// zero.
    pub fn are_sparse(&self, share: f64) -> bool {
        let sparse = |p: &ParamFacts| p.nonzeros as f64 <= share * p.elements as f64;
        self.params.values().any(|p| !p.rows.is_empty() && sparse(p))
    }

    /// True if a parameter of two dimensions or more has at most this share of the blocks that its
    /// weights would be without zeros in between.
    pub fn are_in_blocks(&self, share: f64) -> bool {
        let size = (BLOCK * BLOCK) as f64;
        let sparse = |p: &ParamFacts| p.blocks as f64 * size <= share * p.elements as f64;
        self.params.values().any(|p| !p.rows.is_empty() && sparse(p))
    }

    /// True if of every four weights of a parameter of two dimensions or more at most two are other
    /// than zero, and it does not hold zeros only.
    pub fn are_two_of_four(&self) -> bool {
        self.params.values().any(|p| p.nonzeros > 0 && p.two_four.contains(&true))
    }

    /// What is known of a value that is a parameter or a literal.
    pub(super) fn get(&self, graph: &Graph, v: ValueId) -> Option<Cow<'_, ParamFacts>> {
        let value = graph.value(v);
        match &value.def {
            Def::Param(_) => self.params.get(&value.name).map(Cow::Borrowed),
            Def::Const(bytes) if value.ty.dtype == DType::F32 => {
                let data: Vec<f32> =
                    bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect();
                Some(Cow::Owned(ParamFacts::of(&value.ty.dims, &data)))
            }
            _ => None,
        }
    }

    /// The values of a vector that is a parameter or a literal.
    pub(super) fn vector(&self, graph: &Graph, v: ValueId) -> Option<Vec<f32>> {
        self.get(graph, v)?.values.clone()
    }
}
