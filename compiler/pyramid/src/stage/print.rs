//! The text of a stage's kernel: constants, what roles do, and who has which.

use super::{Role, Stage, StageConfig, counters};
use crate::kernel::{ENTRY, Kernel};
use crate::tensor::PRELUDE;
use std::fmt::Write;
use vdnn_ir::Bytes;

/// What the roles do.
const ROLES: &str = include_str!("roles.cuh");

/// Threads of a block: three warp groups.
const THREADS: u32 = 384;

/// Shared memory of a block: that of the role that needs the most, one block per multiprocessor.
const SHARED: Bytes = Bytes(226 << 10);

/// The kernel; `blocks` of each of `roles`.
pub(super) fn kernel(
    stage: &Stage,
    config: &StageConfig,
    batch: u64,
    roles: &[Role],
    blocks: &[u32],
) -> Kernel {
    let mut source = String::from(PRELUDE);
    for (name, value) in [("IMAGES", batch), ("HEIGHT", stage.height), ("WIDTH", stage.width)] {
        let _ = writeln!(source, "#define {name} {value}");
    }
    source.push_str(ROLES);
    let operands = 2 * (3 * stage.blocks + 1);
    let list: Vec<String> = (0..=operands).map(|o| format!("const float* __restrict__ o{o}")).collect();
    let _ = writeln!(
        source,
        "extern \"C\" __global__ void __launch_bounds__({THREADS}, 1) {ENTRY}({}, float* y, unsigned char* workspace) {{",
        list.join(", ")
    );
    source.push_str("  int* done = (int*)workspace;\n");
    // Rings: of block b what its 3x3 convolution reads (h) and makes (g), and its result (r).
    let mut at = counters(stage, batch).0;
    let rings = config.rings(stage);
    for (i, (&images, channels)) in rings.iter().zip(stage.rings()).enumerate() {
        let (name, block) = (["h", "g", "r"][i % 3], i / 3);
        let _ = writeln!(source, "  const Ring {name}{block} = {{(float*)(workspace + {at}ull), {images}}};");
        at += stage.height * stage.width * 4 * channels * u64::from(images);
    }
    source.push_str("  const Ring all = {y, IMAGES}, none = {nullptr, 1};\n");
    let mut first = 0;
    for (i, (role, count)) in roles.iter().zip(blocks).enumerate() {
        let block = (i as u32).saturating_sub(1) / 2;
        let (h, g) = (format!("h{block}"), format!("g{block}"));
        // Weight and bias of a layer; of the stage's first block, the third one is that of the residual.
        let operands = |layer: u32| format!("o{}, o{}", 1 + 2 * layer, 2 + 2 * layer);
        let layer = |n: u32| operands(3 * block + n + u32::from(block > 0));
        let last = if block == 0 { operands(3) } else { layer(2) };
        // Who reads what it writes: of the next block the end, the result, and the 3x3 convolution.
        let ring = |kind: u32, block: u32| rings.get((3 * block + kind) as usize).copied().unwrap_or(0);
        let back = match role {
            Role::Leave => "-1, 0, -1, 0".to_owned(),
            Role::Side | Role::Join => {
                format!("{}, {}, {}, {}", i + 2, ring(2, block), i + 1, ring(0, block + 1))
            }
            Role::Enter => format!("1, {}, -1, 0", ring(0, 0)),
            Role::Window => format!("{}, {}, -1, 0", i + 1, ring(1, block)),
        };
        let who = format!("Role{{{i}, {first}, {count}, {}, {back}}}, done", i as i64 - 1);
        let residual = if block == 0 { String::new() } else { format!("r{}", block - 1) };
        let next = block + 1;
        let following = format!("{}, h{next}", operands(3 * next + 1));
        let call = match role {
            Role::Enter => format!("enter({who}, o0, {}, h0)", operands(0)),
            Role::Window => format!("window({who}, {h}, {}, {g})", layer(1)),
            Role::Side => format!(
                "join<true, true>({who}, {g}, {last}, o0, {}, none, r{block}, {following})",
                operands(2)
            ),
            Role::Join => format!(
                "join<false, true>({who}, {g}, {last}, nullptr, nullptr, nullptr, {residual}, r{block}, {following})"
            ),
            Role::Leave => format!(
                "join<false, false>({who}, {g}, {last}, nullptr, nullptr, nullptr, {residual}, all, nullptr, nullptr, none)"
            ),
        };
        first += count;
        let _ = writeln!(source, "  if (blockIdx.x < {first}) return {call};");
    }
    source.push_str("}\n");
    Kernel {
        source,
        entry: ENTRY.to_owned(),
        grid: [config.blocks, 1, 1],
        threads: THREADS,
        shared: SHARED,
        target: Some("sm_90a"),
    }
}
