//! Which steps are queued command by command, which one is captured, which are replayed.

use super::stream::GraphExec;

/// How to run a step.
#[derive(Debug)]
pub(super) enum Mode<'a, G> {
    /// Command by command.
    Eager,
    /// Command by command into a graph, which is then launched.
    Capture,
    /// The graph.
    Replay(&'a G),
}

/// The course of a plan's steps. The first runs command by command, so that libraries load
/// their code lazily outside a capture; the second is captured.
#[derive(Debug)]
pub(super) struct Replay<G = GraphExec> {
    capture: bool,
    warm: bool,
    graph: Option<G>,
}

impl<G> Replay<G> {
    /// `capture`: use a graph at all.
    pub(super) fn new(capture: bool) -> Self {
        Self { capture, warm: false, graph: None }
    }

    /// How to run the next step.
    pub(super) fn next(&mut self) -> Mode<'_, G> {
        let first = !std::mem::replace(&mut self.warm, true);
        match &self.graph {
            Some(graph) => Mode::Replay(graph),
            None if self.capture && !first => Mode::Capture,
            None => Mode::Eager,
        }
    }

    /// The capture succeeded.
    pub(super) fn captured(&mut self, graph: G) -> &G {
        self.graph.insert(graph)
    }

    /// True once there is a graph.
    pub(super) fn is_captured(&self) -> bool {
        self.graph.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_step_is_captured_and_later_ones_replay_it() {
        let mut replay: Replay<u32> = Replay::new(true);
        assert!(matches!(replay.next(), Mode::Eager));
        assert!(matches!(replay.next(), Mode::Capture));
        // A capture that failed is tried again.
        assert!(matches!(replay.next(), Mode::Capture) && !replay.is_captured());
        assert_eq!(*replay.captured(7), 7);
        assert!(matches!(replay.next(), Mode::Replay(7)) && replay.is_captured());
        let mut eager: Replay<u32> = Replay::new(false);
        assert!((0..3).all(|_| matches!(eager.next(), Mode::Eager)));
    }
}
