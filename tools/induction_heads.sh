#!/usr/bin/env bash
# Table 11 of the paper: induction heads trained at length 256, evaluated at 2^6 to 2^20 (1,024 fresh sequences up to
# 2^14, 256 to 2^17, 64 beyond). One line a seed and length: sequences answered rightly.
#   tools/induction_heads.sh [device] [seeds] [longest power of two] [folder for the runs]
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda} seeds=${2:-5} longest=${3:-20} runs=${4:-runs}
adder=${ADDER:-build/release/adder}
for ((seed = 0; seed < seeds; ++seed)); do
  run=$runs/induction_heads_$seed
  "$adder" train configs/induction_heads.toml --set train.out="$run" --set train.seed="$seed" \
      --set train.device="$device" >"$run.log" 2>&1 || { tail -3 "$run.log" >&2; exit 1; }
  echo "seed $seed: $(tail -1 "$run.log")"
  for ((power = 6; power <= longest; ++power)); do
    count=1024 rows=$((1 << (power < 14 ? 20 - power : 6)))
    ((power <= 14)) || count=256
    ((power <= 17)) || count=64 rows=$((1 << (23 - power)))
    ((rows <= 256)) || rows=256
    echo "seed $seed, length 2^$power, $count sequences:" "$("$adder" eval "$run" --device "$device" --batch "$rows" \
        --set task.induction_heads.length=$((1 << power)) --set task.induction_heads.evaluation_sequences=$count 2>&1 |
        tail -1)"
  done
done
