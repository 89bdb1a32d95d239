//! What can be tested without a GPU: cuDNN, where it is installed, answers for a device that is
//! only described to it. Without the library these tests say so and pass.

use super::*;
use vdnn_ir::Layout;
use vdnn_ir::op::ConvAttrs;

/// An H200, as cuDNN 9.19 writes one down.
const H200: &str = r#"{
  "deviceName": "NVIDIA H200", "deviceVer": 900, "driverVer": 13000, "cudaDeviceId": 0,
  "multiProcessorCount": 132, "warpSize": 32, "regsPerBlock": 65536, "maxRegistersPerSM": 65536,
  "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64],
  "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448,
  "reservedSharedMemoryPerBlock": 1024, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024,
  "maxThreadsPerSM": 2048, "pciDeviceId": 0, "isTccDriver": 0, "supportCoopLaunch": 1,
  "smClockRateKHz": 1980000, "memClockRateKHz": 3201000, "l2CacheSize": 62914560,
  "totalGlobalMem": 150000000000
}"#;

/// cuDNN for a described H200; `None` where there is no cuDNN.
fn h200(options: DnnOptions) -> Option<Dnn> {
    match Target::described(H200) {
        Ok(target) => Some(Dnn::on(target, options)),
        Err(CudaError::MissingLibrary { .. }) => None,
        Err(error) => panic!("cuDNN refuses the description of a device: {error}"),
    }
}

/// The three directions of a square convolution.
struct Case {
    op: Op,
    inputs: Vec<TensorType>,
    outputs: Vec<TensorType>,
}

fn cases(n: u64, c: u64, k: u64, hw: u64, kernel: u64, layout: Layout) -> [Case; 4] {
    let attrs = ConvAttrs {
        kernel: [kernel; 2].as_slice().into(),
        strides: [1; 2].as_slice().into(),
        before: [kernel / 2; 2].as_slice().into(),
        after: [kernel / 2; 2].as_slice().into(),
        dilations: [1; 2].as_slice().into(),
        groups: 1,
    };
    let ty = |dims: [u64; 4]| TensorType::f32(dims).in_layout(layout);
    let (x, w, y) = (ty([n, c, hw, hw]), ty([k, c, kernel, kernel]), ty([n, k, hw, hw]));
    let bias = TensorType::f32([k]);
    let dgrad = Op::ConvDgrad { conv: attrs.clone(), x_dims: x.dims.clone() };
    let wgrad = Op::ConvWgrad { conv: attrs.clone(), w_dims: w.dims.clone() };
    let conv = Op::Conv(attrs);
    let case = |op: &Op, inputs: &[&TensorType], output: &TensorType| Case {
        op: op.clone(),
        inputs: inputs.iter().map(|&t| t.clone()).collect(),
        outputs: vec![output.clone()],
    };
    [
        case(&conv, &[&x, &w], &y),
        case(&conv, &[&x, &w, &bias], &y),
        case(&dgrad, &[&y, &w], &x),
        case(&wgrad, &[&x, &y], &w),
    ]
}

impl Case {
    fn candidates(&self, precision: Precision, dnn: &Dnn) -> Result<Vec<Candidate>, CudaError> {
        let inputs: Vec<_> = self.inputs.iter().collect();
        let outputs: Vec<_> = self.outputs.iter().collect();
        candidates(&self.op, &inputs, &outputs, precision, dnn)
    }
}

#[test]
fn the_mark_of_a_separate_bias_survives_the_text_form() {
    let config = EngineConfig::new(7, &[(2, 3), (27, -1)]).expect("two knobs");
    let apart = apart_of(config).expect("room");
    assert!(is_apart(apart) && !is_apart(config));
    assert_eq!(apart.to_string(), "eng7_k2=3_k27=-1_k255=1");
    assert_eq!(apart.to_string().parse(), Ok(apart));
    let full: Vec<(u8, i32)> = (0..16).map(|k| (k, 0)).collect();
    assert_eq!(apart_of(EngineConfig::new(0, &full).expect("16 knobs")), None);
}

#[test]
fn explore() {
    let Some(dnn) = h200(DnnOptions { mode_b: true, ..Default::default() }) else { return };
    for (layout, precision) in [(Layout::RowMajor, Precision::F32), (Layout::ChannelsLast, Precision::Tf32)] {
        for case in cases(32, 64, 128, 56, 3, layout) {
            eprintln!("{} {precision}", case.op);
            match case.candidates(precision, &dnn) {
                Err(e) => eprintln!("  {e}"),
                Ok(list) => {
                    for c in list {
                        eprintln!("  {:?} {} ws {} notes {}", c.source, c.config, c.workspace, c.notes);
                    }
                }
            }
        }
    }
}
