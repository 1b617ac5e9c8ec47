#!/usr/bin/env python3
"""Measures all collectives of host memory beside gloo and Open MPI: bench/results/DATE-host.json.

In each pass every case is run by each library in turn, one right after the other: zbccl by `zbccl
perf` in processes that hold nothing else, gloo by `zbccl perf --compare gloo`, Open MPI by
bench/peers/mpi_bench.c under mpirun. How long two cores take to meet is measured before each case,
without any library. All cases of a part are gone through several times, and the median over these
passes is kept for each library, so that a disturbance of the machine meets all three and decides
little. The file holds the commands, the machine and the versions.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from cases import OPERATIONS, PARTS, Case

ROOT = Path(__file__).resolve().parent.parent
SHORTEST = 0.001  # seconds that `zbccl perf` accepts
TIMES = ("time_us", "p50_us", "p99_us")
Row = dict[str, Any]
# Ranks, operation, type, size, fresh: what two passes have in common.
Key = tuple[int, str, str | None, int, bool]


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
    package = ["dpkg-query", "-W", "-f=${Version}"]
    return {
        "zbccl": first_line([str(build / "bin/zbccl"), "version"]),
        "commit": first_line(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]),
        "gloo": first_line([*package, "libgloo-dev"]),
        "open_mpi": first_line([*package, "libopenmpi-dev"]),
        "compiler": compiler,
    }


def busy_share() -> float:
    """The part of all processors that others use, while this program waits for a second."""

    def reading() -> tuple[int, int]:
        times = [int(word) for word in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        return sum(times), times[3] + times[4]  # idle and waiting for input

    before, idle_before = reading()
    time.sleep(1)
    after, idle_after = reading()
    return round(1 - (idle_after - idle_before) / max(after - before, 1), 2)


def key_of(row: Row) -> Key:
    return (row["ranks"], row["op"], row["dtype"], row["size"], row["fresh"])


class Runner:
    """Runs cases and keeps every pass of every row."""

    def __init__(self, build: Path, seconds: float) -> None:
        self.command = build / "bin/zbccl"
        self.seconds = seconds
        self.passes: dict[Key, list[Row]] = {}
        self.checked: dict[Key, Row] = {}
        self.commands: list[str] = []
        self.mpi = self.optional(build / "bin/mpi_bench", "Open MPI")
        self.meeting = self.optional(build / "bin/zbccl_bench_meeting", "the bare meeting")

    @staticmethod
    def optional(program: Path, what: str) -> Path | None:
        if program.exists():
            return program
        print(f"bench: {program} is not built; {what} is left out", flush=True)
        return None

    def note(self, words: list[str]) -> None:
        shown = " ".join(Path(word).name if word.startswith("/") else word for word in words)
        shown = shown.partition(" --json ")[0]
        if shown not in self.commands:
            self.commands.append(shown)

    def run(self, words: list[str]) -> subprocess.CompletedProcess[str]:
        self.note(words)
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"code {done.returncode} from {' '.join(words)}\n{done.stderr}")
        return done

    def perf(self, words: list[str], output: Path) -> list[Row]:
        self.run(words)
        rows: list[Row] = json.loads(output.read_text())
        return rows

    def open_mpi(self, case: Case, seconds: float, check: bool) -> dict[int, Row]:
        if self.mpi is None or not case.mpi:
            return {}
        rows: list[Row] = json.loads(self.run(case.open_mpi(self.mpi, seconds, check)).stdout)
        for row in rows:
            if row["nwrong"] > 0:
                raise RuntimeError(f"Open MPI gave {row['nwrong']} wrong elements: {row}")
        return {row["size"]: row for row in rows}

    def run_case(self, case: Case, check: bool) -> None:
        """Measures; or checks results, and nothing else: a check changes how ranks share cores."""
        seconds = SHORTEST if check else self.seconds
        meeting = json.loads(self.run([str(self.meeting)]).stdout) if self.meeting else None
        with tempfile.TemporaryDirectory(prefix="zbccl-bench-") as folder:
            output = Path(folder) / "rows.json"
            rows = self.perf(case.own(self.command, seconds, check, output), output)
            beside: dict[Key, Row] = {}
            if case.gloo:
                # Fewer calls: those of gloo are long, and their median needs no more.
                words = case.beside_gloo(self.command, max(seconds / 2, SHORTEST), check, output)
                beside = {key_of(row): row for row in self.perf(words, output)}
        mpi = self.open_mpi(case, seconds, check)
        if check:
            self.checked |= {key_of(row): row for row in rows}
            return
        for row in rows:
            compared = row.pop("compare")
            row["peers"] = {compared["name"]: compared} if compared else {}
            shared = beside.get(key_of(row))
            if shared and shared["compare"]:
                row["peers"]["gloo"] = shared["compare"]
                row["in_processes_of_gloo"] = shared["out_of_place"]
            if row["size"] in mpi:
                row["peers"]["open_mpi"] = mpi[row["size"]]
            if meeting:
                row["meeting_us"] = meeting["p50_us"]
            self.passes.setdefault(key_of(row), []).append(row)

    def rows(self, part: str) -> list[Row]:
        found = []
        for key, passes in self.passes.items():
            row = merged(passes)
            for place in ("out_of_place", "in_place"):
                if row[place] is not None:
                    row[place]["nwrong"] = self.checked[key][place]["nwrong"]
            found.append(row | {"part": part})
        return found


def median_times(measurements: list[Row]) -> Row:
    """Each time's median over the passes, and the passes' own medians beside it."""
    result: Row = {
        name: round(statistics.median(m[name] for m in measurements), 3) for name in TIMES
    }
    result["p50_us_of_passes"] = [round(m["p50_us"], 3) for m in measurements]
    return result


def merged(passes: list[Row]) -> Row:
    row = dict(passes[0])
    for place in ("out_of_place", "in_place"):
        measured = [one[place] for one in passes if one[place] is not None]
        if not measured:
            continue
        row[place] = median_times(measured)
    row["peers"] = {
        name: median_times([one["peers"][name] for one in passes if name in one["peers"]])
        for name in passes[0]["peers"]
    }
    if all("in_processes_of_gloo" in one for one in passes):
        row["in_processes_of_gloo"] = median_times([one["in_processes_of_gloo"] for one in passes])
    if all("meeting_us" in one for one in passes):
        meetings = [one["meeting_us"] for one in passes]
        row["meeting_us"] = round(statistics.median(meetings), 4)
        row["meeting_us_of_passes"] = meetings
    for name in ("staged_bytes", "landing_bytes", "held_bytes"):
        row[name] = max(one[name] for one in passes)
    row["init_ms"] = round(statistics.median(one["init_ms"] for one in passes), 1)
    return row


def write(path: Path, record: dict[str, Any]) -> None:
    """One line for each row and command: a change of one shows as such."""
    head = {name: value for name, value in record.items() if name not in ("commands", "rows")}
    text = json.dumps(head, indent=1)[:-2]
    for name in ("commands", "rows"):
        lines = ",\n  ".join(json.dumps(item) for item in record[name])
        text += f',\n "{name}": [\n  {lines}\n ]'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n}\n")


def measure(part: str, record: dict[str, Any], arguments: argparse.Namespace, build: Path) -> None:
    runner = Runner(build, arguments.seconds)
    cases = [case for case in PARTS[part]() if case.operation in arguments.operations.split(",")]
    for number in range(arguments.passes + 1):
        for case in cases:
            fresh = ", fresh" if case.fresh else ""
            what = f"pass {number}" if number else "checking"
            text = f"{case.operation}, {case.ranks} ranks{fresh}"
            print(f"[part {part}, {what}] {text}", flush=True)
            runner.run_case(case, check=number == 0)
    kept = [
        row for row in record["rows"] if row["part"] != part or key_of(row) not in runner.passes
    ]
    record["rows"] = kept + runner.rows(part)
    known = set(record["commands"])
    record["commands"] += [command for command in runner.commands if command not in known]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build", help="build directory (default: build)")
    parser.add_argument("--passes", type=int, default=3, help="times each case is run (3)")
    parser.add_argument("--seconds", type=float, default=0.05, help="for each size and form (0.05)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)} (all)")
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="of these parts (all)")
    parser.add_argument("--name", default="host", help="last part of the file's name")
    parser.add_argument(
        "--into", type=Path, help="replace these rows in this file, keep its others"
    )
    parser.add_argument("--no-plot", action="store_true", help="neither plots nor tables")
    arguments = parser.parse_args()
    build = (ROOT / arguments.build).resolve()
    parts = arguments.parts.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; expected some of {','.join(PARTS)}")
    operations = arguments.operations.split(",")
    if unknown := [name for name in operations if name not in OPERATIONS]:
        parser.error(
            f"there is no operation {unknown[0]}; expected some of {', '.join(OPERATIONS)}"
        )

    now = datetime.datetime.now(datetime.timezone.utc)
    path = arguments.into or ROOT / "bench/results" / f"{now:%Y-%m-%d}-{arguments.name}.json"
    record: dict[str, Any] = {"commands": [], "rows": [], "busy_before": {}}
    if arguments.into and path.exists():
        record |= json.loads(path.read_text())
    record = {
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(),
        "versions": versions(build),
        **{name: record[name] for name in ("busy_before", "commands", "rows")},
    }
    for part in parts:
        record["busy_before"][part] = busy_share()
        try:
            measure(part, record, arguments, build)
        except RuntimeError as error:
            print(f"bench: {error}")
            return 1
        write(path, record)
    print(f"bench: {len(record['rows'])} rows in {path}")
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
