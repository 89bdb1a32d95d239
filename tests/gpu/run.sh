#!/bin/bash
# Everything that is claimed of a GPU, checked and timed on the machine at hand.
#
# usage: run.sh VDNNC BACKENDS OUT [PART ...]
#   VDNNC     the release binary (`cargo build --release --bin vdnnc`)
#   BACKENDS  the suites (`cargo test --release -p vdnn-tests --test backends --no-run`)
#   OUT       a folder for results; a part that left OUT/PART.pass is skipped
#   PART      see `parts` below; `checks`, `times` and `peers` stand for several
# Environment: DATA, a folder with golden/, onnx/ and mnist/ as tests/gpu/data.sh makes it, for the
# parts golden and lenet, and with pretrained/ for cusnn; DELAY_EVERY, steps that a seed of delays serves in the part same (1;
# what five steps leave is compared); CHAINS, the NET:PRECISION of that part; CUDA_VISIBLE_DEVICES, one GPU of several.
# Every part has a time limit, its output goes to OUT/PART.log, a table of all comes last. Peers
# need PyTorch, sanitizers compute-sanitizer.
set -u
vdnnc=$1 backends=$2 out=$3
shift 3
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONUNBUFFERED=1

checks="devices ops exact nets golden control same dropped pair errors lenet"
sanitizers="memcheck racecheck initcheck"
times="profile train infer capped packed recompute f32 sparse pruned pyramids cusnn"
peers="peers-vgg16 peers-resnet50 peers-densenet121 peers-googlenet peers-infer peers-f32 peers-offload peers-densenet121-compile"
limit() { # of a part, in seconds
  case $1 in
  devices) echo 20 ;; ops | exact | lenet | errors | dropped | f32 | peers-f32) echo 60 ;;
  nets | golden | control | pair | train | infer | initcheck) echo 90 ;;
  memcheck | capped | packed | pruned | cusnn | peers-vgg16 | peers-resnet50 | peers-densenet121 | peers-googlenet | peers-offload) echo 120 ;;
  profile | peers-infer | racecheck | sparse | pyramids) echo 200 ;; peers-densenet121-compile) echo 300 ;; same) echo 500 ;; *) echo 60 ;;
  esac
}

mkdir -p "$out"
chains=${CHAINS:-densenet121:tf32 densenet121:f32 vgg16:f32 resnet50:tf32 resnet50:f32 vgg16:tf32}
table=()
[ -e "$out/h200.times" ] && table=(--times "$out/h200.times")

bench() { # name, arguments: one line of results, watched from outside
  local name=$1
  shift
  python3 "$here/watch.py" "$vdnnc" bench "$@" --json >"$out/$name.tmp" 2>"$out/$name.err"
  mv "$out/$name.tmp" "$out/$name.json"
  python3 "$here/checks.py" line "$out/$name.json"
}

shared() { # runs suites in four processes: arguments before and after the program
  local before=$1 i
  shift
  for i in 0 1 2 3; do
    $before "$backends" --part=$i/4 "$@" >"$out/$part-$i.txt" 2>&1 &
  done
  local status=0 job
  for job in $(jobs -p); do wait "$job" || status=1; done
  cat "$out/$part"-?.txt
  grep -q "skipped:" "$out/$part"-?.txt && status=1
  rm "$out/$part"-?.txt
  return $status
}

profile() { "$vdnnc" profile --date "$(date +%F)" "$@"; }

kept() { # as bench, but what an earlier call of a part that was cut has measured stands
  grep -q '"kind":"result"' "$out/$1.json" 2>/dev/null && python3 "$here/checks.py" line "$out/$1.json" || bench "$@"
}

chain() { # net, precision: every policy after the same steps, and under delays
  local net=$1 precision=$2 name=$1-$2
  local plan=$out/$name.vplan algo="memory"
  # Without any workspace its kernels would take many times as long; with all they want, it is the peak.
  [ "$net" = vgg16 ] && algo="performance --workspace-limit 64MiB"
  # shellcheck disable=SC2206
  local fixed=("$net" --batch 32 --precision "$precision" --deterministic --algo $algo --checksum --warmup 2 --steps 5
    --delay-seeds 0..100 --delay-every "${DELAY_EVERY:-1}")
  kept "same-$name-none" "${fixed[@]}" --policy none -o "$plan" || return 1
  local p
  for p in baseline all conv; do
    kept "same-$name-$p" "${fixed[@]}" --policy $p --kernels-from "$plan"
  done
  kept "same-$name-packed" "${fixed[@]}" --policy all --pack-offload auto --kernels-from "$plan"
  # A budget that no offloading would break.
  local memory
  memory=$(python3 "$here/checks.py" between "$out/same-$name-none.json" "$out/same-$name-conv.json") || return 1
  kept "same-$name-dyn" "${fixed[@]}" --policy dyn --memory "$memory" --kernels-from "$plan"
}

