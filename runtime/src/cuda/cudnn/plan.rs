//! Execution plans, and launches of them with their addresses.

use super::api::Session;
use super::desc::{Desc, Kind, Target, attr};
use super::engine::{Config, Notes};
use super::graph::{Graph, uid};
use super::problem::Direction;
use crate::cuda::error::CudaError;
use crate::cuda::launch::{DeviceRange, LaunchSpec, Prepared};
use cudarc::driver::sys::{CUdeviceptr, CUstream};
use std::ffi::c_void;
use std::rc::Rc;
use vdnn_ir::Bytes;

/// A kernel choice compiled and ready to run.
#[derive(Debug)]
pub(super) struct Plan {
    desc: Desc,
    pub workspace: Bytes,
    pub notes: Notes,
    _config: Config,
}

impl Plan {
    /// Builds the plan of a configuration; engines that compile at run time compile here.
    pub(super) fn build(target: &Target, config: Config) -> Result<Self, CudaError> {
        let desc = Desc::new(&target.session, Kind::ExecutionPlan)?;
        target.bind(&desc, Some(attr::PLAN_HANDLE), Some(attr::PLAN_DEVICE))?;
        desc.set_descs(attr::PLAN_ENGINE_CONFIG, &[&config.desc])?;
        let desc = desc.finalize()?;
        let workspace = Bytes(u64::try_from(desc.get_i64(attr::PLAN_WORKSPACE_SIZE)?).unwrap_or(0));
        Ok(Self { desc, workspace, notes: config.notes, _config: config })
    }
}

/// Addresses of a convolution's tensors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pointers {
    pub x: CUdeviceptr,
    pub w: CUdeviceptr,
    pub y: CUdeviceptr,
    pub bias: Option<CUdeviceptr>,
    pub residual: Option<CUdeviceptr>,
}

impl Pointers {
    /// Those of a launch, whose operands [`super::problem::Problem::of`] has counted.
    ///
    /// # Errors
    /// [`CudaError::BadPlan`] for an address that vectors of 16 bytes cannot be read from.
    pub(super) fn of(spec: &LaunchSpec<'_>, dir: Direction) -> Result<Self, CudaError> {
        let (i, o) = (spec.inputs, spec.outputs);
        let p = match dir {
            Direction::Fprop => Self {
                x: i[0].ptr,
                w: i[1].ptr,
                y: o[0].ptr,
                bias: i.get(2).map(|b| b.ptr),
                residual: i.get(3).map(|r| r.ptr),
            },
            Direction::Dgrad => Self { x: o[0].ptr, w: i[1].ptr, y: i[0].ptr, bias: None, residual: None },
            Direction::Wgrad => Self { x: i[0].ptr, w: o[0].ptr, y: i[1].ptr, bias: None, residual: None },
        };
        let all = [Some(p.x), Some(p.w), Some(p.y), p.bias, p.residual];
        match all.into_iter().flatten().find(|ptr| ptr % super::graph::ALIGNMENT as u64 != 0) {
            Some(ptr) => Err(CudaError::BadPlan {
                why: format!("`{}`: address {ptr:#x} of an operand is not aligned to 16 bytes", spec.name),
            }),
            None => Ok(p),
        }
    }
}

/// A convolution with its addresses, and its epilogue if that is a step of its own.
#[derive(Debug)]
pub(super) struct Launch {
    session: Rc<Session>,
    /// Shared with other launches of the same convolution.
    plan: Rc<Plan>,
    pack: Desc,
    epilogue: Option<Box<dyn Prepared>>,
}

impl Launch {
    pub(super) fn new(
        session: &Rc<Session>,
        plan: Rc<Plan>,
        pointers: Pointers,
        workspace: Option<DeviceRange>,
        epilogue: Option<Box<dyn Prepared>>,
    ) -> Result<Self, CudaError> {
        let mut ids = vec![uid::X, uid::W, uid::Y];
        let mut addresses = vec![pointers.x, pointers.w, pointers.y];
        if epilogue.is_none() {
            for (id, address) in [(uid::BIAS, pointers.bias), (uid::RESIDUAL, pointers.residual)] {
                if let Some(address) = address {
                    ids.push(id);
                    addresses.push(address);
                }
            }
        }
        let addresses: Vec<*mut c_void> = addresses.into_iter().map(address).collect();
        let scratch = if plan.workspace == Bytes::ZERO { None } else { workspace };
        let pack = Desc::new(session, Kind::VariantPack)?;
        pack.set_pointers(attr::PACK_DATA_POINTERS, &addresses)?;
        pack.set_i64(attr::PACK_UNIQUE_IDS, &ids)?;
        pack.set_pointers(attr::PACK_WORKSPACE, &[address(scratch.map_or(0, |s| s.ptr))])?;
        Ok(Self { session: Rc::clone(session), plan, pack: pack.finalize()?, epilogue })
    }
}

/// A device address as C has it; never dereferenced on the host.
pub(super) fn address(ptr: CUdeviceptr) -> *mut c_void {
    std::ptr::without_provenance_mut(ptr as usize)
}

impl Prepared for Launch {
    #[expect(unsafe_code, reason = "calls into cuDNN")]
    fn enqueue(&self, stream: CUstream) -> Result<(), CudaError> {
        self.session.set_stream(stream)?;
        // SAFETY: handle, plan and pack live and belong together; the addresses are those of
        // the arena, whose ranges the checked plan keeps disjoint.
        let status =
            unsafe { (self.session.api.execute)(self.session.handle, self.plan.desc.raw(), self.pack.raw()) };
        self.session.check("cudnnBackendExecute", status)?;
        self.epilogue.as_ref().map_or(Ok(()), |e| e.enqueue(stream))
    }
}

/// The graph a plan is of; kept because configurations refer to it.
#[derive(Debug)]
pub(super) struct Built {
    pub plan: Rc<Plan>,
    _graph: Rc<Graph>,
}

impl Built {
    pub(super) fn new(plan: Plan, graph: Rc<Graph>) -> Self {
        Self { plan: Rc::new(plan), _graph: graph }
    }
}
