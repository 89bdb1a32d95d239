"""Judges what micro.sh measured. Exit status 1 if a bar is missed.

usage: micro.py layers SET.json               a set of layers, strict f32, against the bars of its set
       micro.py step OURS.json PEER.jsonl     a training step against PyTorch's
       micro.py deepbench LIST.json           a list of layers at one limit
       micro.py low LISTS FILE.json ...       lower precisions: never slower; how many lists are done
       micro.py near FILE.txt                 what `profile --workspace-limit` says of networks
       micro.py split LIST SET ROWS FOLDER    a list in parts, each layer once
"""
import csv
import json
import math
import os
import re
import sys

# Per set, over the three directions: ms at most; ms of the best undivided classic algorithms (cuDNN
# 9.19, H200); how many times as fast as those at least.
BARS = {"alexnet": (15.6, 31.6, 2.0), "resnet18": (9.1, 13.0, 1.4), "vgg16": (None, 376.8, 2.5)}
NEVER_SLOWER = 0.98


def bar(text, good):
    print(f"{'PASS' if good else 'FAIL'}  {text}")
    return good


def cells(path):
    for text in open(path):
        if text.startswith("{"):
            return json.loads(text)["cells"]
    return []


def times(cell):
    """Undivided, divided and unlimited, ns: run where a division was chosen, else as measured."""
    whole, best = cell["run_whole_ns"], cell["run_best_ns"]
    return (
        whole or (cell["whole"] or {}).get("ns"),
        best or (cell["best"] or {}).get("ns"),
        (cell["unlimited"] or {}).get("ns"),
    )


def divided(cell):
    return cell["best"] is not None and "@" in cell["best"]["schedule"]


def layers(path):
    sums = [0, 0, 0]
    name = ""
    for cell in cells(path):
        name = cell["set"]
        whole, best, unlimited = times(cell)
        for i, t in enumerate((whole, best, unlimited)):
            sums[i] += t
        print(
            f"{cell['layer']:12} {cell['direction']:6} {whole / 1e6:8.3f} -> {best / 1e6:8.3f} {whole / best:6.2f}x"
            f"  unlimited {unlimited / 1e6:8.3f}  {cell['best']['schedule']}"
        )
    whole, best, unlimited = (s / 1e6 for s in sums)
    print(f"{name}: undivided {whole:.2f} ms, divided {best:.2f} ms, unlimited {unlimited:.2f} ms")
    most, classic, gain = BARS[name]
    good = most is None or bar(f"{best:.2f} ms, at most {most}", best <= most)
    good &= bar(f"{classic / best:.2f}x the classic algorithms, at least {gain}", classic / best >= gain)
    own = [times(c) for c in cells(path)]
    mean = geomean([w / b for w, b, _ in own])
    print(f"      over our own undivided engines {whole / best:.2f}x, geomean {mean:.2f}x")
    if name == "vgg16":
        good &= bar(f"{best / unlimited:.3f} of the unlimited time, at most 1.15", best <= 1.15 * unlimited)
    return good


def step(ours, peer):
    rows = [json.loads(t) for t in open(ours) if t.startswith("{")]
    result = [r for r in rows if r.get("kind") == "result"][-1]
    theirs = [json.loads(t) for t in open(peer) if t.startswith("{")][-1]
    ms = result["step_ms"]["median"]
    print(
        f"ours {ms:.1f} ms (predicted {result['predicted_step_ns'] / 1e6:.1f}), arena {result['device_arena_bytes']}, "
        f"process {result['process_device_bytes']}; {theirs['peer']} {theirs['ms']:.1f} ms, "
        f"reserved {theirs['peak_reserved']}"
    )
    return bar(f"{ms / theirs['ms']:.3f} of PyTorch's step, at most 1", ms <= theirs["ms"])


def gains(all_cells):
    return [(whole / best, c) for c in all_cells for whole, best, _ in [times(c)] if whole and best]


def geomean(values):
    return math.exp(sum(map(math.log, values)) / max(1, len(values)))


def deepbench(path):
    found = gains(cells(path))
    by_layer = {}
    for _, c in found:
        whole, best, _ = times(c)
        a, b = by_layer.get(c["shape"], (0, 0))
        by_layer[c["shape"]] = (a + whole, b + best)
    for shape, (whole, best) in by_layer.items():
        print(f"{shape:40} {whole / 1e6:8.3f} -> {best / 1e6:8.3f} {whole / best:6.2f}x")
    layers = [w / b for w, b in by_layer.values()]
    print(f"{len(layers)} layers, sums over the directions: geomean {geomean(layers):.3f}, least {min(layers):.3f}")
    for direction in ("fprop", "dgrad", "wgrad"):
        some = [g for g, c in found if c["direction"] == direction]
        print(f"{direction}: geomean {geomean(some):.3f}, least {min(some):.3f}, most {max(some):.3f}")
    every = [g for g, _ in found]
    print(f"{sum(divided(c) for _, c in found)} of {len(found)} divided")
    good = bar(f"geomean {geomean(every):.3f}, at least 1.26", geomean(every) >= 1.26)
    least, where = min(found, key=lambda g: g[0])
    text = f"least {least:.3f} ({where['shape']} {where['direction']}), at least {NEVER_SLOWER}"
    return bar(text, least >= NEVER_SLOWER) and good


def low(lists, paths):
    found = gains(c for path in paths for c in cells(path))
    if not found:
        return False
    some = [(g, c) for g, c in found if divided(c)]
    print(f"{len(paths)} of {lists} lists, {len({c['shape'] for _, c in found})} layers, {len(found)} cells; "
          f"{len(some)} divided, the others are the undivided engine itself; geomean {geomean([g for g, _ in found]):.3f}")
    for g, c in sorted(some, key=lambda g: g[0])[:5] + sorted(some, key=lambda g: -g[0])[:5]:
        print(f"  {g:6.3f}x {c['shape']} {c['direction']} in {c['limit'] >> 20} MiB: {c['best']['schedule']}")
    least = min(g for g, _ in found)
    good = bar(f"least {least:.3f}, at least {NEVER_SLOWER}", least >= NEVER_SLOWER)
    return bar(f"{len(paths)} of {lists} lists done", len(paths) == int(lists)) and good


def near(path):
    good, seen = True, 0
    for text in open(path):
        at = re.search(r"(\d+) of (\d+) convolutions at 95 %", text)
        if at:
            seen += 1
            share = int(at[1]) / max(1, int(at[2]))
            good &= bar(f"{text.strip()}: {100 * share:.1f} %, at least 90", share >= 0.9)
    return good and seen > 0


def split(path, name, rows, folder):
    seen, kept = set(), []
    with open(path, newline="") as f:
        reader = csv.DictReader(f)
        keys = [k for k in reader.fieldnames if k not in ("idx", "source", "dup_of")]
        for row in reader:
            shape = tuple(row[k] for k in keys)
            if row["set"] == name and shape not in seen:
                seen.add(shape)
                kept.append(row)
    # Spread, so that a few parts are of all kinds.
    parts = -(-len(kept) // int(rows))
    os.makedirs(folder, exist_ok=True)
    for i in range(parts):
        with open(f"{folder}/{i:02}.csv", "w", newline="") as f:
            writer = csv.DictWriter(f, reader.fieldnames)
            writer.writeheader()
            writer.writerows(kept[i::parts])
    return parts > 0


def main():
    what, *rest = sys.argv[1:]
    if what == "low":
        return low(rest[0], rest[1:])
    return {"layers": layers, "step": step, "deepbench": deepbench, "near": near, "split": split}[what](*rest)


sys.exit(0 if main() else 1)
