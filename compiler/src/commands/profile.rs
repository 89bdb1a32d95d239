//! `vdnnc profile MODEL…`: every kernel the models need gets its times, measured on the GPU at
//! hand or replayed from a table; and the database's tables come in and go out.

use super::backend::{self, LazyTimer};
use super::bench::open;
use super::target;
use super::{load, print};
use crate::cli::{DeviceName, ProfileArgs};
use crate::error::Failure;
use crate::measuring::{self, FEW_WAYS, Filled, Kernel, KernelTimer, TimerError, WAYS};
use crate::micro;
use crate::progress::Progress;
use crate::several::{Work, fill_on_several};
use std::io::Write;
use std::path::Path;
use vdnn_benchdb::{BenchDb, looks_like_database};
use vdnn_cost::{CostModel, Measured, MeasuredOn, MeasuredRow, Precision};
use vdnn_frontends::safe_file::write_atomic;
use vdnn_passes::Workspace;
use vdnn_passes::fuse_pyramids::Candidate;

/// Runs the command: import, then models, then export.
///
/// # Errors
/// What the user should read.
pub fn run(args: &ProfileArgs) -> Result<(), Failure> {
    let path = target::database(&args.shared)?;
    if !args.import.is_empty() {
        import(args, &path)?;
    }
    match &args.replay {
        _ if args.targets.is_empty() => {}
        Some(source) => replay(args, source)?,
        None => measure(args, &path)?,
    }
    match &args.export {
        Some(table) => export(args, &path, table),
        None => Ok(()),
    }
}

/// All tables are read before the first is put in.
fn import(args: &ProfileArgs, path: &Path) -> Result<(), Failure> {
    let mut tables = Vec::new();
    for file in &args.import {
        let table = load::times(file)?;
        let on = &table.on;
        for (what, value) in [
            ("device", &on.device),
            ("capability", &on.capability),
            ("driver", &on.driver),
            ("cudnn", &on.cudnn),
        ] {
            if value.is_empty() {
                return Err(Failure::user(format!("{}: the table does not say its {what}", file.display()))
                    .hint(format!("add `; {what}=…` to its first line")));
            }
        }
        tables.push((file, table));
    }
    let mut db = BenchDb::open(path).map_err(Failure::user)?;
    for (file, table) in tables {
        db.add(&table).map_err(Failure::user)?;
        print(&format!(
            "{}: {} rows of {} put into {}",
            file.display(),
            table.len(),
            table.on,
            path.display()
        ));
    }
    Ok(())
}

fn export(args: &ProfileArgs, path: &Path, to: &Path) -> Result<(), Failure> {
    let db = BenchDb::open_to_read(path).map_err(Failure::user)?;
    let on = only_source(&db, args.select.as_deref())?;
    let table = db.times(&on).map_err(Failure::user)?;
    write(to, &table)?;
    print(&format!("{}: {} rows of {on}", to.display(), table.len()));
    Ok(())
}

/// The one source of a database whose description contains a text.
fn only_source(db: &BenchDb, part: Option<&str>) -> Result<MeasuredOn, Failure> {
    let all = db.sources().map_err(Failure::user)?;
    let list = |of: &[&(MeasuredOn, u64)]| {
        let lines: Vec<String> = of.iter().map(|(on, n)| format!("  {on}: {n} rows")).collect();
        lines.join("\n")
    };
    let fits: Vec<_> = all.iter().filter(|(on, _)| on.to_string().contains(part.unwrap_or(""))).collect();
    match (fits.as_slice(), all.as_slice()) {
        ([(on, _)], _) => Ok(on.clone()),
        (_, []) => Err(Failure::user(format!("{}: the database is empty", db.path().display()))),
        ([], _) => Err(Failure::user(format!(
            "{}: none of these is `{}`:\n{}",
            db.path().display(),
            part.unwrap_or(""),
            list(&all.iter().collect::<Vec<_>>())
        ))),
        (several, _) => Err(Failure::user(format!(
            "{}: the database has times of\n{}",
            db.path().display(),
            list(several)
        ))
        .hint("choose one with --select, such as --select 'cuDNN 9.19.0'")),
    }
}

