"""The speeds that GPUs are to reach, and what a bench/gpu_run.py file says about each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from goals import KB, MB, Result, label, number, own

Row = dict[str, Any]
# Microseconds, bf16, in CUDA graphs, by ranks, operation and size. For 8 ranks what is asked; for 4
# what an unsafe prototype has reached.
TIMES: dict[int, dict[str, dict[int, float]]] = {
    8: {
        "all_reduce": {
            8 * KB: 2.4,
            64 * KB: 3.5,
            256 * KB: 4.8,
            MB: 8.8,
            4 * MB: 25,
            16 * MB: 92,
            64 * MB: 345,
            256 * MB: 1335,
        },
        "all_gather": {MB: 8, 16 * MB: 50, 256 * MB: 640},
        "reduce_scatter": {MB: 8, 16 * MB: 52, 256 * MB: 705},
        "all_to_all": {16 * MB: 55, 256 * MB: 700},
    },
    4: {
        "all_reduce": {
            8 * KB: 2.27,
            64 * KB: 2.71,
            256 * KB: 4.47,
            MB: 7.27,
            4 * MB: 21.5,
            16 * MB: 81.9,
        },
    },
}
# What a residual and an RMSNorm may add to an all_reduce of the same bytes, up to 1 MB.
NORM_ADDS = 1.0
NEVER_SLOWER = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
NOISE = 0.98
NORM = "all_reduce_rms_norm"
HELD = 32 * MB
INIT_MS = 500.0


def plain(row: Row) -> bool:
    return row["dtype"] in ("bf16", None) and row["memory"] == "pool"


def find(rows: list[Row], operation: str, ranks: int, size: int) -> Row:
    for row in rows:
        if plain(row) and (row["op"], row["ranks"], row["size"]) == (operation, ranks, size):
            return row
    return {}


def place(row: Row) -> str:
    return f"{row['op']}, {row['ranks']} ranks, {label(row['size'])}"


def times(rows: list[Row]) -> Iterator[Result]:
    measured_ranks = {row["ranks"] for row in rows}
    for ranks, operations in TIMES.items():
        if ranks not in measured_ranks:
            count = sum(len(sizes) for sizes in operations.values())
            yield Result(f"times on {ranks} GPUs", f"{count} goals", "", None)
            continue
        for operation, sizes in operations.items():
            for size, limit in sizes.items():
                row = find(rows, operation, ranks, size)
                text = ""
                if row:
                    text = f"{number(own(row))} µs ({row['algorithm']}"
                    for name, peer in row["peers"].items():
                        text += f"; {name} {number(peer['p50_us'])}"
                    text += ")"
                yield Result(
                    f"{operation}, {ranks} ranks, {label(size)}",
                    f"at most {number(limit)} µs",
                    text,
                    own(row) <= limit if row else None,
                )


def beside_nccl(rows: list[Row]) -> Iterator[Result]:
    for ranks in sorted({row["ranks"] for row in rows}):
        for operation in NEVER_SLOWER:
            found = [
                (row["peers"]["nccl"]["p50_us"] / own(row), place(row))
                for row in rows
                if plain(row)
                and (row["op"], row["ranks"]) == (operation, ranks)
                and "nccl" in row["peers"]
                and row["size"] >= KB
            ]
            goal = f"{operation}, {ranks} ranks, against NCCL"
            if not found:
                yield Result(goal, "never slower by more than 2 %", "", None)
                continue
            met = sum(ratio >= NOISE for ratio, _ in found)
            ratio, where = min(found)
            text = f"{met} of {len(found)} sizes; least {ratio:.2f} x ({where})"
            yield Result(goal, "never slower by more than 2 %", text, met == len(found))


def norms(rows: list[Row]) -> Iterator[Result]:
    """Beside the plain all_reduce of the same run."""
    for ranks in sorted({row["ranks"] for row in rows}):
        found = []
        for row in rows:
            if (row["op"], row["ranks"], row.get("quant")) != (NORM, ranks, "none"):
                continue
            beside = find(rows, "all_reduce", ranks, row["size"])
            if beside and row["size"] <= MB:
                found.append((own(row) - own(beside), label(row["size"])))
        text = ", ".join(f"{where} {more:+.2g} µs" for more, where in found)
        met = max(found)[0] <= NORM_ADDS if found else None
        goal = f"residual and RMSNorm behind all_reduce, {ranks} ranks, to 1 MB"
        yield Result(goal, f"at most {NORM_ADDS:g} µs more", text, met)


# Microseconds and blocks at most, 8 ranks: case, phase, tokens.
MOE = {
    ("bf16", "dispatch", 4096): (830, 12),
    ("fp8 given", "dispatch", 4096): (425, 12),
    ("bf16", "combine", 4096): (850, 16),
    ("low latency, fp8", "dispatch", 128): (25, None),
    ("low latency, fp8", "combine", 128): (45, None),
    ("low latency, fp8", "both", 128): (70, None),
}
MOE_RANKS = 8
MOE_METADATA = MB
MOE_HELD = 2 * MB


def moe(rows: list[Row]) -> Iterator[Result]:
    """Goals are for 8 ranks; what fewer take is told beside them."""
    for (case, phase, tokens), (limit, blocks) in MOE.items():
        goal = f"at most {limit} µs" + (f", {blocks} SMs" if blocks else "")
        texts, met = [], None
        for row in rows:
            if (row["case"], row["phase"], row["tokens"]) != (case, phase, tokens):
                continue
            texts.append(f"{row['ranks']} ranks: {number(row['p50_us'])} µs, {row['sms']} SMs")
            if row["ranks"] == MOE_RANKS:
                met = row["p50_us"] <= limit and (blocks is None or row["sms"] <= blocks)
        yield Result(f"{phase}, {case}, {tokens} tokens, 8 ranks", goal, "; ".join(texts), met)
    if rows:
        metadata = max(row["metadata_bytes"] for row in rows)
        held = max(row["held_bytes"] for row in rows)
        text = f"{metadata / MB:.2f} and {held / MB:.2f} MiB"
        goal = "at most 1 and 2 MiB"
        within = metadata <= MOE_METADATA and held <= MOE_HELD
        yield Result("metadata of experts, in use and held", goal, text, within)
        staged = max(row["staged_bytes"] for row in rows)
        yield Result("staged bytes of a dispatch or combine", "0", f"{staged}", staged == 0)


def others(rows: list[Row]) -> Iterator[Result]:
    if not rows:
        return
    held = max(row["device_held_bytes"] for row in rows)
    yield Result("device memory held", "at most 32 MiB a GPU", f"{held / MB:.1f} MiB", held <= HELD)
    registered = [row["staged_bytes"] for row in rows if row["memory"] == "pool"]
    if registered:
        staged = max(registered)
        yield Result("staged bytes of a call", "0", f"{staged}", staged == 0)
    ranks = max(row["ranks"] for row in rows)
    slowest = max(row["init_ms"] for row in rows if row["ranks"] == ranks)
    goal = f"initialisation, {ranks} ranks, warm driver"
    yield Result(goal, f"at most {INIT_MS:.0f} ms", f"{slowest:.0f} ms", slowest <= INIT_MS)
    wrong = sum(
        (row[side] or {}).get("nwrong") or 0
        for row in rows
        for side in ("out_of_place", "in_place")
    )
    yield Result("wrong elements", "0", f"{wrong}", wrong == 0)


def tests(record: dict[str, Any]) -> Iterator[Result]:
    programs = record.get("tests", [])
    if not programs:
        yield Result("GPU tests", "all pass", "", None)
        return
    passed, failed, skipped = (
        sum(program[name] for program in programs) for name in ("passed", "failed", "skipped")
    )
    text = f"{passed} passed, {failed} failed, {skipped} skipped"
    yield Result("GPU tests", "all pass", text, not failed and not any(p["code"] for p in programs))


def results(record: dict[str, Any]) -> list[Result]:
    rows: list[Row] = record["rows"]
    return [
        *tests(record),
        *times(rows),
        *beside_nccl(rows),
        *norms(rows),
        *moe(record.get("moe", [])),
        *others(rows),
    ]