run() { # a part
  local m n p net precision i status
  case $part in
  devices) "$vdnnc" devices && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv ;;
  ops) shared "" cuda/ops cuda/micro ;;
  exact) shared "" cuda/exact ;;
  nets) shared "" cuda/nets ;;
  golden) VDNNC_TEST_DATA=${DATA:?} shared "" cuda/golden ;;
  control) shared "" cuda/control ;;
  same) # the same bytes, whatever moves when
    local running=0
    for i in $chains; do
      chain "${i%:*}" "${i#*:}" &
      running=$((running + 1))
      [ $running -ge 3 ] && { wait -n; running=$((running - 1)); }
    done
    wait
    python3 "$here/checks.py" same "$(wc -w <<<"$chains")" "$out"/same-*.json
    ;;
  dropped) # what part same is worth: without a wait other bytes come out
    for i in 0 1 2 3 4 5 6 7; do
      timeout 40 "$vdnnc" bench resnet50 --batch 32 --precision tf32 --deterministic --algo memory --warmup 2 --steps 5 \
        --policy all --delay-seeds 0..100 --delay-every 1 --drop-wait $((40 * i + 7)) \
        >"$out/dropped-$i.txt" 2>&1 &
      [ $((i % 4)) = 3 ] && wait
    done
    wait
    local caught
    caught=$(grep -l -e "lacks a wait" -e "the loss is" "$out"/dropped-?.txt | wc -l)
    echo "$caught of 8 left-out waits noticed"
    [ "$caught" -ge 4 ]
    ;;
  pair) # two processes, each within its own memory and with the results it has alone
    local fixed="--deterministic --checksum --policy dyn --warmup 3"
    local a="vgg16 --batch 64 --memory 4608MiB --steps 40 $fixed" b="resnet50 --batch 64 --memory 3GiB --steps 40 $fixed"
    bench alone-a $a
    bench alone-b $b
    python3 "$here/watch.py" "$vdnnc" bench $a --json ++ "$vdnnc" bench $b --json >"$out/pair.json" 2>"$out/pair.err"
    python3 "$here/checks.py" pair "$out/alone-a.json" "$out/alone-b.json" "$out/pair.json"
    ;;
  errors) # exit 1 and a message that says what to do
    local text status=0
    expect() { # wanted text, command
      local wanted=$1
      shift
      text=$("$@" 2>&1 >/dev/null)
      local rc=$?
      if [ $rc = 1 ] && [[ $text == *$wanted* ]]; then echo "as it should: ${text%%$'\n'*}"; else
        echo "exit $rc, wanted '$wanted': $text"
        status=1
      fi
    }
    expect "cannot allocate" "$vdnnc" bench vgg16 --mode infer --batch 2600 --policy baseline --memory 300GiB
    expect "no CUDA device 7" "$vdnnc" bench resnet18 --batch 2 --cuda-device 7
    "$vdnnc" zoo lenet -o "$out/lenet.onnx" && echo kept >"$out/kept.safetensors"
    expect "the loss is" "$vdnnc" run "$out/lenet.onnx" --mode train --backend cuda --batch 8 --synthetic --steps 50 \
      --lr 1e30 --save-weights "$out/kept.safetensors"
    # A launch that fails: it is named where launches wait for their end.
    local train="run $out/lenet.onnx --mode train --backend cuda --batch 8 --synthetic --steps 4 --fail-launch 5 \
      --save-weights $out/kept.safetensors"
    expect "CUDA_LAUNCH_BLOCKING=1 with --no-graph shows which" "$vdnnc" $train
    expect "launch" env CUDA_LAUNCH_BLOCKING=1 "$vdnnc" $train --no-graph
    [[ $text == "error: c"* ]] || status=1
    [ "$(cat "$out/kept.safetensors")" = kept ] || status=1
    return $status
    ;;
  lenet)
    "$vdnnc" zoo lenet -o "$out/lenet.onnx"
    python3 "$here/checks.py" mnist "${DATA:?}/mnist" "$out/x.npy" "$out/y.npy"
    for p in cuda cpu; do
      "$vdnnc" run "$out/lenet.onnx" --mode train --batch 64 --input "$out/x.npy" --labels "$out/y.npy" --steps 100 \
        --lr 0.01 --precision f32 --json --backend $p >"$out/lenet-$p.json"
    done
    python3 "$here/checks.py" losses "$out/lenet-cuda.json" "$out/lenet-cpu.json" 1e-3
    ;;
  memcheck)
    shared "compute-sanitizer --tool memcheck --error-exitcode 9" cuda/ops cuda/micro cuda/nets/f32/lenet cuda/nets/tf32/lenet \
      cuda/nets/f32/resnet18
    ;;
  racecheck) # of our own kernels
    shared "compute-sanitizer --tool racecheck --error-exitcode 9" cuda/ops --skip=conv --skip=gemm --skip=mat_mul
    ;;
  initcheck)
    shared "compute-sanitizer --tool initcheck --error-exitcode 9" cuda/ops --skip=conv --skip=gemm --skip=mat_mul \
      --no-poison
    ;;
  profile)
    local t=$out/h200.times
    profile --quick -o "$t" resnet50 vgg16 densenet121 --batch 256 &&
      profile --quick -o "$t" googlenet-bn --batch 128 &&
      for n in 64 1; do profile --quick -o "$t" resnet50 vgg16 densenet121 --batch $n --mode infer; done &&
      profile -o "$t" --precision f32 vgg16 resnet50 --batch 64
    ;;
  train)
    for m in resnet50 vgg16 densenet121; do bench train-$m $m --batch 256 --policy none "${table[@]}"; done
    bench train-googlenet-bn googlenet-bn --batch 128 --policy none "${table[@]}"
    python3 "$here/checks.py" within "$out"/train-*.json
    ;;
  infer)
    for m in resnet50 vgg16 densenet121; do
      for n in 64 1; do bench infer-$m-$n $m --batch $n --mode infer --steps 50 "${table[@]}"; done
    done
    python3 "$here/checks.py" within "$out"/infer-*.json
    ;;
  capped)
    for p in conv all dyn; do bench capped-vgg16-$p vgg16 --batch 256 --policy $p --memory 12GiB "${table[@]}"; done
    bench capped-resnet50-conv resnet50 --batch 256 --policy conv --memory 16GiB "${table[@]}"
    bench capped-resnet50-all resnet50 --batch 256 --policy all --memory 10GiB "${table[@]}"
    python3 "$here/checks.py" within "$out"/capped-*.json
    ;;
  packed) # the same steps with fewer bytes on the link
    local fixed="vgg16 --batch 256 --policy conv --memory 13GiB --deterministic --checksum"
    bench packed-off $fixed "${table[@]}" -o "$out/packed.vplan"
    bench packed-auto $fixed --pack-offload auto --kernels-from "$out/packed.vplan" "${table[@]}"
    python3 "$here/checks.py" packed "$out/packed-off.json" "$out/packed-auto.json" &&
      python3 "$here/checks.py" within "$out"/packed-*.json
    ;;
  recompute) # the same step with a smaller peak
    local fixed="densenet121 --batch 256 --deterministic --checksum --policy none"
    bench recompute-off $fixed "${table[@]}" -o "$out/recompute.vplan"
    bench recompute-cheap $fixed --recompute cheap --kernels-from "$out/recompute.vplan" "${table[@]}"
    python3 "$here/checks.py" recompute "$out/recompute-off.json" "$out/recompute-cheap.json" &&
      python3 "$here/checks.py" within "$out"/recompute-*.json
    ;;
  pyramids) # whole networks with the pyramids that were measured to be faster, and without
    local db=(--db "$out/pyramids.sqlite")
    for p in tf32 bf16; do
      profile --quick resnet50 vgg16 densenet121 --batch 64 --mode infer --precision $p "${db[@]}" || return 1
      for m in resnet50 vgg16 densenet121; do
        for n in epilogue auto; do
          bench "pyramids-$p-$m-$n" $m --batch 64 --mode infer --precision $p --steps 50 --fuse $n --device cuda:0 "${db[@]}"
        done
        python3 "$here/checks.py" faster "$out/pyramids-$p-$m-epilogue.json" "$out/pyramids-$p-$m-auto.json" || status=1
      done
    done
    return ${status:-0}
    ;;
  sparse) # packed weights against the fastest dense kernels
    for p in f32 tf32; do
      "$vdnnc" bench-conv "$here/sparse_layers.csv" --quick --precision $p --sparsity 50,90,95,98 --device cuda:0 \
        --db "$out/sparse.sqlite" --json --csv "$out/sparse-$p.csv" --svg "$out/sparse-$p.svg" >"$out/sparse-$p.json" || return 1
      python3 "$here/checks.py" sparse $p "$out/sparse-$p.json" || status=1
    done
    for p in tf32 bf16; do # the same in blocks
      "$vdnnc" bench-conv "$here/sparse_layers.csv" --quick --precision $p --sparsity 50,80,90,95 --method block --device cuda:0 \
        --db "$out/sparse.sqlite" --json --csv "$out/blocks-$p.csv" --svg "$out/blocks-$p.svg" >"$out/blocks-$p.json" || return 1
      python3 "$here/checks.py" sparse blocks-$p "$out/blocks-$p.json" || status=1
    done
    # and of two of four
    "$vdnnc" bench-conv "$here/sparse_layers.csv" --quick --precision bf16 --sparsity 50 --method 2:4 --device cuda:0 \
      --db "$out/sparse.sqlite" --json --csv "$out/two-four.csv" --svg "$out/two-four.svg" >"$out/two-four.json" || return 1
    python3 "$here/checks.py" sparse two-four "$out/two-four.json" || status=1
    return ${status:-0}
    ;;
  pruned) # a whole network with few weights left, planned with dense kernels and with the fastest; compiling anew
    "$vdnnc" zoo resnet50 -o "$out/resnet50.onnx" && "$vdnnc" prune "$out/resnet50.onnx" --sparsity 0.95 -o "$out/pruned.onnx" || return 1
    local db=(--device cuda:0 --db "$out/pruned.sqlite")
    for p in f32 tf32; do
      for n in 1 32; do
        for m in off auto; do
          i=$SECONDS
          XDG_CACHE_HOME=$out/cache-$p-$n-$m bench "pruned-$p-$n-$m" "$out/pruned.onnx" --mode infer --batch $n --precision $p --steps 30 --sparse $m "${db[@]}"
          echo "$((SECONDS - i)) s with measuring and compiling"
        done
        python3 "$here/checks.py" faster "$out/pruned-$p-$n-off.json" "$out/pruned-$p-$n-auto.json" || status=1
      done
    done
    return ${status:-0}
    ;;
  cusnn) # zeros of feature maps: layers, steps and energy, and the energy of any step
    "$vdnnc" reproduce cusnn --data "${DATA:?}/pretrained" --limit 4 --db "$out/cusnn.sqlite" --json --svg "$out" \
      >"$out/cusnn.json" && python3 "$here/checks.py" cusnn "$out/cusnn.json" || status=1
    bench cusnn-energy "$DATA/pretrained/densenet169.onnx" --mode infer --batch 1 --precision f32 --fuse off \
      --algo only=implicit_gemm --energy && python3 "$here/checks.py" energy "$out/cusnn-energy.json" || status=1
    return ${status:-0}
    ;;
  f32)
    for m in vgg16 resnet50; do bench f32-$m $m --batch 64 --policy none --precision f32 "${table[@]}"; done
    python3 "$here/checks.py" within "$out"/f32-*.json
    ;;
  peers-vgg16 | peers-resnet50) peer train:${part#peers-}:256:tf32:eager train:${part#peers-}:256:tf32:compile ;;
  peers-densenet121) peer train:densenet121:256:tf32:eager ;;
  peers-densenet121-compile) peer train:densenet121:256:tf32:compile ;;
  peers-googlenet) peer train:googlenet-bn:128:tf32:eager train:googlenet-bn:128:tf32:compile ;;
  peers-offload) peer train:vgg16:256:tf32:offload train:resnet50:256:tf32:offload ;;
  peers-infer)
    local specs=""
    for m in resnet50 vgg16 densenet121; do
      for n in 64 1; do specs="$specs infer:$m:$n:tf32:eager infer:$m:$n:tf32:compile"; done
    done
    peer $specs
    ;;
  peers-f32) peer train:vgg16:64:f32:eager train:resnet50:64:f32:eager ;;
  *) echo "no such part" && return 1 ;;
  esac
}

peer() {
  set -o pipefail
  python3 "$here/peers.py" "$@" 2>"$out/$part.err" | tee "$out/$part.jsonl"
}

wanted=${*:-$checks $sanitizers $times $peers}
list=""
for name in $wanted; do
  case $name in
  checks) list="$list $checks $sanitizers" ;; times) list="$list $times" ;; peers) list="$list $peers" ;;
  *) list="$list $name" ;;
  esac
done
command=("$vdnnc" "$backends" "$out")
# shellcheck disable=SC2086
source "$here/parts.sh" $list
