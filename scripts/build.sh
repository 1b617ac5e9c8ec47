#!/usr/bin/env bash
# Configures and builds: build.sh BUILD_DIR JOBS [--preset NAME] [--python] [-DNAME=VALUE...]
# The preset is release unless named; --python adds the Python module. Called again with nothing
# changed, it takes a second or two.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=$1 jobs=$2
# Paths inside the checkout do not count for the compiler's cache, so checkouts share it.
export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$PWD} CCACHE_NOHASHDIR=1
# Without these it would keep nothing that is compiled with a precompiled header.
export CCACHE_SLOPPINESS=${CCACHE_SLOPPINESS:-pch_defines,time_macros}
shift 2
preset=release
options=()
while (($# > 0)); do
  case $1 in
    --preset)
      preset=$2
      shift
      ;;
    --python) options+=(-DZBCCL_BUILD_PYTHON=ON "-DPython_EXECUTABLE=$PWD/.venv/bin/python") ;;
    -D*) options+=("$1") ;;
    *)
      echo "build.sh: unknown argument $1" >&2
      exit 2
      ;;
  esac
  shift
done

# Configuring again is needed only when an option is new; ninja notices changed CMake files itself.
configured() {
  [[ -f $build/build.ninja ]] || return 1
  local option
  for option in "${options[@]}"; do
    grep -q "^${option%%=*}:[A-Z]*=${option#*=}\$" <(sed 's/^/-D/' "$build/CMakeCache.txt") || return 1
  done
}
if ! configured; then
  echo "[build] configuring in $build" >&2
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  if ! cmake --preset "$preset" -B "$build" "${options[@]}" </dev/null >"$log" 2>&1; then
    cat "$log" >&2
    exit 1
  fi
fi
echo "[build] building with $jobs jobs" >&2
if [[ -t 1 ]]; then
  cmake --build "$build" -j "$jobs"
else
  # One line for every twenty steps keeps a log readable and still shows that work goes on.
  cmake --build "$build" -j "$jobs" </dev/null 2>&1 |
    awk '!/^\[[0-9]+\/[0-9]+\] / {print; fflush(); next}
         {split($1, n, /[][\/]/); if (n[2] % 20 == 0 || n[2] == n[3]) {print; fflush()}}'
fi
