#!/bin/bash
# What dividing the batch of convolutions gains on the GPU at hand, measured and judged.
#
# usage: micro.sh VDNNC OUT [PART ...]
#   VDNNC  the release binary (`cargo build --release --bin vdnnc`)
#   OUT    a folder for results; a part that left OUT/PART.pass is skipped
#   PART   layers alexnet resnet18 vgg16 | step | deepbench | tf32 bf16 | near; all if none
# Environment: DEEPBENCH, a list with DeepBench's convolutions at batch 256 as its set
# deepbench_train_mb256, for the parts deepbench, tf32 and bf16; ROWS, how many layers one call of
# the latter two takes at a time (14). The step needs PyTorch.
# All times go to OUT/micro.sqlite as they are taken: a part that was cut goes on where it was.
set -u
vdnnc=$1 out=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONUNBUFFERED=1
mkdir -p "$out"
db=(--db "$out/micro.sqlite")
gpu=(--device cuda:0 "${db[@]}")

limit() { # of a part, in seconds
  case $1 in alexnet | resnet18) echo 40 ;; vgg16) echo 60 ;; step) echo 200 ;; near) echo 90 ;; *) echo 190 ;; esac
}

layers() { # set, limit: the published shapes, strict f32
  "$vdnnc" bench-conv "$here/micro_layers.csv" --set "$1" --limits "$2" --precision f32 "${gpu[@]}" --run --json \
    --csv "$out/$1.csv" --svg "$out/$1.svg" >"$out/$1.json" && python3 "$here/micro.py" layers "$out/$1.json"
}

low() { # precision: every layer of the list under six limits, a few at a time
  local i=0
  python3 "$here/micro.py" split "${DEEPBENCH:?}" deepbench_train_mb256 "${ROWS:-14}" "$out/rows" || return 1
  for list in "$out"/rows/*.csv; do
    local name=$out/$1-$(basename "$list" .csv)
    if [ ! -s "$name.json" ]; then
      "$vdnnc" bench-conv "$list" --quick --precision "$1" "${gpu[@]}" --run --json \
        --limits 8MiB,32MiB,64MiB,128MiB,256MiB,512MiB >"$name.tmp" && mv "$name.tmp" "$name.json"
    fi
    i=$((i + 1))
    python3 "$here/micro.py" low "$i" "$out"/"$1"-*.json >"$out/$1.txt"
  done
  cat "$out/$1.txt"
  python3 "$here/micro.py" low "$(ls "$out"/rows/*.csv | wc -l)" "$out"/"$1"-*.json >/dev/null
}

run() { # a part
  local vgg="vgg16 --batch 256 --precision f32 --micro-batch power-of-two --workspace-limit 512MiB"
  case $part in
  alexnet | resnet18) layers "$part" 64MiB ;;
  vgg16) layers vgg16 512MiB ;;
  step)
    "$vdnnc" profile $vgg "${db[@]}" --date "$(date +%F)" | tail -n 3 || return 1
    "$vdnnc" bench $vgg "${gpu[@]}" --policy none --steps 6 --json >"$out/step.json" || return 1
    python3 "$here/peers.py" train:vgg16:256:f32:eager >"$out/step-peer.jsonl" 2>"$out/step-peer.err"
    python3 "$here/micro.py" step "$out/step.json" "$out/step-peer.jsonl"
    ;;
  deepbench)
    "$vdnnc" bench-conv "${DEEPBENCH:?}" --set deepbench_train_mb256 --filter 3x3 --filter 5x5 --precision f32 \
      "${gpu[@]}" --limits 128MiB --run --json --csv "$out/deepbench.csv" --svg "$out/deepbench.svg" \
      >"$out/deepbench.json" && python3 "$here/micro.py" deepbench "$out/deepbench.json"
    ;;
  tf32 | bf16) low "$part" ;;
  near) # 64 MiB against no limit
    local p status=0
    for p in tf32 bf16; do
      "$vdnnc" profile --quick vgg16 resnet50 densenet121 --batch 256 --precision $p "${db[@]}" --date "$(date +%F)" \
        --workspace-limit 64MiB >"$out/near-$p.txt" || status=1
      python3 "$here/micro.py" near "$out/near-$p.txt" || status=1
    done
    return $status
    ;;
  *) echo "no such part" && return 1 ;;
  esac
}

command=("$vdnnc" "$out")
# shellcheck disable=SC2086
source "$here/parts.sh" ${*:-alexnet resnet18 vgg16 step near deepbench tf32 bf16}
