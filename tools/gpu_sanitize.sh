#!/usr/bin/env bash
# compute-sanitizer over tests of tiny shapes that reach every CUDA kernel, LibTorch's caching allocator off so that
# accesses outside an allocation are seen. A line a tool and program; the logs stay in the folder that is named.
#   tools/gpu_sanitize.sh [folder with the test programs] [folder for logs] [tools]
set -uo pipefail
cd "$(dirname "$0")/.."
tests=${1:-build/release/tests} logs=${2:-build/sanitize} tools=${3:-memcheck racecheck synccheck initcheck}
mkdir -p "$logs"
export ADDER_REQUIRE_CUDA=1 ADDER_TEST_DEVICE=cuda
failed=0
run() { # program, filter, [cached]: graphs whose kernels take memory of their own need the allocator
  for tool in $tools; do
    local log=$logs/$1${3:+.$3}.$tool.log options=() environment=(PYTORCH_NO_CUDA_MEMORY_CACHING=1)
    [ -n "${3:-}" ] && environment=(-u PYTORCH_NO_CUDA_MEMORY_CACHING)
    # Graphs and managed memory are written by the host and by copies that initcheck does not follow.
    [ "$tool" = initcheck ] && [[ $1 == *infer* || $1 == *kernels* ]] && continue
    [ "$tool" = memcheck ] && options=(--leak-check no)
    if env "${environment[@]}" timeout 300 compute-sanitizer --tool "$tool" "${options[@]}" --error-exitcode 9 "$tests/test_$1" --gtest_filter="$2" >"$log" 2>&1
    then echo "$tool $1${3:+ $3}: clean, $(grep -c '\[       OK' "$log") tests"
    else failed=1; echo "$tool $1${3:+ $3}: FAILED, see $log"; grep -m 3 -A 6 '========= [A-Z]' "$log" | sed 's/^/    /'; fi
  done
}
run kernels_selective_scan '*Float32/usual_N16_L33:*BFloat16/usual_N8_packed:*Float32/usual_N16_L600:*Float32/complex_zoh:*BFloat16/usual_N16_mask:*Float16/usual_N16_base:*Float64/base:*BFloat16/usual_N16_L1:*Float32/usual_N16_L3:*BFloat16/usual_N8_L7:*BFloat16/usual_N16_few_mask:*BFloat16/usual_N16_B_after_2'
run kernels_causal_conv1d 'CausalConv1d.OneThingChanged:CausalConv1d.Packed:CausalConv1d.WholeVectors'
run kernels_add_norm '*/rms_base:*/layer_base'
run kernels_softmax_rows 'SoftmaxRows.AgreesWithTheReference'
run kernels_small_linear 'SmallLinear.AgreesWithTheReference'
run kernels_sum_of_squares 'SumOfSquares.AgreesWithTheReference'
run ops_linear_cross_entropy 'LinearCrossEntropyOp.AKnownValue:LinearCrossEntropyOp.GradientTwiceFromOneGraph'
run ops_selective_scan '*Float32Equals*/N16'
run infer_device_steps '*FusedStep*/base:*FusedStep*/three_rows:*DeviceSampling*/top_k:*DeviceSampling*/all'
run infer_device_steps '*FusedStep*/nine_rows:*FusedStep*/many_rows' cached
exit $failed