/// What was measured is in the database after every kernel, and in the table after every
/// model, so that an interrupted run can be taken up again.
fn measure(args: &ProfileArgs, path: &Path) -> Result<(), Failure> {
    let shared = &args.shared;
    let gpu = args.bench_devices.first().cloned().unwrap_or_else(|| backend::selector(&args.cuda, shared));
    let (facts, on) = backend::identify(shared, &gpu, &args.date)?;
    for other in args.bench_devices.iter().skip(1) {
        let (_, is) = backend::identify(shared, other, &args.date)?;
        if !is.is_same(&on) {
            return Err(Failure::user(format!("GPU {other} is a {is}, GPU {gpu} a {on}"))
                .hint("measure them one after the other, with --cuda-device"));
        }
    }
    let timer_of =
        |gpu| if args.quick { LazyTimer::quick(shared, gpu) } else { LazyTimer::thorough(shared, gpu) };
    let mut timer = timer_of(&gpu);
    let mut table = started(args, &on)?;
    let mut db = BenchDb::open(path).map_err(Failure::user)?;
    let precision = shared.options_on_gpu(args.mode).precision;
    let cost = target::gpu_profile(&facts, &shared.gpu.device_profile, precision)?;
    for name in &args.targets {
        let (mut kernels, pyramids) = kernels(args, name, &cost)?;
        let ways = if args.quick { FEW_WAYS } else { WAYS };
        kernels.extend(measuring::ways(&pyramids, ways, &cost));
        let mut stored = db.times(&on).map_err(Failure::user)?;
        let before = [&table, &stored];
        let known: &[&Measured] = if args.again { &[] } else { &before };
        let mut timed = 0;
        if args.bench_devices.len() > 1 {
            let options = shared.options_on_gpu(args.mode);
            let work = Work {
                kernels: &kernels,
                precision,
                sizes: options.micro_batch,
                enough: micro::enough(options.workspace),
                known,
                on: &on,
                db: path,
            };
            let devices = &args.bench_devices;
            timed = fill_on_several(work, devices.len(), &|device| Ok(timer_of(&devices[device])))?;
            stored = db.times(&on).map_err(Failure::user)?;
        }
        let both = [&table, &stored];
        let known: &[&Measured] = match (args.again, timed) {
            (false, _) => &both,
            // Just now.
            (true, 1..) => &both[1..],
            (true, 0) => &[],
        };
        let progress = Progress::new(kernels.len() as u64, name);
        let mut filled = measuring::fill(
            (&kernels, precision),
            known,
            &on,
            &mut timer,
            &mut |rows| db.add(rows).map_err(Failure::user),
            &progress,
        )?;
        progress.finish();
        let mut source = micro::Source {
            known,
            on: &on,
            timer: &mut timer,
            keep: &mut |rows| db.add(rows).map_err(Failure::user),
        };
        fill_micro_batches(args, (&kernels, precision), &mut source, &mut filled)?;
        table.merge(&filled.table);
        if let Some(output) = &args.output {
            write(output, &table)?;
        }
        print(&format!(
            "{name}: {} kernels, {} measured now, {} rows; {}",
            kernels.len(),
            timed + filled.timed,
            filled.table.len(),
            path.display()
        ));
        under_limit(args, &kernels, &cost, &filled.table);
        for text in filled.skipped {
            print(&format!("  not measured: {text}"));
        }
    }
    Ok(())
}

/// The kernels of a model, in the layout that `cost` wants, and the pyramids that there could be.
fn kernels(
    args: &ProfileArgs,
    name: &str,
    cost: &CostModel,
) -> Result<(Vec<Kernel>, Vec<Candidate>), Failure> {
    let options = args.shared.options_on_gpu(args.mode);
    let model = open(name, args.mode, args.seed, &options)?;
    let graph = &model.imported.graph;
    Ok((measuring::kernels_of(graph, &options, cost)?, measuring::pyramids_of(graph, &options, cost)?))
}

/// The micro-batches that the options allow of these kernels.
fn fill_micro_batches(
    args: &ProfileArgs,
    kernels: (&[Kernel], Precision),
    source: &mut micro::Source<'_>,
    filled: &mut Filled,
) -> Result<(), Failure> {
    let options = args.shared.options_on_gpu(args.mode);
    let enough = micro::enough(options.workspace);
    micro::fill_micro_batches(kernels, options.micro_batch, enough, source, filled)
}

/// What the limit of the options, if there is one, leaves of the convolutions' speed.
fn under_limit(args: &ProfileArgs, kernels: &[Kernel], cost: &CostModel, table: &Measured) {
    let options = args.shared.options_on_gpu(args.mode);
    if let Workspace::Limit(limit) = options.workspace {
        let cost = cost.clone().with_deterministic(options.deterministic).with_measured(table.clone());
        print(&format!("  {}", micro::under_limit(kernels, &cost, options.micro_batch, limit)));
    }
}

