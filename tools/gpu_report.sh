#!/usr/bin/env bash
# Runs all tests and the benchmarks on a machine with an NVIDIA GPU and leaves a dated report in bench/results/.
#   tools/gpu_report.sh [build folder]      (default build/release; build it first, with nvcc there)
# PYTHON: a Python with torch and pytest, for the tests of the package. COMMIT: what is built, where git does not say.
set -uo pipefail
cd "$(dirname "$0")/.."
build=$(realpath "${1:-build/release}")
python=${PYTHON:-.venv/bin/python}
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1) || { echo "gpu_report: nvidia-smi finds no GPU" >&2; exit 1; }
report=bench/results/$(date +%Y-%m-%d)-$(echo "$name" | tr ' /' '--').md
mkdir -p bench/results
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
export build python logs ADDER_REQUIRE_CUDA=1 ADDER_TEST_DEVICE=cuda

one_test() {
  local test=$1 log passed
  log=$logs/$(basename "$test").log
  if [[ $test == *.py ]]; then
    ADDER_OPS_LIBRARY=$build/lib/libadder_ops.so "$python" -m pytest -q -p no:cacheprovider "$test" >"$log" 2>&1
  else
    "$test" >"$log" 2>&1
  fi
  if [ $? -eq 0 ]; then
    passed=$(grep -E '^\[  PASSED' "$log" | tail -1 | sed 's/\[  PASSED  \] //')
    echo "- $(basename "$test"): ${passed:-$(tail -1 "$log")}" >"$log.line"
  else
    { echo "- $(basename "$test"): FAILED"; grep -E 'Failure|^E |Error' -A 4 "$log" | head -20 | sed 's/^/    /'; } >"$log.line"
  fi
}
export -f one_test

{
  echo "# $name, $(date +%Y-%m-%d), commit ${COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}"
  echo
  echo '```'
  "$build"/adder doctor 2>&1 | grep -v '^processor'
  echo '```'
  echo
  echo "## Tests on the GPU"
  echo
  # The large shapes alone: they want most of the GPU's memory.
  large=$build/tests/test_ops_large_shapes
  ls "$build"/tests/test_{kernels,ops,nn,models,tasks,infer,train}_* tests/python/test_*.py | grep -vxF "$large" |
    xargs -P "${ADDER_TEST_JOBS:-4}" -I{} bash -c 'one_test {}'
  one_test "$large"
  cat "$logs"/*.line
  echo
  echo "## Benchmarks"
  echo
  while read -r arguments; do
    echo "- \`adder bench $arguments --device cuda\`"
    echo '  ```'
    "$build"/adder bench $arguments --device cuda --json 2>&1 | sed 's/^/  /'
    echo '  ```'
  done <<'CASES'
scan --batch 8 --length 2048 --channels 2048 --dtype bfloat16
scan --batch 8 --length 2048 --channels 5120 --dtype bfloat16
scan --batch 1 --length 65536 --channels 2048 --dtype bfloat16
scan --batch 1 --length 65536 --channels 2048 --dtype bfloat16 --delta-bias 0
scan --batch 1 --length 524288 --channels 2048 --dtype bfloat16
scan --batch 1 --length 524288 --channels 2048 --dtype bfloat16 --delta-bias 0
scan --batch 64 --length 256 --channels 2048 --dtype bfloat16
scan --batch 8 --length 2048 --channels 2048 --dtype float32
conv --batch 8 --length 2048 --channels 2048 --dtype bfloat16
train --batch 32 --length 2048 --dtype bfloat16
train --d-model 1024 --n-layer 48 --batch 16 --length 2048 --dtype bfloat16
train --d-model 2048 --n-layer 48 --batch 8 --length 2048 --dtype bfloat16
decode --prompt 2048 --tokens 128 --dtype bfloat16
decode --d-model 2048 --n-layer 48 --prompt 2048 --tokens 128 --dtype bfloat16
decode --d-model 2560 --n-layer 64 --prompt 2048 --tokens 128 --dtype bfloat16
decode --d-model 2048 --n-layer 48 --batch 128 --prompt 2048 --tokens 128 --dtype bfloat16
CASES
} >"$report.new"
mv "$report.new" "$report"
echo "$report"
! grep -q ': FAILED$' "$report"
