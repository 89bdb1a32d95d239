//! Tests of several compute streams.

use super::*;

/// A device of 132 multiprocessors on which a launch takes 1 ms.
fn device() -> CostModel {
    super::tests::device("h200", 1000.0, [1.0, 1.0, 0.0])
}

/// Elements of a kernel of so many blocks, and its time.
const fn blocks(n: u64) -> (u64, u64) {
    let elements = n * 1024;
    (elements, 1_000_000 + 2 * 4 * elements)
}

/// A ReLU of so many blocks per stream, all from one operand, then one of stream 0 that waits for
/// the others, of as many.
fn side_by_side(n: u64, streams: u64, joined: bool) -> SimResult {
    let (elements, _) = blocks(n);
    let mut text = format!(
        "vplan 1\nmodel \"m\"\nmode infer\nbatch 1\npolicy \"none\"\nalgo \"memory\"\ndevice \"d\"\n\
         predicted step=0 compute=0 stall=0 lower_bound=0\narena device {}\narena host 0\n",
        (streams + 2) * elements * 4
    );
    for s in 0..streams {
        text += &format!("stream s{s} compute\n");
    }
    text += &format!("events {}\n", if joined { streams - 1 } else { 0 });
    for b in 0..streams + 2 {
        text += &format!("buffer b{b} device {} f32[{elements}] \"v{b}\"\n", b * elements * 4);
    }
    text += "input \"x\" b0\n";
    let mut commands = Vec::new();
    for s in 0..streams {
        commands.push(format!("s{s} launch n{s} unary(relu) forward (b0) -> (b{}) \"k{s}\"", s + 1));
        if joined && s > 0 {
            commands.push(format!("s{s} record e{}", s - 1));
        }
    }
    if joined {
        commands.extend((1..streams).map(|s| format!("s0 wait e{}", s - 1)));
        commands
            .push(format!("s0 launch n{streams} unary(relu) forward (b1) -> (b{}) \"join\"", streams + 1));
    }
    for (i, command) in commands.iter().enumerate() {
        text += &format!("c{i} {command}\n");
    }
    let plan = vdnn_plan::parse_plan(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    simulate(&plan, &device()).expect("it simulates")
}

#[test]
fn kernels_that_share_the_device_run_at_once_and_those_that_fill_it_do_not() {
    // Half of the multiprocessors each.
    let (_, time) = blocks(66);
    let two = side_by_side(66, 2, false);
    assert_eq!((two.step, two.compute), (Nanos(time), Nanos(2 * time)));
    assert_eq!((two.device_time, two.contention, two.stall), (Nanos(time), Nanos::ZERO, Nanos::ZERO));
    // Three halves take one and a half times as long, each.
    let three = side_by_side(66, 3, false);
    assert!(three.step.0.abs_diff(time * 3 / 2) <= time / 100_000, "{} is not 3/2 of {time}", three.step.0);
    assert_eq!(three.contention, Nanos(3 * three.step.0 - 3 * time));
    // Two that fill it: as one after the other.
    let (_, time) = blocks(132);
    let full = side_by_side(132, 2, false);
    assert_eq!((full.step, full.device_time), (Nanos(2 * time), Nanos(2 * time)));
    assert_eq!(full.stall, Nanos::ZERO);
}

#[test]
fn a_wait_for_another_compute_stream_takes_time() {
    let (_, time) = blocks(66);
    let joined = side_by_side(66, 2, true);
    assert_eq!(joined.step, Nanos(2 * time) + device().wait());
    assert_eq!(joined.stall, device().wait());
}
