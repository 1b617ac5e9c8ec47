#!/usr/bin/env python3
"""Draws latency and bandwidth from `zbccl perf --json` files, as PNG and SVG.

    bench/plot.py FILE... [--out docs]

A file holds a list of rows, or an object whose `rows` is one (as bench/run.py writes). One picture
is drawn for each operation: bench-OPERATION.png and .svg. Solid lines are zbccl, dashed ones the
library it was measured beside, in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
# The same input gives the same file, and text stays text.
matplotlib.rcParams.update(
    {
        "svg.hashsalt": "zbccl",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.grid": True,
        "grid.color": "#dddddd",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)
from matplotlib import pyplot as plt  # noqa: E402

COLOURS = ("#0b6e99", "#c4681c", "#5b8c2a", "#8a4f9e", "#a02c2c")
Row = dict[str, Any]


def read_rows(path: Path) -> tuple[list[Row], str]:
    """Rows of a file and a line that says where they were measured."""
    content = json.loads(path.read_text())
    if isinstance(content, list):
        return content, ""
    machine = content.get("machine", {})
    parts = [machine.get("cpu"), f"{machine.get('cores')} cores", content.get("date", "")[:10]]
    return content["rows"], ", ".join(str(part) for part in parts if part)


def bus_factor(operation: str, ranks: int) -> float:
    """Bus bandwidth over size / time, as nccl-tests defines it."""
    if operation == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if operation in ("all_gather", "reduce_scatter", "all_to_all"):
        return (ranks - 1) / ranks
    return 1.0


def size_label(size: float) -> str:
    for unit, name in ((2**30, "G"), (2**20, "M"), (2**10, "K")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return f"{size:g}"


def draw(operation: str, rows: list[Row], note: str, out: Path) -> list[Path]:
    series: dict[tuple[int, str], list[tuple[int, float, float]]] = defaultdict(list)
    for row in rows:
        ranks, size = int(row["ranks"]), int(row["size"])
        if size == 0:
            continue
        factor = bus_factor(operation, ranks)
        own = row["out_of_place"] or row["in_place"]
        times = [("zbccl", own)]
        if row.get("compare"):
            times.append((row["compare"]["name"], row["compare"]))
        for name, time in times:
            # Both by the median, which a busy machine moves least.
            bandwidth = size / time["p50_us"] / 1e3 * factor
            series[ranks, name].append((size, time["p50_us"], bandwidth))

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    colours = dict(zip(sorted({ranks for ranks, _ in series}), COLOURS, strict=False))
    for (ranks, name), points in sorted(series.items(), key=lambda item: (item[0][0], item[0][1])):
        points.sort()
        sizes = [point[0] for point in points]
        style = "-" if name == "zbccl" else "--"
        options: dict[str, Any] = {
            "linestyle": style,
            "color": colours.get(ranks, "#444444"),
            "marker": "o",
            "markersize": 3.5,
            "label": f"{name}, {ranks} ranks",
        }
        left.plot(sizes, [point[1] for point in points], **options)
        right.plot(sizes, [point[2] for point in points], **options)
    for axes, title in ((left, "time, median (µs)"), (right, "bus bandwidth, median (GB/s)")):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("bytes")
        axes.set_title(f"{operation}: {title}", loc="left")
        ticks = sorted({point[0] for points in series.values() for point in points})
        axes.set_xticks(ticks, [size_label(tick) for tick in ticks])
        axes.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    if note:
        figure.supxlabel(note, fontsize=7, color="#666666")
    paths = []
    for suffix in ("png", "svg"):
        path = out / f"bench-{operation.replace('_', '-')}.{suffix}"
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        figure.savefig(path, dpi=140, metadata=metadata)
        paths.append(path)
    plt.close(figure)
    return paths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    by_operation: dict[str, list[Row]] = defaultdict(list)
    notes: list[str] = []
    for path in arguments.files:
        rows, note = read_rows(path)
        if note and note not in notes:
            notes.append(note)
        for row in rows:
            by_operation[row["op"]].append(row)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for operation, rows in by_operation.items():
        for path in draw(operation, rows, "; ".join(notes), arguments.out):
            print(f"plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
