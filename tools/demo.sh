#!/usr/bin/env bash
# Trains selective copying with and without selection, draws both curves, then a small model on this project's own text.
set -euo pipefail
cd "$(dirname "$0")/.."
adder=build/release/adder
rm -rf runs/demo
mkdir -p runs/demo
# The first NVIDIA GPU where there is one and the build has CUDA.
device=cpu
$adder doctor | grep -q 'cuda:0' && device=cuda
echo "on: $device"

echo "== 1. Selective copying: 8 tokens among 128 of noise, to be given back in order"
echo "-- with selection (delta, B, C depend on the input)"
$adder train configs/demo_selective.toml --set train.device=$device
echo "-- the same model without it (delta, B, C constant)"
$adder train configs/demo_constant.toml --set train.device=$device
for run in selective constant; do
  $adder eval "runs/demo/$run" --json --batch 100 --device $device > "runs/demo/$run.json"
done
.venv/bin/python - <<'END'
import json, sys
accuracy = {}
for run in "selective", "constant":
    e = json.load(open(f"runs/demo/{run}.json"))
    accuracy[run] = 100 * e["accuracy"]
    print("%-10s on 1,000 fresh sequences: %.2f %% of tokens, %.2f %% of sequences" % (run, accuracy[run], 100 * e["sequence_accuracy"]))
if accuracy["selective"] < 99 or accuracy["constant"] > 70:
    sys.exit("demo: expected at least 99 % of tokens with selection and at most 70 % without")
END
$adder plot runs/demo/selective runs/demo/constant --y eval_accuracy --label "selective" --label "constant delta, B, C" \
  --title "Selective copying: 8 tokens among 128 of noise" --out runs/demo/selective_copying.png
echo "drawn: runs/demo/selective_copying.png"

echo "== 2. A language model of bytes, trained on this project's own documents and sources"
git ls-files 'README.md' 'docs/*.md' 'adder/**/*.h' 'adder/**/*.cpp' | head -200 > runs/demo/files.txt
files=$(paste -sd, runs/demo/files.txt)
$adder train configs/demo_text.toml --set train.device=$device --set "task.language_model.files=$files"
echo "-- a continuation of '// The '"
$adder generate runs/demo/text --prompt '// The ' --set max_tokens=300 --set temperature=0.7 --quiet --device $device
