//! Streams, events and captured graphs that destroy themselves.

use super::error::CudaError;
use cudarc::driver::{result, sys};

/// A stream of the current context that does not synchronise with the legacy default one.
#[derive(Debug)]
pub(super) struct Stream(sys::CUstream);

impl Stream {
    /// A stream; `urgent` ones have the highest priority, others the lowest.
    #[expect(unsafe_code, reason = "creates a stream")]
    pub(super) fn new(urgent: bool) -> Result<Self, CudaError> {
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: writes two integers.
        CudaError::check("cuCtxGetStreamPriorityRange", unsafe {
            sys::cuCtxGetStreamPriorityRange(&mut least, &mut greatest)
        })?;
        let mut stream = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the handle, destroyed in `drop`.
        CudaError::check("cuStreamCreateWithPriority", unsafe {
            sys::cuStreamCreateWithPriority(&mut stream, flags, if urgent { greatest } else { least })
        })?;
        Ok(Self(stream))
    }

    /// The handle, valid while `self` lives.
    pub(super) fn raw(&self) -> sys::CUstream {
        self.0
    }

    /// Waits for everything queued.
    #[expect(unsafe_code, reason = "waits on the host")]
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.0) }.map_err(CudaError::of("cuStreamSynchronize"))
    }

    /// Marks this point of the stream.
    #[expect(unsafe_code, reason = "queues")]
    pub(super) fn record(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both live.
        unsafe { result::event::record(event.0, self.0) }.map_err(CudaError::of("cuEventRecord"))
    }

    /// Holds the stream until the last recorded point of the event.
    #[expect(unsafe_code, reason = "queues")]
    pub(super) fn wait(&self, event: &Event) -> Result<(), CudaError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        unsafe { result::stream::wait_event(self.0, event.0, flags) }
            .map_err(CudaError::of("cuStreamWaitEvent"))
    }

    /// From here on, what is queued here (and on streams that wait for this one) becomes
    /// part of a graph instead of running.
    #[expect(unsafe_code, reason = "begins a capture")]
    pub(super) fn begin_capture(&self) -> Result<(), CudaError> {
        // Relaxed: libraries may load modules lazily meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream lives.
        unsafe { result::stream::begin_capture(self.0, mode) }.map_err(CudaError::of("cuStreamBeginCapture"))
    }

    /// Ends the capture and makes the graph ready to launch.
    #[expect(unsafe_code, reason = "ends a capture")]
    pub(super) fn end_capture(&self) -> Result<GraphExec, CudaError> {
        // SAFETY: capturing (or an error is returned).
        let graph =
            unsafe { result::stream::end_capture(self.0) }.map_err(CudaError::of("cuStreamEndCapture"))?;
        if graph.is_null() {
            return Err(CudaError::Driver {
                call: "cuStreamEndCapture",
                text: "the capture was invalidated".to_owned(),
            });
        }
        let mut exec = std::ptr::null_mut();
        let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_USE_NODE_PRIORITY.0;
        // SAFETY: the graph was just made; it is copied by instantiation and destroyed here.
        let (made, _) = unsafe {
            (sys::cuGraphInstantiateWithFlags(&mut exec, graph, u64::from(flags)), sys::cuGraphDestroy(graph))
        };
        CudaError::check("cuGraphInstantiate", made)?;
        let exec = GraphExec(exec);
        // SAFETY: both live.
        CudaError::check("cuGraphUpload", unsafe { sys::cuGraphUpload(exec.0, self.0) })?;
        Ok(exec)
    }

    /// Gives a capture up after an error; the stream can then be used again.
    #[expect(unsafe_code, reason = "ends a capture")]
    pub(super) fn abandon_capture(&self) {
        // SAFETY: the stream lives; a graph that is still returned is destroyed.
        unsafe {
            if let Ok(graph) = result::stream::end_capture(self.0)
                && !graph.is_null()
            {
                let _ = sys::cuGraphDestroy(graph);
            }
        }
    }
}

impl Drop for Stream {
    #[expect(unsafe_code, reason = "destroys the stream")]
    fn drop(&mut self) {
        // SAFETY: created in `new`, destroyed once; the driver finishes queued work first.
        let _ = unsafe { result::stream::destroy(self.0) };
    }
}

/// An event of the current context.
#[derive(Debug)]
pub(super) struct Event(sys::CUevent);

impl Event {
    /// For ordering streams only.
    pub(super) fn new() -> Result<Self, CudaError> {
        Self::with(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// For measuring.
    pub(super) fn timed() -> Result<Self, CudaError> {
        Self::with(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    fn with(flags: sys::CUevent_flags) -> Result<Self, CudaError> {
        result::event::create(flags).map(Self).map_err(CudaError::of("cuEventCreate"))
    }

    /// Nanoseconds from `earlier` to this event; both must be recorded and reached. The
    /// driver's resolution is about half a microsecond.
    #[expect(unsafe_code, reason = "asks the driver")]
    pub(super) fn since(&self, earlier: &Self) -> Result<f64, CudaError> {
        // SAFETY: both live.
        let ms = unsafe { result::event::elapsed(earlier.0, self.0) }
            .map_err(CudaError::of("cuEventElapsedTime"))?;
        Ok(f64::from(ms) * 1e6)
    }
}

impl Drop for Event {
    #[expect(unsafe_code, reason = "destroys the event")]
    fn drop(&mut self) {
        // SAFETY: created in `with`, destroyed once.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// A step captured as a graph.
#[derive(Debug)]
pub(super) struct GraphExec(sys::CUgraphExec);

impl GraphExec {
    /// Queues the whole graph on a stream.
    #[expect(unsafe_code, reason = "queues")]
    pub(super) fn launch(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both live; launches of one graph run one after another.
        CudaError::check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.0, stream.raw()) })
    }
}

impl Drop for GraphExec {
    #[expect(unsafe_code, reason = "destroys the graph")]
    fn drop(&mut self) {
        // SAFETY: instantiated once, destroyed once; a running launch finishes first.
        let _ = unsafe { sys::cuGraphExecDestroy(self.0) };
    }
}
