#!/usr/bin/env bash
# Installs what the named groups need and is missing: install_dependencies.sh GROUP...
#   build  compilers and libraries          test   the Python environment in .venv, with PyTorch
#   lint   formatters and checkers          bench  peers, and what draws the plots
#   fuzz   Clang with its fuzzer
# System packages need root (Debian 12, Ubuntu 24.04); without root it names what is missing.
# A call that finds everything in place takes a fraction of a second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build_packages=(
  build-essential cmake ninja-build ccache pkg-config
  libhwy-dev libspdlog-dev libfmt-dev libasio-dev nlohmann-json3-dev libcli11-dev
  libgtest-dev libhwloc-dev libssl-dev libgloo-dev
)
python_packages=(python3 python3-venv python3-dev)
bench_packages=(libbenchmark-dev openmpi-bin libopenmpi-dev)
fuzz_packages=(clang-16 libclang-rt-16-dev)
lint_packages=(clang-format-14 clang-tidy-14 shellcheck)

say() { echo "[setup] $*" >&2; }

install_packages() {
  local wanted=("$@") missing=() package
  if ! command -v dpkg-query >/dev/null; then
    say "this is not Debian or Ubuntu; make sure these are present: ${wanted[*]}"
    return 0
  fi
  local present
  present=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${wanted[@]}" 2>/dev/null || true)
  for package in "${wanted[@]}"; do
    grep -qx "$package installed" <<<"$present" || missing+=("$package")
  done
  ((${#missing[@]} == 0)) && return 0
  if ((EUID != 0)); then
    say "missing packages: ${missing[*]}"
    say "install them with: sudo apt-get install -y ${missing[*]}"
    return 1
  fi
  say "installing ${#missing[@]} packages: ${missing[*]}"
  local log
  log=$(mktemp)
  export DEBIAN_FRONTEND=noninteractive
  # Package lists may be absent or stale on a fresh machine.
  if ! { apt-get update -qq && apt-get install -y --no-install-recommends "${missing[@]}"; } \
      </dev/null >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    say "apt-get could not install: ${missing[*]}"
    return 1
  fi
  rm -f "$log"
  say "packages installed"
}

# PyTorch is used by tests only. It is installed where a build of moderate size is on offer;
# the build for GPUs draws several GB of further packages and is taken with TEST_TORCH=1 only.
torch_version=2.13.0
install_torch() {
  local choice=${TEST_TORCH:-auto} report
  if [[ $choice == 0 ]]; then
    say "PyTorch left out (TEST_TORCH=0); its tests are skipped"
    return 0
  fi
  if [[ $choice == auto ]]; then
    report=$(mktemp)
    if ! .venv/bin/pip install --quiet --dry-run --no-input --report "$report" \
        "torch==$torch_version" </dev/null >/dev/null 2>&1; then
      rm -f "$report"
      say "PyTorch $torch_version is not on offer for this Python; its tests are skipped"
      return 0
    fi
    if grep -q '"name": *"nvidia-' "$report"; then
      rm -f "$report"
      say "PyTorch $torch_version would draw its GPU packages (several GB); its tests are skipped." \
        "Install a CPU build into .venv, or set TEST_TORCH=1, to run them"
      return 0
    fi
    rm -f "$report"
  fi
  say "installing PyTorch $torch_version (a minute or two)"
  .venv/bin/pip install --quiet --no-input "torch==$torch_version" </dev/null 2>&1 |
    grep -v '^WARNING: Location' >&2 || true
  .venv/bin/python -c 'import torch' 2>/dev/null || say "PyTorch could not be installed; its tests are skipped"
}

# One environment for all groups; a stamp for each set of requirements makes the next call quick.
install_python() {
  local group=$1 stamp
  if [[ -x .venv/bin/python ]] && ! .venv/bin/python -c '' 2>/dev/null; then
    say "the Python environment in .venv is broken; building it again"
    rm -rf .venv
  fi
  if [[ ! -x .venv/bin/python ]]; then
    say "creating the Python environment in .venv"
    python3 -m venv .venv
  fi
  stamp=".venv/.ready-$group-$(cat "scripts/requirements-$group.txt" "${BASH_SOURCE[0]}" |
    sha256sum | cut -c1-16)-${TEST_TORCH:-auto}"
  [[ -e $stamp ]] && return 0
  say "installing Python packages for $group"
  .venv/bin/pip install --quiet --no-input --disable-pip-version-check \
    -r "scripts/requirements-$group.txt" </dev/null 2>&1 | { grep -v '^WARNING: Location' || true; } >&2
  .venv/bin/pip check --quiet >/dev/null 2>&1 || true
  if [[ $group == test ]]; then
    if .venv/bin/python -c 'import torch' 2>/dev/null; then
      :
    else
      install_torch
    fi
  fi
  rm -f .venv/.ready-"$group"-*
  : >"$stamp"
}

(($# > 0)) || set -- build test lint
packages=()
for group in "$@"; do
  case $group in
    build) packages+=("${build_packages[@]}") ;;
    test) packages+=("${python_packages[@]}") ;;
    bench) packages+=("${python_packages[@]}" "${bench_packages[@]}") ;;
    fuzz) packages+=("${fuzz_packages[@]}") ;;
    lint) packages+=("${python_packages[@]}" "${lint_packages[@]}") ;;
    *)
      say "unknown group $group; known: build test lint bench fuzz"
      exit 2
      ;;
  esac
done
install_packages "${packages[@]}"
for group in "$@"; do
  [[ $group == build || $group == fuzz ]] || install_python "$group"
done
