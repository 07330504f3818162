#!/usr/bin/env bash
# How the selective scan scales on this machine: with threads, length, channels and states around one shape, and decoding
# with threads. One JSON line a case.
set -euo pipefail
cd "$(dirname "$0")/.."
bench() { build/release/adder bench "$@" --json; }
scan() { # length channels state threads
  bench scan --batch 1 --length "$1" --channels "$2" --state "$3" --threads "$4"
}

all=$(nproc)
for ((threads = 1; threads <= all; threads *= 2)); do
  scan 2048 1536 16 $threads
  bench scan --batch 8 --length 2048 --channels 1536 --threads $threads
  bench decode --d-model 768 --n-layer 24 --vocab 50280 --prompt 512 --tokens 32 --threads $threads
  bench decode --d-model 768 --n-layer 24 --vocab 50280 --prompt 512 --tokens 32 --threads $threads --dtype bfloat16
done
for length in 256 512 1024 4096 16384 65536; do scan $length 1536 16 "$all"; done
for channels in 192 384 768 3072 5120; do scan 2048 $channels 16 "$all"; done
for state in 1 4 8 32 64; do scan 2048 1536 $state "$all"; done
