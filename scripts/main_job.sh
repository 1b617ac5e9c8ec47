#!/usr/bin/env bash
# What `make run` does after the build: main_job.sh BUILD_DIR
# Serves the language model over four ranks, with slices of its experts and with whole ones, checks
# that its tokens are those of one rank, and prints the benchmark beside gloo. Ends with `main job: ok` (0) or `main job: FAILED: why` (1).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
build=$1
PATH="$PWD/$build/bin:$PATH"
[[ $build == /* ]] && PATH="$build/bin:$PATH"
export PATH

fail() {
  echo "main job: FAILED: $*"
  exit 1
}

# step LIMIT_SECONDS COMMAND...: shows the command, runs it, and names it when it fails.
step() {
  local limit=$1 status=0
  shift
  printf '\n$%s\n' "$(printf ' %q' "$@")"
  timeout --kill-after=10 "$limit" "$@" </dev/null || status=$?
  ((status == 0)) && return 0
  ((status == 124 || status == 137)) && fail "no end after $limit s: $*"
  fail "code $status from: $*"
}

for program in zbccl llm; do
  command -v "$program" >/dev/null || fail "$build/bin/$program is not built"
done

step 300 zbccl run -n 4 -- llm --tp 4 --prompt "In the beginning"
step 120 zbccl run -n 4 -- llm --ep 4 --prompt "In the beginning" --tokens 64

for n in 2 4; do
  step 300 zbccl perf all_reduce --ranks "$n" -d f32 -b 4K -e 4M -f 4 -n 20 -w 5 --compare gloo --check
done
step 120 zbccl perf all_gather --ranks 2 -d f32 -b 4K -e 4M -f 32 -n 20 -w 5 --compare gloo --check
step 120 zbccl perf broadcast --ranks 2 -d f32 -b 4K -e 4M -f 32 -n 20 -w 5 --compare gloo --check
step 120 zbccl moe --ranks 2 --tokens 1,64 -n 20 --compare gloo --check
step 120 zbccl perf reduce_scatter --ranks 4 -d f32 -b 4K -e 4M -f 32 -n 20 -w 5 --check
echo
echo "main job: ok"
