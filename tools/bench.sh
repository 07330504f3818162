#!/usr/bin/env bash
# Speed and memory of this machine, one JSON line a case. ADDER_BENCH_THREADS: processor threads, 0 for all.
set -euo pipefail
cd "$(dirname "$0")/.."
bench() { build/release/adder bench "$@" --threads "${ADDER_BENCH_THREADS:-0}" --json; }

for dtype in float32 bfloat16; do
  bench scan --batch 8 --length 2048 --channels 512 --dtype $dtype
  bench scan --batch 1 --length 256 --channels 1536 --dtype $dtype
  bench conv --batch 8 --length 2048 --channels 512 --dtype $dtype
  bench train --d-model 64 --n-layer 2 --vocab 16 --batch 64 --length 256 --dtype $dtype
  bench train --d-model 256 --n-layer 4 --vocab 256 --batch 8 --length 256 --dtype $dtype
  bench train --d-model 768 --n-layer 24 --vocab 50280 --batch 1 --length 256 --dtype $dtype
  bench decode --d-model 768 --n-layer 24 --vocab 50280 --prompt 512 --tokens 64 --dtype $dtype
done
