//! Compiled kernels on the device, and launches bound to them.

use super::compile::Compiler;
use super::source::{Kernel, Source};
use super::step::{Args, Step, THREADS};
use crate::cuda::device::DeviceFacts;
use crate::cuda::error::CudaError;
use crate::cuda::launch::Prepared;
use cudarc::driver::sys::{self, CUfunction, CUmodule, CUstream};
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::fmt;
use std::path::PathBuf;
use std::rc::Rc;

/// Most arguments of a kernel.
const MAX_ARGS: usize = 24;

/// Dynamic shared memory that every function may have.
const USUAL_SHARED: u32 = 48 << 10;

/// Compiled kernels of the current context, compiled and loaded when first asked for.
#[derive(Debug)]
pub(crate) struct Modules {
    compiler: Compiler,
    processors: u32,
    /// By source and instantiating line.
    loaded: BTreeMap<(Source, String), Rc<Module>>,
}

impl Modules {
    /// Nothing compiled yet; compiled code is kept in `cache_dir`.
    ///
    /// # Errors
    /// If there is no NVRTC.
    pub(crate) fn new(device: &DeviceFacts, cache_dir: Option<PathBuf>) -> Result<Self, CudaError> {
        let compiler = Compiler::new(device.compute_capability, cache_dir)?;
        Ok(Self { compiler, processors: device.multiprocessors, loaded: BTreeMap::new() })
    }

    pub(super) fn processors(&self) -> u32 {
        self.processors
    }

    /// Binds launches to loaded kernels.
    pub(super) fn bind(&mut self, steps: Vec<Step>) -> Result<Launches, CudaError> {
        steps.into_iter().map(|step| self.bind_one(step)).collect::<Result<_, _>>().map(Launches)
    }

    fn bind_one(&mut self, step: Step) -> Result<Launch, CudaError> {
        let Step { kernel, grid, block, shared, args } = step;
        if args.all().count() > MAX_ARGS {
            let why = format!("more than {MAX_ARGS} arguments");
            return Err(CudaError::Unsupported { op: kernel.name, why });
        }
        let module = self.module(&kernel)?;
        let function = module.function(&kernel.name)?;
        if (block, shared) != (THREADS, 0) {
            has_room(function, block, shared)
                .map_err(|why| CudaError::Unsupported { op: kernel.name.clone(), why })?;
        }
        Ok(Launch { function, grid, block, shared, args, name: kernel.name, _module: module })
    }

    fn module(&mut self, kernel: &Kernel) -> Result<Rc<Module>, CudaError> {
        let key = (kernel.source, kernel.line.clone());
        if let Some(module) = self.loaded.get(&key) {
            return Ok(Rc::clone(module));
        }
        let module = Rc::new(Module::load(&self.compiler.cubin(kernel)?)?);
        self.loaded.insert(key, Rc::clone(&module));
        Ok(module)
    }
}

/// Loaded code; unloaded with the last launch that uses it.
#[derive(Debug)]
struct Module(CUmodule);

impl Module {
    #[expect(unsafe_code, reason = "calls the driver")]
    fn load(cubin: &[u8]) -> Result<Self, CudaError> {
        let mut module = std::ptr::null_mut();
        // SAFETY: a cubin describes its own length; the driver copies it.
        let status = unsafe { sys::cuModuleLoadData(&raw mut module, cubin.as_ptr().cast()) };
        CudaError::check("cuModuleLoadData", status)?;
        Ok(Self(module))
    }

    #[expect(unsafe_code, reason = "calls the driver")]
    fn function(&self, name: &str) -> Result<CUfunction, CudaError> {
        let name = CString::new(name).unwrap_or_default();
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded and the name ends in zero.
        let status = unsafe { sys::cuModuleGetFunction(&raw mut function, self.0, name.as_ptr()) };
        CudaError::check("cuModuleGetFunction", status)?;
        // Else lazy loading would load it at the first launch, perhaps during stream capture.
        // SAFETY: the function was just found.
        CudaError::check("cuFuncLoad", unsafe { sys::cuFuncLoad(function) })?;
        Ok(function)
    }
}

impl Drop for Module {
    #[expect(unsafe_code, reason = "calls the driver")]
    fn drop(&mut self) {
        // SAFETY: no launch refers to the module any more. An error (the context is gone) frees
        // nothing that is left.
        let _ = unsafe { sys::cuModuleUnload(self.0) };
    }
}

/// Whether a multiprocessor has room for a block of so many threads with so much dynamic shared memory,
/// which the function is allowed; says why if it has not.
#[expect(unsafe_code, reason = "calls the driver")]
fn has_room(function: CUfunction, threads: u32, shared: u32) -> Result<(), String> {
    use sys::CUfunction_attribute as Attribute;
    let mut most = 0;
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK;
    // SAFETY: the function is of a loaded module; `most` is writable.
    let status = unsafe { sys::cuFuncGetAttribute(&raw mut most, attribute, function) };
    CudaError::check("cuFuncGetAttribute", status).map_err(|e| e.to_string())?;
    if i64::from(threads) > i64::from(most) {
        return Err(format!("a block of {threads} threads, and its registers leave room for {most}"));
    }
    let mut fixed = 0;
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
    // SAFETY: as above, of `fixed`.
    let status = unsafe { sys::cuFuncGetAttribute(&raw mut fixed, attribute, function) };
    CudaError::check("cuFuncGetAttribute", status).map_err(|e| e.to_string())?;
    // What the function has by itself counts, too.
    if i64::from(shared) + i64::from(fixed) <= i64::from(USUAL_SHARED) {
        return Ok(());
    }
    let why = || format!("{shared} bytes of shared memory are more than a block has here");
    let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let value = i32::try_from(shared).map_err(|_| why())?;
    // SAFETY: as above; the call changes a limit of the function and no more.
    let status = unsafe { sys::cuFuncSetAttribute(function, attribute, value) };
    CudaError::check("cuFuncSetAttribute", status).map_err(|_| why())
}

/// Launches in order.
#[derive(Debug)]
pub(super) struct Launches(Vec<Launch>);

impl Prepared for Launches {
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError> {
        self.0.iter().try_for_each(|launch| launch.enqueue(stream))
    }
}

/// A kernel with its grid and arguments.
struct Launch {
    function: CUfunction,
    grid: [u32; 3],
    block: u32,
    shared: u32,
    args: Args,
    name: String,
    _module: Rc<Module>,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}<<<{:?}, {}>>>", self.name, self.grid, self.block)
    }
}

impl Launch {
    #[expect(unsafe_code, reason = "calls the driver")]
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError> {
        let mut pointers = [std::ptr::null_mut::<c_void>(); MAX_ARGS];
        debug_assert!(self.args.all().count() <= MAX_ARGS);
        for (to, words) in pointers.iter_mut().zip(self.args.all()) {
            *to = words.as_ptr().cast_mut().cast();
        }
        let [x, y, z] = self.grid;
        // SAFETY: the planning of each op gives its kernel as many arguments as it has, of the
        // right sizes, addresses of live operands, and indices within them; the driver copies
        // the arguments before it returns. Under compute-sanitizer the tests check the rest.
        let status = unsafe {
            sys::cuLaunchKernel(
                self.function,
                x,
                y,
                z,
                self.block,
                1,
                1,
                self.shared,
                stream,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        CudaError::check("cuLaunchKernel", status)
    }
}
