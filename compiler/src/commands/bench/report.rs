//! What `vdnnc bench` prints of a target: a prediction, then a result.

use crate::cli::BenchArgs;
use serde_json::{Value, json};
use vdnn_ir::{Bytes, Mode, Nanos};
use vdnn_plan::PlanStats;
use vdnn_runtime::cuda::Energy;
use vdnn_runtime::packed::Packed;
use vdnn_runtime::trace::{Overlap, Trace};

/// What one target's steps were like.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// Of each measured step.
    pub steps: Vec<Nanos>,
    /// Of the last warm-up step, in training.
    pub loss: Option<f32>,
    /// SHA-256 over the parameters after the last step, if asked for.
    pub checksum: Option<String>,
    pub packed: Packed,
    pub gpu: Option<Gpu>,
}

/// What only a GPU tells.
#[derive(Debug)]
pub(super) struct Gpu {
    pub name: String,
    /// Most that was taken on the device since the context was made, of a few looks; the
    /// context itself is not counted.
    pub taken: Bytes,
    /// Most that was in use on the whole device, by all processes, of the same looks.
    pub used: Bytes,
    pub scratch: Bytes,
    pub captured: bool,
    pub profile: Trace,
    pub delayed: Option<Delayed>,
    /// If it was asked for: of a step, or why it is not known.
    pub energy: Option<Result<Energy, String>>,
}

/// Steps under random delays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delayed {
    /// Seeds tried.
    pub seeds: u64,
    /// Times the parameters were compared.
    pub comparisons: u64,
    /// Median step under delays.
    pub step: Nanos,
}

/// What is known of a target before it runs.
pub(super) struct Report<'a> {
    pub args: &'a BenchArgs,
    pub target: &'a str,
    pub policy: &'static str,
    pub device: String,
    pub batch: u64,
    pub precision: String,
    pub budget: Option<Bytes>,
    pub predicted: Nanos,
    pub stats: PlanStats,
}

/// The middle of the sorted times; of an even number, the mean of the two middle ones.
pub(super) fn median(sorted: &[Nanos]) -> Nanos {
    match sorted.len() {
        0 => Nanos::ZERO,
        n if n % 2 == 1 => sorted[n / 2],
        n => Nanos((sorted[n / 2 - 1].0 + sorted[n / 2].0) / 2),
    }
}

fn ms(t: Nanos) -> f64 {
    t.as_f64() / 1e6
}

impl Report<'_> {
    fn mode(&self) -> &'static str {
        match self.args.mode {
            Mode::Train => "train",
            Mode::Infer => "infer",
        }
    }

    pub(super) fn prediction(&self) -> Value {
        json!({
            "kind": "prediction", "model": self.target, "mode": self.mode(), "batch": self.batch,
            "policy": self.policy, "precision": self.precision, "profile": self.device,
            "memory_limit_bytes": self.budget.map(|b| b.0), "step_ns": self.predicted.0,
            "device_arena_bytes": self.stats.device_bytes.0, "host_arena_bytes": self.stats.host_bytes.0,
            "offload_bytes": self.stats.offload_bytes.0, "prefetch_bytes": self.stats.prefetch_bytes.0,
        })
    }

    pub(super) fn result(&self, m: &Measured) -> Value {
        let mut sorted = m.steps.clone();
        sorted.sort();
        let middle = median(&sorted);
        let mut v = self.prediction();
        let mut set = |key: &str, value: Value| {
            v[key] = value;
        };
        set("kind", json!("result"));
        set("backend", json!(self.args.backend.name()));
        set("predicted_step_ns", json!(self.predicted.0));
        set("step_ns", json!(middle.0));
        set(
            "step_ms",
            json!({
                "median": ms(middle),
                "min": sorted.first().map(|t| ms(*t)),
                "max": sorted.last().map(|t| ms(*t)),
            }),
        );
        set("steps", json!(m.steps.len()));
        set("images_per_s", json!(self.batch as f64 / (middle.as_f64() / 1e9)));
        set("predicted_error", json!(self.predicted.as_f64() / middle.as_f64().max(1.0) - 1.0));
        set("loss", json!(m.loss));
        set("checksum", json!(m.checksum));
        set("offload_packed_bytes", json!(m.packed.tensors.0));
        set("offload_packed_on_link_bytes", json!(m.packed.on_link.0));
        if let Some(gpu) = &m.gpu {
            let overlap = gpu.profile.overlap();
            set("device", json!(gpu.name));
            set("graph", json!(gpu.captured));
            set("scratch_bytes", json!(gpu.scratch.0));
            set("process_device_bytes", json!(gpu.taken.0));
            set("used_device_bytes", json!(gpu.used.0));
            set("profiled_step_ns", json!(gpu.profile.makespan().0));
            set("copy_busy_ns", json!(overlap.copying.0));
            set("copy_hidden_ns", json!(overlap.hidden.0));
            set("copy_hidden_share", json!(hidden_share(overlap)));
            if let Some(energy) = &gpu.energy {
                set("energy", energy_json(energy));
            }
            if let Some(delayed) = gpu.delayed {
                set("delay_seeds", json!(delayed.seeds));
                set("delay_comparisons", json!(delayed.comparisons));
                set("delayed_step_ns", json!(delayed.step.0));
            }
        }
        v
    }

    pub(super) fn table(&self, m: &Measured) -> String {
        let mut sorted = m.steps.clone();
        sorted.sort();
        let middle = median(&sorted);
        let ends = |t: Option<&Nanos>| t.map_or(0.0, |t| ms(*t));
        let mut rows: Vec<(&str, String)> = vec![
            (
                "step",
                format!(
                    "{:.3} ms (min {:.3}, max {:.3}, {} steps)",
                    ms(middle),
                    ends(sorted.first()),
                    ends(sorted.last()),
                    sorted.len()
                ),
            ),
            ("images", format!("{:.1} per second", self.batch as f64 / (middle.as_f64() / 1e9))),
            (
                "predicted",
                format!(
                    "{:.3} ms ({:+.1} %) for {}",
                    ms(self.predicted),
                    100.0 * (self.predicted.as_f64() / middle.as_f64().max(1.0) - 1.0),
                    self.device
                ),
            ),
            ("arenas", format!("device {}, pinned host {}", self.stats.device_bytes, self.stats.host_bytes)),
            (
                "transfers",
                format!("{} out, {} in per step", self.stats.offload_bytes, self.stats.prefetch_bytes),
            ),
        ];
        if m.packed != Packed::default() {
            rows.push(("packed", format!("{} out as {}", m.packed.tensors, m.packed.on_link)));
        }
        if let Some(gpu) = &m.gpu {
            let overlap = gpu.profile.overlap();
            rows.push((
                "memory",
                format!(
                    "{} taken by this process without its context (arena, {} scratch, libraries); {} in use on the \
                     device",
                    gpu.taken, gpu.scratch, gpu.used
                ),
            ));
            if let Some(share) = hidden_share(overlap) {
                let busy = ms(overlap.copying);
                rows.push(("copies", format!("{busy:.3} ms, {:.1} % behind kernels", 100.0 * share)));
            }
            if let Some(energy) = &gpu.energy {
                rows.push(("energy", energy_text(energy)));
            }
            if let Some(Delayed { seeds, comparisons, step }) = gpu.delayed {
                let step = ms(step);
                rows.push((
                    "delays",
                    format!(
                        "the same parameters {comparisons} times under {seeds} seeds, {step:.3} ms a step"
                    ),
                ));
            }
        }
        if let Some(loss) = m.loss {
            rows.push(("loss", format!("{loss:.4}")));
        }
        let on = m.gpu.as_ref().map_or("cpu", |g| g.name.as_str());
        let graph = if m.gpu.as_ref().is_some_and(|g| !g.captured) { ", no graph" } else { "" };
        let mut text = format!(
            "{} {} batch {} policy {} {} on {on}{graph}\n",
            self.target,
            self.mode(),
            self.batch,
            self.policy,
            self.precision
        );
        for (name, value) in rows {
            text.push_str(&format!("  {name:<10} {value}\n"));
        }
        text
    }
}

