//! Devices: listing them, choosing one, its context.

use super::error::CudaError;
use super::libs;
use cudarc::driver::{result, sys};
use std::fmt;
use std::str::FromStr;
use vdnn_ir::Bytes;

/// Oldest CUDA version a driver must support: that of the bindings.
const MIN_DRIVER: i32 = 13_000;

/// What a GPU says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceFacts {
    /// Marketing name.
    pub name: String,
    /// `GPU-` and a UUID in lower case.
    pub uuid: String,
    /// Major and minor, (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// All its memory.
    pub total_memory: Bytes,
    /// Second-level cache.
    pub l2: Bytes,
    /// Highest clock of the multiprocessors in MHz; 0 if the driver does not tell.
    pub clock_mhz: u32,
    /// Highest rate of the memory's interface: clock, both edges, width of the bus. 0 if the
    /// driver does not tell. Bytes per microsecond.
    pub memory_rate: u64,
    /// Newest CUDA version the driver supports: 1000 × major + 10 × minor.
    pub driver_version: i32,
}

/// Which device to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSelector {
    /// By its number among the devices the process may see.
    Ordinal(u32),
    /// By [`DeviceFacts::uuid`].
    Uuid(String),
}

impl Default for DeviceSelector {
    fn default() -> Self {
        Self::Ordinal(0)
    }
}

impl fmt::Display for DeviceSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordinal(n) => write!(f, "{n}"),
            Self::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

impl FromStr for DeviceSelector {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let lower = s.to_ascii_lowercase();
        let lower = lower.strip_prefix("cuda:").unwrap_or(&lower);
        if let Ok(n) = lower.parse() {
            return Ok(Self::Ordinal(n));
        }
        let digits = lower.strip_prefix("gpu-").unwrap_or(lower);
        let groups: Vec<usize> = digits.split('-').map(str::len).collect();
        if groups == [8, 4, 4, 4, 12] && digits.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit()) {
            return Ok(Self::Uuid(format!("GPU-{digits}")));
        }
        Err(format!("`{s}` is neither a device number nor a UUID such as `vdnnc devices` prints"))
    }
}

