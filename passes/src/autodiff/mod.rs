//! Builds the joint forward, backward and update graph.
