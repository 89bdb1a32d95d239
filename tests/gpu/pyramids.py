"""Printed pyramids against cuDNN: correctness, then times, of every way in a folder.

usage: cargo run --release -p vdnn-pyramid --example tensor -- FOLDER [BATCH]
       pyramids.py FOLDER OUT [NAME | NAME-PRECISION ...]

Compiles FOLDER's kernels by nvcc (PTX assembler's registers and spills go to OUT/compile.txt), runs
each on random tensors, compares with strict f32 (in bf16, rounded between layers) and times it in a
CUDA graph. A result counts only if it is right and the same twice. Beside it cuDNN's convolutions
with bias and ReLU, alone and fused, and the bytes of a pool at the rate of a copy. Needs PyTorch
and CuPy. Every chain has a process of its own. Raw results: OUT/results.jsonl.
"""
import concurrent.futures
import json
import os
import subprocess
import sys
import traceback

import numpy
import torch
import torch.nn.functional as F

LAST = torch.channels_last
# Bytes read and written per millisecond by the maximum pool of the unfused plan.
POOL = 4.1e9

# Channels, extent, convolutions (outputs, kernel, stride, padding), pool, residual.
CHAINS = {
    "stem": (3, 224, [(64, 7, 2, 3)], (3, 2, 1), False),
    "vgg1": (3, 224, [(64, 3, 1, 1)] * 2, (2, 2, 0), False),
    "vgg1b": (64, 224, [(64, 3, 1, 1)], (2, 2, 0), False),
    "block1": (64, 56, [(64, 1, 1, 0), (64, 3, 1, 1), (256, 1, 1, 0)], None, True),
    "block2": (256, 56, [(64, 1, 1, 0), (64, 3, 1, 1), (256, 1, 1, 0)], None, True),
    "tail2": (64, 56, [(64, 3, 1, 1), (256, 1, 1, 0)], None, True),
}


def compile_all(folder, rows, out):
    """Cubins beside the sources, and what the assembler says of each."""

    def one(file):
        base = os.path.join(folder, file[:-3])
        if os.path.exists(base + ".cubin"):
            return f"{file}: there already\n"
        command = ["nvcc", "-cubin", "-arch=sm_90a", "-std=c++17", "-Xptxas", "-v", "-o", base + ".cubin", base + ".cu"]
        done = subprocess.run(command, capture_output=True, text=True)
        return f"{file}: {done.returncode}\n{done.stderr}"

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        texts = list(pool.map(one, [r["file"] for r in rows]))
    with open(os.path.join(out, "compile.txt"), "w") as file:
        file.writelines(texts)


