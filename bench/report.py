#!/usr/bin/env python3
"""Puts the measured times of a bench/run.py file into README.md: bench/report.py FILE

The table stands between two marks in the README and is written anew each time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
SIZES = (4096, 65536, 262144, 1048576, 4194304)


def label(size: int) -> str:
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(record: dict[str, Any], name: str) -> str:
    rows = [row for row in record["rows"] if row.get("compare") and row["size"] in SIZES]
    order = ("all_reduce", "all_gather", "broadcast")
    groups = sorted({(order.index(row["op"]), row["ranks"]) for row in rows if row["op"] in order})
    lines = [
        "| median time (µs), f32 | " + " | ".join(label(size) for size in SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    for place, ranks in groups:
        op = order[place]
        own: dict[int, str] = {}
        peer: dict[int, str] = {}
        for row in rows:
            if (row["op"], row["ranks"]) == (op, ranks):
                own[row["size"]] = number(row["out_of_place"]["p50_us"])
                peer[row["size"]] = number(row["compare"]["p50_us"])
        for who, times in ((f"{op}, {ranks} ranks", own), ("&nbsp;&nbsp;gloo, same run", peer)):
            lines.append(f"| {who} | " + " | ".join(times.get(size, "") for size in SIZES) + " |")
    load = record.get("load_before", 0)
    busy = f" Other work ran on the machine at the time (load average {load})." if load > 1 else ""
    machine, versions = record["machine"], record["versions"]
    lines += [
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}, {record['date'][:10]}, "
        f"gloo {versions['gloo']}; out of place, every element checked, 0 staged bytes a call: "
        f"[bench/results/{name}](bench/results/{name}).{busy}",
    ]
    return "\n".join(lines)


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: bench/report.py FILE")
        return 2
    path = Path(sys.argv[1])
    record = json.loads(path.read_text())
    staged = max(row["staged_bytes"] for row in record["rows"])
    if staged:
        print(f"report: {staged} staged bytes a call; the README would say 0")
        return 1
    readme = ROOT / "README.md"
    text = readme.read_text()
    if BEGIN not in text or END not in text:
        print(f"report: {BEGIN} and {END} are not in README.md")
        return 1
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    readme.write_text(f"{before}{BEGIN}\n{table(record, path.name)}\n{END}{after}")
    print("report: README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
