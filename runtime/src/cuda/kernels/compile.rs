//! NVRTC: kernels from their texts, kept on disk.

use super::source::{HEADERS, Kernel, Source};
use crate::cuda::error::CudaError;
use cudarc::nvrtc::sys::{self, nvrtcProgram, nvrtcResult};
use sha2::{Digest, Sha256};
use std::ffi::{CStr, CString};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// What tells a cache file of this format from others.
const MAGIC: &[u8; 8] = b"vdnncub1";

/// The run-time compiler for one kind of device, and the folder of what it compiled.
#[derive(Debug)]
pub(super) struct Compiler {
    capability: (u32, u32),
    version: (i32, i32),
    cache: Option<PathBuf>,
}

impl Compiler {
    /// A compiler for devices of this compute capability.
    ///
    /// # Errors
    /// If there is no NVRTC.
    pub(super) fn new(capability: (u32, u32), cache: Option<PathBuf>) -> Result<Self, CudaError> {
        if !present() {
            let tried = vec!["the loader's path (libnvrtc.so)".to_owned()];
            return Err(CudaError::MissingLibrary { library: "NVRTC".to_owned(), tried });
        }
        Ok(Self { capability, version: version()?, cache })
    }

    /// Machine code with the kernel, from the cache if it is there.
    pub(super) fn cubin(&self, kernel: &Kernel) -> Result<Vec<u8>, CudaError> {
        let options = self.options_of(kernel)?;
        let Some(cache) = &self.cache else {
            return Ok(compile(kernel, &options)?.0);
        };
        let path = cache.join(self.file_name(kernel, &options));
        if let Some(cubin) = read(&path) {
            return Ok(cubin);
        }
        let (cubin, _) = compile(kernel, &options)?;
        write(cache, &path, &cubin)?;
        Ok(cubin)
    }

    /// The options, for the kernel's own architecture if it has one.
    fn options_of(&self, kernel: &Kernel) -> Result<Vec<String>, CudaError> {
        let (major, minor) = self.capability;
        match kernel.target {
            None => {
                let mut options = options(&format!("sm_{major}{minor}"));
                if kernel.source == Source::Program {
                    options.iter_mut().filter(|o| *o == FUSED).for_each(|o| *o = UNFUSED.to_owned());
                }
                Ok(options)
            }
            Some(target) if target.strip_suffix('a') == Some(&format!("sm_{major}{minor}")) => {
                Ok(options(target))
            }
            Some(target) => Err(CudaError::Unsupported {
                op: kernel.source.name().to_owned(),
                why: format!("its instructions are those of {target}, and this is sm_{major}{minor}"),
            }),
        }
    }

    /// The cache file of a kernel: everything that decides its code is in the name.
    fn file_name(&self, kernel: &Kernel, options: &[String]) -> String {
        let mut hash = Sha256::new();
        // Every part with its length, so that no two lists of parts look alike.
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(kernel.text().as_bytes());
        for (name, text) in HEADERS {
            part(name.as_bytes());
            part(text.as_bytes());
        }
        for option in options {
            part(option.as_bytes());
        }
        part(&self.version.0.to_le_bytes());
        part(&self.version.1.to_le_bytes());
        let digest: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
        let stem = kernel.source.name().trim_end_matches(".cu");
        format!("{stem}-{digest}.cubin")
    }
}

/// A product and a sum may become one operation, rounded once. Programs of several ops round as
/// the ops would.
const FUSED: &str = "--fmad=true";
const UNFUSED: &str = "--fmad=false";

/// Strict arithmetic: correctly rounded division and square root, no flush to zero; a product
/// and a sum may become one fused operation.
pub(super) fn options(architecture: &str) -> Vec<String> {
    let arch = format!("--gpu-architecture={architecture}");
    [&arch, "-default-device", "--std=c++17", FUSED, "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]
        .map(str::to_owned)
        .to_vec()
}

/// True if NVRTC can be loaded.
#[expect(unsafe_code, reason = "loads a shared library")]
pub(super) fn present() -> bool {
    // SAFETY: the initialisers of NVIDIA's compiler have no preconditions.
    unsafe { sys::is_culib_present() }
}

fn check(call: &'static str, status: nvrtcResult) -> Result<(), CudaError> {
    if status == nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Compile { source: call.to_owned(), log: format!("{status:?}") })
}

