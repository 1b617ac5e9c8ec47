#!/usr/bin/env bash
# GPUs: the tests, a part of them under compute-sanitizer, and every collective beside NCCL and
# PyTorch's symmetric memory, all in one go.
#   bench/gpu.sh [--build DIR] [--quick | --full] [--ranks 2,4] [--out FILE] [more for bench/gpu_run.py]
# DIR (build-cuda) is built where its bin/zbccl is missing, which needs nvcc. Writes
# bench/results/DATE-gpu.json or FILE; bench/report.py and bench/plot.py make tables and plots of it.
# --quick takes some three minutes on four GPUs. Leave the machine to it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What may load NCCL, PyTorch or NVSHMEM keeps off NVLink multicast, whatever the caller has set.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
export PYTHONUNBUFFERED=1

build="build-cuda"
if [[ ${1:-} == --build && -n ${2:-} ]]; then
  build=$2
  shift 2
fi
if [[ ! -x $build/bin/zbccl ]]; then
  scripts/build.sh "$build" "$(nproc)" --preset cuda
fi
exec python3 bench/gpu_run.py --build "$build" "$@"
