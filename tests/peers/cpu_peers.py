#!/usr/bin/env python3
"""Our CPU executor beside onnxruntime (inference) and PyTorch (a training step).

Needs the packages onnxruntime, torch and torchvision; not part of CI. Every program is a
process of its own with the same number of threads; their steps alternate, so that other load
on the machine meets all alike. Prints one table of medians and ratios. With one thread the
times are processor time, which other load hardly moves; two threads need a quiet machine.

    python3 tests/peers/cpu_peers.py [--nets resnet50,vgg16] [--rounds 10] [--threads 2]

VDNNC and PLAN_BENCH may name the built `vdnnc` and bench `plan`; else cargo builds them.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Net, batch of a training step.
NETS = [("resnet50", 8), ("densenet121", 8), ("vgg16", 4)]


def peak_mib():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


def serve(step, threads):
    """The protocol of a worker: a line in, a step, its seconds and the peak RSS out."""
    clock = time.process_time if threads == 1 else time.perf_counter
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = clock()
        step()
        print(clock() - start, round(peak_mib()), flush=True)


def onnxruntime_worker(file, batch, threads):
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    x = numpy.random.default_rng(1).uniform(-1, 1, (batch, 3, 224, 224)).astype("float32")
    serve(lambda: session.run(None, {name: x}), threads)


def torch_worker(net, batch, threads):
    import torch
    import torchvision

    torch.set_num_threads(threads)
    torch.manual_seed(1)
    model = getattr(torchvision.models, net)().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)
    loss_of = torch.nn.CrossEntropyLoss()
    x, labels = torch.randn(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.int64)

    def step():
        optimizer.zero_grad()
        loss_of(model(x), labels).backward()
        optimizer.step()

    serve(step, threads)


class Worker:
    def __init__(self, command):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.seconds = []
        self.peak = 0
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.process.args} ended early")
        return line.split()

    def step(self):
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        seconds, peak = self.answer()
        self.seconds.append(float(seconds))
        self.peak = int(peak)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def cargo_or(variable, command):
    return [os.environ[variable]] if variable in os.environ else command


def compile_plan(vdnnc, folder, net, mode, batch):
    model, plan = folder / f"{net}.onnx", folder / f"{net}.{mode}{batch}.vplan"
    run = lambda args: subprocess.run(vdnnc + args, check=True, cwd=ROOT,
                                      stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if not model.exists():
        run(["zoo", net, "-o", str(model)])
    run([str(model), "--mode", mode, "--policy", "none", "--algo", "memory", "--device", "cpu",
         "--batch", str(batch), "-o", str(plan)])
    return model, plan


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", default=",".join(net for net, _ in NETS))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--modes", default="infer,train")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        kind, what, batch = args.worker
        run = {"onnxruntime": onnxruntime_worker, "torch": torch_worker}[kind]
        return run(what, int(batch), args.threads)
    vdnnc = cargo_or("VDNNC", ["cargo", "run", "-q", "--release", "--bin", "vdnnc", "--"])
    bench = cargo_or("PLAN_BENCH", ["cargo", "bench", "-q", "-p", "vdnn-runtime", "--bench", "plan", "--"])
    folder = ROOT / "target" / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    cases = []
    for net, train_batch in NETS:
        if net in args.nets.split(","):
            cases += [(net, "infer", 1), (net, "infer", 8), (net, "train", train_batch)]
    print(f"{args.threads} threads, median of {args.rounds}; speed is peer's time / ours")
    print("| net | step | ours | peer | speed | peak RSS ours | peer |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for net, mode, batch in cases:
        if mode not in args.modes.split(","):
            continue
        model, plan = compile_plan(vdnnc, folder, net, mode, batch)
        peer = ["onnxruntime", str(model)] if mode == "infer" else ["torch", net]
        ours = Worker(bench + [str(plan), str(args.threads), "--serve"])
        theirs = Worker([sys.executable, __file__, "--threads", str(args.threads), "--worker", *peer, str(batch)])
        for _ in range(args.rounds):
            ours.step()
            # Idle threads of either spin for a while.
            time.sleep(0.05)
            theirs.step()
            time.sleep(0.05)
        a, b = statistics.median(ours.seconds), statistics.median(theirs.seconds)
        rate = lambda s: f"{batch / s:.1f} img/s" if mode == "infer" else f"{s:.3f} s"
        print(f"| {net} | {mode} b{batch} | {rate(a)} | {peer[0]} {rate(b)} | {b / a:.2f} "
              f"| {ours.peak} MiB | {theirs.peak} MiB |", flush=True)
        ours.close()
        theirs.close()


if __name__ == "__main__":
    main()
