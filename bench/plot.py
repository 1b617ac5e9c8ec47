#!/usr/bin/env python3
"""Draws latency and bandwidth from `zbccl perf --json` files, as PNG and SVG.

    bench/plot.py FILE... [--out docs]

A file holds a list of rows, or an object whose `rows` is one (as bench/run.py, bench/gpu_run.py
and bench/moe_run.py write). One picture is drawn for each operation: bench-OPERATION.png and .svg
of host memory, gpu-OPERATION of GPUs; gpu-fused shows what norms and codes add to all_reduce,
bench-fresh what data that is written anew before each call costs, and bench-moe the times of
`zbccl moe`. Solid lines are zbccl, broken ones the libraries it was measured beside, in the same
run; in gpu-fused broken ones are codes, and all_reduce alone.
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
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

MAIN = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
STYLES = {
    "zbccl": "-",
    "gloo": "--",
    "open_mpi": ":",
    "copy": "-.",
    "nccl": "--",
    "torch two-shot": ":",
    "torch one-shot": "-.",
}
NAMES = {"open_mpi": "Open MPI", "nccl": "NCCL"}
COLOURS = ("#0b6e99", "#c4681c", "#5b8c2a", "#8a4f9e", "#a02c2c")
Row = dict[str, Any]


def read_rows(path: Path) -> tuple[list[Row], str]:
    """Rows of a file and a line that says where they were measured."""
    content = json.loads(path.read_text())
    if isinstance(content, list):
        return content, ""
    machine = content.get("machine", {})
    date = content.get("date", "")[:10]
    if content.get("device") == "cuda":
        nccl = f"NCCL {content['versions'].get('nccl')}"
        parts = [f"{machine.get('gpus')} x {machine.get('gpu')}", nccl, date]
    else:
        parts = [machine.get("cpu"), f"{machine.get('cores')} cores", date]
    return content["rows"], ", ".join(str(part) for part in parts if part)


def bus_factor(operation: str, ranks: int) -> float:
    """Bus bandwidth over size / time, as nccl-tests defines it."""
    if operation == "all_reduce":
        return 2 * (ranks - 1) / ranks
    if operation in ("reduce", "broadcast", "sendrecv"):
        return 1.0
    return (ranks - 1) / ranks


def size_label(size: float) -> str:
    for unit, name in ((2**30, "G"), (2**20, "M"), (2**10, "K")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return f"{size:g}"


def points_of(rows: list[Row]) -> dict[tuple[int, str], list[tuple[int, float, float]]]:
    """For each number of ranks and library: size, median time and bus bandwidth by that."""
    series: dict[tuple[int, str], list[tuple[int, float, float]]] = defaultdict(list)
    for row in rows:
        ranks, size = int(row["ranks"]), int(row["size"])
        if size == 0:
            continue
        factor = bus_factor(row["op"], ranks)
        times = {"zbccl": row["out_of_place"] or row["in_place"], **row.get("peers", {})}
        if row.get("compare"):
            times[row["compare"]["name"]] = row["compare"]
        for name, time in times.items():
            # All by the median, which a busy machine moves least.
            bandwidth = size / time["p50_us"] / 1e3 * factor
            series[ranks, name].append((size, time["p50_us"], bandwidth))
    return series


def finish(
    figure: Figure,
    axes: list[Axes],
    titles: list[str],
    sizes: set[int],
    note: str,
    path: Path,
    unit: str = "bytes",
    legend: dict[str, Any] | None = None,
) -> list[Path]:
    """Axes, titles and legend, and the two files."""
    for one, title in zip(axes, titles, strict=True):
        one.set_xscale("log", base=2)
        one.set_yscale("log")
        one.set_xlabel(unit)
        one.set_title(title, loc="left")
        ticks = sorted(sizes)
        one.set_xticks(ticks, [size_label(tick) for tick in ticks])
        one.minorticks_off()
    handles, names = axes[0].get_legend_handles_labels()
    if legend is not None:
        names, handles = list(legend), list(legend.values())
    figure.legend(handles, names, loc="outside right center", frameon=False)
    if note:
        figure.supxlabel(note, fontsize=7, color="#666666")
    paths = []
    for suffix in ("png", "svg"):
        file = path.with_suffix(f".{suffix}")
        metadata = {"Date": None} if suffix == "svg" else {"Software": None}
        figure.savefig(file, dpi=140, metadata=metadata)
        paths.append(file)
    plt.close(figure)
    return paths


def in_series(row: Row) -> bool:
    """Not what single goals asked for, and of GPUs one type and one kind of memory."""
    if row.get("device") == "cuda":
        return bool(row["dtype"] == "bf16" and row["memory"] == "pool")
    return bool(row.get("part") != "extra" or (row["fresh"] and "gloo" in row["peers"]))


def draw(operation: str, rows: list[Row], note: str, out: Path) -> list[Path]:
    series = points_of(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    colours = dict(zip(sorted({ranks for ranks, _ in series}), COLOURS, strict=False))
    order = list(STYLES)
    for (ranks, name), points in sorted(
        series.items(), key=lambda i: (i[0][0], order.index(i[0][1]))
    ):
        points.sort()
        sizes = [point[0] for point in points]
        options: dict[str, Any] = {
            "linestyle": STYLES[name],
            "color": colours.get(ranks, "#444444"),
            "marker": "o" if name == "zbccl" else None,
            "markersize": 3.5,
            "linewidth": 1.6 if name == "zbccl" else 1.2,
            "label": f"{NAMES.get(name, name)}, {ranks} ranks",
        }
        left.plot(sizes, [point[1] for point in points], **options)
        right.plot(sizes, [point[2] for point in points], **options)
    titles = [f"{operation}: time, median (µs)", f"{operation}: bus bandwidth, median (GB/s)"]
    sizes_seen = {point[0] for points in series.values() for point in points}
    kind = "gpu" if rows[0].get("device") == "cuda" else "bench"
    path = out / f"{kind}-{operation.replace('_', '-')}"
    return finish(figure, [left, right], titles, sizes_seen, note, path)


def draw_fresh(steady: dict[str, list[Row]], fresh: list[Row], note: str, out: Path) -> list[Path]:
    """Unchanging against fresh data, for the operations and ranks that were measured with both."""
    operations = [name for name in MAIN if any(row["op"] == name for row in fresh)][:2]
    figure, axes = plt.subplots(1, len(operations), figsize=(11, 3.8), layout="constrained")
    axes = [axes] if len(operations) == 1 else list(axes)
    sizes_seen: set[int] = set()
    for one, operation in zip(axes, operations, strict=True):
        new = points_of([row for row in fresh if row["op"] == operation])
        old = points_of(steady[operation])
        for what, series, faded in (("unchanging", old, True), ("fresh", new, False)):
            for (ranks, name), points in sorted(series.items()):
                if (ranks, name) not in new or name == "copy":
                    continue
                points.sort()
                sizes_seen |= {point[0] for point in points}
                one.plot(
                    [point[0] for point in points],
                    [point[1] for point in points],
                    linestyle=STYLES[name],
                    color=COLOURS[0] if faded else COLOURS[1],
                    label=f"{NAMES.get(name, name)}, {what}",
                )
    titles = [f"{operation}, 2 ranks: time, median (µs)" for operation in operations]
    return finish(figure, axes, titles, sizes_seen, note, out / "bench-fresh")


def draw_fused(rows: list[Row], plain: list[Row], note: str, out: Path) -> list[Path]:
    """Norms and sums of codes on GPUs, beside all_reduce of the same bytes."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    colours = dict(zip(sorted({row["ranks"] for row in rows}), COLOURS, strict=False))
    ways = {"none": "-", "fp8": "--", "int8": ":"}
    names = {"none": "with RMSNorm", "fp8": "with FP8 codes", "int8": "with INT8 codes"}
    largest = max(row["size"] for row in rows)
    for one, operation in zip(axes, ("all_reduce_rms_norm", "all_reduce_quantized"), strict=True):
        for ranks, colour in colours.items():
            beside = [r for r in plain if r["ranks"] == ranks and r["size"] <= largest]
            kinds = [("all_reduce", "-.", beside)]
            for quant, style in ways.items():
                kind = (operation, ranks, quant)
                found = [r for r in rows if (r["op"], r["ranks"], r["quant"]) == kind]
                kinds.append((names[quant], style, found))
            for name, style, found in kinds:
                if not found:
                    continue
                found = sorted(found, key=lambda row: int(row["size"]))
                times = [(row["out_of_place"] or row["in_place"])["p50_us"] for row in found]
                at = [row["size"] for row in found]
                text = f"{name}, {ranks} ranks"
                one.plot(at, times, style, color=colour, marker="o", markersize=3, label=text)
    titles = ["residual and RMSNorm: time, median (µs)", "sums of codes: time, median (µs)"]
    handles = {
        text: handle
        for one in axes
        for handle, text in zip(*one.get_legend_handles_labels(), strict=True)
    }
    sizes = {int(row["size"]) for row in rows}
    return finish(figure, list(axes), titles, sizes, note, out / "gpu-fused", legend=handles)


