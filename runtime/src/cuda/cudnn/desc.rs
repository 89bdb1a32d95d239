//! Descriptors of cuDNN's backend API: made, given attributes, finalized, read, destroyed.

use super::api::{Raw, Session};
use crate::cuda::error::CudaError;
use std::ffi::{c_int, c_void};
use std::fmt;
use std::rc::Rc;

/// `cudnnBackendDescriptorType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Kind {
    Pointwise = 0,
    Convolution = 1,
    Engine = 2,
    EngineConfig = 3,
    EngineHeuristic = 4,
    ExecutionPlan = 5,
    KnobChoice = 7,
    OperationConvFprop = 10,
    OperationConvWgrad = 11,
    OperationConvDgrad = 12,
    OperationPointwise = 13,
    OperationGraph = 15,
    VariantPack = 16,
    Tensor = 17,
    #[cfg(test)]
    DeviceProperties = 38,
}

/// `cudnnBackendAttributeType_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum AttrType {
    Handle = 0,
    DataType = 1,
    Boolean = 2,
    Int64 = 3,
    Float = 4,
    VoidPtr = 6,
    ConvolutionMode = 7,
    HeurMode = 8,
    KnobType = 9,
    NumericalNote = 11,
    PointwiseMode = 14,
    Descriptor = 15,
    #[cfg(test)]
    Char = 24,
}

/// `cudnnBackendAttributeName_t`, those that are used.
pub(super) mod attr {
    pub(in crate::cuda::cudnn) const POINTWISE_MODE: i32 = 0;
    pub(in crate::cuda::cudnn) const POINTWISE_MATH_PREC: i32 = 1;
    pub(in crate::cuda::cudnn) const CONV_COMP_TYPE: i32 = 100;
    pub(in crate::cuda::cudnn) const CONV_MODE: i32 = 101;
    pub(in crate::cuda::cudnn) const CONV_DILATIONS: i32 = 102;
    pub(in crate::cuda::cudnn) const CONV_STRIDES: i32 = 103;
    pub(in crate::cuda::cudnn) const CONV_POST_PADDINGS: i32 = 104;
    pub(in crate::cuda::cudnn) const CONV_PRE_PADDINGS: i32 = 105;
    pub(in crate::cuda::cudnn) const CONV_SPATIAL_DIMS: i32 = 106;
    pub(in crate::cuda::cudnn) const HEUR_MODE: i32 = 200;
    pub(in crate::cuda::cudnn) const HEUR_OPERATION_GRAPH: i32 = 201;
    pub(in crate::cuda::cudnn) const HEUR_RESULTS: i32 = 202;
    pub(in crate::cuda::cudnn) const HEUR_DEVICE: i32 = 204;
    pub(in crate::cuda::cudnn) const CONFIG_ENGINE: i32 = 300;
    pub(in crate::cuda::cudnn) const CONFIG_KNOB_CHOICES: i32 = 302;
    pub(in crate::cuda::cudnn) const CONFIG_WORKSPACE_SIZE: i32 = 303;
    pub(in crate::cuda::cudnn) const PLAN_HANDLE: i32 = 400;
    pub(in crate::cuda::cudnn) const PLAN_ENGINE_CONFIG: i32 = 401;
    pub(in crate::cuda::cudnn) const PLAN_WORKSPACE_SIZE: i32 = 402;
    pub(in crate::cuda::cudnn) const PLAN_DEVICE: i32 = 407;
    pub(in crate::cuda::cudnn) const KNOB_CHOICE_TYPE: i32 = 600;
    pub(in crate::cuda::cudnn) const KNOB_CHOICE_VALUE: i32 = 601;
    /// Alpha, beta, convolution, w, x, y of a forward operation, in this order from here.
    pub(in crate::cuda::cudnn) const FPROP: i32 = 700;
    /// Alpha, beta, convolution, w, dx, dy of a data gradient.
    pub(in crate::cuda::cudnn) const DGRAD: i32 = 706;
    /// Alpha, beta, convolution, dw, x, dy of a weight gradient.
    pub(in crate::cuda::cudnn) const WGRAD: i32 = 712;
    pub(in crate::cuda::cudnn) const OP_POINTWISE_DESC: i32 = 750;
    pub(in crate::cuda::cudnn) const OP_POINTWISE_X: i32 = 751;
    pub(in crate::cuda::cudnn) const OP_POINTWISE_B: i32 = 752;
    pub(in crate::cuda::cudnn) const OP_POINTWISE_Y: i32 = 753;
    pub(in crate::cuda::cudnn) const OP_POINTWISE_ALPHA1: i32 = 754;
    pub(in crate::cuda::cudnn) const OP_POINTWISE_ALPHA2: i32 = 755;
    pub(in crate::cuda::cudnn) const GRAPH_HANDLE: i32 = 800;
    pub(in crate::cuda::cudnn) const GRAPH_OPS: i32 = 801;
    pub(in crate::cuda::cudnn) const GRAPH_ENGINE_COUNT: i32 = 802;
    pub(in crate::cuda::cudnn) const TENSOR_BYTE_ALIGNMENT: i32 = 900;
    pub(in crate::cuda::cudnn) const TENSOR_DATA_TYPE: i32 = 901;
    pub(in crate::cuda::cudnn) const TENSOR_DIMENSIONS: i32 = 902;
    pub(in crate::cuda::cudnn) const TENSOR_STRIDES: i32 = 903;
    pub(in crate::cuda::cudnn) const TENSOR_UNIQUE_ID: i32 = 906;
    pub(in crate::cuda::cudnn) const TENSOR_IS_VIRTUAL: i32 = 907;
    pub(in crate::cuda::cudnn) const PACK_UNIQUE_IDS: i32 = 1000;
    pub(in crate::cuda::cudnn) const PACK_DATA_POINTERS: i32 = 1001;
    pub(in crate::cuda::cudnn) const PACK_WORKSPACE: i32 = 1003;
    pub(in crate::cuda::cudnn) const ENGINE_OPERATION_GRAPH: i32 = 1300;
    pub(in crate::cuda::cudnn) const ENGINE_GLOBAL_INDEX: i32 = 1301;
    pub(in crate::cuda::cudnn) const ENGINE_NUMERICAL_NOTE: i32 = 1303;
    pub(in crate::cuda::cudnn) const ENGINE_DEVICE: i32 = 1307;
    #[cfg(test)]
    pub(in crate::cuda::cudnn) const DEVICE_JSON: i32 = 2702;
}

