//! Pyramids as kernels: what is launched, and that NVRTC takes their texts.

use super::{Placed, WORKSPACE, have_nvrtc, types};
use crate::cuda::kernels::compile::{compile, options};
use crate::cuda::launch::SCRATCH;
use vdnn_ir::op::PyramidAttrs;
use vdnn_ir::{Layout, Op, Precision, Tensor, TensorType};

const STEM: &str = "pyramid(layers:[(kind:conv(conv:(kernel:[7,7],strides:[2,2],before:[3,3],after:[3,3],\
    dilations:[1,1],groups:1),bias:true),then:[relu]),(kind:max_pool(kernel:[3,3],strides:[2,2],\
    before:[1,1],after:[1,1],dilations:[1,1],ceil_mode:false))])";
const PAIR: &str = "pyramid(layers:[(kind:conv(conv:(kernel:[1,1],strides:[1,1],before:[0,0],after:[0,0],\
    dilations:[1,1],groups:1),bias:true),then:[relu]),(kind:conv(conv:(kernel:[3,3],strides:[1,1],\
    before:[1,1],after:[1,1],dilations:[1,1],groups:1),bias:true),then:[add,relu])])";

/// A pyramid of f32 operands, and those as its kernels at a precision want them.
fn cases() -> Vec<(Op, Vec<TensorType>, Precision)> {
    let wide = [
        (STEM, vec!["f32[2,3,224,224]", "f32[64,3,7,7]", "f32[64]"]),
        (
            PAIR,
            vec![
                "f32[2,64,56,56]",
                "f32[64,64,1,1]",
                "f32[64]",
                "f32[64,64,3,3]",
                "f32[64]",
                "f32[2,64,56,56]",
            ],
        ),
    ];
    let mut all = Vec::new();
    for (op, inputs) in wide {
        for precision in Precision::ALL {
            let operand = |text: &&str| {
                let mut ty: TensorType = text.parse().expect("a type");
                if precision == Precision::Bf16 && ty.rank() == 4 {
                    ty.dtype = vdnn_ir::DType::BF16;
                }
                let last = precision != Precision::F32 && ty.rank() == 4;
                ty.in_layout(if last { Layout::ChannelsLast } else { Layout::RowMajor })
            };
            all.push((op.parse().expect("an op"), inputs.iter().map(operand).collect(), precision));
        }
    }
    all
}

