#!/bin/bash
# Makes the folder that run.sh takes as DATA out of the reference data: about 10 MB, and 87 MB more
# with the trained networks of the part cusnn.
#
# usage: data.sh FROM TO [pretrained]
set -eu
from=$1 to=$2
mkdir -p "$to/onnx" "$to/golden"
cp -r "$from/golden/train" "$from/golden/fulltrain" "$from/golden/infer" "$to/golden/"
cp -r "$from/onnx/skel" "$from/onnx/light_seeded" "$to/onnx/"
cp -r "$from/mnist" "$to/"
if [ "${3:-}" = pretrained ]; then
  mkdir -p "$to/pretrained"
  cp "$from"/pretrained/*.onnx "$from/pretrained/images.npz" "$to/pretrained/"
fi
chmod -R u+w "$to"
du -sh "$to"