/// A backend descriptor; destroyed when dropped.
pub(super) struct Desc {
    session: Rc<Session>,
    kind: Kind,
    raw: Raw,
}

impl Desc {
    /// A fresh one.
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    pub(super) fn new(session: &Rc<Session>, kind: Kind) -> Result<Self, CudaError> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the out pointer is valid.
        let status = unsafe { (session.api.desc_create)(kind as c_int, &raw mut raw) };
        session.check("cudnnBackendCreateDescriptor", status)?;
        Ok(Self { session: Rc::clone(session), kind, raw })
    }

    /// The handle, valid while `self` lives.
    pub(super) fn raw(&self) -> Raw {
        self.raw
    }

    /// Gives an attribute the elements of `values`, whose size and meaning is that of `ty`.
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn set<T: Copy>(&self, name: i32, ty: AttrType, values: &[T]) -> Result<(), CudaError> {
        // SAFETY: the descriptor lives, and the private callers pass `T`s of the size cuDNN
        // reads for `ty`; it copies them before it returns.
        let status = unsafe {
            (self.session.api.desc_set)(
                self.raw,
                name,
                ty as c_int,
                values.len() as i64,
                values.as_ptr().cast::<c_void>(),
            )
        };
        self.check("cudnnBackendSetAttribute", name, status)
    }

    /// 64-bit integers.
    pub(super) fn set_i64(&self, name: i32, values: &[i64]) -> Result<(), CudaError> {
        self.set(name, AttrType::Int64, values)
    }
    /// A value of one of cuDNN's enumerations.
    pub(super) fn set_enum(&self, name: i32, ty: AttrType, value: i32) -> Result<(), CudaError> {
        debug_assert!(!matches!(ty, AttrType::Handle | AttrType::VoidPtr | AttrType::Descriptor));
        self.set(name, ty, &[value])
    }
    /// An f32.
    pub(super) fn set_f32(&self, name: i32, value: f32) -> Result<(), CudaError> {
        self.set(name, AttrType::Float, &[value])
    }
    /// A flag.
    pub(super) fn set_bool(&self, name: i32, value: bool) -> Result<(), CudaError> {
        self.set(name, AttrType::Boolean, &[value])
    }
    /// Other descriptors, which must be finalized.
    pub(super) fn set_descs(&self, name: i32, values: &[&Self]) -> Result<(), CudaError> {
        let raws: Vec<Raw> = values.iter().map(|d| d.raw).collect();
        self.set(name, AttrType::Descriptor, &raws)
    }
    /// Addresses.
    pub(super) fn set_pointers(&self, name: i32, values: &[*mut c_void]) -> Result<(), CudaError> {
        self.set(name, AttrType::VoidPtr, values)
    }
    /// The library handle.
    fn set_handle(&self, name: i32) -> Result<(), CudaError> {
        self.set(name, AttrType::Handle, &[self.session.handle])
    }

    /// Ends the setting of attributes; cuDNN checks them here.
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    pub(super) fn finalize(self) -> Result<Self, CudaError> {
        // SAFETY: the descriptor lives.
        let status = unsafe { (self.session.api.desc_finalize)(self.raw) };
        if status == 0 {
            return Ok(self);
        }
        let text = format!("{:?}: {}", self.kind, self.session.text(status));
        Err(CudaError::Cudnn { call: "cudnnBackendFinalize", text })
    }

    /// Reads up to `values.len()` elements; the number that cuDNN reports, which may be larger.
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn get<T: Copy>(&self, name: i32, ty: AttrType, values: &mut [T]) -> Result<usize, CudaError> {
        let mut count: i64 = 0;
        let into = if values.is_empty() { std::ptr::null_mut() } else { values.as_mut_ptr() };
        // SAFETY: the descriptor lives; cuDNN writes at most the requested number of elements,
        // and the private callers pass `T`s of the size it writes for `ty`.
        let status = unsafe {
            (self.session.api.desc_get)(
                self.raw,
                name,
                ty as c_int,
                values.len() as i64,
                &raw mut count,
                into.cast::<c_void>(),
            )
        };
        self.check("cudnnBackendGetAttribute", name, status)?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// One 64-bit integer.
    pub(super) fn get_i64(&self, name: i32) -> Result<i64, CudaError> {
        let mut value = [0i64];
        self.get(name, AttrType::Int64, &mut value)?;
        Ok(value[0])
    }

    /// One value of one of cuDNN's enumerations, as a number.
    pub(super) fn get_enum(&self, name: i32, ty: AttrType) -> Result<i32, CudaError> {
        let mut value = [-1i32];
        self.get(name, ty, &mut value)?;
        Ok(value[0])
    }

    /// Values of one of cuDNN's enumerations, at most 64. Numbers, because a library newer
    /// than this code may have others.
    pub(super) fn get_enums(&self, name: i32, ty: AttrType) -> Result<Vec<i32>, CudaError> {
        let mut values = [-1i32; 64];
        let count = self.get(name, ty, &mut values)?;
        Ok(values[..count.min(values.len())].to_vec())
    }

    /// Number of descriptors an attribute holds.
    pub(super) fn count(&self, name: i32) -> Result<usize, CudaError> {
        self.get::<Raw>(name, AttrType::Descriptor, &mut [])
    }

    /// The first `limit` descriptors of an attribute, of the given kind.
    pub(super) fn get_descs(&self, name: i32, kind: Kind, limit: usize) -> Result<Vec<Self>, CudaError> {
        let mut descs =
            (0..limit).map(|_| Self::new(&self.session, kind)).collect::<Result<Vec<_>, CudaError>>()?;
        let mut raws: Vec<Raw> = descs.iter().map(|d| d.raw).collect();
        let count = self.get(name, AttrType::Descriptor, &mut raws)?;
        descs.truncate(count);
        Ok(descs)
    }

    fn check(&self, call: &'static str, name: i32, status: i32) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        let text = format!("{:?}, attribute {name}: {}", self.kind, self.session.text(status));
        Err(CudaError::Cudnn { call, text })
    }
}

