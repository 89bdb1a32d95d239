//! `vdnnc devices`.

use crate::cli::DevicesArgs;
use crate::error::Failure;
use serde_json::{Value, json};
use vdnn_runtime::cuda::libs::{self, Library, LibrarySearch, Loaded};
use vdnn_runtime::cuda::{CudaError, DeviceFacts, device};

/// Runs the command. What is missing is an answer, not a failure.
///
/// # Errors
/// Never.
pub fn run(args: &DevicesArgs) -> Result<(), Failure> {
    let search = LibrarySearch::from_environment(&args.cuda_libs);
    let libraries: Vec<(Library, Result<Loaded, CudaError>)> =
        Library::ALL.into_iter().map(|l| (l, libs::load(l, &search))).collect();
    let devices = match &libraries[0].1 {
        Ok(_) => device::list(),
        Err(e) => Err(e.clone()),
    };
    super::print(&if args.json {
        as_json(&libraries, &devices).to_string()
    } else {
        text(&libraries, &devices)
    });
    Ok(())
}

type Libraries = [(Library, Result<Loaded, CudaError>)];

fn text(libraries: &Libraries, devices: &Result<Vec<DeviceFacts>, CudaError>) -> String {
    let mut out = String::new();
    match devices {
        Ok(all) if all.is_empty() => out.push_str("no CUDA GPU\n"),
        Ok(all) => {
            for (i, d) in all.iter().enumerate() {
                let (major, minor) = d.compute_capability;
                out.push_str(&format!(
                    "cuda:{i}  {}  {}\n        sm_{major}{minor}, {} multiprocessors, memory {}, L2 {}\n",
                    d.name, d.uuid, d.multiprocessors, d.total_memory, d.l2
                ));
            }
        }
        Err(e) => out.push_str(&format!("no CUDA GPU: {e}\n")),
    }
    out.push_str("libraries\n");
    for (library, found) in libraries {
        let line = match found {
            Ok(l) => {
                let path =
                    l.path.as_ref().map_or_else(|| "unknown file".to_owned(), |p| p.display().to_string());
                format!("{}  {path}", l.version)
            }
            Err(CudaError::MissingLibrary { tried, .. }) => {
                format!("{} not found; looked in: {}", library.soname(), tried.join(", "))
            }
            Err(e) => e.to_string(),
        };
        out.push_str(&format!("  {:<14} {line}\n", library.name()));
    }
    out
}

fn as_json(libraries: &Libraries, devices: &Result<Vec<DeviceFacts>, CudaError>) -> Value {
    let list = |d: &DeviceFacts| {
        json!({
            "name": d.name, "uuid": d.uuid, "compute_capability": [d.compute_capability.0, d.compute_capability.1],
            "multiprocessors": d.multiprocessors, "memory_bytes": d.total_memory.0, "l2_bytes": d.l2.0,
            "driver_version": d.driver_version,
        })
    };
    let found: Vec<Value> = libraries
        .iter()
        .map(|(library, found)| match found {
            Ok(l) => json!({"name": library.name(), "version": l.version, "path": l.path}),
            Err(e) => json!({"name": library.name(), "error": e.to_string()}),
        })
        .collect();
    let (all, error) = match devices {
        Ok(all) => (all.iter().map(list).collect(), None),
        Err(e) => (Vec::new(), Some(e.to_string())),
    };
    json!({"devices": all, "error": error, "libraries": found})
}