/// The `-o` table as it stands, or an empty one.
fn started(args: &ProfileArgs, on: &MeasuredOn) -> Result<Measured, Failure> {
    let Some(output) = args.output.as_deref().filter(|p| p.exists()) else {
        return Ok(Measured::new(on.clone()));
    };
    let table = load::times(output)?;
    if !table.on.is_same(on) {
        return Err(Failure::user(format!(
            "{} holds times of {}; these are of {on}",
            output.display(),
            table.on
        ))
        .hint("give another -o file"));
    }
    let mut fresh = Measured::new(on.clone());
    fresh.merge(&table);
    Ok(fresh)
}

/// A timer that has nothing.
struct Nobody;

impl KernelTimer for Nobody {
    fn time(&mut self, _: &Kernel, _: Precision) -> Result<Vec<MeasuredRow>, TimerError> {
        Err(TimerError::Kernel("missing".to_owned()))
    }
}

/// Kernel by kernel what a table or database has of the models.
fn replay(args: &ProfileArgs, source: &Path) -> Result<(), Failure> {
    let stored = if looks_like_database(source) {
        let db = BenchDb::open_to_read(source).map_err(Failure::user)?;
        let on = only_source(&db, args.select.as_deref())?;
        db.times(&on).map_err(Failure::user)?
    } else {
        load::times(source)?
    };
    let precision = args.shared.options_on_gpu(args.mode).precision;
    let own = CostModel::shipped_for(&stored.on.device).map(str::to_owned);
    let cost = match (own, &args.shared.device, &args.shared.gpu.device_profile) {
        (Some(name), DeviceName::Profile(_), None) => load::cost_model(&name, precision)?,
        _ => target::profile(&args.shared, precision)?,
    };
    let mut table = started(args, &stored.on)?;
    let mut missing = 0;
    print(&format!("{}: {} rows of {}", source.display(), stored.len(), stored.on));
    for name in &args.targets {
        let (kernels, pyramids) = kernels(args, name, &cost)?;
        let progress = Progress::new(kernels.len() as u64, name);
        let mut filled = measuring::fill(
            (&kernels, precision),
            &[&stored],
            &stored.on,
            &mut Nobody,
            &mut |_| Ok(()),
            &progress,
        )?;
        progress.finish();
        let lacking = filled.skipped.len();
        let fused = measuring::known(&pyramids, precision, &[&stored], &stored.on);
        filled.table.merge(&fused);
        // A size that is missing is an option less, and no more.
        let mut source =
            micro::Source { known: &[&stored], on: &stored.on, timer: &mut Nobody, keep: &mut |_| Ok(()) };
        fill_micro_batches(args, (&kernels, precision), &mut source, &mut filled)?;
        print(&format!("{name}: {} kernels, {} rows, {lacking} missing", kernels.len(), filled.table.len()));
        for kernel in &kernels {
            print(&format!("  {}", line(kernel, precision, &filled.table)));
        }
        for pyramid in fused.kernels() {
            let (op, inputs, outputs) =
                (pyramid.op.clone(), pyramid.inputs.to_vec(), pyramid.outputs.to_vec());
            print(&format!("  {}", line(&Kernel { op, inputs, outputs }, precision, &filled.table)));
        }
        under_limit(args, &kernels, &cost, &filled.table);
        missing += lacking;
        table.merge(&filled.table);
    }
    if let Some(output) = &args.output {
        write(output, &table)?;
    }
    if missing > 0 {
        return Err(Failure::user(format!("{}: times of {missing} kernels are missing", source.display()))
            .hint("measure them with `vdnnc profile` on that GPU, and --import or --replay the result"));
    }
    Ok(())
}

/// One kernel of the report: how many ways, how many run, and the fastest.
fn line(kernel: &Kernel, precision: Precision, table: &Measured) -> String {
    let (inputs, outputs) = kernel.types();
    let what = kernel.describe();
    let Some(rows) = table.rows(&kernel.op, &inputs, &outputs, precision) else {
        return format!("missing  {what}");
    };
    let best =
        rows.iter().filter_map(|r| Some((r.time?, r))).min_by_key(|(time, row)| (*time, row.workspace));
    match best {
        Some((time, row)) => {
            let algo = row.algo.map(|a| format!(" by {a} with {}", row.workspace)).unwrap_or_default();
            format!("{:>2} rows  {what}: {time}{algo}", rows.len())
        }
        None => format!("{:>2} rows  {what}: none runs", rows.len()),
    }
}

fn write(path: &Path, table: &Measured) -> Result<(), Failure> {
    write_atomic(path, |w| w.write_all(table.to_string().as_bytes()))
        .map_err(|e| Failure::user(format!("{}: {e}", path.display())))
}
