#!/usr/bin/env python3
"""Measures MoE dispatch and combine on host memory beside gloo: bench/results/DATE-moe-host.json.

    bench/moe_run.py [--build build] [--passes 3] [--prefix "chrt -r 5"]

Each case is run by `zbccl moe --compare gloo`, checked once and then measured several times; the
median over the passes is kept. Draws docs/bench-moe and writes the table of docs/performance.md.
About two minutes. Leave the machine to it, or give it a real-time priority by --prefix.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from report import replace
from run import ROOT, TIMES, busy_share, machine, versions, write

GOALS = {2: 20, 4: 5}  # times the speed of gloo, by ranks
Row = dict[str, Any]
Key = tuple[str, int, int, str]


@dataclass(frozen=True)
class Case:
    mode: str
    ranks: int
    tokens: tuple[int, ...]

    def command(self, program: Path, seconds: float, *more: str) -> list[str]:
        tokens = ",".join(map(str, self.tokens))
        words = [str(program), "moe", "--mode", self.mode, "--ranks", str(self.ranks)]
        return [*words, "--tokens", tokens, "--seconds", str(seconds), "--compare", "gloo", *more]


CASES = (
    Case("normal", 2, (1, 4, 16, 64, 256, 1024, 4096)),
    Case("normal", 4, (1, 4, 16, 64, 256, 1024)),
    Case("ll", 2, (1, 8, 32)),
    Case("ll", 4, (1, 8, 32)),
)


def key_of(row: Row) -> Key:
    return (row["mode"], row["ranks"], row["tokens"], row["phase"])


def run(words: list[str]) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="zbccl-bench-") as folder:
        output = Path(folder) / "rows.json"
        done = subprocess.run(
            [*words, "--json", str(output)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or done.stderr:
            raise RuntimeError(f"code {done.returncode} from {' '.join(words)}\n{done.stderr}")
        rows: list[Row] = json.loads(output.read_text())
        return rows


def merged(passes: list[Row], checked: Row) -> Row:
    """The median of each time, the passes' own medians beside it."""
    row = dict(passes[0])
    for name in TIMES:
        row[name] = round(statistics.median(one[name] for one in passes), 3)
    row["p50_us_of_passes"] = [round(one["p50_us"], 3) for one in passes]
    compared = [one["compare"] for one in passes]
    row["compare"] = {"name": "gloo"} | {
        name: round(statistics.median(one[name] for one in compared), 3) for name in TIMES
    }
    row["nwrong"] = checked["nwrong"]
    for name in ("staged_bytes", "landing_bytes", "metadata_bytes", "held_bytes"):
        row[name] = max(one[name] for one in passes)
    return row


def measure(
    build: Path, prefix: list[str], passes: int, seconds: float
) -> tuple[list[Row], list[str]]:
    program = build / "bin/zbccl"
    rows, commands = [], []
    for case in CASES:
        print(f"[checking] {case}", flush=True)
        checked = {key_of(row): row for row in run(case.command(program, 0.001, "--check"))}
        found: dict[Key, list[Row]] = {}
        words = [*prefix, *case.command(program, seconds)]
        commands.append(" ".join(words).replace(str(program), program.name))
        for number in range(passes):
            print(f"[pass {number + 1}] {case}", flush=True)
            for row in run(words):
                found.setdefault(key_of(row), []).append(row)
        rows += [merged(several, checked[key]) for key, several in found.items()]
    return rows, commands


def ratio(row: Row) -> float:
    return float(row["compare"]["p50_us"] / row["p50_us"])


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table(rows: list[Row]) -> list[str]:
    lines = [
        "| mode, ranks | tokens a rank | dispatch (µs) | combine (µs) | both (µs) "
        "| gloo, both (µs) | times faster | asked |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_key = {key_of(row): row for row in rows}
    for mode, ranks, tokens, phase in by_key:
        if phase != "both":
            continue
        times = {
            name: by_key[mode, ranks, tokens, name] for name in ("dispatch", "combine", "both")
        }
        both = times["both"]
        cells = [
            f"{mode}, {ranks}",
            f"{tokens:,}",
            *[number(row["p50_us"]) for row in times.values()],
            number(both["compare"]["p50_us"]),
            number(ratio(both)),
            str(GOALS[ranks]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def text_of(record: Row, name: str) -> str:
    rows = record["rows"]
    staged = max(row["staged_bytes"] for row in rows)
    metadata = max(row["metadata_bytes"] for row in rows)
    held = max(row["held_bytes"] for row in rows)
    busy = record["busy_before"]["moe"]
    disturbed = f" Other work used {busy:.0%} of the processors before." if busy > 0.1 else ""
    if "chrt" in record["commands"][0]:
        disturbed += " The ranks had a real-time priority."
    facts = (
        f"Medians; every element checked, {staged} staged bytes a call, at most {metadata:,} bytes "
        f"of metadata on a rank ({held:,} held). {record['machine']['cpu']}, "
        f"{record['machine']['cores']} cores, gloo {record['versions']['gloo']}, "
        f"{record['date'][:10]}: [bench/results/{name}](../bench/results/{name}).{disturbed}"
    )
    return "\n".join([*table(rows), "", facts])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build", help="build directory (default: build)")
    parser.add_argument("--passes", type=int, default=3, help="times each case is run (3)")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each phase (0.1)")
    parser.add_argument("--prefix", default="", help="before each measuring command")
    parser.add_argument("--report", type=Path, help="only plot and table of this file")
    arguments = parser.parse_args()
    path = arguments.report
    if path is None:
        build = (ROOT / arguments.build).resolve()
        now = datetime.datetime.now(datetime.timezone.utc)
        busy = busy_share()
        try:
            rows, commands = measure(
                build, shlex.split(arguments.prefix), arguments.passes, arguments.seconds
            )
        except RuntimeError as error:
            print(f"bench: {error}")
            return 1
        known = versions(build)
        known.pop("open_mpi")
        path = ROOT / "bench/results" / f"{now:%Y-%m-%d}-moe-host.json"
        record = {
            "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "machine": machine(),
            "versions": known,
            "busy_before": {"moe": busy},
            "commands": commands,
            "rows": rows,
        }
        write(path, record)
        print(f"bench: {len(rows)} rows in {path}")
    text = text_of(json.loads(path.read_text()), path.name)
    print(text)
    plot = [sys.executable, str(ROOT / "bench/plot.py"), str(path), "--out", str(ROOT / "docs")]
    done = replace(ROOT / "docs/performance.md", "moe", text)
    return subprocess.run(plot, check=False).returncode or (0 if done else 1)


if __name__ == "__main__":
    sys.exit(main())
