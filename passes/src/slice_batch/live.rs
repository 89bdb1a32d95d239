//! What is in memory while the slices of a graph run.

use super::order::{Run, parts};
use super::rules::Part;
use super::{Range, Rows, range};
use vdnn_ir::id::EntityId;
use vdnn_ir::{Graph, NodeId, ValueId};

/// The nodes of a graph that run in slices or read some, with what they read and make.
pub(super) struct Sliced<'a> {
    graph: &'a Graph,
    rows: &'a Rows,
    batch: u64,
    /// In their order.
    pub(super) nodes: Vec<NodeId>,
}

/// Rows of a value that are made and read for the last time together.
#[derive(Clone, Copy)]
struct Span {
    rows: u64,
    made: usize,
    read: usize,
}

impl<'a> Sliced<'a> {
    pub(super) fn new(graph: &'a Graph, rows: &'a Rows, batch: u64, counts: &[u64]) -> Self {
        let [_, nodes, _] = parts(graph.order(), rows, counts);
        Self { graph, rows, batch, nodes }
    }

    /// Bytes of rows that are in memory during each run: those made, by it or before it, that it or a later
    /// one reads. Of graph inputs those still to be read; graph outputs stay.
    pub(super) fn live(&self, runs: &[Run]) -> Vec<u64> {
        // Between two of these all rows are alike.
        let ranges = runs.iter().map(|run| range(self.batch, run.of, run.slice));
        let mut bounds: Vec<u64> = ranges.flat_map(|r| [r.first, r.first + r.len]).collect();
        bounds.extend([0, self.batch]);
        bounds.sort_unstable();
        bounds.dedup();
        let within = |r: Range| {
            let at = |row: u64| bounds.partition_point(|&b| b < row);
            at(r.first)..at(r.first + r.len)
        };
        let nobody = || -> Vec<Option<Span>> { vec![None; bounds.len() - 1] };
        let mut spans: Vec<Vec<Option<Span>>> = vec![Vec::new(); self.graph.value_bound()];
        let rows = |i: usize| bounds[i + 1] - bounds[i];
        for (at, run) in runs.iter().enumerate() {
            let part = range(self.batch, run.of, run.slice);
            for v in self.made(run.node) {
                let spans = &mut spans[v.index()];
                if spans.is_empty() {
                    *spans = nobody();
                }
                for i in within(part) {
                    spans[i] = Some(Span { rows: rows(i), made: at, read: at });
                }
            }
            for &v in self.graph.node(run.node).inputs.iter().filter(|v| self.rows.value[v.index()]) {
                let spans = &mut spans[v.index()];
                if spans.is_empty() && self.graph.def_node(v).is_none() {
                    *spans = nobody();
                }
                // Rows that no slice makes are not counted.
                let part = if spans.is_empty() { 0..0 } else { within(part) };
                for i in part {
                    spans[i].get_or_insert(Span { rows: rows(i), made: 0, read: at }).read = at;
                }
            }
        }
        for output in &self.graph.outputs {
            for span in spans[output.value.index()].iter_mut().flatten() {
                span.read = runs.len() - 1;
            }
        }
        self.sums(&spans, runs.len())
    }

    /// Results of a node that have rows.
    fn made(&self, id: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        let rule = self.rows.rule[id.index()].as_ref();
        let made = move |i: usize| rule.is_none_or(|rule| rule.results[i] == Part::Rows);
        let outputs = self.graph.node(id).outputs.iter().enumerate();
        outputs.filter(move |(i, v)| self.rows.value[v.index()] && made(*i)).map(|(_, v)| *v)
    }

    fn sums(&self, spans: &[Vec<Option<Span>>], runs: usize) -> Vec<u64> {
        let mut more = vec![0; runs + 1];
        let mut less = vec![0; runs + 1];
        for (v, spans) in spans.iter().enumerate().filter(|(_, spans)| !spans.is_empty()) {
            let row = self.graph.ty(ValueId::from_index(v)).bytes().0 / self.batch.max(1);
            for span in spans.iter().flatten() {
                more[span.made] += row * span.rows;
                less[span.read + 1] += row * span.rows;
            }
        }
        let mut live = 0;
        let mut step = |i: usize| {
            live = live + more[i] - less[i];
            live
        };
        (0..runs).map(&mut step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::halved::Halved;
    use super::super::halves::Halves;
    use super::super::order::Cut;
    use super::*;
    use vdnn_ir::parse::parse_graph;

    /// A row of `x` has 128 bytes, of what is made of it 128, 32, 32 and 32.
    const NET: &str = r#"graph "g" phase=joint mode=infer {
  input %0 "x" : f32[4,2,4,4]
  n0: %1 : f32[4,2,4,4] = unary(relu) (%0) forward "relu"
  n1: %2 : f32[4,2,2,2] = max_pool(kernel:[2,2],strides:[2,2],before:[0,0],after:[0,0],dilations:[1,1],ceil_mode:false) (%1) forward "pool"
  n2: %3 : f32[4,2,2,2] = unary(neg) (%2) forward "neg"
  n3: %4 : f32[4,2,2,2] = binary(add) (%2, %3) forward "sum"
  output "y" = %4
}"#;

    #[test]
    fn rows_are_in_memory_from_the_run_that_makes_them_to_the_last_that_reads_them() {
        let graph = parse_graph(NET).expect("the graph parses");
        let rows = Rows::of(&graph, 4);
        let live = |counts: &[u64], halved: &str| {
            let halved = if halved.is_empty() { Halved::default() } else { halved.parse().expect("slices") };
            let sliced = Sliced::new(&graph, &rows, 4, counts);
            sliced.live(&Cut { counts, halved: &halved, by_layer: false }.runs(&sliced.nodes))
        };
        // x, relu; relu, pool; pool, neg; pool, neg, sum.
        assert_eq!(live(&[1; 4], ""), [1024, 640, 256, 384]);
        // Of x what later slices read; of pool what earlier ones have left.
        assert_eq!(live(&[2, 2, 1, 1], ""), [768, 576, 576, 384, 256, 384]);
        // The first half of slice 1 is read before the second is made.
        assert_eq!(live(&[2, 2, 1, 1], "n0:1+,n1:1"), [768, 576, 448, 352, 352, 256, 256, 384]);
    }

    #[test]
    fn the_slices_that_need_most_are_halved_with_what_runs_before_them() {
        let graph = parse_graph(NET).expect("the graph parses");
        let rows = Rows::of(&graph, 4);
        let counts = [2, 2, 1, 1];
        let sliced = Sliced::new(&graph, &rows, 4, &counts);
        let price = |_, of: u64| Some((100 * of, 0));
        let fit = |limit: u64| {
            let mut halves =
                Halves { counts: &counts, by_layer: false, halved: Halved::default(), longer: 0 };
            let fits = halves.fit(limit, 4, &sliced, &price);
            let peak = halves.fit(u64::MAX, 4, &sliced, &price).expect("no limit");
            assert!(fits.is_none_or(|fits| fits == peak));
            (fits.is_some(), peak, halves.halved, halves.longer)
        };
        assert_eq!(fit(768), (true, 768, Halved::default(), 0));
        // The first run has all of x before it, and one half of what it makes.
        assert_eq!(fit(767), (true, 640, "n0:0".parse().expect("a slice"), 100));
        // Now the pool waits for both halves; half by half with the ReLU it does not.
        let (fits, peak, halved, longer) = fit(639);
        assert_eq!((fits, peak, longer), (false, 640, 100), "{halved:?}");
    }
}
