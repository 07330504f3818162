#!/usr/bin/env bash
# Selective copying at the paper's size (table 1: 16 tokens among 4,096 of noise), by way of less noise: each stage begins
# with the weights of the one before. A line a stage, at the end a picture of all.
#   tools/selective_copying.sh [device] [folder for the runs] [stages: noise:steps:rate ...]
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda} runs=${2:-runs}
shift $(($# < 2 ? $# : 2))
stages=("$@")
((${#stages[@]})) || stages=(32:20000:1e-3 128:10000:1e-3 512:5000:1e-3 2048:3000:5e-4 4096:5000:2e-4)
adder=${ADDER:-build/release/adder}
mkdir -p "$runs"
from="" runs_of_all=() labels=()
for stage in "${stages[@]}"; do
  IFS=: read -r noise steps rate <<<"$stage"
  run=$runs/selective_copying_$noise
  "$adder" train configs/selective_copying.toml --set train.out="$run" --set train.init_from="$from" \
      --set train.device="$device" --set train.precision=$([ "$device" = cpu ] && echo float32 || echo bfloat16) \
      --set task.selective_copying.noise="$noise" --set train.steps="$steps" --set train.optimizer.lr="$rate" \
      --set train.eval_every=$(((steps + 9) / 10)) >"$run.log" 2>&1 || { tail -3 "$run.log" >&2; exit 1; }
  echo "noise $noise, $SECONDS s: $(grep 'held-out' "$run.log" | tail -1); $(tail -1 "$run.log")"
  from=$run runs_of_all+=("$run") labels+=(--label "$noise of noise")
done
"$adder" plot "${runs_of_all[@]}" "${labels[@]}" --y eval_accuracy --y-min 0 --out "$runs/selective_copying.png" \
    --title "Selective copying: 16 tokens, each stage from the weights of the last"
