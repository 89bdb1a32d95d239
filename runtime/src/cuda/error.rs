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
    /// The host does not give so much page-locked memory.
    #[error(
        "cannot pin {bytes} ({} bytes) of host memory for {what}: {text}; lower --host-memory, raise --memory so that \
         less is offloaded, use a smaller batch, or close what holds the host's memory", .bytes.0
    )]
    CannotPin {
        /// What it was for.
        what: String,
        /// Its size.
        bytes: Bytes,
        /// What the driver says.
        text: String,
    },
    /// The device's memory is too small.
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
        let mut text = match text(error.error_string()) {
            Some(words) => format!("{words} ({name})"),
            None => name,
        };
        if let Some(advice) = advice(status) {
            text = format!("{text}; {advice}");
        }
        Self::Driver { call, text }
    }

    /// What the driver says, if it is the driver's.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Driver { text, .. } => text.clone(),
            other => other.to_string(),
        }
    }

    /// The error of cudarc's checked calls as ours.
    pub(crate) fn of(call: &'static str) -> impl Fn(cudarc::driver::result::DriverError) -> Self {
        move |e| Self::driver(call, e.0)
    }

    /// True for what the driver reports at whatever call comes next, although an earlier
    /// kernel or copy caused it.
    pub(crate) fn is_late(&self) -> bool {
        const LATE: [&str; 8] = [
            "ILLEGAL_ADDRESS",
            "LAUNCH_FAILED",
            "LAUNCH_TIMEOUT",
            "ILLEGAL_INSTRUCTION",
            "MISALIGNED_ADDRESS",
            "INVALID_ADDRESS_SPACE",
            "HARDWARE_STACK_ERROR",
            "ECC_UNCORRECTABLE",
        ];
        matches!(self, Self::Driver { text, .. } if LATE.iter().any(|name| text.contains(name)))
    }

    /// `Ok` for success, else [`Self::driver`].
    pub(crate) fn check(call: &'static str, status: cudarc::driver::sys::CUresult) -> Result<(), Self> {
        match status {
            cudarc::driver::sys::CUresult::CUDA_SUCCESS => Ok(()),
            other => Err(Self::driver(call, other)),
        }
    }
}

/// What to do about a failure that is not the plan's.
fn advice(status: cudarc::driver::sys::CUresult) -> Option<&'static str> {
    use cudarc::driver::sys::CUresult as R;
    match status {
        R::CUDA_ERROR_OUT_OF_MEMORY => {
            Some("the driver needs device memory of its own; lower --memory, or end other processes there")
        }
        R::CUDA_ERROR_DEVICE_UNAVAILABLE
        | R::CUDA_ERROR_ECC_UNCORRECTABLE
        | R::CUDA_ERROR_HARDWARE_STACK_ERROR
        | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
        | R::CUDA_ERROR_SYSTEM_NOT_READY => {
            Some("the device is lost to this process; run again, and look at nvidia-smi if it stays so")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_earlier_work_are_told_from_those_of_the_call() {
        let driver = |text: &str| CudaError::Driver { call: "cuLaunchKernel", text: text.to_owned() };
        assert!(driver("an illegal memory access was encountered (CUDA_ERROR_ILLEGAL_ADDRESS)").is_late());
        assert!(!driver("invalid argument (CUDA_ERROR_INVALID_VALUE)").is_late());
        assert!(!CudaError::BadPlan { why: "ILLEGAL_ADDRESS".to_owned() }.is_late());
    }

    #[test]
    fn a_lost_device_and_a_full_one_come_with_advice() {
        use cudarc::driver::sys::CUresult as R;
        assert!(advice(R::CUDA_ERROR_ECC_UNCORRECTABLE).is_some_and(|a| a.contains("nvidia-smi")));
        assert!(advice(R::CUDA_ERROR_OUT_OF_MEMORY).is_some_and(|a| a.contains("--memory")));
        assert_eq!(advice(R::CUDA_ERROR_INVALID_VALUE), None);
    }

    #[test]
    fn pinning_less_needs_more_of_the_device() {
        let what = "the plan's pinned host arena".to_owned();
        let error = CudaError::CannotPin { what, bytes: Bytes(3 << 30), text: "no".to_owned() };
        let text = error.to_string();
        assert!(text.contains("3.00GiB (3221225472 bytes)") && text.contains("host arena"), "{text}");
        assert!(text.contains("raise --memory") && text.contains("lower --host-memory"), "{text}");
    }

    #[test]
    fn messages_say_what_and_where() {
        let missing =
            CudaError::MissingLibrary { library: "cuDNN".into(), tried: vec!["/a".into(), "/b".into()] };
        assert_eq!(missing.to_string(), "cuDNN was not found; looked in: /a, /b");
        let full =
            CudaError::OutOfMemory { what: "it".into(), bytes: Bytes(2 << 30), free: Some(Bytes(1 << 30)) };
        let text = full.to_string();
        assert!(
            text.contains("2.00GiB") && text.contains("1.00GiB free") && text.contains("--memory"),
            "{text}"
        );
    }
}
