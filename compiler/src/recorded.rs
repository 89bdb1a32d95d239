//! The options that a plan carries ([`vdnn_plan::Header::options`]), so that it can be made anew as
//! it was made: as `NAME=VALUE`, by their names on the command line. Policy, algorithms, batch and
//! precision are items of a plan's header of their own, and its memory is that of its arenas.

use crate::cli;
use crate::error::Failure;
use crate::options::CompileOptions;
use std::fmt::Display;
use std::str::FromStr;
use vdnn_ir::Bytes;
use vdnn_passes::Workspace;

/// What a plan made with these options carries.
pub fn of(options: &CompileOptions) -> Vec<String> {
    let mut all = Vec::new();
    let mut add = |name: &str, value: &dyn Display| all.push(format!("{name}={value}"));
    add("sync", &options.sync);
    add("pack-offload", &options.packing);
    add("deterministic", &options.deterministic);
    add("fuse", &options.fuse);
    add("fuse-depth", &options.fuse_depth);
    add("recompute", &options.recompute);
    add("micro-batch-regions", &options.slices);
    add("micro-batch", &options.micro_batch);
    add("streams", &options.streams);
    match options.workspace {
        Workspace::Planned => {}
        Workspace::Limit(Bytes(limit)) => add("workspace-limit", &limit),
        Workspace::Total(Bytes(total)) => add("workspace-total", &total),
    }
    add("sparse", &options.sparse.mode);
    add("dead-tolerance", &options.sparse.dead_tolerance);
    add("keep-zeros", &options.sparse.keep_zeros);
    add("keep-gradients", &options.keep_gradients);
    add("elide-waits", &options.elide_waits);
    add("elide-copies", &options.elide_copies);
    for (name, extent) in &options.dims {
        add("dim", &format_args!("{name}={extent}"));
    }
    all
}

/// Puts what a plan carries into the options that it is to be made anew with; others stay as they
/// are, and all of a plan that carries none.
///
/// # Errors
/// If there is no such option or value.
pub fn restore(recorded: &[String], options: &mut CompileOptions) -> Result<(), Failure> {
    if recorded.is_empty() {
        return Ok(());
    }
    options.workspace = Workspace::Planned;
    for option in recorded {
        put(option, options).ok_or_else(|| {
            Failure::user(format!("the plan was made with `{option}`, which is no option here"))
                .hint("compile its model again")
        })?;
    }
    Ok(())
}

fn put(option: &str, options: &mut CompileOptions) -> Option<()> {
    fn set<T: FromStr>(slot: &mut T, value: &str) -> Option<()> {
        *slot = value.parse().ok()?;
        Some(())
    }
    // What the command line bounds is bounded here: plans come from elsewhere.
    fn given<T>(slot: &mut T, value: Result<T, String>) -> Option<()> {
        *slot = value.ok()?;
        Some(())
    }
    let (name, value) = option.split_once('=')?;
    match name {
        "sync" => set(&mut options.sync, value),
        "pack-offload" => set(&mut options.packing, value),
        "deterministic" => set(&mut options.deterministic, value),
        "fuse" => set(&mut options.fuse, value),
        "fuse-depth" => given(&mut options.fuse_depth, cli::parse_depth(value)),
        "recompute" => set(&mut options.recompute, value),
        "micro-batch-regions" => set(&mut options.slices, value),
        "micro-batch" => set(&mut options.micro_batch, value),
        "streams" => set(&mut options.streams, value),
        "workspace-limit" => {
            options.workspace = Workspace::Limit(Bytes(value.parse().ok()?));
            Some(())
        }
        "workspace-total" => {
            options.workspace = Workspace::Total(Bytes(value.parse().ok()?));
            Some(())
        }
        "sparse" => set(&mut options.sparse.mode, value),
        "dead-tolerance" => given(&mut options.sparse.dead_tolerance, cli::parse_tolerance(value)),
        "keep-zeros" => set(&mut options.sparse.keep_zeros, value),
        "keep-gradients" => set(&mut options.keep_gradients, value),
        "elide-waits" => set(&mut options.elide_waits, value),
        "elide-copies" => set(&mut options.elide_copies, value),
        "dim" => {
            let (name, extent) = dim(value)?;
            options.dims.insert(name, extent);
            Some(())
        }
        _ => None,
    }
}

/// The extents of symbolic dimensions that a plan was made for.
pub fn dims(recorded: &[String]) -> std::collections::BTreeMap<String, u64> {
    recorded.iter().filter_map(|option| dim(option.strip_prefix("dim=")?)).collect()
}

/// `NAME=N`; the name may have any characters.
fn dim(text: &str) -> Option<(String, u64)> {
    let (name, extent) = text.rsplit_once('=')?;
    let extent = extent.parse().ok().filter(|&n: &u64| n > 0 && !name.is_empty())?;
    Some((name.to_owned(), extent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::SharedArgs;
    use clap::Parser;
    use vdnn_ir::Mode;

    #[derive(Parser)]
    struct Given {
        #[command(flatten)]
        shared: SharedArgs,
    }

    fn given(words: &str) -> CompileOptions {
        let words = std::iter::once("x").chain(words.split_whitespace());
        Given::try_parse_from(words).expect("options").shared.options(Mode::Train)
    }

    #[test]
    fn what_a_plan_was_made_with_comes_back() {
        for words in [
            "--sync layer --pack-offload auto --deterministic --fuse all --fuse-depth 5 --recompute auto \
             --micro-batch-regions 3 --micro-batch all --streams auto --workspace-limit 5MiB --sparse force=csr \
             --dead-tolerance 1e-7 --keep-zeros --keep-gradients --no-elide waits --dim a=3 --dim b=4",
            "--micro-batch-regions on --workspace-total 7MiB --fuse epilogue --no-elide copies",
            "",
        ] {
            let made = given(words);
            for others in [
                "",
                "--fuse pyramid --recompute cheap --workspace-limit 1MiB --micro-batch power-of-two --streams 3",
            ] {
                let mut anew = given(others);
                restore(&of(&made), &mut anew).expect("they are options");
                assert_eq!(format!("{anew:?}"), format!("{made:?}"), "{words}");
            }
            assert_eq!(dims(&of(&made)), made.dims);
        }
    }

    #[test]
    fn plans_that_carry_none_leave_the_options_and_unknown_ones_are_named() {
        let mut options = given("--fuse pyramid --workspace-limit 1MiB");
        let before = format!("{options:?}");
        restore(&[], &mut options).expect("nothing");
        assert_eq!(format!("{options:?}"), before);
        for wrong in [
            "fuse",
            "fuse=much",
            "fuse-depth=0",
            "fuse-depth=9",
            "dead-tolerance=NaN",
            "dead-tolerance=-1",
            "color=red",
            "dim=a",
            "dim=a=0",
            "dim==1",
            "workspace-limit=-1",
            "",
        ] {
            let failure = restore(&[wrong.to_owned()], &mut options).expect_err(wrong);
            assert!(failure.message.contains(&format!("`{wrong}`")), "{failure}");
        }
    }
}