/// `GPU-` and the usual grouping of 16 bytes.
fn uuid_text(bytes: [u8; 16]) -> String {
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    format!("GPU-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Initialises the driver, which must be loaded.
fn initialise() -> Result<(), CudaError> {
    let version = libs::driver_version()?;
    if version < MIN_DRIVER {
        return Err(CudaError::BadPlan {
            why: format!(
                "the NVIDIA driver supports CUDA {}.{}, but {}.{} is needed; install a newer driver",
                version / 1000,
                version % 1000 / 10,
                MIN_DRIVER / 1000,
                MIN_DRIVER % 1000 / 10
            ),
        });
    }
    result::init().map_err(CudaError::of("cuInit"))
}

/// Every device, by its number. The driver must be loaded ([`libs::load`]).
///
/// # Errors
/// If the driver fails; a machine without a GPU makes `cuInit` fail.
pub fn list() -> Result<Vec<DeviceFacts>, CudaError> {
    initialise()?;
    let count = result::device::get_count().map_err(CudaError::of("cuDeviceGetCount"))?;
    (0..count).map(|i| facts(handle(i)?)).collect()
}

/// The number and facts of a device. Makes no context. The driver must be loaded.
///
/// # Errors
/// If the driver fails or there is no such device.
pub fn find(which: &DeviceSelector) -> Result<(i32, DeviceFacts), CudaError> {
    let mut all = list()?;
    let found = match which {
        DeviceSelector::Ordinal(n) => usize::try_from(*n).ok().filter(|n| *n < all.len()),
        DeviceSelector::Uuid(uuid) => all.iter().position(|f| f.uuid.eq_ignore_ascii_case(uuid)),
    };
    match found {
        Some(at) => Ok((at as i32, all.swap_remove(at))),
        None => {
            let known: Vec<String> =
                all.iter().enumerate().map(|(i, f)| format!("{i} ({}, {})", f.name, f.uuid)).collect();
            Err(CudaError::BadPlan {
                why: format!("no CUDA device {which}; there are: {}", known.join(", ")),
            })
        }
    }
}

fn handle(ordinal: i32) -> Result<sys::CUdevice, CudaError> {
    result::device::get(ordinal).map_err(CudaError::of("cuDeviceGet"))
}

#[expect(unsafe_code, reason = "asks the driver")]
fn facts(device: sys::CUdevice) -> Result<DeviceFacts, CudaError> {
    use sys::CUdevice_attribute_enum as A;
    let attribute = |which| {
        // SAFETY: `device` comes from the driver.
        unsafe { result::device::get_attribute(device, which) }
            .map(|v| u32::try_from(v).unwrap_or(0))
            .map_err(CudaError::of("cuDeviceGetAttribute"))
    };
    // What newer drivers stop telling is no reason to fail.
    let khz = |which| u64::from(attribute(which).unwrap_or(0));
    let bus = khz(A::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH) / 8;
    let uuid = result::device::get_uuid(device).map_err(CudaError::of("cuDeviceGetUuid"))?;
    // SAFETY: `device` comes from the driver.
    let total = unsafe { result::device::total_mem(device) }.map_err(CudaError::of("cuDeviceTotalMem"))?;
    Ok(DeviceFacts {
        name: result::device::get_name(device).map_err(CudaError::of("cuDeviceGetName"))?,
        uuid: uuid_text(uuid.bytes.map(|b| b as u8)),
        compute_capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        total_memory: Bytes(total as u64),
        l2: Bytes(u64::from(attribute(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?)),
        clock_mhz: u32::try_from(khz(A::CU_DEVICE_ATTRIBUTE_CLOCK_RATE) / 1000).unwrap_or(0),
        memory_rate: 2 * khz(A::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE) * bus / 1000,
        driver_version: libs::driver_version()?,
    })
}

/// A device with its primary context, current on the thread that opened it.
#[derive(Debug)]
pub struct Device {
    facts: DeviceFacts,
    handle: sys::CUdevice,
    context: sys::CUcontext,
    /// Free when the context had just been made.
    free_at_start: Bytes,
}

impl Device {
    /// Opens a device and makes its context current. The driver must be loaded.
    ///
    /// # Errors
    /// If there is no such device, or its context cannot be made.
    #[expect(unsafe_code, reason = "takes the primary context")]
    pub fn open(which: &DeviceSelector) -> Result<Self, CudaError> {
        let (ordinal, facts) = find(which)?;
        let handle = handle(ordinal)?;
        // SAFETY: `handle` comes from the driver; released in `drop`.
        let context = unsafe { result::primary_ctx::retain(handle) }
            .map_err(CudaError::of("cuDevicePrimaryCtxRetain"))?;
        let mut device = Self { facts, handle, context, free_at_start: Bytes::ZERO };
        device.make_current()?;
        device.free_at_start = device.memory()?.0;
        Ok(device)
    }

    /// What the device says about itself.
    pub fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    /// Where it is on the bus, such as `0000:4a:00.0`; `None` if the driver does not tell.
    #[expect(unsafe_code, reason = "asks the driver")]
    pub(super) fn pci_bus_id(&self) -> Option<String> {
        let mut text = [0u8; 32];
        // SAFETY: the buffer has the length given; the driver ends the text with a zero.
        let status =
            unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, self.handle) };
        CudaError::check("cuDeviceGetPCIBusId", status).ok()?;
        std::ffi::CStr::from_bytes_until_nul(&text).ok()?.to_str().ok().map(str::to_owned)
    }

    /// Makes the context current on this thread.
    ///
    /// # Errors
    /// If the driver refuses.
    #[expect(unsafe_code, reason = "sets the thread's context")]
    pub fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: retained in `open`, released only in `drop`.
        unsafe { result::ctx::set_current(self.context) }.map_err(CudaError::of("cuCtxSetCurrent"))
    }

    /// Free and total memory of the device, all processes counted.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn memory(&self) -> Result<(Bytes, Bytes), CudaError> {
        let (free, total) = result::mem_get_info().map_err(CudaError::of("cuMemGetInfo"))?;
        Ok((Bytes(free as u64), Bytes(total as u64)))
    }

    /// Device memory taken since the context was made, as the driver sees it. Other
    /// processes that allocate meanwhile are counted too; the context itself is not.
    ///
    /// # Errors
    /// If the driver fails.
    pub fn taken(&self) -> Result<Bytes, CudaError> {
        Ok(self.free_at_start.saturating_sub(self.memory()?.0))
    }

    /// Waits until the device has done everything that was queued in this context.
    ///
    /// # Errors
    /// The first failure of anything queued.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        result::ctx::synchronize().map_err(CudaError::of("cuCtxSynchronize"))
    }
}

impl Drop for Device {
    #[expect(unsafe_code, reason = "gives the primary context back")]
    fn drop(&mut self) {
        // SAFETY: retained in `open`. Everything made in the context is dropped before the
        // device by the order of the owner's fields. A failure leaves nothing to do.
        let _ = unsafe { result::primary_ctx::release(self.handle) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_by_number_or_uuid() {
        assert_eq!("1".parse(), Ok(DeviceSelector::Ordinal(1)));
        assert_eq!("cuda:3".parse(), Ok(DeviceSelector::Ordinal(3)));
        let uuid = uuid_text([0xab, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xff]);
        assert_eq!(uuid, "GPU-ab010203-0405-0607-0809-0a0b0c0d0eff");
        for text in
            [uuid.clone(), uuid.to_ascii_uppercase(), uuid["GPU-".len()..].to_owned(), format!("cuda:{uuid}")]
        {
            assert_eq!(text.parse(), Ok(DeviceSelector::Uuid(uuid.clone())), "{text}");
        }
        for text in
            ["", "-1", "gpu0", "cuda:", "cuda:x", "GPU-ab01", "GPU-zb010203-0405-0607-0809-0a0b0c0d0eff"]
        {
            assert!(text.parse::<DeviceSelector>().is_err(), "{text}");
        }
    }
}
