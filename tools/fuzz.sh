#!/usr/bin/env bash
# Fuzzes the readers of files (docs/fuzzing.md):
#   tools/fuzz.sh run [target...]       INPUTS (10000000) inputs to each target
#   tools/fuzz.sh coverage [target...]  the lines of each reader that the inputs found so far reach
#   tools/fuzz.sh merge [target...]     adds to tests/fuzz/corpus the inputs found that reach more than those in it
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-run}
shift || true
targets=("$@")
[ $# -gt 0 ] || targets=(safetensors published_folder torch_file gguf tokenizer config toml checkpoint_folder)

# The files whose lines a target is to reach.
declare -A readers=(
  [safetensors]="weights/safetensors.cpp weights/safetensors_header.cpp"
  [published_folder]="weights/published_folder.cpp"
  [torch_file]="weights/torch_file.cpp weights/torch_tensors.cpp weights/pickle.cpp weights/stored_zip.cpp"
  [gguf]="weights/gguf_file.cpp"
  [tokenizer]="data/tokenizer_file.cpp"
  [config]="models/published_config.cpp core/json_text.cpp"
  [toml]="core/options_io.cpp core/options_source.cpp core/options_fields.cpp"
  [checkpoint_folder]="weights/checkpoint_folder.cpp"
)

install_clang() {
  command -v clang++ >/dev/null && command -v llvm-cov >/dev/null &&
    [ -n "$(find "$(clang++ -print-resource-dir)" -name 'libclang_rt.fuzzer*' 2>/dev/null)" ] && return
  local as_root=()
  [ "$(id -u)" -eq 0 ] || as_root=(sudo)
  "${as_root[@]}" apt-get -qq update
  "${as_root[@]}" apt-get -qq install -y --no-install-recommends clang llvm libclang-rt-dev
}

build() {
  cmake --preset "$1" -DADDER_TORCH="${ADDER_TORCH:-}" -Wno-dev --log-level=WARNING
  cmake --build "build/$1" --target "${targets[@]/#/fuzz_}" -- -j"${JOBS:-$(nproc)}"
}

# Allocations are counted by the target itself; their call stacks are not needed for that and cost most of the time.
export ASAN_OPTIONS=malloc_context_size=2:quarantine_size_mb=16:detect_stack_use_after_return=0

fuzzer() {
  local target=$1 given=tests/fuzz/corpus/$1
  shift
  mkdir -p "build/fuzz/corpus/$target" "build/fuzz/found" "$given"
  "build/fuzz/fuzz/fuzz_$target" "$@"
}

run() {
  build fuzz
  mkdir -p build/fuzz/log
  for target in "${targets[@]}"; do
    echo "fuzz: $target, log in build/fuzz/log/$target"
    fuzzer "$target" -runs="${INPUTS:-10000000}" -max_len=4096 -entropic=0 -timeout=5 -rss_limit_mb=2048 -print_final_stats=1 \
      -dict="tests/fuzz/words/$target.dict" -artifact_prefix="build/fuzz/found/$target-" \
      "build/fuzz/corpus/$target" "tests/fuzz/corpus/$target" 2>"build/fuzz/log/$target" || {
      tail -40 "build/fuzz/log/$target"
      exit 1
    }
    grep -E '^(Done|stat::number|stat::average|stat::peak|memory)' "build/fuzz/log/$target"
  done
}

coverage() {
  build fuzz-coverage
  for target in "${targets[@]}"; do
    local program=build/fuzz-coverage/fuzz/fuzz_$target profile=build/fuzz-coverage/$target
    local inputs=(tests/fuzz/corpus/"$target")
    [ "${CORPUS:-all}" = all ] && [ -d "build/fuzz/corpus/$target" ] && inputs+=("build/fuzz/corpus/$target")
    LLVM_PROFILE_FILE=$profile.raw "$program" "${inputs[@]}" 2>"$profile.log"
    llvm-profdata merge -sparse "$profile.raw" -o "$profile.profile"
    # shellcheck disable=SC2086
    llvm-cov report "$program" -instr-profile="$profile.profile" \
      $(printf "$PWD/adder/%s " ${readers[$target]}) | awk -v target="$target" \
      '/\.cpp/ { printf "%-18s %-32s %5d lines, %6s reached\n", target, $1, $8, $10 }'
  done
}

merge() {
  build fuzz
  mkdir -p build/fuzz/log
  for target in "${targets[@]}"; do
    # By the edges reached, not how often; large inputs stay out of the repository.
    fuzzer "$target" -merge=1 -use_counters=0 -max_len=2000 "tests/fuzz/corpus/$target" "build/fuzz/corpus/$target" \
      2>"build/fuzz/log/$target.merge"
    echo "$target: $(find "tests/fuzz/corpus/$target" -type f | wc -l) inputs"
  done
}

install_clang
"$what"