def timed(call, count=10):
    """Milliseconds per call: the median of five replays of a graph of so many."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(count):
            call()
    graph.replay()
    times = []
    for _ in range(5):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / count)
    return sorted(times)[2]


def chain(name, precision, rows, folder, batch, note):
    """Checks and times one chain; `note` takes each result. Returns a line of the table."""
    import cupy

    channels, extent, layers, pool, residual = CHAINS[name]
    torch.manual_seed(1)
    torch.backends.cudnn.benchmark = True
    own = torch.float32 if precision == "tf32" else torch.bfloat16
    random = lambda *dims: torch.randn(*dims, device="cuda")
    x = random(batch, channels, extent, extent).to(own).to(memory_format=LAST)
    weights, biases = [], []
    for out, kernel, _, _ in layers:
        scale = (2 / (channels * kernel * kernel)) ** 0.5
        weights.append((random(out, channels, kernel, kernel) * scale).to(own).to(memory_format=LAST))
        biases.append(random(out) * 0.1)
        channels = out

    torch.backends.cudnn.allow_tf32 = False
    h, added = x.float(), None
    inputs = []
    for i, (_, _, stride, padding) in enumerate(layers):
        inputs.append(h.to(own).to(memory_format=LAST))
        h = F.conv2d(h, weights[i].float(), biases[i], stride=stride, padding=padding)
        if residual and i + 1 == len(layers):
            added = random(*h.shape).to(own).to(memory_format=LAST)
            h = h + added.float()
        h = h.relu()
        h = h.to(own).float()
    before = h.numel()
    if pool:
        h = F.max_pool2d(h, *pool)
    want = h.contiguous(memory_format=LAST)
    norm = want.double().norm().item()

    torch.backends.cudnn.allow_tf32 = True
    parts = []
    for i, (_, _, stride, padding) in enumerate(layers):
        bias, s, p = biases[i].to(own), [stride] * 2, [padding] * 2
        alone = lambda: F.conv2d(inputs[i], weights[i], None, stride=stride, padding=padding)
        if residual and i + 1 == len(layers):
            fused = lambda: torch.cudnn_convolution_add_relu(inputs[i], weights[i], added, 1.0, bias, s, p, [1, 1], 1)
        else:
            fused = lambda: torch.cudnn_convolution_relu(inputs[i], weights[i], bias, s, p, [1, 1], 1)
        part = {}
        for key, call in (("alone", alone), ("fused", fused)):
            try:
                part[key] = timed(call)
            except Exception as error:
                print(name, precision, key, "baseline:", str(error)[:200])
        parts.append(part)
    pooled = (before + want.numel()) * x.element_size() / POOL if pool else 0
    base = {k: sum(p.get(k, p["alone"]) for p in parts) + pooled for k in ("alone", "fused")}

    result = torch.empty(want.shape, device="cuda", dtype=own).to(memory_format=LAST)
    best = None
    for row in rows:
        module = cupy.RawModule(path=os.path.join(folder, row["file"][:-3] + ".cubin"))
        function = module.get_function("pyramid")
        function.max_dynamic_shared_size_bytes = row["shared"]
        pointers = [x] + [t for pair in zip(weights, biases) for t in pair] + [added] * residual + [result]
        args = tuple(numpy.uint64(t.data_ptr()) for t in pointers)

        def call():
            with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
                function((row["grid"],), (row["threads"],), args, shared_mem=row["shared"])

        result.fill_(float("nan"))
        call()
        torch.cuda.synchronize()
        first = result.clone()
        difference = first.float() - want
        error = difference.double().norm().item() / norm
        right = error < (1.5e-3 if precision == "tf32" else 8e-3)
        ms = timed(call) if right else None
        same = torch.equal(first, result)
        where = None if right else (difference.isnan() | (difference.abs() > 0.1)).nonzero()[:6].tolist()
        note(dict(row, error=error, worst=difference.abs().max().item(), same=same, ms=ms, where=where, base=base, parts=parts, pool=pooled))
        if right and same and (best is None or ms < best[0]):
            best = (ms, row["config"])
        print(f"{row['file']:22} error {error:.2e} same {same} ms {ms and round(ms, 4)} {row['config']} {where or ''}", flush=True)
    unfused = min(base.values())
    gain = f"{best[0]:.4f} ms, {unfused / best[0]:.2f}x: {best[1]}" if best else "NONE IS RIGHT"
    parts = ", ".join(f"{p['alone']:.4f}/{p.get('fused', 0):.4f}" for p in parts)
    return f"{name:7} {precision}: unfused {unfused:.4f} (alone/fused {parts}; pool {pooled:.4f}), best {gain}"


def main():
    folder, out, only = sys.argv[1], sys.argv[2], sys.argv[3:]
    rows = []
    for line in open(os.path.join(folder, "list")):
        name, precision, file, grid, threads, shared, batch, config = line.rstrip("\n").split(" ", 7)
        rows.append(dict(name=name, precision=precision, file=file, grid=int(grid), threads=int(threads), shared=int(shared), batch=int(batch), config=config))
    rows = [r for r in rows if not only or r["name"] in only or f"{r['name']}-{r['precision']}" in only]
    os.makedirs(out, exist_ok=True)
    compile_all(folder, rows, out)
    for name, precision in dict.fromkeys((r["name"], r["precision"]) for r in rows):
        some = [r for r in rows if (r["name"], r["precision"]) == (name, precision)]
        if os.fork() == 0:
            with open(os.path.join(out, "results.jsonl"), "a") as results, open(os.path.join(out, "table.txt"), "a") as table:
                try:
                    note = lambda result: results.write(json.dumps(result) + "\n")
                    print(chain(name, precision, some, folder, some[0]["batch"], note), file=table)
                except Exception:
                    print(name, precision, "FAILED:", traceback.format_exc()[-400:], file=table)
                results.flush()
                table.flush()
                os._exit(0)
        os.wait()
    print(open(os.path.join(out, "table.txt")).read())


main()
