#!/bin/bash
# Everything that is claimed of a GPU, checked and timed on the machine at hand.
#
# usage: run.sh VDNNC BACKENDS OUT [PART ...]
#   VDNNC     the release binary (`cargo build --release --bin vdnnc`)
#   BACKENDS  the suites (`cargo test --release -p vdnn-tests --test backends --no-run`)
#   OUT       a folder for results; a part that left OUT/PART.done is skipped
#   PART      of: ops nets profile train infer capped f32 policies lenet sanitizer peers
# The part lenet needs x.npy and y.npy in OUT, 1,600 MNIST images [1600,1,28,28] in 0..1 and
# their labels; peers needs PyTorch. Prints a table per part.
set -u
vdnnc=$1 backends=$2 out=$3
shift 3
parts=${*:-ops nets profile train infer capped f32 policies lenet sanitizer peers}
here=$(cd "$(dirname "$0")" && pwd)
times=$out/h200.times
mkdir -p "$out"

bench() { # name, arguments
  local name=$1
  shift
  "$vdnnc" bench "$@" --json >"$out/$name.json" 2>&1
  tail -1 "$out/$name.json" | python3 -c "
import json, sys
text = sys.stdin.read()
try:
    r = json.loads(text)
    print('%-28s %9.3f ms  predicted %9.3f  arena %d  device %d  offload %d  %s' % ('$name', r['step_ms']['median'],
          r['predicted_step_ns'] / 1e6, r['device_arena_bytes'], r['used_device_bytes'], r['offload_bytes'],
          (r.get('checksum') or '')[:12]))
except Exception:
    print('%-28s' % '$name', text[:300])"
}

profile() { "$vdnnc" profile --date "$(date +%F)" "$@"; }

for part in $parts; do
  [ -e "$out/$part.done" ] && continue
  echo "== $part"
  case $part in
  ops) "$backends" cuda/ops | tee "$out/ops.txt" ;;
  nets) "$backends" cuda/nets | tee "$out/nets.txt" ;;
  profile)
    profile --quick -o "$times" resnet50 vgg16 densenet121 --batch 256
    profile --quick -o "$times" googlenet-bn --batch 128
    for n in 64 1; do profile --quick -o "$times" resnet50 vgg16 densenet121 --batch $n --mode infer; done
    profile -o "$times" --precision f32 vgg16 resnet50 --batch 64
    ;;
  train)
    for m in resnet50 vgg16 densenet121; do bench train-$m $m --batch 256 --policy none --times "$times"; done
    bench train-googlenet-bn googlenet-bn --batch 128 --policy none --times "$times"
    ;;
  infer)
    for m in resnet50 vgg16 densenet121; do
      for n in 64 1; do bench infer-$m-$n $m --batch $n --mode infer --steps 50 --times "$times"; done
    done
    ;;
  capped)
    for p in conv all dyn; do bench vgg16-$p-12GiB vgg16 --batch 256 --policy $p --memory 12GiB --times "$times"; done
    bench resnet50-conv-16GiB resnet50 --batch 256 --policy conv --memory 16GiB --times "$times"
    bench resnet50-all-10GiB resnet50 --batch 256 --policy all --memory 10GiB --times "$times"
    ;;
  f32) for m in vgg16 resnet50; do bench f32-$m $m --batch 64 --policy none --precision f32 --times "$times"; done ;;
  policies) # the same bytes, whatever moves when
    for precision in tf32 f32; do
      for m in resnet50 vgg16 densenet121; do
        fixed="$m --batch 32 --precision $precision --deterministic --checksum --steps 2 --algo memory"
        plan=$out/$m-$precision.vplan
        bench same-$m-$precision-none $fixed --policy none -o "$plan"
        for p in conv all; do bench same-$m-$precision-$p $fixed --policy $p --kernels-from "$plan"; done
      done
    done
    for seed in 1 2 3; do
      bench delayed-$seed resnet50 --batch 32 --precision tf32 --deterministic --checksum --steps 2 --algo memory \
        --policy all --kernels-from "$out/resnet50-tf32.vplan" --no-graph --delay-seed $seed
    done
    ;;
  lenet)
    "$vdnnc" zoo lenet -o "$out/lenet.onnx"
    for b in cuda cpu; do
      "$vdnnc" run "$out/lenet.onnx" --mode train --batch 64 --input "$out/x.npy" --labels "$out/y.npy" --steps 100 \
        --lr 0.01 --precision f32 --json --backend $b >"$out/lenet-$b.json"
    done
    python3 -c "
import json
a, b = (json.load(open('$out/lenet-%s.json' % d))['loss'] for d in ('cuda', 'cpu'))
print('100 losses, largest difference', max(abs(x - y) for x, y in zip(a, b)))"
    ;;
  sanitizer)
    compute-sanitizer --tool memcheck --error-exitcode 9 "$backends" cuda/ops | tail -1
    compute-sanitizer --tool racecheck --error-exitcode 9 "$backends" cuda/ops/f32/nhwc/batch cuda/ops/f32/nchw/reduce \
      cuda/ops/f32/nchw/softmax | tail -1
    ;;
  peers)
    python3 "$here/peers.py" train:vgg16:256:tf32:eager train:vgg16:256:tf32:compile train:resnet50:256:tf32:eager \
      train:resnet50:256:tf32:compile train:densenet121:256:tf32:eager train:densenet121:256:tf32:compile \
      train:googlenet:128:tf32:compile train:vgg16:64:f32:eager train:resnet50:64:f32:eager \
      infer:resnet50:64:tf32:compile infer:resnet50:1:tf32:compile infer:vgg16:64:tf32:compile \
      infer:densenet121:64:tf32:compile | tee "$out/peers.jsonl"
    ;;
  *) echo "no part $part" ; exit 1 ;;
  esac && touch "$out/$part.done"
done
