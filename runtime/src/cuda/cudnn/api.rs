//! The functions of cuDNN that are used, with plain integers for its enumerations.
//!
//! The symbols come out of the library that cudarc loads, but not with its signatures: those
//! take and return Rust enums, and a cuDNN newer than the bindings that answers with a value
//! they do not list would be undefined behaviour. Numbers are those of `cudnn_graph.h` and
//! `cudnn_ops.h`, which never change once released.

use crate::cuda::error::CudaError;
use cudarc::cudnn::sys;
use cudarc::driver::sys::CUstream;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::rc::Rc;

/// A `cudnnStatus_t`; 0 is success.
pub(super) type Status = c_int;
/// A `cudnnHandle_t`.
pub(super) type Handle = *mut c_void;
/// Any descriptor.
pub(super) type Raw = *mut c_void;

type Make = unsafe extern "C" fn(*mut Raw) -> Status;
type Drop1 = unsafe extern "C" fn(Raw) -> Status;
type SetNd = unsafe extern "C" fn(Raw, c_int, c_int, *const c_int, *const c_int) -> Status;
type SetFilter = unsafe extern "C" fn(Raw, c_int, c_int, c_int, *const c_int) -> Status;
type SetConv =
    unsafe extern "C" fn(Raw, c_int, *const c_int, *const c_int, *const c_int, c_int, c_int) -> Status;
type SetInt = unsafe extern "C" fn(Raw, c_int) -> Status;
type WorkspaceSize = unsafe extern "C" fn(Handle, Raw, Raw, Raw, Raw, c_int, *mut usize) -> Status;
/// All three directions: alpha, two operands, convolution, algorithm, workspace, beta, result.
type Convolve = unsafe extern "C" fn(
    Handle,
    *const c_void,
    Raw,
    *const c_void,
    Raw,
    *const c_void,
    Raw,
    c_int,
    *mut c_void,
    usize,
    *const c_void,
    Raw,
    *mut c_void,
) -> Status;

