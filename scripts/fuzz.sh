#!/usr/bin/env bash
# Builds the fuzz targets and runs each for a while, two at a time: fuzz.sh BUILD_DIR SECONDS [TARGET...]
# Prints a line for each. An input that fails is left in BUILD_DIR/found, and the exit status is 1; it
# is 77 where Clang or its fuzzer is missing. New inputs that reach new code gather in BUILD_DIR/grown.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
build=$1 seconds=$2
shift 2

# What the preset asks for, or a later one.
compiler=
for name in clang++-16 clang++ clang++-18 clang++-17 clang++-19; do
  command -v "$name" >/dev/null || continue
  echo 'extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return __builtin_LINE() < 0; }' |
    "$name" -std=c++20 -fsanitize=fuzzer,address -x c++ - -o /dev/null 2>/dev/null || continue
  echo '#include <source_location>
    std::source_location here = std::source_location::current();' |
    "$name" -std=c++20 -fsyntax-only -x c++ - 2>/dev/null || continue
  compiler=$name
  break
done
if [[ -z $compiler ]]; then
  echo "[fuzz] skipped: no Clang 16 or later with its fuzzer's run time (clang-16, libclang-rt-16-dev)"
  exit 77
fi

if [[ ! -f $build/build.ninja ]]; then
  cmake --preset fuzz -B "$build" -DCMAKE_CXX_COMPILER="$compiler" \
    -DCMAKE_C_COMPILER="${compiler/clang++/clang}" </dev/null >"$build.log" 2>&1 ||
    {
      cat "$build.log"
      exit 1
    }
  rm -f "$build.log"
fi
cmake --build "$build" --target fuzzers </dev/null >"$build/build.log" 2>&1 ||
  {
    tail -n 40 "$build/build.log"
    exit 1
  }

if (($# > 0)); then
  targets=("$@")
else
  targets=()
  for corpus in tests/fuzz/corpus/*/; do targets+=("$(basename "$corpus")"); done
fi
mkdir -p "$build/found" "$build/grown"

# fuzz TARGET: one line about it; fails if it found something.
fuzz() {
  local target=$1 dictionary=() log=$build/$1.log
  mkdir -p "$build/grown/$target"
  [[ -f tests/fuzz/$target.dict ]] && dictionary=("-dict=tests/fuzz/$target.dict")
  ASAN_OPTIONS=detect_stack_use_after_return=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    "$build/bin/fuzz_$target" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -print_final_stats=1 -verbosity=1 "-artifact_prefix=$build/found/$target-" "${dictionary[@]}" \
    "$build/grown/$target" "tests/fuzz/corpus/$target" </dev/null >"$log" 2>&1
  local status=$? runs
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  if ((status == 0)); then
    echo "[fuzz] $target: ${runs:-?} executions, nothing found"
    return 0
  fi
  echo "[fuzz] $target: FAILED after ${runs:-?} executions (code $status); see $build/found"
  grep -vE '^#[0-9]+' "$log" | tail -n 30
  return 1
}

failed=0
for ((i = 0; i < ${#targets[@]}; i += 2)); do
  fuzz "${targets[i]}" &
  first=$!
  if ((i + 1 < ${#targets[@]})); then
    fuzz "${targets[i + 1]}" || failed=1
  fi
  wait "$first" || failed=1
done
exit "$failed"
