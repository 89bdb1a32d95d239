//! `vdnnc bench-conv LIST.csv`: what dividing the batch of single convolutions gains under
//! limits of the workspace, or leaving out zero weights, from measured or predicted times.

mod list;
mod plot;
mod sparse;

use super::backend::{self, LazyTimer};
use super::target::{self, Runner, Target};
use crate::cli::{BenchConvArgs, DeviceName};
use crate::error::Failure;
use crate::measuring::Kernel;
use crate::micro;
use list::{DIRECTIONS, Layer};
use plot::Group;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use vdnn_cost::CostModel;
use vdnn_frontends::safe_file::write_atomic;
use vdnn_ir::{Bytes, ConvSchedule, Mode, Nanos};
use vdnn_passes::BatchSizes;
use vdnn_passes::micro_batch::{Choice, Menu};
use vdnn_runtime::cuda::DeviceSelector;

/// One convolution under one limit.
struct Cell<'a> {
    layer: &'a Layer,
    direction: &'static str,
    kernel: &'a Kernel,
    limit: Bytes,
    /// The fastest whole batch within the limit.
    whole: Option<Choice>,
    /// The fastest within the limit.
    best: Option<Choice>,
    /// The fastest whole batch there is.
    unlimited: Option<Choice>,
    /// Both run here, if that was asked for.
    run: [Option<Nanos>; 2],
}

impl Cell<'_> {
    fn times(&self) -> [Option<Nanos>; 2] {
        [
            self.run[0].or(self.whole.as_ref().map(|c| c.time)),
            self.run[1].or(self.best.as_ref().map(|c| c.time)),
        ]
    }

    /// Time of the whole batch over that of the best division.
    fn gain(&self) -> Option<f64> {
        let [whole, best] = self.times();
        Some(whole?.0 as f64 / best?.0.max(1) as f64)
    }

    /// Time without a limit over that of the best division.
    fn of_unlimited(&self) -> Option<f64> {
        Some(self.unlimited.as_ref()?.time.0 as f64 / self.times()[1]?.0.max(1) as f64)
    }

    fn label(&self) -> String {
        let set = if self.layer.set.is_empty() { String::new() } else { format!("{} ", self.layer.set) };
        format!("{set}{} {} {}", self.layer.name, self.layer.shape(), self.direction)
    }

    fn json(&self) -> Value {
        let choice = |c: &Option<Choice>| {
            c.as_ref().map(
                |c| json!({ "schedule": c.schedule.to_string(), "workspace": c.workspace.0, "ns": c.time.0 }),
            )
        };
        json!({
            "set": self.layer.set, "layer": self.layer.name, "shape": self.layer.shape(),
            "direction": self.direction, "limit": self.limit.0,
            "whole": choice(&self.whole), "best": choice(&self.best), "unlimited": choice(&self.unlimited),
            "run_whole_ns": self.run[0].map(|t| t.0), "run_best_ns": self.run[1].map(|t| t.0),
            "gain": self.gain(), "of_unlimited": self.of_unlimited(),
        })
    }
}

