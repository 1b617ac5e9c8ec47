#!/usr/bin/env python3
"""Tests GPUs and measures every collective beside NCCL and PyTorch: bench/results/DATE-gpu.json.

Started by bench/gpu.sh, which says what it needs. Three steps, each of which can be left out: the
GPU tests; a few calls under compute-sanitizer; `zbccl perf --device cuda --graph --compare nccl`
for each operation and number of ranks, `zbccl moe`, and PyTorch's symmetric memory
(peers/torch_symm.py) timed in the same way right after. The file holds the machine, the versions,
the commands, what the tests said, one row for each operation and size with the peers' times and
ratios, and the rows of `zbccl moe`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import gpu_cases
from gpu_cases import Case
from run import first_line, machine, write

ROOT = Path(__file__).resolve().parent.parent
TEST_SECONDS = 240
PYTHON_TESTS = (
    "test_cuda.py",
    "test_moe_cuda.py",
    "torch_backend/test_torch_cuda.py",
    "engines/test_engines_cuda.py",
)
PERF_SECONDS = 240
Row = dict[str, Any]


def say(text: str) -> None:
    print(f"[gpu {time.strftime('%H:%M:%S')}] {text}", flush=True)


def gpus() -> list[dict[str, str]]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    names = ("name", "driver", "memory")
    return [
        dict(zip(names, line.split(", "), strict=False))
        for line in done.stdout.splitlines()
        if line
    ]


def versions(build: Path, commit: str) -> dict[str, str]:
    torch = first_line([sys.executable, "-c", "import torch; print(torch.__version__)"])
    return {
        "zbccl": first_line([str(build / "bin/zbccl"), "version"]),
        "commit": commit or first_line(["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]),
        "torch": "none" if torch.startswith("Traceback") else torch,
        "nvcc": next(
            (word for word in first_line(["nvcc", "--version"]).split() if word.startswith("V")), ""
        ),
    }


class Runner:
    """Runs commands with a limit of time, and keeps what they found."""

    def __init__(self, build: Path, seconds: float) -> None:
        self.build = build
        self.command = build / "bin/zbccl"
        self.seconds = seconds
        self.commands: list[str] = []
        self.failures: list[str] = []
        self.rows: list[Row] = []
        self.moe_rows: list[Row] = []

    def run(
        self, words: list[str], limit: int, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """The exit code, 124 where the time was over, and all output."""
        shown = " ".join(Path(word).name if word.startswith("/") else word for word in words)
        self.commands.append(shown.partition(" --json ")[0])
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | (env or {}),
        )
        try:
            output, _ = process.communicate(timeout=limit)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            # The launcher passes it on to its ranks and waits for them.
            process.terminate()
            try:
                output, _ = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
            return 124, output

    def fail(self, what: str, output: str) -> None:
        self.failures.append(what)
        say(f"FAILED: {what}")
        print(output[-6000:], flush=True)

    # ---- tests

    def test(self, program: Path) -> Row:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="zbccl-gpu-") as folder:
            report = Path(folder) / "report.json"
            words = [str(program), "--gtest_brief=1", f"--gtest_output=json:{report}"]
            code, output = self.run(words, TEST_SECONDS)
            counts = {"passed": 0, "failed": 0, "skipped": 0}
            skipped: list[str] = []
            if report.exists():
                for suite in json.loads(report.read_text())["testsuites"]:
                    for test in suite["testsuite"]:
                        name = f"{suite['name']}.{test['name']}"
                        if test.get("failures"):
                            counts["failed"] += 1
                            self.failures.append(name)
                        elif test["result"] == "SKIPPED":
                            counts["skipped"] += 1
                            skipped.append(name)
                        else:
                            counts["passed"] += 1
        seconds = round(time.monotonic() - begin, 1)
        if code:
            self.fail(f"{program.name} ended with code {code}", output)
        say(f"{program.name}: {counts}, {seconds} s")
        return {"program": program.name, **counts, "code": code, "seconds": seconds}

    def tests(self) -> list[Row]:
        programs = sorted((self.build / "bin").glob("gpu_*_test"))
        if not programs:
            self.fail("no gpu_*_test is built", "")
        return [self.test(program) for program in programs] + self.python_tests()

    def python_tests(self) -> list[Row]:
        if not (self.build / "python/zbccl").exists():
            say("the Python package is not built there: its tests are left out")
            return []
        return [self.python_test(name) for name in PYTHON_TESTS]

    def python_test(self, name: str) -> Row:
        begin = time.monotonic()
        counts = {"passed": 0, "failed": 0, "skipped": 0}
        with tempfile.TemporaryDirectory(prefix="zbccl-gpu-") as folder:
            report = Path(folder) / "report.xml"
            words = [sys.executable, "-m", "pytest", "-q", str(ROOT / "tests/python" / name)]
            env = {"PYTHONPATH": str(self.build / "python")}
            code, output = self.run([*words, f"--junitxml={report}"], TEST_SECONDS, env)
            if report.exists():
                for case in ElementTree.parse(report).iter("testcase"):
                    if case.find("failure") is not None or case.find("error") is not None:
                        counts["failed"] += 1
                        self.failures.append(case.get("name", "?"))
                    else:
                        counts["skipped" if case.find("skipped") is not None else "passed"] += 1
        seconds = round(time.monotonic() - begin, 1)
        if code:
            self.fail(f"{name} ended with code {code}", output)
        say(f"{name}: {counts}, {seconds} s")
        return {"program": name, **counts, "code": code, "seconds": seconds}

    # ---- compute-sanitizer

    def sanitize(self, count: int, all_of_them: bool) -> list[Row]:
        tool = shutil.which("compute-sanitizer")
        if tool is None:
            say("compute-sanitizer is not here: left out")
            return []
        results = []
        for words in gpu_cases.sanitized(self.command, count, all_of_them):
            begin = time.monotonic()
            options = ["--tool", "memcheck", "--target-processes", "all", "--error-exitcode", "9"]
            code, output = self.run([tool, *options, *words], 120, {"ZBCCL_TIMEOUT": "30s"})
            seconds = round(time.monotonic() - begin, 1)
            summary = [line for line in output.splitlines() if "ERROR SUMMARY" in line]
            say(f"compute-sanitizer, {words[2]}: code {code}, {summary}, {seconds} s")
            if code:
                self.fail(f"compute-sanitizer, {words[2]}: code {code}", output)
            results.append({"operation": words[2], "code": code, "seconds": seconds})
        return results

    # ---- benchmarks

    def measure(self, case: Case) -> None:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="zbccl-gpu-") as folder:
            output = Path(folder) / "rows.json"
            code, text = self.run(case.command(self.command, self.seconds, output), PERF_SECONDS)
            more = f" {case.memory}{case.quant}".rstrip()
            what = f"{case.operation}, {case.ranks} ranks{more}"
            if code:
                self.fail(f"{what}: code {code}", text)
            rows: list[Row] = json.loads(output.read_text()) if output.exists() else []
        for line in text.splitlines():
            if "left out" in line or "WARN" in line:
                say(line)
        for row in rows:
            compared = row.pop("compare")
            row["peers"] = {compared["name"]: compared} if compared else {}
        self.rows += rows
        say(f"{what}: {len(rows)} rows, {time.monotonic() - begin:.1f} s")
        for row in rows:
            print(f"    {line_of(row)}", flush=True)

    def moe(self, ranks: int) -> None:
        with tempfile.TemporaryDirectory(prefix="zbccl-gpu-") as folder:
            output = Path(folder) / "rows.json"
            commands = gpu_cases.moe(self.command, ranks, self.seconds, output)
            for what, words in commands.items():
                output.unlink(missing_ok=True)
                code, text = self.run(words, PERF_SECONDS)
                if code:
                    self.fail(f"moe, {what}, {ranks} ranks: code {code}", text)
                if not output.exists():
                    continue
                found = [row | {"case": what} for row in json.loads(output.read_text())]
                self.moe_rows += found
                for row in found:
                    say(
                        f"moe, {what}, {ranks} ranks, {row['tokens']} tokens, {row['phase']}: "
                        f"{row['p50_us']:.1f} us, {row['sms']} SMs"
                    )

    def torch(self, ranks: int, quick: bool) -> None:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="zbccl-gpu-") as folder:
            output = Path(folder) / "rows.json"
            words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            words += ["--nproc-per-node", str(ranks), str(ROOT / "bench/peers/torch_symm.py")]
            words += ["--quick"] if quick else []
            code, text = self.run([*words, "--json", str(output)], PERF_SECONDS)
            if code or not output.exists():
                self.fail(f"torch symmetric memory, {ranks} ranks: code {code}", text)
                return
            found: list[Row] = json.loads(output.read_text())
        beside = {(row["op"], row["ranks"], row["size"]): row for row in self.rows if plain(row)}
        for one in found:
            row = beside.get((one["op"], one["ranks"], one["size"]))
            if row is not None:
                row["peers"][one["name"]] = {name: one[name] for name in ("name", "p50_us")}
        say(f"torch symmetric memory, {ranks} ranks: {time.monotonic() - begin:.1f} s")


def plain(row: Row) -> bool:
    """A row of the series that peers are compared with."""
    return row["dtype"] in ("bf16", None) and row["memory"] == "pool"


def own(row: Row) -> float:
    return float((row["out_of_place"] or row["in_place"])["p50_us"])


def line_of(row: Row) -> str:
    text = f"{row['size']:>11} {row['dtype'] or '-':>5} {row['algorithm']:>16} {own(row):>9.2f} us"
    for place in ("out_of_place", "in_place"):
        wrong = (row[place] or {}).get("nwrong")
        text += f", {wrong} WRONG" if wrong else ""
    for name, peer in row["peers"].items():
        text += f", {name} {peer['p50_us']:.2f} ({peer['p50_us'] / own(row):.2f}x)"
    return text


def add_ratios(rows: list[Row]) -> None:
    for row in rows:
        for peer in row["peers"].values():
            peer["ratio"] = round(peer["p50_us"] / own(row), 3)


def record_of(runner: Runner, found: list[dict[str, str]], commit: str) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.timezone.utc)
    first = runner.rows[0] if runner.rows else {}
    more = {
        "nccl": next((row["nccl"] for row in runner.rows if row["nccl"]), "not measured"),
        "cuda_driver": first.get("cuda_driver", "unknown"),
        "cuda_runtime": first.get("cuda_runtime", "unknown"),
    }
    place = {"gpu": found[0]["name"], "gpus": len(found), "driver": found[0]["driver"]}
    return {
        "device": "cuda",
        "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine() | place,
        "versions": versions(runner.build, commit) | more,
    }


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build-cuda", help="build directory (build-cuda)")
    parser.add_argument("--ranks", default="2,4,8", help="numbers of ranks, of those that fit")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="the sizes that goals name (default)")
    length.add_argument("--full", action="store_true", help="every operation, 1 KB to 1 GB")
    parser.add_argument("--seconds", type=float, default=0.03, help="for each size and form (0.03)")
    parser.add_argument("--out", type=Path, help="file to write")
    parser.add_argument("--name", default="gpu", help="last part of the file's name")
    parser.add_argument("--commit", default="", help="where there is no git: what was built")
    for step in ("tests", "sanitizer", "bench", "torch"):
        parser.add_argument(f"--no-{step}", action="store_true", help=f"leave out: {step}")
    return parser.parse_args()


def main() -> int:
    arguments = parsed()
    found = gpus()
    if not found:
        print("bench: nvidia-smi shows no GPU; this benchmark needs one")
        return 1
    runner = Runner((ROOT / arguments.build).resolve(), arguments.seconds)
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    path = arguments.out or ROOT / "bench/results" / f"{today}-{arguments.name}.json"
    counts = [int(n) for n in arguments.ranks.split(",") if int(n) <= len(found)]
    say(f"{len(found)} x {found[0]['name']}, ranks {counts or 'none: too few GPUs'}")
    steps: dict[str, Any] = {"tests": [], "sanitizer": []}

    def save() -> None:
        add_ratios(runner.rows)
        record = record_of(runner, found, arguments.commit) | steps
        record |= {"failures": runner.failures, "commands": list(dict.fromkeys(runner.commands))}
        write(path, record | {"moe": runner.moe_rows, "rows": runner.rows})

    if not arguments.no_tests:
        steps["tests"] = runner.tests()
        save()
    if not arguments.no_sanitizer:
        steps["sanitizer"] = runner.sanitize(len(found), arguments.full)
        save()
    if not arguments.no_bench:
        for ranks in counts:
            for case in gpu_cases.full(ranks) if arguments.full else gpu_cases.quick(ranks):
                runner.measure(case)
            save()
            if ranks > 1:
                runner.moe(ranks)
            save()
        wrong = [
            row
            for row in runner.rows
            for place in ("out_of_place", "in_place")
            if (row[place] or {}).get("nwrong")
        ]
        runner.failures += [f"{row['op']}, {row['size']} bytes: wrong elements" for row in wrong]
        runner.failures += [
            f"moe, {row['case']}, {row['phase']}: wrong elements"
            for row in runner.moe_rows
            if row["nwrong"]
        ]
        if not arguments.no_torch:
            for ranks in counts:
                runner.torch(ranks, not arguments.full)
    save()
    say(f"{len(runner.rows)} rows in {path}")
    for failure in runner.failures:
        say(f"FAILED: {failure}")
    say(f"gpu: {'ok' if not runner.failures else str(len(runner.failures)) + ' failures'}")
    return 1 if runner.failures else 0


if __name__ == "__main__":
    sys.exit(main())
