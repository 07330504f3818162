#!/usr/bin/env bash
# Table 11 of the paper: induction heads trained at length 256, evaluated at 2^6 to 2^20 (1,024 fresh sequences up to
# 2^14, 256 to 2^17, 64 beyond). One line a seed and length: sequences answered rightly; at the end a picture.
#   tools/induction_heads.sh [device] [seeds] [longest power of two] [folder for the runs]
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda} seeds=${2:-5} longest=${3:-20} runs=${4:-runs}
adder=${ADDER:-build/release/adder}
mkdir -p "$runs"
curves=()
for ((seed = 0; seed < seeds; ++seed)); do
  run=$runs/induction_heads_$seed
  "$adder" train configs/induction_heads.toml --set train.out="$run" --set train.seed="$seed" \
      --set train.device="$device" >"$run.log" 2>&1 || { tail -3 "$run.log" >&2; exit 1; }
  echo "seed $seed: $(tail -1 "$run.log")"
  : >"$run.lengths.jsonl"
  for ((power = 6; power <= longest; ++power)); do
    count=1024 rows=$((1 << (power < 14 ? 20 - power : 6)))
    ((power <= 14)) || count=256
    ((power <= 17)) || count=64 rows=$((1 << (23 - power)))
    ((rows <= 256)) || rows=256
    result=$("$adder" eval "$run" --device "$device" --batch "$rows" --json \
        --set task.induction_heads.length=$((1 << power)) --set task.induction_heads.evaluation_sequences=$count)
    accuracy=$(grep -o '"accuracy": *[0-9.e-]*' <<<"$result" | grep -o '[0-9.e-]*$')
    echo "seed $seed, length 2^$power, $count sequences: $accuracy"
    echo "{\"step\": $power, \"tokens\": $((1 << power)), \"eval_accuracy\": $accuracy}" >>"$run.lengths.jsonl"
  done
  curves+=("$run.lengths.jsonl" --label "seed $seed")
done
"$adder" plot "${curves[@]}" --x tokens --log-x --y eval_accuracy --y-min 0 --y-max 1 --out "$runs/induction_heads.png" \
    --title "Induction heads: trained at 256, asked at other lengths"