/// Runs the command.
///
/// # Errors
/// What the user should read.
pub fn run(args: &BenchConvArgs) -> Result<(), Failure> {
    let text = std::fs::read_to_string(&args.list)
        .map_err(|e| Failure::user(format!("{}: {e}", args.list.display())))?;
    let fail = |why: String| Failure::user(format!("{}: {why}", args.list.display()));
    let mut layers = list::read(&text).map_err(fail)?;
    layers.retain(|l| args.set.is_empty() || args.set.contains(&l.set));
    layers.retain(|l| {
        args.filter.is_empty() || args.filter.contains(&format!("{}x{}", l.filter[0], l.filter[1]))
    });
    if let Some(n) = args.shared.batch {
        layers.iter_mut().for_each(|l| l.n = n);
    }
    if layers.is_empty() {
        return Err(fail("no layer is left".to_owned()).hint("see --set and --filter"));
    }

    let mut options = args.shared.options(Mode::Train);
    if options.micro_batch == BatchSizes::Undivided && !args.undivided {
        options.micro_batch = BatchSizes::PowerOfTwo;
    }
    let mut target = match &args.shared.device {
        // Thoroughly by default: engines by Fourier and Winograd transforms are in no short list.
        DeviceName::Gpu(gpu) if args.shared.times.is_none() => {
            let (facts, on) = backend::identify(&args.shared, gpu, "unknown")?;
            let cost = target::gpu_profile(&facts, &args.shared.gpu.device_profile, options.precision)?;
            let db = target::database(&args.shared)?;
            Target::measured(cost, on, db, Box::new(timer(args, gpu)))
        }
        _ => Target::open(&mut options, &args.shared, Runner::Host)?,
    };
    if !args.sparsity.is_empty() {
        return sparse::run(args, &layers, &mut target, &options);
    }
    let layout = target.base().layout();
    let mut kernels: Vec<(&Layer, &'static str, Kernel)> = Vec::new();
    for layer in &layers {
        let all =
            layer.kernels(options.precision, layout).map_err(|e| fail(format!("{}: {e}", layer.name)))?;
        let named = DIRECTIONS.into_iter().zip(all).map(|(direction, kernel)| (layer, direction, kernel));
        kernels
            .extend(named.filter(|k| args.direction.is_empty() || args.direction.contains(&k.1.to_owned())));
    }
    let mut limits = args.limits.clone();
    limits.sort_unstable();
    limits.dedup();
    let mut different: Vec<Kernel> = Vec::new();
    for (_, _, kernel) in &kernels {
        if !different.contains(kernel) {
            different.push(kernel.clone());
        }
    }
    let least = limits.first().copied().unwrap_or(Bytes::ZERO);
    let cost = target.cost_of((&different, &[]), &options, least)?;
    // Nothing is guessed beside what was measured.
    let known = |kernel: &Kernel| {
        let (inputs, outputs) = kernel.types();
        cost.is_measured(&kernel.op, &inputs, &outputs)
    };
    let missing = different.iter().filter(|kernel| !known(kernel)).count();
    if missing > 0 && missing < different.len() {
        kernels.retain(|k| known(&k.2));
        super::warn(&format!("{missing} of {} convolutions have no measured times", different.len()));
    }

    let menu = Menu::new(options.micro_batch);
    let whole_menu = Menu::new(BatchSizes::Undivided);
    let mut cells = Vec::new();
    for (layer, direction, kernel) in &kernels {
        let graph = micro::alone(kernel).map_err(|e| fail(format!("{}: {e}", layer.name)))?;
        let Some((_, node)) = graph.nodes().next() else { continue };
        let (all, wholes) = (menu.choices(&graph, &cost, node), whole_menu.choices(&graph, &cost, node));
        for &limit in &limits {
            let fits = |choices: &[Choice]| choices.iter().find(|c| c.workspace <= limit).cloned();
            let unlimited = wholes.first().cloned();
            let (whole, best) = (fits(&wholes), fits(&all));
            let run = [None; 2];
            cells.push(Cell { layer, direction, kernel, limit, whole, best, unlimited, run });
        }
    }
    if args.run {
        let DeviceName::Gpu(gpu) = &args.shared.device else {
            return Err(Failure::user("--run needs a GPU").hint("name it with --device cuda:0"));
        };
        let mut timer = timer(args, gpu);
        run_cells(&mut cells, &mut timer, options.precision)?;
    }
    report(args, &cells, &limits, &cost)
}

fn timer(args: &BenchConvArgs, gpu: &DeviceSelector) -> LazyTimer {
    if args.quick { LazyTimer::quick(&args.shared, gpu) } else { LazyTimer::thorough(&args.shared, gpu) }
}

/// Times what was chosen where a division was, each different schedule once: elsewhere the best
/// is the whole batch itself.
fn run_cells(
    cells: &mut [Cell<'_>],
    timer: &mut LazyTimer,
    precision: vdnn_cost::Precision,
) -> Result<(), Failure> {
    let mut known: Vec<(&Kernel, ConvSchedule, Option<Nanos>)> = Vec::new();
    for cell in cells {
        let kernel = cell.kernel;
        if !cell.best.as_ref().is_some_and(|b| b.schedule.is_divided()) {
            continue;
        }
        for (i, choice) in [&cell.whole, &cell.best].into_iter().enumerate() {
            let Some(choice) = choice else { continue };
            let found = known.iter().find(|k| k.0 == kernel && k.1 == choice.schedule).map(|k| k.2);
            cell.run[i] = match found {
                Some(time) => time,
                None => {
                    let time = timer.schedule(kernel, precision, &choice.schedule, choice.workspace)?;
                    known.push((kernel, choice.schedule.clone(), time));
                    time
                }
            };
        }
    }
    Ok(())
}

/// What a limit comes to over all convolutions.
struct Summary {
    limit: Bytes,
    compared: usize,
    divided: usize,
    geomean: f64,
    least: f64,
    most: f64,
    whole: Nanos,
    best: Nanos,
    unlimited: Nanos,
    /// How many run at 95 % of the unlimited speed or more.
    near_unlimited: usize,
}

impl Summary {
    fn of(limit: Bytes, cells: &[Cell<'_>]) -> Self {
        let cells: Vec<&Cell<'_>> = cells.iter().filter(|c| c.limit == limit && c.gain().is_some()).collect();
        let gains: Vec<f64> = cells.iter().filter_map(|c| c.gain()).collect();
        let sum = |times: &mut dyn Iterator<Item = Option<Nanos>>| Nanos(times.flatten().map(|t| t.0).sum());
        Self {
            limit,
            compared: gains.len(),
            divided: cells
                .iter()
                .filter(|c| c.best.as_ref().is_some_and(|b| b.schedule.is_divided()))
                .count(),
            geomean: (gains.iter().map(|g| g.ln()).sum::<f64>() / gains.len().max(1) as f64).exp(),
            least: gains.iter().copied().fold(f64::INFINITY, f64::min),
            most: gains.iter().copied().fold(0.0, f64::max),
            whole: sum(&mut cells.iter().map(|c| c.times()[0])),
            best: sum(&mut cells.iter().map(|c| c.times()[1])),
            unlimited: sum(&mut cells.iter().map(|c| c.unlimited.as_ref().map(|u| u.time))),
            near_unlimited: cells.iter().filter(|c| c.of_unlimited().is_some_and(|r| r >= 0.95)).count(),
        }
    }

    fn text(&self) -> String {
        format!(
            "{}: {} convolutions, {} divided; gain geomean {:.3}, least {:.3}, most {:.3}; whole {}, best {} \
             ({:.2}x), unlimited {}; {} at 95 % of the unlimited speed",
            self.limit,
            self.compared,
            self.divided,
            self.geomean,
            self.least,
            self.most,
            self.whole,
            self.best,
            self.whole.0 as f64 / self.best.0.max(1) as f64,
            self.unlimited,
            self.near_unlimited
        )
    }

    fn json(&self) -> Value {
        json!({
            "limit": self.limit.0, "convolutions": self.compared, "divided": self.divided,
            "geomean": self.geomean, "least": self.least, "most": self.most, "whole_ns": self.whole.0,
            "best_ns": self.best.0, "unlimited_ns": self.unlimited.0, "near_unlimited": self.near_unlimited,
        })
    }
}

fn report(
    args: &BenchConvArgs,
    cells: &[Cell<'_>],
    limits: &[Bytes],
    cost: &CostModel,
) -> Result<(), Failure> {
    let summaries: Vec<Summary> = limits.iter().map(|&l| Summary::of(l, cells)).collect();
    if let Some(path) = &args.csv {
        write(path, &csv(cells))?;
    }
    if let Some(path) = &args.svg {
        write(path, &picture(args, cells, limits))?;
    }
    if args.json {
        let object = json!({
            "device": cost.device_name(), "precision": cost.precision().to_string(),
            "summaries": summaries.iter().map(Summary::json).collect::<Vec<_>>(),
            "cells": cells.iter().map(Cell::json).collect::<Vec<_>>(),
        });
        super::print(&object.to_string());
        return Ok(());
    }
    let mut t = String::new();
    for cell in cells {
        let time = |t: Option<Nanos>| t.map_or_else(|| "-".to_owned(), |t| t.to_string());
        let [whole, best] = cell.times();
        let _ = writeln!(
            t,
            "{:<64} {:>9} {:>10} -> {:>10} {:>6}  {}",
            cell.label(),
            cell.limit.to_string(),
            time(whole),
            time(best),
            cell.gain().map_or_else(String::new, |g| format!("{g:.2}x")),
            cell.best.as_ref().map(|b| b.schedule.to_string()).unwrap_or_default()
        );
    }
    for s in &summaries {
        let _ = writeln!(t, "{}", s.text());
    }
    super::print(&t);
    Ok(())
}

fn csv(cells: &[Cell<'_>]) -> String {
    let mut t =
        "set,layer,shape,direction,limit,whole_ns,best_ns,unlimited_ns,unlimited_workspace,gain,schedule\n"
            .to_owned();
    for c in cells {
        let time = |t: Option<Nanos>| t.map(|t| t.0.to_string()).unwrap_or_default();
        let [whole, best] = c.times();
        let _ = writeln!(
            t,
            "{},{},\"{}\",{},{},{},{},{},{},{},{}",
            c.layer.set,
            c.layer.name,
            c.layer.shape(),
            c.direction,
            c.limit.0,
            time(whole),
            time(best),
            time(c.unlimited.as_ref().map(|u| u.time)),
            c.unlimited.as_ref().map(|u| u.workspace.0.to_string()).unwrap_or_default(),
            c.gain().map(|g| format!("{g:.4}")).unwrap_or_default(),
            c.best.as_ref().map(|b| b.schedule.to_string()).unwrap_or_default()
        );
    }
    t
}

fn picture(args: &BenchConvArgs, cells: &[Cell<'_>], limits: &[Bytes]) -> String {
    let series: Vec<String> = limits.iter().map(ToString::to_string).collect();
    let groups: Vec<Group> = cells
        .chunks(limits.len().max(1))
        .map(|of_one| Group { name: of_one[0].label(), bars: of_one.iter().map(Cell::gain).collect() })
        .collect();
    let name = args.list.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    plot::bars(&format!("{name}: time of the whole batch over that of its best division"), &series, &groups)
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    write_atomic(path, |w| w.write_all(text.as_bytes()))
        .map_err(|e| Failure::user(format!("{}: {e}", path.display())))
}