/// The energy of a step as one line.
pub(in crate::commands) fn energy_text(energy: &Result<Energy, String>) -> String {
    match energy {
        Ok(e) => format!(
            "{:.2} mJ per step, {:.1} W in the mean (idle {:.1} W), {} steps",
            e.per_step(),
            e.watts(),
            e.idle_watts,
            e.steps
        ),
        Err(why) => format!("not available: {why}"),
    }
}

/// The same as JSON; `null` values and a reason where it is not known.
pub(in crate::commands) fn energy_json(energy: &Result<Energy, String>) -> Value {
    match energy {
        Ok(e) => json!({
            "step_mj": e.per_step(), "watts": e.watts(), "idle_watts": e.idle_watts, "steps": e.steps,
            "millijoules": e.millijoules, "time_ns": e.time.0,
        }),
        Err(why) => json!({ "step_mj": null, "watts": null, "not_available": why }),
    }
}

/// Share of copy time that kernels hide; `None` without copies.
fn hidden_share(overlap: Overlap) -> Option<f64> {
    (overlap.copying > Nanos::ZERO).then(|| overlap.hidden.as_f64() / overlap.copying.as_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_between_the_middle_two() {
        let of = |t: &[u64]| median(&t.iter().map(|&n| Nanos(n)).collect::<Vec<_>>());
        assert_eq!(of(&[]), Nanos(0));
        assert_eq!(of(&[7]), Nanos(7));
        assert_eq!(of(&[1, 3]), Nanos(2));
        assert_eq!(of(&[1, 2, 9]), Nanos(2));
    }

    #[test]
    fn energy_is_said_or_why_not() {
        let e = Energy { steps: 400, millijoules: 1_000_000, time: Nanos(2_000_000_000), idle_watts: 75.0 };
        let text = energy_text(&Ok(e));
        assert_eq!(text, "2500.00 mJ per step, 500.0 W in the mean (idle 75.0 W), 400 steps");
        assert_eq!(energy_json(&Ok(e))["step_mj"], 2500.0);
        let none = Err("the device counts none".to_owned());
        assert_eq!(energy_text(&none), "not available: the device counts none");
        assert_eq!(energy_json(&none)["not_available"], "the device counts none");
    }

    #[test]
    fn copies_that_nothing_hides_and_no_copies_differ() {
        let share =
            |copying, hidden| hidden_share(Overlap { copying: Nanos(copying), hidden: Nanos(hidden) });
        assert_eq!(share(0, 0), None);
        assert_eq!(share(10, 0), Some(0.0));
        assert_eq!(share(10, 5), Some(0.5));
    }
}
