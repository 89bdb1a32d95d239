"""PyTorch's step time and memory, for comparison in the same run: one JSON line per measurement.

usage: peers.py MODE:NET:BATCH:PRECISION:HOW ...
  MODE train | infer, PRECISION f32 | tf32 | bf16, HOW eager | graph | compile | offload
A training step is forward, cross-entropy, backward and SGD with momentum 0.9; channels-last but
in f32. `offload` saves activations to pinned host memory (torch.autograd.graph.save_on_cpu). bf16
is autocast. Memory: the allocator's peaks, and the process's by NVML where it can be asked.
"""
import contextlib
import json
import os
import sys
import threading
import time

import torch
import torchvision


class Watch:
    """The most device memory that NVML sees this process use."""

    def __init__(self):
        self.peak = None
        try:
            import pynvml

            pynvml.nvmlInit()
            self.nvml, self.device = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception:
            self.nvml = None

    def __enter__(self):
        self.peak, self.stop = 0, threading.Event()
        self.thread = threading.Thread(target=self.look, daemon=True)
        self.thread.start()
        return self

    def look(self):
        while self.nvml and not self.stop.is_set():
            for p in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.device):
                if p.pid == os.getpid():
                    self.peak = max(self.peak, p.usedGpuMemory or 0)
            self.stop.wait(0.02)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def model(net):
    if net in ("googlenet", "googlenet-bn"):
        return torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    return getattr(torchvision.models, net)(weights=None)


def median(xs):
    xs = sorted(xs)
    return xs[len(xs) // 2]


def steps_of(mode, how):
    if how == "offload":
        return 2, 3
    return 4, 10 if mode == "train" else 50


def train_step(m, x, batch, how, cast):
    m.train()
    y = torch.randint(0, 1000, (batch,), device="cuda")
    sgd = torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9)
    loss = torch.nn.CrossEntropyLoss()
    forward = torch.compile(m) if how == "compile" else m
    saving = contextlib.nullcontext
    if how == "offload":
        def saving():
            return torch.autograd.graph.save_on_cpu(pin_memory=True)

    def step():
        sgd.zero_grad(set_to_none=True)
        with saving(), cast():
            l = loss(forward(x), y)
        l.backward()
        sgd.step()

    return step


def infer_step(m, x, how, cast):
    m.eval()
    if how == "graph":
        with torch.no_grad(), cast():
            side = torch.cuda.Stream()
            with torch.cuda.stream(side):
                for _ in range(3):
                    m(x)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                m(x)
        return graph.replay
    forward = torch.compile(m, mode="reduce-overhead") if how == "compile" else m

    def step():
        with torch.no_grad(), cast():
            forward(x)

    return step


def measure(spec):
    mode, net, batch, precision, how = spec.split(":")
    batch = int(batch)
    fast = precision != "f32"
    torch.backends.cuda.matmul.allow_tf32 = fast
    torch.backends.cudnn.allow_tf32 = fast
    torch.backends.cudnn.benchmark = True
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()

    def cast():
        return torch.autocast("cuda", torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    with Watch() as watch:
        m = model(net).cuda()
        x = torch.randn(batch, 3, 224, 224, device="cuda")
        if fast:
            m = m.to(memory_format=torch.channels_last)
            x = x.to(memory_format=torch.channels_last)
        step = train_step(m, x, batch, how, cast) if mode == "train" else infer_step(m, x, how, cast)
        warm_up, steps = steps_of(mode, how)
        began = time.time()
        for _ in range(warm_up):
            step()
        torch.cuda.synchronize()
        warm = time.time() - began
        times = []
        for _ in range(steps):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            step()
            b.record()
            torch.cuda.synchronize()
            times.append(a.elapsed_time(b))
    print(
        json.dumps(
            {
                "kind": "peer", "peer": "pytorch " + torch.__version__, "mode": mode, "net": net, "batch": batch,
                "precision": precision, "how": how, "ms": round(median(times), 4), "min_ms": round(min(times), 4),
                "max_ms": round(max(times), 4), "images_per_s": round(batch / median(times) * 1e3, 1),
                "peak_allocated": torch.cuda.max_memory_allocated(),
                "peak_reserved": torch.cuda.max_memory_reserved(), "peak_process": watch.peak or None,
                "warm_s": round(warm, 1),
            }
        ),
        flush=True,
    )


def main():
    for spec in sys.argv[1:]:
        try:
            measure(spec)
        except Exception as e:  # out of memory is a result, too
            print(json.dumps({"kind": "peer", "spec": spec, "error": str(e).splitlines()[0]}), flush=True)
        torch.compiler.reset()


main()