macro_rules! functions {
    ($($(#[$doc:meta])* $field:ident: $ty:ty = $symbol:literal;)*) => {
        /// Entry points, resolved once.
        #[derive(Clone, Copy)]
        pub(super) struct Api {
            $($(#[$doc])* pub(super) $field: $ty,)*
        }

        impl Api {
            /// Resolves every function.
            ///
            /// # Errors
            /// [`CudaError::MissingLibrary`] if cuDNN is not there or lacks one of them.
            pub(super) fn load() -> Result<Self, CudaError> {
                require_library()?;
                Ok(Self { $($field: symbol::<$ty>($symbol)?,)* })
            }
        }
    };
}

functions! {
    /// Version: 10000 x major + 100 x minor + patch.
    version: unsafe extern "C" fn() -> usize = "cudnnGetVersion";
    error_string: unsafe extern "C" fn(Status) -> *const c_char = "cudnnGetErrorString";
    last_error: unsafe extern "C" fn(*mut c_char, usize) = "cudnnGetLastErrorString";
    create: Make = "cudnnCreate";
    destroy: Drop1 = "cudnnDestroy";
    set_stream: unsafe extern "C" fn(Handle, CUstream) -> Status = "cudnnSetStream";
    desc_create: unsafe extern "C" fn(c_int, *mut Raw) -> Status = "cudnnBackendCreateDescriptor";
    desc_destroy: Drop1 = "cudnnBackendDestroyDescriptor";
    desc_finalize: Drop1 = "cudnnBackendFinalize";
    desc_set: unsafe extern "C" fn(Raw, c_int, c_int, i64, *const c_void) -> Status
        = "cudnnBackendSetAttribute";
    desc_get: unsafe extern "C" fn(Raw, c_int, c_int, i64, *mut i64, *mut c_void) -> Status
        = "cudnnBackendGetAttribute";
    execute: unsafe extern "C" fn(Handle, Raw, Raw) -> Status = "cudnnBackendExecute";
    tensor_create: Make = "cudnnCreateTensorDescriptor";
    tensor_destroy: Drop1 = "cudnnDestroyTensorDescriptor";
    tensor_set: SetNd = "cudnnSetTensorNdDescriptor";
    filter_create: Make = "cudnnCreateFilterDescriptor";
    filter_destroy: Drop1 = "cudnnDestroyFilterDescriptor";
    filter_set: SetFilter = "cudnnSetFilterNdDescriptor";
    conv_create: Make = "cudnnCreateConvolutionDescriptor";
    conv_destroy: Drop1 = "cudnnDestroyConvolutionDescriptor";
    conv_set: SetConv = "cudnnSetConvolutionNdDescriptor";
    conv_groups: SetInt = "cudnnSetConvolutionGroupCount";
    conv_math: SetInt = "cudnnSetConvolutionMathType";
    fprop: Convolve = "cudnnConvolutionForward";
    dgrad: Convolve = "cudnnConvolutionBackwardData";
    wgrad: Convolve = "cudnnConvolutionBackwardFilter";
    fprop_workspace: WorkspaceSize = "cudnnGetConvolutionForwardWorkspaceSize";
    dgrad_workspace: WorkspaceSize = "cudnnGetConvolutionBackwardDataWorkspaceSize";
    wgrad_workspace: WorkspaceSize = "cudnnGetConvolutionBackwardFilterWorkspaceSize";
}

#[expect(unsafe_code, reason = "asks the loader for a library")]
fn require_library() -> Result<(), CudaError> {
    // SAFETY: loading runs the initialisers of cuDNN, which ask nothing of the caller.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    Err(CudaError::MissingLibrary {
        library: "cuDNN 9".to_owned(),
        tried: cudarc::get_lib_name_candidates("cudnn"),
    })
}

#[expect(unsafe_code, reason = "takes a function out of a shared library")]
fn symbol<F: Copy>(name: &'static str) -> Result<F, CudaError> {
    // SAFETY: the library is present (`require_library`) and stays loaded to the end of the
    // process; `F` is the C signature of `name` in the header, enumerations being C ints.
    let found = unsafe { sys::culib().get::<F>(name.as_bytes()) };
    found.map(|f| *f).map_err(|e| CudaError::MissingLibrary {
        library: format!("cuDNN's {name}"),
        tried: vec![e.to_string()],
    })
}

/// cuDNN with one handle on the context that was current when it was made, or without a GPU.
pub(super) struct Session {
    pub(super) api: Api,
    /// Null without a GPU: such a session answers questions and executes nothing.
    pub(super) handle: Handle,
}

impl Session {
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    pub(super) fn new() -> Result<Rc<Self>, CudaError> {
        let mut session = Self { api: Api::load()?, handle: std::ptr::null_mut() };
        // SAFETY: the out pointer is valid.
        let status = unsafe { (session.api.create)(&raw mut session.handle) };
        session.check("cudnnCreate", status)?;
        Ok(Rc::new(session))
    }

    /// cuDNN without a GPU, for a device that a descriptor describes.
    #[cfg(test)]
    pub(super) fn without_gpu() -> Result<Rc<Self>, CudaError> {
        Ok(Rc::new(Self { api: Api::load()?, handle: std::ptr::null_mut() }))
    }

    /// `Ok` for success, else the status by name and cuDNN's own account of it.
    pub(super) fn check(&self, call: &'static str, status: Status) -> Result<(), CudaError> {
        if status == 0 { Ok(()) } else { Err(CudaError::Cudnn { call, text: self.text(status) }) }
    }

    #[expect(unsafe_code, reason = "reads C strings of cuDNN")]
    pub(super) fn text(&self, status: Status) -> String {
        let mut detail: [c_char; 1024] = [0; 1024];
        // SAFETY: the name is a static string or null, and cuDNN writes at most the given
        // number of bytes; the last one stays 0.
        let (name, detail) = unsafe {
            let name = (self.api.error_string)(status);
            (self.api.last_error)(detail.as_mut_ptr(), detail.len() - 1);
            let name = if name.is_null() { c"" } else { CStr::from_ptr(name) };
            (name, CStr::from_ptr(detail.as_ptr()))
        };
        let (name, detail) = (name.to_string_lossy(), detail.to_string_lossy());
        match detail.trim() {
            "" => format!("{name} ({status})"),
            detail => format!("{name} ({status}): {detail}"),
        }
    }

    /// The loaded version: 10000 x major + 100 x minor + patch.
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    pub(super) fn version(&self) -> usize {
        // SAFETY: takes nothing.
        unsafe { (self.api.version)() }
    }

    /// Makes the handle's work go to `stream`.
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    pub(super) fn set_stream(&self, stream: CUstream) -> Result<(), CudaError> {
        // SAFETY: the handle lives; a stream that does not is refused at the next launch.
        self.check("cudnnSetStream", unsafe { (self.api.set_stream)(self.handle, stream) })
    }
}

impl Drop for Session {
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: made by `new`, destroyed once; nothing can use it any more.
            unsafe { (self.api.destroy)(self.handle) };
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session(cuDNN {})", self.version())
    }
}
