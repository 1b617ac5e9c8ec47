#!/usr/bin/env bash
# Installs a build into a scratch prefix, moves the prefix, builds programs against it from outside,
# and runs them on two ranks: check.sh find_package|pkg_config BUILD_DIR CXX CC
set -euo pipefail
way=$1 build=$2 cxx=$3 cc=$4
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cmake --install "$build" --prefix "$scratch/first" >"$scratch/install.log" || {
  cat "$scratch/install.log"
  exit 1
}
# Nothing may depend on where it was installed.
prefix=$scratch/moved
mv "$scratch/first" "$prefix"
library=$(find "$prefix" -name 'libzbccl.so' -printf '%h\n' -quit)
[[ -n $library ]] || {
  echo "no libzbccl.so under the prefix"
  exit 1
}

# The name that programs record is versioned and leads to a file that is there.
soname=$(objdump -p "$library/libzbccl.so" | awk '$1 == "SONAME" {print $2}')
[[ $soname =~ ^libzbccl\.so\.[0-9]+$ && -e $library/$soname ]] || {
  echo "SONAME is '$soname'; expected libzbccl.so.MAJOR, present in $library"
  exit 1
}

case $way in
  find_package)
    build_project() { # FOLDER NAME
      cmake -S "$1" -B "$scratch/$2" -DCMAKE_PREFIX_PATH="$prefix" -DCMAKE_C_COMPILER="$cc" \
        -DCMAKE_CXX_COMPILER="$cxx" -DCMAKE_BUILD_TYPE=Release >"$scratch/configure.log" || {
        cat "$scratch/configure.log"
        exit 1
      }
      cmake --build "$scratch/$2" --parallel 2
    }
    build_project "$here/consumer" consumer
    [[ $("$scratch/consumer/nccl_consumer") == "nccl 22809" ]] || {
      echo "the library with NCCL's interface is not found or does not answer"
      exit 1
    }
    build_project "$here/../../examples/cpp" examples
    for name in all_reduce exchange_tokens hello moe_dispatch; do
      echo "== example_$name"
      "$prefix/bin/zbccl" run -n 2 -- "$scratch/examples/example_$name"
    done
    exit
    ;;
  pkg_config)
    export PKG_CONFIG_PATH=$library/pkgconfig
    pkg-config --exists --print-errors zbccl
    # The flags are words of their own.
    # shellcheck disable=SC2046
    "$cc" -std=c11 -Wall -Wextra -Werror "$here/consumer/consumer.c" -o "$scratch/consumer" \
      $(pkg-config --cflags --libs zbccl) -Wl,-rpath,"$library"
    program=$scratch/consumer
    ;;
  *)
    echo "unknown way $way"
    exit 2
    ;;
esac

output=$("$prefix/bin/zbccl" run -n 2 -- "$program")
echo "$output"
for rank in 0 1; do
  grep -q "rank $rank of 2: sum 3$" <<<"$output" || {
    echo "rank $rank did not print its sum"
    exit 1
  }
done
