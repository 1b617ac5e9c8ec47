"""The speeds that host memory is to reach, and what a bench/run.py file says about each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

KB, MB = 1 << 10, 1 << 20
Row = dict[str, Any]


@dataclass
class Result:
    goal: str
    asked: str
    measured: str
    met: bool | None  # None: not measured
    reference: bool = False  # what the others are to be read beside


def label(size: int) -> str:
    return f"{size >> 20} MB" if size >= MB else f"{size >> 10} KB"


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class Record:
    """Rows of a file by what they measured."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.rows: list[Row] = record["rows"]

    def find(
        self, operation: str, ranks: int, size: int, dtype: str | None = "f32", **more: Any
    ) -> Row:
        wanted = {"fresh": False, **more}
        for row in self.rows:
            if (row["op"], row["ranks"], row["size"], row["dtype"]) != (
                operation,
                ranks,
                size,
                dtype,
            ):
                continue
            if all(row[name] == value for name, value in wanted.items()):
                return row
        return {}

    def pairs(self, peer: str) -> Iterator[tuple[Row, float]]:
        """Rows with unchanging data, and how many times slower the peer is."""
        for row in self.rows:
            if peer in row["peers"] and not row["fresh"]:
                yield row, row["peers"][peer]["p50_us"] / own(row)


def own(row: Row) -> float:
    return float((row["out_of_place"] or row["in_place"])["p50_us"])


def what(fresh: bool) -> str:
    return "fresh" if fresh else "unchanging"


def place(row: Row) -> str:
    size = f", {label(row['size'])}" if row["size"] else ""
    return f"{row['op']}, {row['ranks']} ranks{size}"


def meeting(row: Row) -> str:
    """What a small measurement is to be read beside."""
    return f"; a meeting beside it {row['meeting_us']:.2f} µs" if "meeting_us" in row else ""


