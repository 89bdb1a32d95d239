//! What can go wrong on a GPU.

use std::path::PathBuf;
use vdnn_ir::Bytes;

/// Why something on a GPU failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CudaError {
    /// A library is not on this machine.
    #[error("{library} was not found; looked in: {}", list(tried))]
    MissingLibrary {
        /// What is missing.
        library: String,
        /// Where it was looked for, in order.
        tried: Vec<String>,
    },
    /// A call of the driver failed.
    #[error("{call}: {text}")]
    Driver {
        /// The function.
        call: &'static str,
        /// What the driver says.
        text: String,
    },
    /// A call of cuDNN failed.
    #[error("{call}: {text}")]
    Cudnn {
        /// The function.
        call: &'static str,
        /// What cuDNN says.
        text: String,
    },
    /// A call of cuBLASLt failed.
    #[error("{call}: {text}")]
    Blas {
        /// The function.
        call: &'static str,
        /// What the library says.
        text: String,
    },
    /// NVRTC refuses a kernel source.
    #[error("cannot compile {}:\n{log}", r#source)]
    Compile {
        /// Name of the source and its options.
        r#source: String,
        /// The compiler's log.
        log: String,
    },
    /// There is no kernel for an op, type or shape.
    #[error("no CUDA kernel for {op}: {why}")]
    Unsupported {
        /// The op, in text form.
        op: String,
        /// What is missing.
        why: String,
    },
    /// The device or the pinned host memory is too small.
    #[error(
        "cannot allocate {bytes} for {what}{}; lower --memory or the batch",
        free.map(|f| format!(" ({f} free)")).unwrap_or_default()
    )]
    OutOfMemory {
        /// What it was for.
        what: String,
        /// Its size.
        bytes: Bytes,
        /// What was free, if known.
        free: Option<Bytes>,
    },
    /// The plan does not suit this device or these libraries.
    #[error("{why}")]
    BadPlan {
        /// What does not suit.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {why}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        why: String,
    },
}

fn list(tried: &[String]) -> String {
    if tried.is_empty() { "nowhere".to_owned() } else { tried.join(", ") }
}

impl CudaError {
    /// The driver's `call` returned `status`; its name and description, or the number where
    /// the driver knows neither.
    pub(crate) fn driver(call: &'static str, status: cudarc::driver::sys::CUresult) -> Self {
        let error = cudarc::driver::result::DriverError(status);
        let text = |r: Result<&std::ffi::CStr, _>| r.ok().map(|s| s.to_string_lossy().into_owned());
        let name = text(error.error_name()).unwrap_or_else(|| format!("CUresult {}", status as u32));
        let text = match text(error.error_string()) {
            Some(words) => format!("{words} ({name})"),
            None => name,
        };
        Self::Driver { call, text }
    }

    /// The error of cudarc's checked calls as ours.
    pub(crate) fn of(call: &'static str) -> impl Fn(cudarc::driver::result::DriverError) -> Self {
        move |e| Self::driver(call, e.0)
    }

    /// `Ok` for success, else [`Self::driver`].
    pub(crate) fn check(call: &'static str, status: cudarc::driver::sys::CUresult) -> Result<(), Self> {
        match status {
            cudarc::driver::sys::CUresult::CUDA_SUCCESS => Ok(()),
            other => Err(Self::driver(call, other)),
        }
    }
}
