#!/usr/bin/env python3
"""Runs the host benchmark beside gloo and keeps the result: bench/results/DATE-host.json.

Every measurement is one `zbccl perf` command, listed in the file with the machine it ran on, so
that it can be repeated. The plots in docs/ and the table in the README are made from the file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# operation, ranks, first size, last size, factor; gloo has no reduce-scatter of its own in C++.
CASES = [
    ("all_reduce", 2, "4K", "16M", 4, True),
    ("all_reduce", 4, "4K", "16M", 4, True),
    ("all_reduce", 8, "4K", "1M", 4, True),
    ("all_gather", 2, "4K", "16M", 4, True),
    ("all_gather", 4, "4K", "16M", 4, True),
    ("reduce_scatter", 2, "4K", "16M", 4, False),
    ("reduce_scatter", 4, "4K", "16M", 4, False),
    ("broadcast", 2, "4K", "16M", 4, True),
    ("broadcast", 4, "4K", "16M", 4, True),
]


def first_line(command: list[str]) -> str:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
    except OSError:
        return "unknown"
    lines = (result.stdout + result.stderr).splitlines()
    return lines[0].strip() if lines else "unknown"


def file_value(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition("=" if "=" in line else ":")
        if name.strip() == key:
            return value.strip().strip('"')
    return "unknown"


def machine() -> dict[str, object]:
    memory = file_value("/proc/meminfo", "MemTotal").split()[0]
    return {
        "cpu": file_value("/proc/cpuinfo", "model name"),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20) if memory.isdigit() else None,
        "kernel": platform.release(),
        "system": file_value("/etc/os-release", "PRETTY_NAME"),
    }


def versions(build: Path) -> dict[str, str]:
    compiler = "unknown"
    cache = build / "CMakeCache.txt"
    if cache.exists():
        path = file_value(str(cache), "CMAKE_CXX_COMPILER:FILEPATH")
        path = path if path != "unknown" else file_value(str(cache), "CMAKE_CXX_COMPILER:STRING")
        compiler = first_line([path, "--version"])
    return {
        "zbccl": first_line([str(build / "bin/zbccl"), "version"]),
        "commit": first_line(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]),
        "gloo": first_line(["dpkg-query", "-W", "-f=${Version}", "libgloo-dev"]),
        "compiler": compiler,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build", help="build directory (default: build)")
    parser.add_argument("--iterations", type=int, default=50)
    parser.add_argument("--name", default="host", help="last part of the file's name")
    parser.add_argument("--no-plot", action="store_true")
    arguments = parser.parse_args()
    build = (ROOT / arguments.build).resolve()
    command = build / "bin/zbccl"

    now = datetime.datetime.now(datetime.timezone.utc)
    record: dict[str, object] = {
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "versions": versions(build),
        "load_before": round(os.getloadavg()[0], 1),
    }
    commands: list[str] = []
    rows: list[object] = []
    with tempfile.TemporaryDirectory(prefix="zbccl-bench-") as folder:
        for operation, ranks, first, last, factor, compare in CASES:
            output = Path(folder) / f"{operation}-{ranks}.json"
            words = ["perf", operation, "--ranks", str(ranks), "-d", "f32", "-b", first, "-e", last]
            words += ["-f", str(factor), "-n", str(arguments.iterations), "-w", "10", "--check"]
            words += ["--compare", "gloo"] if compare else []
            print(f"$ zbccl {' '.join(words)}", flush=True)
            result = subprocess.run(
                [command, *words, "--json", output], stdin=subprocess.DEVNULL, check=False
            )
            if result.returncode:
                print(f"bench: code {result.returncode} from zbccl {' '.join(words)}")
                return 1
            commands.append("zbccl " + " ".join(words))
            rows += json.loads(output.read_text())
    record["commands"] = commands
    record["rows"] = rows
    results = ROOT / "bench/results"
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{now:%Y-%m-%d}-{arguments.name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"bench: {len(rows)} rows in {path.relative_to(ROOT)}")
    if arguments.no_plot:
        return 0
    plot = [sys.executable, str(ROOT / "bench/plot.py"), str(path), "--out", str(ROOT / "docs")]
    report = [sys.executable, str(ROOT / "bench/report.py"), str(path)]
    return (
        subprocess.run(plot, check=False).returncode
        or subprocess.run(report, check=False).returncode
    )


if __name__ == "__main__":
    sys.exit(main())
