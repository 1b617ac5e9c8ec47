"""Tables of a bench/gpu_run.py file for docs/performance-gpu.md; used by bench/report.py."""

from __future__ import annotations

from typing import Any

import gpu_goals
from goals import KB, MB, label, number, own
from gpu_cases import MAIN

SIZES = (8 * KB, 64 * KB, 256 * KB, MB, 4 * MB, 16 * MB, 64 * MB, 256 * MB, 1024 * MB)
NAMES = {"nccl": "NCCL", "torch one-shot": "PyTorch one-shot", "torch two-shot": "PyTorch two-shot"}
FUSED = {
    ("all_reduce", ""): "all_reduce",
    ("all_reduce_rms_norm", "none"): "with residual and RMSNorm",
    ("all_reduce_rms_norm", "fp8"): "with residual, RMSNorm and FP8 codes",
    ("all_reduce_quantized", "fp8"): "by E4M3 codes",
    ("all_reduce_quantized", "int8"): "by INT8 codes",
}
Row = dict[str, Any]


def table(rows: list[Row]) -> list[str]:
    """Median times, the peers' under ours, for each operation and number of ranks."""
    rows = [row for row in rows if gpu_goals.plain(row) and row["size"] > 0 and "quant" not in row]
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


def fused_table(rows: list[Row]) -> list[str]:
    """The fused operations beside all_reduce of the same bytes; nothing where none was measured."""
    fused = [row for row in rows if "quant" in row]
    if not fused:
        return []
    sizes = sorted({row["size"] for row in fused})
    lines = [
        "| median time (µs), bf16 | " + " | ".join(label(size) for size in sizes) + " | error |",
        "|---|" + "---|" * (len(sizes) + 1),
    ]
    for ranks in sorted({row["ranks"] for row in fused}):
        for (operation, quant), name in FUSED.items():
            found = {
                row["size"]: row
                for row in rows
                if gpu_goals.plain(row)
                and (row["op"], row["ranks"], row.get("quant", "")) == (operation, ranks, quant)
            }
            cells = [number(own(found[size])) if size in found else "" for size in sizes]
            errors = [row["error"]["rms"] for row in found.values() if "error" in row]
            error = f"{max(errors):.2g}" if errors else ""
            name = f"{name}, {ranks} GPUs" if operation == "all_reduce" else f"&nbsp;&nbsp;{name}"
            lines.append(f"| {name} | " + " | ".join(cells) + f" | {error} |")
    return [
        "",
        "The error of codes is relative to the exact sums, root mean square, on standard normals; "
        "rows have 4096 elements.",
        "",
        *lines,
    ]


def moe_table(rows: list[Row]) -> list[str]:
    """Dispatch, combine and both of each case; nothing where none was measured."""
    if not rows:
        return []
    lines = [
        "| median µs, hidden 7168, top-8 | GPUs | tokens | dispatch | combine | both | SMs |",
        "|---|---|---|---|---|---|---|",
    ]
    cases = dict.fromkeys((row["case"], row["ranks"], row["tokens"]) for row in rows)
    for case, ranks, tokens in cases:
        found = {
            row["phase"]: row
            for row in rows
            if (row["case"], row["ranks"], row["tokens"]) == (case, ranks, tokens)
        }
        phases = ("dispatch", "combine", "both")
        cells = [number(found[phase]["p50_us"]) if phase in found else "" for phase in phases]
        blocks = " and ".join(str(found[phase]["sms"]) for phase in phases[:2] if phase in found)
        lines.append(f"| {case} | {ranks} | {tokens} | " + " | ".join(cells) + f" | {blocks} |")
    return ["", *lines]


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
    drawn += ["fused"] if any("quant" in row for row in rows) else []
    return [f"![{name}](gpu-{name.replace('_', '-')}.svg)" for name in drawn]


def text_of(record: dict[str, Any], name: str) -> str:
    """What goes between the marks gpu-measured."""
    rows = record["rows"]
    tables = [*table(rows), *fused_table(rows), *moe_table(record.get("moe", []))]
    return "\n".join([*pictures(rows), "", *tables, "", note(record, name)])