def references(record: Record) -> Iterator[Result]:
    found = sorted(
        time
        for row in record.rows
        if row["ranks"] == 2
        for time in row.get("meeting_us_of_passes", [])
    )
    text = ""
    if found:
        median = found[len(found) // 2]
        text = f"{median:.3f} µs ({found[0]:.3f} to {found[-1]:.3f})"
    goal = "one meeting of two cores: two flags, no library"
    yield Result(goal, "", text, None, reference=bool(found))
    row = record.find("barrier", 2, 0, None)
    text = f"{own(row):.3f} µs{meeting(row)}" if row else ""
    yield Result("barrier, 2 ranks, one reading of the clock included", "", text, None, bool(row))


def beside_gloo(record: Record) -> Iterator[Result]:
    for size, factor in ((4 * KB, 500), (64 * KB, 150), (256 * KB, 40), (MB, 20), (4 * MB, 15)):
        goal = f"all_reduce, 2 ranks, {label(size)}, times faster than gloo"
        row = record.find("all_reduce", 2, size, part="2")
        gloo = row.get("peers", {}).get("gloo")
        if not gloo:
            yield Result(goal, f"{factor}", "", None)
            continue
        ratio = gloo["p50_us"] / own(row)
        text = f"{number(ratio)} ({number(own(row))} against {number(gloo['p50_us'])} µs"
        text += f"{meeting(row)})" if size <= 4 * KB else ")"
        yield Result(goal, f"{factor}", text, ratio >= factor)


def times(record: Record) -> Iterator[Result]:
    for ranks, limit in ((2, 0.5), (8, 150), (64, 3000)):
        row = record.find("all_reduce", ranks, 8 * KB)
        measured = own(row) if row else None
        beside = meeting(row) if ranks == 2 else ""
        yield Result(
            f"all_reduce, {ranks} ranks, 8 KB",
            f"at most {number(limit)} µs",
            f"{number(measured)} µs{beside}" if measured else "",
            measured <= limit if measured else None,
        )


def worst(goal: str, asked: str, limit: float, found: list[tuple[float, str]]) -> Result:
    if not found:
        return Result(goal, asked, "", None)
    value, where = max(found)
    return Result(goal, asked, f"{value:.2f} at worst ({where})", value <= limit)


def forms(record: Record) -> Iterator[Result]:
    types = []
    for row in record.rows:
        if row["dtype"] != "bf16":
            continue
        other = record.find(row["op"], row["ranks"], row["size"], part="extra")
        if other:
            types.append((own(row) / own(other), label(row["size"])))
    yield worst("bf16 against f32, same bytes, 2 ranks", "at most 1.5 times", 1.5, types)
    for fresh in (False, True):
        places = [
            (row["in_place"]["p50_us"] / row["out_of_place"]["p50_us"], place(row))
            for row in record.rows
            if row["in_place"]
            and row["out_of_place"]
            and (row["fresh"], row["ranks"], row["dtype"]) == (fresh, 2, "f32")
        ]
        goal = f"in place against out of place, 2 ranks, {what(fresh)} data"
        yield worst(goal, "as fast (1.1 times)", 1.1, places)
    for fresh in (False, True):
        row = record.find("all_reduce", 2, 32 * MB, fresh=fresh)
        copy = row.get("peers", {}).get("copy")
        found = [(own(row) / copy["p50_us"], f"{number(own(row))} µs")] if copy else []
        goal = f"all_reduce, 2 ranks, 32 MB against both ranks copying 32 MB, {what(fresh)} data"
        yield worst(goal, "at most 1.5 times", 1.5, found)


def count(goal: str, asked: str, limit: float, found: list[tuple[float, str]], unit: str) -> Result:
    if not found:
        return Result(goal, asked, "", None)
    met = sum(ratio >= limit for ratio, _ in found)
    value, where = min(found)
    text = f"{met} of {len(found)}; least {value:.2f} {unit} ({where})"
    return Result(goal, asked, text, met == len(found))


def beside_all(record: Record) -> Iterator[Result]:
    gloo = [
        (ratio, place(row))
        for row, ratio in record.pairs("gloo")
        if row["op"] != "all_reduce" and row["size"] <= MB
    ]
    yield count("every other collective up to 1 MB against gloo", "10 times faster", 10, gloo, "x")
    for ranks in sorted({row["ranks"] for row in record.rows}):
        mpi = [
            (ratio, place(row)) for row, ratio in record.pairs("open_mpi") if row["ranks"] == ranks
        ]
        if mpi:
            goal = f"every collective and size against Open MPI, {ranks} ranks"
            yield count(goal, "no slower", 1, mpi, "x")


def others(record: Record) -> Iterator[Result]:
    for ranks, limit in ((8, 300), (64, 1500)):
        found = [row["init_ms"] for row in record.rows if row["ranks"] == ranks]
        yield Result(
            f"initialisation, {ranks} ranks",
            f"at most {limit} ms",
            f"{number(sorted(found)[len(found) // 2])} ms" if found else "",
            sorted(found)[len(found) // 2] <= limit if found else None,
        )
    staged = max(row["staged_bytes"] for row in record.rows)
    yield Result("staged bytes of a call", "0", f"{staged}", staged == 0)


GROUPS: tuple[Callable[[Record], Iterator[Result]], ...] = (
    references,
    beside_gloo,
    times,
    forms,
    beside_all,
    others,
)


def results(record: dict[str, Any]) -> list[Result]:
    rows = Record(record)
    return [result for group in GROUPS for result in group(rows)]


def verdict(result: Result) -> str:
    if result.reference:
        return "reference"
    return {True: "yes", False: "no", None: "not measured"}[result.met]


def as_text(found: list[Result]) -> str:
    return "\n".join(
        f"{verdict(r):<13}{r.goal}: {r.asked}; measured {r.measured or 'nothing'}" for r in found
    )


def as_markdown(found: list[Result]) -> str:
    lines = ["| goal | asked | measured | met |", "|---|---|---|---|"]
    lines += [f"| {r.goal} | {r.asked} | {r.measured} | {verdict(r)} |" for r in found]
    return "\n".join(lines)
