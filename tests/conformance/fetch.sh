#!/usr/bin/env bash
# Fetches the data of the ONNX backend suite into target/onnx-backend/VERSION, if it is not
# there. Newer wheels hold no node tests; 1.17 has a wrong answer. Needs pip and python3.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=1.20.1
to=target/onnx-backend/$version
[ -d "$to" ] && exit 0
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p target/onnx-backend
python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$tmp" "onnx==$version"
python3 - "$tmp" "$tmp/data" <<'PY'
import pathlib, sys, zipfile

wheel, to = next(pathlib.Path(sys.argv[1]).glob("*.whl")), pathlib.Path(sys.argv[2])
root = "onnx/backend/test/data/"
wanted = tuple(root + f + "/" for f in ("node", "pytorch-converted", "pytorch-operator", "simple", "light"))
with zipfile.ZipFile(wheel) as z:
    for name in z.namelist():
        if name.startswith(wanted) and not name.endswith("/"):
            path = to / name[len(root):]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(z.read(name))
PY
# Last, so that an interrupted run leaves nothing that looks complete.
mv "$tmp/data" "$to"
