//! A naive interpreter of the graph: the oracle. Sees only the IR.
