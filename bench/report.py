#!/usr/bin/env python3
"""Puts the numbers of a bench/run.py file into README.md and docs/performance.md, those of a
bench/gpu_run.py file into docs/performance-gpu.md: report.py FILE

The tables stand between marks and are written anew each time. What was asked for and what came out
is printed, too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import goals
import gpu_goals
import gpu_report
from cases import OPERATIONS
from goals import label, number

ROOT = Path(__file__).resolve().parent.parent
SIZES = (4096, 65536, 262144, 1048576, 4194304)
README_OPERATIONS = ("all_reduce", "all_gather", "broadcast")
NAMES = {"gloo": "gloo", "open_mpi": "Open MPI"}
Row = dict[str, Any]


def table(rows: list[Row], operations: tuple[str, ...], ranks: tuple[int, ...]) -> list[str]:
    """Median times of both peers under ours, a line for each library."""
    sizes = [size for size in SIZES if any(row["size"] == size for row in rows)]
    lines = [
        "| median time (µs), f32 | " + " | ".join(label(size) for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for operation in operations:
        for n in ranks:
            cells: dict[str, dict[int, str]] = {}
            for row in rows:
                if (row["op"], row["ranks"]) != (operation, n):
                    continue
                cells.setdefault("", {})[row["size"]] = number(goals.own(row))
                for peer, times in row["peers"].items():
                    cells.setdefault(peer, {})[row["size"]] = number(times["p50_us"])
            for who in [who for who in ("", *NAMES) if who in cells]:
                name = f"&nbsp;&nbsp;{NAMES[who]}" if who else f"{operation}, {n} ranks"
                values = [cells[who].get(size, "") for size in sizes]
                lines.append(f"| {name} | " + " | ".join(values) + " |")
    return lines


def note(record: dict[str, Any], name: str, folder: str) -> str:
    machine, versions = record["machine"], record["versions"]
    busy = max(record["busy_before"].values())
    text = f" Other work used {busy:.0%} of the processors before a part." if busy > 0.1 else ""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, kernel "
        f"{machine['kernel']}, {versions['compiler']}, gloo {versions['gloo']}, Open MPI "
        f"{versions['open_mpi']}, {record['date'][:10]}: "
        f"[bench/results/{name}]({folder}bench/results/{name}).{text}"
    )


def replace(path: Path, mark: str, text: str) -> bool:
    begin, end = f"<!-- {mark} -->", f"<!-- /{mark} -->"
    content = path.read_text()
    if begin not in content or end not in content:
        print(f"report: {begin} and {end} are not in {path.name}")
        return False
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")
    print(f"report: {path.relative_to(ROOT)}")
    return True


def report_gpus(record: dict[str, Any], name: str) -> int:
    found = gpu_goals.results(record)
    print(goals.as_text(found))
    page = ROOT / "docs/performance-gpu.md"
    done = [
        replace(page, "gpu-goals", goals.as_markdown(found)),
        replace(page, "gpu-measured", gpu_report.text_of(record, name)),
    ]
    return 0 if all(done) else 1


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: bench/report.py FILE")
        return 2
    path = Path(sys.argv[1])
    record = json.loads(path.read_text())
    if record.get("device") == "cuda":
        return report_gpus(record, path.name)
    steady = [
        row
        for row in record["rows"]
        if not row["fresh"] and row["dtype"] == "f32" and row["part"] != "extra"
    ]
    fresh = [row for row in record["rows"] if row["fresh"] and "gloo" in row["peers"]]
    found = goals.results(record)
    print(goals.as_text(found))
    staged = max(row["staged_bytes"] for row in record["rows"])
    text = f"Out of place, every element checked, {staged} staged bytes a call. "
    readme = [*table(steady, README_OPERATIONS, (2, 4, 8)), "", text + note(record, path.name, "")]
    page = [
        *table(steady, OPERATIONS, (2, 4, 8)),
        "",
        text + note(record, path.name, "../"),
    ]
    operations = tuple(name for name in OPERATIONS if any(row["op"] == name for row in fresh))
    performance = ROOT / "docs/performance.md"
    done = [
        replace(ROOT / "README.md", "measured", "\n".join(readme)),
        replace(performance, "goals", goals.as_markdown(found)),
        replace(performance, "measured", "\n".join(page)),
        replace(performance, "fresh", "\n".join(table(fresh, operations, (2,)))),
    ]
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
