#!/usr/bin/env python3
"""Fits what `zbccl explain` predicts of GPUs to measured rows: the table in src/plan/cost.cc.

    bench/fit_costs.py bench/results/DATE-gpu.json... --zbccl build/bin/zbccl

For each operation and algorithm a line, fixed time + time of a MiB, whose fixed time grows with
the ranks; least squares of the relative error, nothing below zero. What goes over the link is what
the command itself says. Where all rows of an algorithm have one size, and so no slope, the slope is
the median of the others. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Other operations move data as one of these does.
FITTED = (
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "all_reduce_rms_norm",
    "all_reduce_quantized",
)
MIB = 1 << 20


@dataclass(frozen=True)
class Sample:
    ranks: int
    mib: float  # over the link
    us: float
    size: int


def solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """By elimination with pivots; the matrix is small and positive definite."""
    n = len(right)
    rows = [[*matrix[i], right[i]] for i in range(n)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i], strict=True)]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def least_squares(columns: Sequence[Sequence[float]], target: Sequence[float]) -> list[float]:
    """Coefficients of the columns, none below zero: what would be is left out."""
    used = list(range(len(columns)))
    while used:
        matrix = [
            [sum(a * b for a, b in zip(columns[i], columns[j], strict=True)) for j in used]
            for i in used
        ]
        right = [sum(a * b for a, b in zip(columns[i], target, strict=True)) for i in used]
        found = solve(matrix, right)
        worst = min(range(len(used)), key=lambda i: found[i])
        if found[worst] >= 0:
            result = [0.0] * len(columns)
            for place, value in zip(used, found, strict=True):
                result[place] = value
            return result
        del used[worst]
    return [0.0] * len(columns)


def fit(samples: list[Sample], slope: float | None) -> tuple[float, float, float]:
    """Fixed time on two ranks, what each further rank adds, time of a MiB."""
    weights = [1 / s.us for s in samples]
    known = slope or 0.0
    columns = [
        [w for w in weights],
        [w * (s.ranks - 2) for w, s in zip(weights, samples, strict=True)],
    ]
    if slope is None:
        columns.append([w * s.mib for w, s in zip(weights, samples, strict=True)])
    if len({s.ranks for s in samples}) == 1:
        del columns[1]
    target = [w * (s.us - known * s.mib) for w, s in zip(weights, samples, strict=True)]
    found = least_squares(columns, target)
    if len({s.ranks for s in samples}) == 1:
        found.insert(1, 0.0)
    return found[0], found[1], slope if slope is not None else found[2]


def traffic(command: str, row: dict[str, Any]) -> float | None:
    """MiB over the busiest link, as the command counts them for the algorithm that was taken."""
    done = subprocess.run(
        [
            *(command, "explain", row["op"], "--device", "cuda", "--json"),
            *("--bytes", str(row["size"]), "--ranks", str(row["ranks"]), "-d", row["dtype"]),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    for candidate in json.loads(done.stdout)["candidates"]:
        if candidate["algorithm"] == row["algorithm"]:
            return float(candidate["traffic_bytes"]) / MIB
    return None


def read_samples(command: str, paths: list[Path]) -> dict[tuple[str, str], list[Sample]]:
    samples: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    for path in paths:
        for row in json.loads(path.read_text())["rows"]:
            if row["op"] not in FITTED or row.get("device") != "cuda" or row["max_blocks"]:
                continue
            mib = traffic(command, row)
            timed = row["out_of_place"] or row["in_place"]
            if mib is not None and timed:
                sample = Sample(row["ranks"], mib, timed["p50_us"], row["size"])
                samples[row["op"], row["algorithm"]].append(sample)
    return samples


def has_slope(samples: list[Sample]) -> bool:
    return len({s.size for s in samples}) > 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Fits the predictions of zbccl explain.")
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--zbccl", default="build/bin/zbccl", help="the command")
    arguments = parser.parse_args()
    samples = read_samples(arguments.zbccl, arguments.results)
    fitted = {key: fit(some, None) for key, some in samples.items() if has_slope(some)}
    if not fitted:
        sys.exit("the files hold no rows of GPUs with two sizes of one algorithm")
    usual = statistics.median(slope for _, _, slope in fitted.values())
    for key, some in sorted(samples.items()):
        line = fitted.get(key) or fit(some, usual)
        fixed, more, slope = line
        errors = [(fixed + more * (s.ranks - 2) + slope * s.mib) / s.us - 1 for s in some]
        worst = max(errors, key=abs)
        operation, algorithm = ("k" + "".join(w.title() for w in n.split("_")) for n in key)
        print(
            f"    {{Operation::{operation}, A::{algorithm}, {fixed:.2f}, {more:.2f}, {slope:.2f}}},"
            f"  // {len(some)} rows, {100 * worst:+.0f} % at worst"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
