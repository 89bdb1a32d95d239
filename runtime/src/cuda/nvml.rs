//! The energy counter of a device, by NVIDIA's management library (NVML), which comes with the
//! driver.

use super::device::Device;
use super::error::CudaError;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_ulonglong, c_void};
use std::path::{Path, PathBuf};

/// Its file name on Linux.
const SONAME: &str = "libnvidia-ml.so.1";

/// `nvmlReturn_t`; 0 is success.
type Status = c_int;
/// `nvmlDevice_t`.
type Handle = *mut c_void;

type Find = unsafe extern "C" fn(*const c_char, *mut Handle) -> Status;

/// One device as NVML sees it.
pub(super) struct Nvml {
    handle: Handle,
    energy: unsafe extern "C" fn(Handle, *mut c_ulonglong) -> Status,
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    shutdown: unsafe extern "C" fn() -> Status,
    /// Last: the functions are its.
    _library: Library,
}

impl std::fmt::Debug for Nvml {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvml").finish_non_exhaustive()
    }
}

/// The library by its name, or beside the driver's own file, as some containers have it.
#[expect(unsafe_code, reason = "loading a library runs its initialisers")]
fn load(driver: Option<&Path>) -> Result<Library, CudaError> {
    let beside = driver.and_then(Path::parent).map(|folder| folder.join(SONAME));
    let names: Vec<PathBuf> = [Some(PathBuf::from(SONAME)), beside].into_iter().flatten().collect();
    // SAFETY: NVML's initialisers ask nothing of the caller.
    let found = names.iter().find_map(|name| unsafe { Library::new(name) }.ok());
    found.ok_or_else(|| CudaError::MissingLibrary {
        library: format!("NVML ({SONAME}), which counts energy,"),
        tried: names.iter().map(|n| n.display().to_string()).collect(),
    })
}

#[expect(unsafe_code, reason = "takes a function out of a shared library")]
fn symbol<F: Copy>(library: &Library, name: &'static str) -> Result<F, CudaError> {
    // SAFETY: `F` is the C signature of `name` in nvml.h, enumerations being C ints.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|f| *f).map_err(|e| CudaError::MissingLibrary {
        library: format!("`{name}` of NVML"),
        tried: vec![e.to_string()],
    })
}

impl Nvml {
    /// Finds the device of a context. `driver` is the file of the driver's library, if known.
    ///
    /// # Errors
    /// [`CudaError::MissingLibrary`] without NVML; [`CudaError::Driver`] if it does not know the
    /// device, or the device counts no energy.
    #[expect(unsafe_code, reason = "calls into NVML")]
    pub(super) fn open(device: &Device, driver: Option<&Path>) -> Result<Self, CudaError> {
        let library = load(driver)?;
        let init: unsafe extern "C" fn() -> Status = symbol(&library, "nvmlInit_v2")?;
        let by_uuid: Find = symbol(&library, "nvmlDeviceGetHandleByUUID")?;
        let by_bus: Find = symbol(&library, "nvmlDeviceGetHandleByPciBusId_v2")?;
        let mut this = Self {
            handle: std::ptr::null_mut(),
            energy: symbol(&library, "nvmlDeviceGetTotalEnergyConsumption")?,
            error_string: symbol(&library, "nvmlErrorString")?,
            shutdown: symbol(&library, "nvmlShutdown")?,
            _library: library,
        };
        // SAFETY: without arguments; `drop` balances it, which is allowed after a failure, too.
        this.check("nvmlInit", unsafe { init() })?;
        // The driver and NVML may count devices differently, but agree on their names.
        let names = [(by_uuid, Some(device.facts().uuid.clone())), (by_bus, device.pci_bus_id())];
        let mut last = Ok(());
        for (find, name) in names {
            let Some(name) = name.and_then(|n| CString::new(n).ok()) else { continue };
            // SAFETY: the string ends with zero, and the out pointer is valid.
            let status = unsafe { find(name.as_ptr(), &raw mut this.handle) };
            last = this.check("nvmlDeviceGetHandle", status);
            if last.is_ok() {
                this.energy_mj()?;
                return Ok(this);
            }
        }
        last.and(Err(CudaError::Driver { call: "nvmlDeviceGetHandle", text: "no name to ask for".into() }))
    }

    /// Energy in millijoules that the device has taken since the driver was loaded. The counter
    /// moves every 20 to 100 ms.
    ///
    /// # Errors
    /// If the device counts none, as those before Volta.
    #[expect(unsafe_code, reason = "calls into NVML")]
    pub(super) fn energy_mj(&self) -> Result<u64, CudaError> {
        let mut millijoules = 0;
        // SAFETY: the handle is NVML's, and the out pointer is valid.
        let status = unsafe { (self.energy)(self.handle, &raw mut millijoules) };
        self.check("nvmlDeviceGetTotalEnergyConsumption", status)?;
        Ok(millijoules)
    }

    #[expect(unsafe_code, reason = "calls into NVML")]
    fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: returns a constant string for any number.
        let text = unsafe { (self.error_string)(status) };
        let text = if text.is_null() {
            format!("status {status}")
        } else {
            // SAFETY: ends with zero and is never freed.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        Err(CudaError::Driver { call, text })
    }
}

impl Drop for Nvml {
    #[expect(unsafe_code, reason = "calls into NVML")]
    fn drop(&mut self) {
        // SAFETY: balances `nvmlInit`; the handle is not used again.
        let _ = unsafe { (self.shutdown)() };
    }
}
