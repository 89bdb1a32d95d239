"""PyTorch's step time and memory, for comparison in the same run: one JSON line per measurement.

usage: peers.py MODE:NET:BATCH:PRECISION:HOW ...
  MODE train | infer, PRECISION f32 | tf32, HOW eager | graph | compile (channels-last in tf32)
A training step is forward, cross-entropy, backward and SGD with momentum 0.9.
"""
import json
import sys
import time

import torch
import torchvision


def model(net):
    if net in ("googlenet", "googlenet-bn"):
        return torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    return getattr(torchvision.models, net)(weights=None)


def median(xs):
    xs = sorted(xs)
    return xs[len(xs) // 2]


def measure(spec, steps):
    mode, net, batch, precision, how = spec.split(":")
    batch = int(batch)
    tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    m = model(net).cuda()
    x = torch.randn(batch, 3, 224, 224, device="cuda")
    if tf32:
        m = m.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    if mode == "train":
        m.train()
        y = torch.randint(0, 1000, (batch,), device="cuda")
        sgd = torch.optim.SGD(m.parameters(), lr=0.01, momentum=0.9)
        loss = torch.nn.CrossEntropyLoss()
        forward = torch.compile(m) if how == "compile" else m

        def step():
            sgd.zero_grad(set_to_none=True)
            loss(forward(x), y).backward()
            sgd.step()
    else:
        m.eval()
        forward = torch.compile(m, mode="reduce-overhead") if how == "compile" else m
        if how == "graph":
            with torch.no_grad():
                side = torch.cuda.Stream()
                with torch.cuda.stream(side):
                    for _ in range(3):
                        m(x)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    m(x)
            step = graph.replay
        else:

            def step():
                with torch.no_grad():
                    forward(x)

    began = time.time()
    for _ in range(4):
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
                "peer": "pytorch " + torch.__version__, "mode": mode, "net": net, "batch": batch,
                "precision": precision, "how": how, "ms": round(median(times), 4), "min_ms": round(min(times), 4),
                "max_ms": round(max(times), 4), "images_per_s": round(batch / median(times) * 1e3, 1),
                "peak_allocated": torch.cuda.max_memory_allocated(),
                "peak_reserved": torch.cuda.max_memory_reserved(), "warm_s": round(warm, 1),
            }
        ),
        flush=True,
    )


def main():
    for spec in sys.argv[1:]:
        try:
            measure(spec, 10 if spec.startswith("train") else 50)
        except Exception as e:  # out of memory is a result, too
            print(json.dumps({"peer": "pytorch", "spec": spec, "error": str(e).splitlines()[0]}), flush=True)
        torch.compiler.reset()


main()
