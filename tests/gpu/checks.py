"""Reads what `vdnnc bench --json` printed under watch.py, and judges it. Exit status 1 for a no.

usage: checks.py line|within|same FILE ...          one line of figures; memory kept; same bytes
       checks.py between NONE CONV                  a --memory that conv fits and none does not
       checks.py pair ALONE-A ALONE-B BOTH          two processes at once
       checks.py packed OFF AUTO                    offloads as they are and packed
       checks.py recompute OFF CHEAP                a step that keeps less
       checks.py faster A B                         B takes at most 1/0.99 of A's time
       checks.py sparse PRECISION FILE              packed weights against dense kernels
       checks.py cusnn FILE                         what leaving zeros out gains
       checks.py energy FILE                        the energy of a step is known and plausible
       checks.py losses A B LIMIT                   two courses of training
       checks.py mnist FOLDER X.npy Y.npy           1,600 images as arrays
"""
import json
import math
import sys

# Device memory that a process is planned to take besides its arena.
OVERHEAD = 700_000_000
# PyTorch's peak in a training step of DenseNet-121 at batch 256.
PYTORCH_DENSENET = 33_700_000_000


def rows(path):
    found = []
    for line in open(path):
        try:
            found.append(json.loads(line))
        except ValueError:
            pass
    return found


def read(path):
    """Results and what was seen of their processes, in order."""
    all_rows = rows(path)
    results = [r for r in all_rows if r.get("kind") in ("result", "error")]
    return list(zip(results, [r for r in all_rows if r.get("kind") == "watched"]))


def line(path):
    good = True
    for result, seen in read(path) or [(None, None)]:
        name = path.split("/")[-1].removesuffix(".json")
        if result is None or result["kind"] == "error":
            error = open(path.removesuffix("json") + "err").read().strip()
            print(f"{name:28} failed: {(result or {}).get('message') or error}"[:300])
            good = False
            continue
        delayed = f"  {result['delay_seeds']} seeds {result['delayed_step_ns'] / 1e6:.2f} ms" if "delay_seeds" in result else ""
        print(
            f"{name:28} {result['step_ms']['median']:9.3f} ms  predicted {result['predicted_step_ns'] / 1e6:9.3f}"
            f"  arena {result['device_arena_bytes']}  process {seen['peak_bytes']}  out {result['offload_bytes']}"
            f"  {(result.get('checksum') or '')[:12]}{delayed}"
        )
    return good


def within(path):
    good = True
    for result, seen in read(path) or [({"kind": "error"}, {})]:
        if result["kind"] == "error":
            print(f"{path}: no result")
            good = False
            continue
        limit, peak, arena = result["memory_limit_bytes"], seen["peak_bytes"], result["device_arena_bytes"]
        print(f"{path.split('/')[-1]:32} arena + {(peak or 0) - arena} bytes, limit {limit}")
        if peak is None or (limit is not None and peak > limit) or peak - arena > OVERHEAD:
            print("  FAILED: more than promised, or not seen")
            good = False
    return good


def same(chains, *paths):
    wanted = 6 * int(chains)
    hashes, good = {}, len(paths) == wanted
    if not good:
        print(f"{len(paths)} results, not {wanted}")
    for path in paths:
        name = path.split("same-")[-1].removesuffix(".json")
        net, policy = name.rsplit("-", 1)
        for result, _ in read(path) or [({"kind": "error"}, None)]:
            if result["kind"] == "error" or result.get("delay_seeds") != 100:
                print(f"{name}: no result")
                good = False
                continue
            hashes.setdefault(net, {})[policy] = result["checksum"]
            moved = "offload_packed_bytes" if policy == "packed" else "offload_bytes"
            if policy in ("all", "conv", "dyn", "packed") and result[moved] == 0:
                print(f"{name}: nothing moves")
                good = False
    for net, by_policy in sorted(hashes.items()):
        one = len(set(by_policy.values())) == 1 and len(by_policy) == 6
        good &= one
        print(f"{net:20} {'the same' if one else by_policy}  {sorted(by_policy)}")
    return good


