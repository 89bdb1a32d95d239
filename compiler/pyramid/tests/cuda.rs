//! Printed kernels: executed on the CPU by a C++ compiler's program, with the threads of a block
//! as threads, they give the interpreter's bits.
//!
//! `VDNNC_EMULATOR_CXX=g++ cargo test -p vdnn-pyramid --test cuda`

mod support;

use std::fmt::Write;
use std::process::Command;
use support::Source;
use vdnn_ir::Precision;
use vdnn_pyramid::cuda::{CudaError, CudaOptions, cuda};
use vdnn_pyramid::interpret::interpret;
use vdnn_pyramid::{Program, Tiling};

const THREADS: u32 = 4;
const CASES: u64 = 150;

/// Random chains over two images: program, operands of each image, results.
fn cases() -> Vec<(Program, [Vec<Vec<f32>>; 2])> {
    let case = |seed| {
        let mut s = Source::new(300_000 + seed);
        let chain = support::chain(&mut s);
        let tiling = support::tiling(&mut s, &chain);
        let program = Program::new(&chain, tiling, Precision::F32).expect("a program");
        let first = support::operands(&mut s, &chain);
        // Weights are the same for every image, images and residuals are not.
        let per_image = |o: &vdnn_pyramid::Operand| {
            matches!(o.of, vdnn_pyramid::OperandUse::Input | vdnn_pyramid::OperandUse::Residual)
        };
        let mut second = first.clone();
        for (tensor, operand) in second.iter_mut().zip(chain.operands()).filter(|(_, o)| per_image(o)) {
            *tensor = s.tensor(operand.elements);
        }
        (program, [first, second])
    };
    (0..CASES).map(case).collect()
}

/// The C++ program: all kernels, then for each the tensors from a file and a launch.
fn source(cases: &[(Program, [Vec<Vec<f32>>; 2])], fma: bool) -> String {
    let options = CudaOptions { threads: THREADS, fma };
    let mut text = String::from("#include \"emulator.h\"\nnamespace {\n");
    let mut main = String::new();
    for (k, (program, _)) in cases.iter().enumerate() {
        text.push_str(&cuda(program, &format!("k{k}"), k == 0, options).expect("a kernel"));
        let sizes: Vec<u64> = program.operands.iter().map(|n| 2 * n).collect();
        let args: Vec<String> = (0..sizes.len()).map(|o| format!("o[{o}].data()")).collect();
        let _ = writeln!(
            main,
            "  {{ std::vector<std::vector<float>> o = read({{{}}}); std::vector<float> y({}, NAN);\n    \
             launch({}, {}, [&] {{ k{k}({}, y.data()); }});\n    fwrite(y.data(), 4, y.size(), out); }}",
            sizes.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
            2 * program.output.elements(),
            program.grid[1],
            program.grid[0],
            args.join(", ")
        );
    }
    let shared = cases.iter().map(|(p, _)| p.shared.0 / 4).max().unwrap_or(1).max(1);
    let _ = write!(
        text,
        "}}\nfloat shared[{shared}];\nstatic FILE *in, *out;\n\
         static std::vector<std::vector<float>> read(std::vector<size_t> sizes) {{\n  \
           std::vector<std::vector<float>> all;\n  \
           for (size_t n : sizes) {{ all.emplace_back(n); if (fread(all.back().data(), 4, n, in) != n) _Exit(2); }}\n  \
           return all;\n}}\n\
         template <class F> static void launch(int nx, int ny, F kernel) {{\n  \
           for (int z = 0; z < 2; ++z) for (int y = 0; y < ny; ++y) for (int x = 0; x < nx; ++x) {{\n    \
             for (float& s : shared) s = NAN;\n    \
             std::vector<std::thread> all;\n    \
             for (int t = 0; t < threads; ++t) all.emplace_back([=] {{ threadIdx = {{t, 0, 0}}; blockIdx = {{x, y, z}}; kernel(); }});\n    \
             for (std::thread& t : all) t.join();\n  }}\n}}\n\
         int main(int, char** args) {{\n  threads = {THREADS};\n  in = fopen(args[1], \"rb\"); out = fopen(args[2], \"wb\");\n{main}  \
           return fclose(out);\n}}\n"
    );
    text
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test must say so")]
fn printed_kernels_give_the_interpreters_bits() {
    let Some(compiler) = std::env::var_os("VDNNC_EMULATOR_CXX") else {
        eprintln!("skipped: needs a C++17 compiler named in VDNNC_EMULATOR_CXX");
        return;
    };
    let cases = cases();
    let folder = std::env::temp_dir().join(format!("vdnn-pyramid-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = |name: &str| folder.join(name);
    std::fs::write(file("emulator.h"), include_str!("cuda/emulator.h")).expect("a file");
    let mut bytes = Vec::new();
    for (program, images) in &cases {
        for o in 0..program.operands.len() {
            // Weights are read from the first image's copy; residuals and images lie side by side.
            bytes.extend(images.iter().flat_map(|i| &i[o]).flat_map(|x| x.to_le_bytes()));
        }
    }
    std::fs::write(file("in"), bytes).expect("a file");
    for fma in [false, true] {
        std::fs::write(file("kernels.cpp"), source(&cases, fma)).expect("a file");
        let mut build = Command::new(&compiler);
        build.args(["-std=c++17", "-O1", "-w", "-pthread", "-ffp-contract=off", "-I"]).arg(&folder);
        let built = build.arg(file("kernels.cpp")).arg("-o").arg(file("kernels")).status();
        assert!(built.is_ok_and(|s| s.success()), "the kernels do not build, see {}", folder.display());
        let ran = Command::new(file("kernels")).arg(file("in")).arg(file("out")).status();
        assert!(ran.is_ok_and(|s| s.success()), "the kernels do not run");
        let out = std::fs::read(file("out")).expect("results");
        let mut out = out.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        for (k, (program, images)) in cases.iter().enumerate() {
            for operands in images {
                let (wanted, _) = interpret(program, &support::slices(operands)).expect("a result");
                for (i, want) in wanted.iter().enumerate() {
                    let got = out.next().expect("as many results");
                    let right = if fma {
                        (got - want).abs() <= 1e-5 * want.abs().max(1.0)
                    } else {
                        got.to_bits() == want.to_bits()
                    };
                    assert!(right, "kernel {k}, element {i}: {got} for {want}\n{program}");
                }
            }
        }
        assert_eq!(out.next(), None);
    }
    let _ = std::fs::remove_dir_all(&folder);
}

#[test]
fn what_has_no_kernel_is_refused() {
    let options = CudaOptions { threads: 256, fma: true };
    let mut s = Source::new(1);
    let chain = support::chain(&mut s);
    let program = Program::new(&chain, Tiling::square(1), Precision::Bf16).expect("a program");
    assert_eq!(cuda(&program, "k", true, options), Err(CudaError::Precision(Precision::Bf16)));
    let mut program = Program::new(&chain, Tiling::square(1), Precision::F32).expect("a program");
    assert!(cuda(&program, "k", true, options).is_ok_and(|text| text.contains("__launch_bounds__(256) k(")));
    program.buffers[0].y.per_tile = 1 << 31;
    assert_eq!(cuda(&program, "k", true, options), Err(CudaError::TooLarge));
}
