#!/usr/bin/env bash
# make test-peers: Adder against other programs. What is absent is skipped with a word on what would bring it.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=.venv/bin/python
build=build/release
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT-10000} # beside other load a waiting thread would hold a processor for milliseconds
summary=()
failed=0

has() { # has PYTHON MODULE...
  local interpreter=$1
  shift
  "$interpreter" -c "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))" "$@" 2>/dev/null
}

compare() { # compare NAME COMMAND...
  local name=$1
  shift
  echo "== $name"
  if "$@"; then summary+=("passed   $name"); else
    summary+=("FAILED   $name: $*")
    failed=1
  fi
}

skip() { summary+=("skipped  $1: $2"); }

tests() { ctest --test-dir "$build" --output-on-failure --no-tests=error -R "$1"; }

name="GGUF files in llama.cpp"
other=${ADDER_LLAMA_CPP_PYTHON-$python}
if has "$other" llama_cpp numpy; then compare "$name" tests '^weights\.llama_cpp$'; else
  skip "$name" "$other has no llama-cpp-python (ADDER_LLAMA_CPP_PYTHON names a Python that has it)"
fi

name="tokenizers"
other=${ADDER_TOKENIZERS_PYTHON-$python}
if has "$other" tokenizers; then compare "$name" tests '^data\.tokenizer_peer$'; else
  skip "$name" "$other has no tokenizers (ADDER_TOKENIZERS_PYTHON names a Python that has it)"
fi

if has $python transformers; then
  compare "transformers: models and losses" tests '^(models\.transformers|python\.compat_install)$'
  compare "transformers: training and generation in turn, 130M" $python tests/peers/transformers_speed.py
else
  skip "transformers" "$python has no transformers"
fi

name="tests of mamba_ssm and causal_conv1d"
if [ -z "${ADDER_PEERS-}" ]; then
  skip "$name" "ADDER_PEERS names no folder with their checkouts, mamba and causal-conv1d"
elif [ ! -d "$ADDER_PEERS/einops" ] && ! has $python einops; then
  skip "$name" "$python has no einops"
else
  compare "$name, CPU" $python tests/peers/reference_tests.py --sample "${ADDER_PEERS_SAMPLE-500}" --max-elements 1e8 --repeats 3
fi

if $python -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null; then
  if [ -n "${ADDER_PEERS-}" ]; then
    compare "$name, GPU" $python tests/peers/reference_tests.py --device cuda --sample 1800 --max-elements 6e10 --jobs 8
  fi
  compare "adder.compat in (B, D, L) on the GPU" $python tests/peers/compat_speed.py
else
  skip "adder.compat on a GPU" "there is none"
fi

printf '%s\n' "" "${summary[@]}"
exit $failed
