#!/usr/bin/env bash
# All collectives of host memory beside gloo and Open MPI, with 2, 4 and 8 ranks: about seven minutes.
#   bench/host.sh [--build DIR] [more for bench/run.py, as --parts 2 --passes 1]
# Writes bench/results/DATE-host.json, the plots in docs/, and the tables in README.md and
# docs/performance.md; prints what was asked for beside what came out. Leave the machine to it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=build
if [[ ${1:-} == --build && -n ${2:-} ]]; then
  build=$2
  shift 2
fi
scripts/install_dependencies.sh build bench
scripts/build.sh "$build" "$(nproc)" -DZBCCL_BUILD_BENCH=ON
exec .venv/bin/python bench/run.py --build "$build" "$@"