#[expect(unsafe_code, reason = "calls NVRTC")]
fn version() -> Result<(i32, i32), CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are writable.
    check("nvrtcVersion", unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) })?;
    Ok((major, minor))
}

/// An NVRTC program, destroyed with this.
struct Program(nvrtcProgram);

impl Drop for Program {
    #[expect(unsafe_code, reason = "calls NVRTC")]
    fn drop(&mut self) {
        // SAFETY: the program was created by `compile` and is not used again.
        let _ = unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

fn c_string(text: &str) -> Result<CString, CudaError> {
    CString::new(text).map_err(|_| CudaError::Compile {
        source: "a kernel".to_owned(),
        log: "zero byte in a text".to_owned(),
    })
}

/// Compiles a kernel to machine code; also returns the compiler's log.
///
/// # Errors
/// [`CudaError::Compile`] with the log.
#[expect(unsafe_code, reason = "calls NVRTC")]
pub(super) fn compile(kernel: &Kernel, options: &[String]) -> Result<(Vec<u8>, String), CudaError> {
    let text = c_string(&kernel.text())?;
    let name = c_string(kernel.source.name())?;
    let headers = HEADERS.iter().map(|h| c_string(h.1)).collect::<Result<Vec<_>, _>>()?;
    let names = HEADERS.iter().map(|h| c_string(h.0)).collect::<Result<Vec<_>, _>>()?;
    let options = options.iter().map(|o| c_string(o)).collect::<Result<Vec<_>, _>>()?;
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
    let (headers_at, names_at, options_at) = (pointers(&headers), pointers(&names), pointers(&options));
    let mut raw: nvrtcProgram = std::ptr::null_mut();
    // SAFETY: all strings end in zero and outlive the call, which copies them.
    check("nvrtcCreateProgram", unsafe {
        sys::nvrtcCreateProgram(
            &raw mut raw,
            text.as_ptr(),
            name.as_ptr(),
            headers.len() as i32,
            headers_at.as_ptr(),
            names_at.as_ptr(),
        )
    })?;
    let program = Program(raw);
    // SAFETY: as above.
    let status = unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options_at.as_ptr()) };
    let mut size = 0;
    // SAFETY: `size` is writable.
    check("nvrtcGetProgramLogSize", unsafe { sys::nvrtcGetProgramLogSize(program.0, &raw mut size) })?;
    let mut log = vec![0u8; size.max(1)];
    // SAFETY: the log has `size` bytes.
    check("nvrtcGetProgramLog", unsafe { sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()) })?;
    let log = CStr::from_bytes_until_nul(&log).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    if status != nvrtcResult::NVRTC_SUCCESS {
        let source = format!("{} of {} ({status:?})", kernel.name, kernel.source.name());
        return Err(CudaError::Compile { source, log });
    }
    // SAFETY: `size` is writable.
    check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) })?;
    let mut cubin = vec![0u8; size];
    // SAFETY: the code has `size` bytes.
    check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) })?;
    Ok((cubin, log))
}

/// The code in a cache file; `None` if there is none or it is damaged.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (digest, cubin) = bytes.strip_prefix(MAGIC)?.split_at_checked(32)?;
    (Sha256::digest(cubin).as_slice() == digest).then(|| cubin.to_vec())
}

/// Writes a cache file under a name of its own first, so that no reader sees half of it.
fn write(folder: &Path, path: &Path, cubin: &[u8]) -> Result<(), CudaError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&Sha256::digest(cubin));
    bytes.extend_from_slice(cubin);
    let unique = format!("{}-{}.tmp", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let temporary = folder.join(unique);
    let result = fs::create_dir_all(folder)
        .and_then(|()| fs::write(&temporary, bytes))
        .and_then(|()| fs::rename(&temporary, path));
    result.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        CudaError::Io { path: path.to_owned(), why: e.to_string() }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_cache_files_are_not_read() {
        let folder = std::env::temp_dir().join(format!("vdnn-cubin-{}", std::process::id()));
        let path = folder.join("a.cubin");
        write(&folder, &path, b"code").unwrap();
        assert_eq!(read(&path).as_deref(), Some(b"code".as_slice()));
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(read(&path), None);
        fs::write(&path, &bytes[..20]).unwrap();
        assert_eq!(read(&path), None);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "temporary files are gone");
        fs::remove_dir_all(&folder).unwrap();
    }
}