fn placed(op: &Op, inputs: &[TensorType]) -> Placed {
    let tensors: Vec<Tensor> = inputs.iter().cloned().map(Tensor::zeros).collect();
    let at = |types: Vec<TensorType>, first: u64| {
        types.into_iter().enumerate().map(|(i, ty)| (ty, first + 256 * i as u64)).collect()
    };
    let outputs = at(types(op, &tensors, 1), 1 << 20);
    Placed { inputs: at(inputs.to_vec(), 1 << 16), outputs, scratch: 0, scratch_bytes: SCRATCH.0 }
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn pyramids_are_one_launch_that_compiles() {
    let compiles = have_nvrtc();
    if !compiles {
        eprintln!("not compiled: needs libnvrtc (folder in VDNNC_CUDA_LIBS)");
    }
    for (op, inputs, precision) in cases() {
        let steps = placed(&op, &inputs).plan_at(&op, 132, precision).expect("a kernel");
        let [step] = steps.as_slice() else { panic!("{op}: {} launches", steps.len()) };
        let pointers: Vec<u64> = step.args.all().map(|words| words[0]).collect();
        let mut wanted: Vec<u64> = (0..inputs.len() as u64).map(|i| (1 << 16) + 256 * i).collect();
        wanted.push(1 << 20);
        assert_eq!(pointers, wanted, "{op}");
        assert!(step.grid.iter().all(|&n| n > 0) && step.block > 0 && step.shared > 0);
        if !compiles {
            continue;
        }
        let mut options = options(step.kernel.target.unwrap_or("sm_90"));
        options.push("--ptxas-options=-v".to_owned());
        let (cubin, log) = compile(&step.kernel, &options).unwrap_or_else(|e| panic!("{e}"));
        assert!(cubin.starts_with(b"\x7fELF"), "{op}");
        if std::env::var_os("VDNNC_REGISTERS").is_some() {
            log.lines().filter(|l| l.contains("Used ")).for_each(|l| eprintln!("{op}: {l}"));
        }
    }
}

/// ResNet-50's first stage over two images, and operands as its kernel wants them.
fn stage(config: &str) -> (Op, Vec<TensorType>) {
    let mut operands = vec!["f32[2,64,56,56]".to_owned()];
    for (out, inner, k) in [(64, 64, 1), (64, 64, 3), (256, 64, 1), (256, 64, 1)]
        .into_iter()
        .chain([(64, 256, 1), (64, 64, 3), (256, 64, 1)].repeat(2))
    {
        operands.extend([format!("f32[{out},{inner},{k},{k}]"), format!("f32[{out}]")]);
    }
    let last = |text: &String| {
        let ty: TensorType = text.parse().expect("a type");
        let layout = if ty.rank() == 4 { Layout::ChannelsLast } else { Layout::RowMajor };
        ty.in_layout(layout)
    };
    let op = Op::Pyramid(PyramidAttrs::stage(3, true).with_config(config));
    (op, operands.iter().map(last).collect())
}

#[test]
#[expect(clippy::print_stderr, reason = "says why it is skipped")]
fn a_stage_clears_its_counters_and_compiles() {
    let (op, inputs) = stage("stage rings 2 4 6 4 3 5 3 3 blocks 132");
    let steps = placed(&op, &inputs).plan_at(&op, 132, Precision::Tf32).expect("a kernel");
    let [clear, run] = steps.as_slice() else { panic!("{} launches", steps.len()) };
    let arguments = |step: &crate::cuda::kernels::step::Step| -> Vec<u64> {
        step.args.all().map(|words| words[0]).collect()
    };
    // Seven roles, two images, seven bands of eight rows.
    assert_eq!(arguments(clear), [WORKSPACE, 0, (7u64 * 2 * 7 * 4).next_multiple_of(256) / 4]);
    let mut wanted: Vec<u64> = (0..inputs.len() as u64).map(|i| (1 << 16) + 256 * i).collect();
    wanted.extend([1 << 20, WORKSPACE]);
    assert_eq!(arguments(run), wanted);
    assert_eq!((run.grid, run.block), ([132, 1, 1], 384));
    let refused = |config: &str, processors, precision| {
        let (op, inputs) = stage(config);
        placed(&op, &inputs).plan_at(&op, processors, precision).expect_err("it is refused").to_string()
    };
    assert!(refused("", 132, Precision::Tf32).contains("configuration"));
    assert!(refused("stage rings 2 4 6 4 3 5 3 3 blocks 132", 108, Precision::Tf32).contains("108"));
    assert!(refused("stage rings 2 4 6 4 3 5 3 3 blocks 132", 132, Precision::Bf16).contains("bf16"));
    if !have_nvrtc() {
        eprintln!("not compiled: needs libnvrtc (folder in VDNNC_CUDA_LIBS)");
        return;
    }
    let mut options = options("sm_90a");
    options.push("--ptxas-options=-v".to_owned());
    let (cubin, log) = compile(&run.kernel, &options).unwrap_or_else(|e| panic!("{e}"));
    assert!(cubin.starts_with(b"\x7fELF"));
    if std::env::var_os("VDNNC_REGISTERS").is_some() {
        log.lines()
            .filter(|l| l.contains("Used ") || l.contains("spill"))
            .for_each(|l| eprintln!("stage: {l}"));
    }
}

#[test]
fn what_no_kernel_takes_is_refused_with_the_reason() {
    let (op, inputs, _) = cases().swap_remove(0);
    let refused = |op: &Op, inputs: &[TensorType], precision| {
        let error = placed(op, inputs).plan_at(op, 132, precision).expect_err("it is refused");
        error.to_string()
    };
    let Op::Pyramid(pyramid) = &op else { panic!("{op}") };
    let configured = |text: &str| Op::Pyramid(pyramid.with_config(text));
    assert!(refused(&configured("nonsense"), &inputs, Precision::F32).contains("`nonsense`"));
    assert!(refused(&configured("loops recompute 999x999"), &inputs, Precision::F32).contains("999"));
    // Operands of another type than the kernel would take them for.
    assert!(refused(&op, &inputs, Precision::Bf16).contains("f32"));
}
