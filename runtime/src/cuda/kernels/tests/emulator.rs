//! The kernels built for the CPU, as a process that runs launches on an image of memory.

use super::{Case, Placed, types};
use crate::cuda::kernels::source::{HEADERS, Kernel, Source};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use vdnn_ir::Tensor;

/// Where the arena lies in the process: nothing else is near.
const BASE: u64 = 0x1000_0000_0000;

/// Bytes of scratch, and between tensors. Both hold a pattern that reads as NaN.
const SCRATCH: u64 = 128 << 10;
const GAP: u64 = 256;
const POISON: u8 = 0xff;

pub(super) struct Emulator {
    folder: PathBuf,
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Emulator {
    /// Where the first byte of an image lies.
    pub(super) const ADDRESS: u64 = BASE;

    /// Builds the kernels with a C++ compiler and starts the process.
    pub(super) fn build(compiler: &OsStr, kernels: &BTreeMap<Source, Vec<Kernel>>) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("vdnn-emulator-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text.replace("asm volatile(", "emulated_asm(")).expect("a file");
            path
        };
        write("emulator.h", include_str!("emulator.h"));
        for (name, text) in HEADERS {
            write(name, text);
        }
        let mut files = vec![write("emulator.cpp", include_str!("emulator.cpp"))];
        for (source, kernels) in kernels {
            let mut text = format!("#include \"emulator.h\"\nnamespace {{\n{}", source.text());
            kernels.iter().for_each(|k| text.push_str(&k.line));
            for k in kernels {
                text.push_str(&format!("Bind<{0}> bind_{0}(\"{0}\");\n", k.name));
            }
            text.push_str("}\n");
            // A source that includes a header inside the namespace puts it there too.
            files.push(write(&format!("{}.cpp", source.name()), &text));
        }
        let program = folder.join("emulator");
        let done = Command::new(compiler)
            .args(["-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-ffp-contract=off", "-I"])
            .arg(&folder)
            .args(&files)
            .arg("-o")
            .arg(&program)
            .status()
            .expect("the compiler starts");
        assert!(done.success(), "the kernels do not build for the emulator");
        let mut child = Command::new(&program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the emulator starts");
        let (input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        Self { folder, child, input, output }
    }

    /// Runs a case with some (output, input) pairs in place; checks that nothing but the
    /// outputs and the scratch range changed.
    pub(super) fn run(
        &mut self,
        case: &Case,
        in_place: &[(usize, usize)],
        processors: u32,
        backwards: bool,
    ) -> Result<Vec<Tensor>, String> {
        let mut image: Vec<u8> = Vec::new();
        let mut place = |bytes: &[u8]| {
            image.resize(image.len() + GAP as usize, POISON);
            let at = image.len();
            image.extend_from_slice(bytes);
            image.resize(image.len().next_multiple_of(256), POISON);
            at
        };
        let inputs: Vec<usize> = case.inputs.iter().map(|t| place(t.bytes())).collect();
        let types = types(&case.op, &case.inputs, case.outputs);
        let outputs: Vec<usize> = types
            .iter()
            .enumerate()
            .map(|(o, ty)| match in_place.iter().find(|p| p.0 == o) {
                Some(&(_, i)) => inputs[i],
                None => place(&vec![POISON; ty.bytes().0 as usize]),
            })
            .collect();
        let scratch = place(&[]);
        image.resize(scratch + SCRATCH as usize, POISON);
        image.resize(image.len().next_multiple_of(4096), POISON);
        let address = |at: usize| BASE + at as u64;
        let placed = Placed {
            inputs: case
                .inputs
                .iter()
                .map(|t| t.ty().clone())
                .zip(inputs.iter().map(|&at| address(at)))
                .collect(),
            outputs: types.iter().cloned().zip(outputs.iter().map(|&at| address(at))).collect(),
            scratch: address(scratch),
            scratch_bytes: SCRATCH,
        };
        let steps = placed.plan(&case.op, processors);
        let after = self.launch(&case.op.to_string(), &image, &steps, backwards);
        // The first byte outside of outputs and scratch that changed.
        let mut expected = image;
        expected[scratch..scratch + SCRATCH as usize]
            .copy_from_slice(&after[scratch..scratch + SCRATCH as usize]);
        let results: Vec<Tensor> = types
            .iter()
            .zip(&outputs)
            .map(|(ty, &at)| {
                let range = at..at + ty.bytes().0 as usize;
                expected[range.clone()].copy_from_slice(&after[range.clone()]);
                Tensor::from_bytes(ty.clone(), &after[range]).expect("bytes of that type")
            })
            .collect();
        if expected == after {
            return Ok(results);
        }
        match expected.iter().zip(&after).position(|(a, b)| a != b) {
            None => Ok(results),
            Some(at) => {
                Err(format!("{} of {} writes at {at:#x}, outside of its outputs", case.op, case.types()))
            }
        }
    }

    /// Runs launches on an image of memory; returns the image after them.
    pub(super) fn launch(
        &mut self,
        what: &str,
        image: &[u8],
        steps: &[super::Step],
        backwards: bool,
    ) -> Vec<u8> {
        let mut message = Vec::new();
        message.extend_from_slice(&BASE.to_le_bytes());
        message.extend_from_slice(&(image.len() as u64).to_le_bytes());
        message.extend_from_slice(image);
        let mut word = |n: usize| message.extend_from_slice(&(n as u32).to_le_bytes());
        word(usize::from(backwards));
        word(steps.len());
        for step in steps {
            message.extend_from_slice(&(step.kernel.name.len() as u32).to_le_bytes());
            message.extend_from_slice(step.kernel.name.as_bytes());
            for n in step.grid.iter().chain([&step.block, &step.shared]) {
                message.extend_from_slice(&n.to_le_bytes());
            }
            let args: Vec<&[u64]> = step.args.all().collect();
            message.extend_from_slice(&(args.len() as u32).to_le_bytes());
            for words in args {
                message.extend_from_slice(&(words.len() as u32).to_le_bytes());
                words.iter().for_each(|w| message.extend_from_slice(&w.to_le_bytes()));
            }
        }
        let mut after = vec![0; image.len()];
        let sent = self.input.write_all(&message).and_then(|()| self.input.flush());
        let done = sent.and_then(|()| self.output.read_exact(&mut after));
        assert!(done.is_ok(), "the emulator stopped at {what}: {done:?}, {:?}", self.child.try_wait());
        after
    }
}