impl Drop for Desc {
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn drop(&mut self) {
        // SAFETY: made by `new`, destroyed once; finalized descriptors keep what they need.
        unsafe { (self.session.api.desc_destroy)(self.raw) };
    }
}

impl fmt::Debug for Desc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({:p})", self.kind, self.raw)
    }
}

/// What descriptors are made for: the device of a session's handle, or one that is only
/// described.
#[derive(Debug)]
pub(super) struct Target {
    pub session: Rc<Session>,
    described: Option<Desc>,
}

impl Target {
    /// The device of the session.
    pub(super) fn new(session: Rc<Session>) -> Self {
        Self { session, described: None }
    }

    /// A device that is not there, by its properties in the JSON form of cuDNN 9.8 and newer.
    #[cfg(test)]
    pub(super) fn described(json: &str) -> Result<Self, CudaError> {
        let session = Session::without_gpu()?;
        let device = Desc::new(&session, Kind::DeviceProperties)?;
        device.set(attr::DEVICE_JSON, AttrType::Char, json.as_bytes())?;
        let described = Some(device.finalize()?);
        Ok(Self { session, described })
    }

    /// Tells a descriptor its device: by the handle, where it has such an attribute, or by
    /// the description, where it has that one.
    pub(super) fn bind(&self, d: &Desc, handle: Option<i32>, device: Option<i32>) -> Result<(), CudaError> {
        match (&self.described, handle, device) {
            (None, Some(name), _) => d.set_handle(name),
            (Some(described), _, Some(name)) => d.set_descs(name, &[described]),
            _ => Ok(()),
        }
    }
}
