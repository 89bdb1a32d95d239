"""Runs commands at the same time and watches, from outside, how much device memory each takes.

usage: watch.py COMMAND [ARGS ...] [++ COMMAND [ARGS ...]] ...
Standard output of the commands is passed on in their order when all have ended; then one JSON
line per command: its exit status and the most device memory that NVML saw it use. Exit status:
the first that is not 0. Needs nvidia-ml-py (`import pynvml`) or nvidia-smi. The GPU is the first
of CUDA_VISIBLE_DEVICES.
"""
import json
import os
import subprocess
import sys
import tempfile
import time

GPU = int(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])


def by_nvml():
    import pynvml

    pynvml.nvmlInit()
    device = pynvml.nvmlDeviceGetHandleByIndex(GPU)

    def look():
        found = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(device)}
        return found, pynvml.nvmlDeviceGetMemoryInfo(device).used

    look()
    return look, 0.02


def by_smi():
    def ask(*query):
        text = subprocess.run(["nvidia-smi", f"--id={GPU}", *query, "--format=csv,noheader,nounits"], capture_output=True, text=True)
        return [line.split(", ") for line in text.stdout.splitlines()]

    def look():
        apps = ask("--query-compute-apps=pid,used_memory")
        found = {int(pid): int(mib) << 20 if mib.isdigit() else None for pid, mib in apps}
        return found, int(ask("--query-gpu=memory.used")[0][0]) << 20

    return look, 0.05


def main():
    commands, args = [], sys.argv[1:]
    while "++" in args:
        at = args.index("++")
        commands.append(args[:at])
        args = args[at + 1 :]
    commands.append(args)
    try:
        look, pause = by_nvml()
    except Exception:
        look, pause = by_smi()
    before = look()[1]
    outputs = [tempfile.TemporaryFile() for _ in commands]
    running = [subprocess.Popen(c, stdout=o) for c, o in zip(commands, outputs)]
    peaks = {p.pid: 0 for p in running}
    whole = before
    while any(p.poll() is None for p in running):
        found, used = look()
        whole = max(whole, used)
        for pid in peaks:
            peaks[pid] = max(peaks[pid], found.get(pid) or 0)
        time.sleep(pause)
    status = 0
    for process, output in zip(running, outputs):
        output.seek(0)
        sys.stdout.write(output.read().decode(errors="replace"))
        status = status or process.returncode
    for process in running:
        # Where NVML does not know processes apart, one alone is what the device has more in use.
        peak = peaks[process.pid] or (whole - before if len(running) == 1 else None)
        seen = {"kind": "watched", "status": process.returncode, "peak_bytes": peak, "device_peak_bytes": whole,
                "device_before_bytes": before, "per_process": peaks[process.pid] > 0}
        print(json.dumps(seen))
    sys.exit(status if status >= 0 else 128 - status)


main()