def draw_moe(rows: list[Row], note: str, out: Path) -> list[Path]:
    """Dispatch and combine over the number of tokens, beside the same by another library."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained")
    kinds = sorted({(row["mode"], row["ranks"]) for row in rows}, key=lambda kind: kind[::-1])
    tokens = {row["tokens"] for row in rows}
    for one, phase in zip(axes, ("dispatch", "combine"), strict=True):
        for (mode, ranks), colour in zip(kinds, COLOURS, strict=False):
            chosen = [
                row
                for row in rows
                if (row["mode"], row["ranks"], row["phase"]) == (mode, ranks, phase)
            ]
            chosen.sort(key=lambda row: int(row["tokens"]))
            name = f"{ranks} ranks" + (", low latency" if mode == "ll" else "")
            style: dict[str, Any] = {"color": colour, "linewidth": 1.6}
            at = [row["tokens"] for row in chosen]
            own = [row["p50_us"] for row in chosen]
            one.plot(at, own, marker="o", markersize=3.5, label=f"zbccl, {name}", **style)
            compared = [row for row in chosen if row["compare"]]
            at = [row["tokens"] for row in compared]
            other = [row["compare"]["p50_us"] for row in compared]
            if other:
                one.plot(at, other, STYLES["gloo"], label=f"gloo, {name}", **style)
    titles = [f"MoE {phase}: time, median (µs)" for phase in ("dispatch", "combine")]
    path = out / "bench-moe"
    return finish(figure, list(axes), titles, tokens, note, path, "tokens of each rank")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    steady: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    fresh: list[Row] = []
    fused: list[Row] = []
    drawn: list[Path] = []
    notes: dict[str, list[str]] = defaultdict(list)
    for path in arguments.files:
        rows, note = read_rows(path)
        if "phase" in rows[0]:
            drawn += draw_moe(rows, note, arguments.out)
            continue
        for row in rows:
            if not in_series(row):
                continue
            device = row.get("device", "host")
            if note and note not in notes[device]:
                notes[device].append(note)
            if device == "cuda" and "quant" in row:
                fused.append(row)
            elif row.get("fresh"):
                fresh.append(row)
            else:
                steady[device][row["op"]].append(row)
    for device, by_operation in steady.items():
        for operation, rows in by_operation.items():
            if operation in MAIN or len(by_operation) == 1:
                drawn += draw(operation, rows, "; ".join(notes[device]), arguments.out)
    if fused:
        plain = steady["cuda"]["all_reduce"]
        drawn += draw_fused(fused, plain, "; ".join(notes["cuda"]), arguments.out)
    if any(row["op"] in steady["host"] for row in fresh):
        drawn += draw_fresh(steady["host"], fresh, "; ".join(notes["host"]), arguments.out)
    for path in drawn:
        print(f"plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