def between(none, conv):
    a, b = (read(p)[0][0]["device_arena_bytes"] for p in (none, conv))
    if b >= a:
        print("conv needs no less than none", file=sys.stderr)
        return False
    print((a + b) // 2 + OVERHEAD)
    return True


def pair(a, b, both):
    alone, together = read(a) + read(b), read(both)
    good = len(alone) == 2 and len(together) == 2
    for (x, seen_x), (y, seen_y) in zip(alone, together):
        print(
            f"{x['model']}: limit {x['memory_limit_bytes']}, alone {seen_x['peak_bytes']}, together "
            f"{seen_y['peak_bytes']}; loss {x['loss']} and {y['loss']}; parameters {x['checksum'][:12]} and "
            f"{y['checksum'][:12]}; {x['step_ms']['median']:.2f} ms and {y['step_ms']['median']:.2f} ms a step"
        )
        good &= seen_y["per_process"] and max(seen_x["peak_bytes"], seen_y["peak_bytes"]) <= x["memory_limit_bytes"]
        good &= x["loss"] == y["loss"] and x["checksum"] == y["checksum"]
    return good


def packed(off, auto):
    (x, _), (y, _) = read(off)[0], read(auto)[0]
    if "error" in (x["kind"], y["kind"]):
        print("no result")
        return False
    tensors, link = y["offload_packed_bytes"], y["offload_packed_on_link_bytes"]
    share = y["step_ms"]["median"] / x["step_ms"]["median"]
    print(f"{tensors} bytes as {link} ({tensors / max(link, 1):.2f} times fewer), a step takes {share:.3f} of the time")
    same = x["checksum"] == y["checksum"]
    print("the same parameters" if same else "OTHER PARAMETERS")
    return same and share <= 0.8 and tensors >= 1.6 * link


def recompute(off, cheap):
    (x, seen_x), (y, seen_y) = read(off)[0], read(cheap)[0]
    if "error" in (x["kind"], y["kind"]):
        print("no result")
        return False
    same = x["checksum"] == y["checksum"]
    print(
        f"{x['step_ms']['median']:.2f} ms in {seen_x['peak_bytes']}, {y['step_ms']['median']:.2f} ms in "
        f"{seen_y['peak_bytes']}; {'the same parameters' if same else 'OTHER PARAMETERS'}"
    )
    return same and seen_y["peak_bytes"] <= 0.45 * PYTORCH_DENSENET


def faster(a, b):
    (x, _), (y, _) = read(a)[0], read(b)[0]
    if "error" in (x["kind"], y["kind"]):
        print("no result")
        return False
    share = y["step_ms"]["median"] / x["step_ms"]["median"]
    print(f"{x['model']} {x['precision']}: {share:.3f} of the time, {y['device_arena_bytes']} bytes of {x['device_arena_bytes']}")
    return share <= 1 / 0.99


def sparse(precision, path):
    cells = json.load(open(path))["cells"]
    good = True

    def mean(xs):
        return math.exp(sum(map(math.log, xs)) / len(xs)) if xs else float("nan")

    for zeros in sorted({c["zeros_percent"] for c in cells}):
        these = [c for c in cells if c["zeros_percent"] == zeros]
        products = [c for c in these if "x1x1 ->" in c["shape"]]
        convs = [c for c in these if c not in products]
        gains = [c["gain"] for c in convs if c["gain"]]
        taken = [c["gain"] for c in convs if c["packed"]]
        print(
            f"{precision} {zeros} % zeros: {len(convs)} convolutions, packed weights x{mean(gains):.2f} "
            f"({min(gains):.2f} to {max(gains):.2f}), chosen for {len(taken)}: x{mean(taken):.2f}; products "
            + ", ".join(f"x{c['gain']:.2f}" for c in products)
        )
        if precision == "f32" and zeros == 95:
            good &= mean(gains) >= 1.5
        if precision == "tf32" and zeros == 98:
            good &= len(taken) >= 6 and mean(taken) >= 1.3
        if zeros == 90 and precision in ("f32", "tf32"):
            # Of a classifier as a whole: the shortest kernel there is takes half the time of its last, dense one.
            together = sum(c["dense_ns"] for c in products) / sum(c["packed_ns"] for c in products)
            print(f"products together x{together:.2f}, in the geometric mean x{mean([c['gain'] for c in products]):.2f}")
            good &= together >= 2.5 and mean([c["gain"] for c in products]) >= 2.5
    return good


# Least gain of the whole step over IMPLICIT_GEMM, and of layers of these sizes over the best of three.
CUSNN = {"densenet169": (1.26, None), "resnet50-conv4": (None, ((28, 14), 3.14))}


def cusnn(path):
    good = True
    for model in json.load(open(path))["models"]:
        name = model["model"]
        if model["skipped"]:
            print(f"{name}: skipped: {model['skipped']}")
            good = False
            continue
        for row in model["layers"]:
            times = [row[k] for k in ("implicit_gemm_ns", "implicit_precomp_gemm_ns", "gemm_ns", "dense_ns", "sparse_ns")]
            text = "".join(f"{t / 1e3:9.1f}" if t else "        -" for t in times)
            gains = "".join(f"{g:8.2f}" if g else "       -" for g in (row["gain_over_three"], row["gain_over_dense"]))
            print(f"{name} {row['name']:22} {row['size']:3} {100 * row['zero_share']:5.1f} %{text}{gains}")
        for row in model["means"]:
            print(f"{name} {row['layers']}: over three {row['gain_over_three']}, over dense {row['gain_over_dense']}")
        for row in model["not_timed"]:
            print(f"{name} {row['plan']} was not timed: {row['why']}")
        steps = {row["plan"]: row for row in model["steps"]}
        for row in steps.values():
            print(
                f"{name} {row['plan']:14} {row['step_ns'] / 1e6:8.3f} ms x{row['gain']:.3f} sparse {row['sparse_layers']}"
                f" difference {row['difference']:.1e} graph {row['graph']} {row['energy']}"
            )
        good &= all(row["graph"] and (plan == "dense" or row["energy"].get("step_mj")) for plan, row in steps.items())
        good &= steps["implicit_gemm"]["difference"] <= 1e-4
        if "sparse" not in steps:
            good = False
            continue
        good &= steps["sparse"]["difference"] <= 1e-5 and steps["sparse"]["sparse_layers"] >= len(model["layers"])
        step, layers = CUSNN.get(name, (None, None))
        if step:
            good &= steps["sparse"]["gain"] >= step
        if layers:
            sizes, least = layers
            gains = [row["gain_over_three"] for row in model["layers"] if row["size"] in sizes]
            mean = sum(gains) / len(gains)
            print(f"{name} {len(gains)} layers at {sizes}: x{mean:.3f} over the best of three")
            good &= mean >= least
    return good


def energy(path):
    good = True
    for result, _ in read(path):
        found = result.get("energy") or {"not_available": result.get("message")}
        print(found)
        good &= found.get("step_mj") is not None and 50 < found["idle_watts"] <= found["watts"] < 1500
    return good


def losses(a, b, limit):
    x, y = (json.load(open(p))["loss"] for p in (a, b))
    worst = max(abs(p - q) for p, q in zip(x, y))
    print(f"{len(x)} losses, largest difference {worst:.3g}, from {x[0]:.4f} to {x[-1]:.4f}")
    return len(x) == len(y) == 100 and worst <= float(limit)


def mnist(folder, x, y):
    import gzip

    import numpy as np

    images = gzip.open(f"{folder}/t10k-images-idx3-ubyte.gz").read()[16:]
    labels = gzip.open(f"{folder}/t10k-labels-idx1-ubyte.gz").read()[8:]
    pixels = np.frombuffer(images, np.uint8)[: 1600 * 784].reshape(1600, 1, 28, 28)
    np.save(x, (pixels / np.float32(255)).astype(np.float32))
    np.save(y, np.frombuffer(labels, np.uint8)[:1600].astype(np.int64))
    return True


def main():
    what, *args = sys.argv[1:]
    each = {"line": line, "within": within}
    if what in each:
        good = all([each[what](path) for path in args])
    elif what == "same":
        good = same(*args)
    else:
        good = {"between": between, "pair": pair, "packed": packed, "recompute": recompute, "faster": faster, "sparse": sparse, "cusnn": cusnn, "energy": energy, "losses": losses, "mnist": mnist}[what](*args)
    sys.exit(0 if good else 1)


main()
