"""Tables of a bench/gpu_run.py file for docs/performance-gpu.md; used by bench/report.py."""

from __future__ import annotations

from typing import Any

import gpu_goals
from goals import KB, MB, label, number, own
from gpu_cases import MAIN

SIZES = (8 * KB, 64 * KB, 256 * KB, MB, 4 * MB, 16 * MB, 64 * MB, 256 * MB, 1024 * MB)
NAMES = {"nccl": "NCCL", "torch one-shot": "PyTorch one-shot", "torch two-shot": "PyTorch two-shot"}
Row = dict[str, Any]


def table(rows: list[Row]) -> list[str]:
    """Median times, the peers' under ours, for each operation and number of ranks."""
    rows = [row for row in rows if gpu_goals.plain(row) and row["size"] > 0]
    sizes = [size for size in SIZES if any(row["size"] == size for row in rows)]
    lines = [
        "| median time (µs), bf16 | " + " | ".join(label(size) for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
    ]
    for operation in dict.fromkeys(row["op"] for row in rows):
        for ranks in sorted({row["ranks"] for row in rows}):
            cells: dict[str, dict[int, str]] = {}
            for row in rows:
                if (row["op"], row["ranks"]) != (operation, ranks):
                    continue
                cells.setdefault("", {})[row["size"]] = number(own(row))
                for peer, time in row["peers"].items():
                    cells.setdefault(peer, {})[row["size"]] = number(time["p50_us"])
            for who, values in sorted(cells.items()):
                name = f"&nbsp;&nbsp;{NAMES[who]}" if who else f"{operation}, {ranks} GPUs"
                lines.append(f"| {name} | " + " | ".join(values.get(s, "") for s in sizes) + " |")
    return lines


def note(record: dict[str, Any], name: str) -> str:
    machine, versions = record["machine"], record["versions"]
    return (
        f"{machine['gpus']} x {machine['gpu']}, driver {machine['driver']}, CUDA "
        f"{versions['cuda_runtime']}, NCCL {versions['nccl']}, PyTorch {versions['torch']}, NVLink "
        f"multicast off, {record['date'][:10]}: [bench/results/{name}](../bench/results/{name})."
    )


def pictures(rows: list[Row]) -> list[str]:
    """The plots that bench/plot.py draws of these rows."""
    drawn = [name for name in MAIN if any(row["op"] == name for row in rows)]
    return [f"![{name}](gpu-{name.replace('_', '-')}.svg)" for name in drawn]


def text_of(record: dict[str, Any], name: str) -> str:
    """What goes between the marks gpu-measured."""
    rows = record["rows"]
    return "\n".join([*pictures(rows), "", *table(rows), "", note(record, name)])
