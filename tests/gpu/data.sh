#!/bin/bash
# Makes the folder that run.sh takes as DATA out of the reference data: about 10 MB.
#
# usage: data.sh FROM TO
set -eu
from=$1 to=$2
mkdir -p "$to/onnx" "$to/golden"
cp -r "$from/golden/train" "$from/golden/fulltrain" "$from/golden/infer" "$to/golden/"
cp -r "$from/onnx/skel" "$from/onnx/light_seeded" "$to/onnx/"
cp -r "$from/mnist" "$to/"
chmod -R u+w "$to"
du -sh "$to"
