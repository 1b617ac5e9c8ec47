#!/usr/bin/env python3
"""Runs the tests and prints one line at the end: `N passed, M failed, K skipped`.

Two runners stand behind it: ctest (C++, C and shell tests of a build directory) and pytest (Python
tests). Both write JUnit files, and the line is summed from those. Exit status: 0 when tests ran and
none failed. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# `12/345 Test  #12: name ....   Passed    0.01 sec`
PASSED_LINE = re.compile(r"\s*\d+/\d+ Test +#\d+: .*[ *](Passed|Skipped) +[\d.]+ sec")
START_LINE = re.compile(r" +Start +\d+: ")
PYTHON_TEST_FOLDERS = ("tests/scripts", "tests/tools", "tests/examples", "tests/python")


@dataclass
class Totals:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, other: Totals) -> None:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.failures += other.failures
        for reason, count in other.reasons.items():
            self.reasons[reason] = self.reasons.get(reason, 0) + count

    def skip(self, reason: str) -> None:
        self.skipped += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def fail(self, name: str) -> None:
        self.failed += 1
        self.failures.append(name)

    def line(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def skip_reason(case: ElementTree.Element) -> str:
    element = case.find("skipped")
    text = (element.get("message") if element is not None else None) or ""
    # GoogleTest puts the place on the first line.
    text = text.split("\n", 1)[-1]
    if not text.strip() or text.startswith("SKIP_"):
        # ctest keeps only the output; GoogleTest prints the reason on the line after "Skipped".
        lines = (case.findtext("system-out") or "").splitlines()
        for i, line in enumerate(lines[:-1]):
            if line.strip().endswith("Skipped"):
                text = lines[i + 1]
    return " ".join(text.split())[:120] or "no reason given"


def is_failure(case: ElementTree.Element) -> bool:
    found = case.find("failure") is not None or case.find("error") is not None
    return found or case.get("status") == "fail"


def whole_programs(build: Path, cases: Path) -> dict[str, Path]:
    """ctest tests that are one GoogleTest program with all its cases, and the files it wrote."""
    command = ["ctest", "--test-dir", str(build), "--show-only=json-v1"]
    result = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    try:
        tests = json.loads(result.stdout)["tests"]
    except (ValueError, KeyError):
        return {}
    programs: dict[str, list[str]] = {}
    for test in tests:
        if test.get("command"):
            programs.setdefault(Path(test["command"][0]).name, []).append(test["name"])
    found = {}
    for program, names in programs.items():
        path = cases / f"{program}.xml"
        if len(names) == 1 and path.exists():
            found[names[0]] = path
    return found


def read_junit(path: Path, runner: str, details: dict[str, Path] | None = None) -> Totals:
    """Totals of one JUnit file. A file that is absent or broken counts as one failure.

    `details` has files with the single cases of some tests, by their names; they count instead.
    """
    totals = Totals()
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        totals.fail(f"{runner}: no readable result ({error})")
        return totals
    for case in root.iter("testcase"):
        group = case.get("classname") or ""
        name = case.get("name") or "?"
        if group and group != name:
            name = f"{group}.{name}"
        if details and name in details:
            part = read_junit(details[name], f"{runner}: {name}")
            if is_failure(case) and part.failed == 0:
                part.fail(f"{runner}: {name}")
            totals.add(part)
            continue
        status = case.get("status", "run")
        reason = skip_reason(case)
        if is_failure(case):
            totals.fail(f"{runner}: {name}")
        elif reason.startswith("Unable to find executable"):
            # ctest calls this skipped; a program that was not built is no passed test.
            totals.fail(f"{runner}: {name} (not built)")
        elif case.find("skipped") is not None or status in ("notrun", "disabled"):
            totals.skip(reason)
        else:
            totals.passed += 1
    return totals


def step(text: str) -> None:
    print(f"[test] {text}", flush=True)


def run_ctest(arguments: argparse.Namespace, build: Path, folder: Path) -> Totals:
    report = folder / "ctest.xml"
    command = ["ctest", "--test-dir", str(build), "--output-junit", str(report)]
    command += ["--output-on-failure", "--no-tests=error", "-j", str(arguments.jobs)]
    command += ["--test-output-size-passed", "4096", "--test-output-size-failed", "65536"]
    for option, values in (("-L", arguments.label), ("-LE", arguments.exclude_label)):
        if values:
            command += [option, "^(" + "|".join(values) + ")$"]
    if arguments.only:
        command += ["-R", "|".join(arguments.only)]
    if arguments.exclude:
        command += ["-E", "|".join(arguments.exclude)]
    cases = folder / "gtest"
    environment = dict(os.environ, GTEST_OUTPUT=f"xml:{cases}/")
    step(shlex.join(command[:3]) + f" ... -j {arguments.jobs}")
    code = stream(command, environment)
    totals = read_junit(report, "ctest", whole_programs(build, cases))
    if code != 0 and totals.failed == 0:
        totals.fail(f"ctest ended with code {code} although no test is marked failed")
    return totals


def stream(command: list[str], environment: dict[str, str]) -> int:
    """Runs ctest; of its lines for passed tests only every fiftieth is shown."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert process.stdout is not None
    passed = 0
    for line in process.stdout:
        if START_LINE.match(line):
            continue
        if not PASSED_LINE.match(line):
            sys.stdout.write(line)
            sys.stdout.flush()
            continue
        passed += 1
        if passed % 50 == 0:
            step(line.strip())
    return process.wait()


def python_folders() -> list[str]:
    return [name for name in PYTHON_TEST_FOLDERS if any((ROOT / name).glob("**/test_*.py"))]


def run_pytest(arguments: argparse.Namespace, build: Path, folder: Path) -> Totals:
    totals = Totals()
    folders = python_folders()
    environment = dict(os.environ)
    paths = [str(build / "python")]
    if os.environ.get("PYTHONPATH"):
        paths.append(os.environ["PYTHONPATH"])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment["PATH"] = f"{build / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    for name in folders:
        report = folder / (name.replace("/", "-") + ".xml")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rf"]
        command += [f"--junitxml={report}", name]
        step(f"pytest {name}")
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=False
        ).returncode
        part = read_junit(report, f"pytest {name}")
        if code != 0 and part.failed == 0:
            part.fail(f"pytest {name} ended with code {code}")
        totals.add(part)
    return totals


def show(totals: Totals, seconds: float) -> None:
    for reason, count in sorted(totals.reasons.items()):
        print(f"[test] skipped {count}: {reason}")
    for name in totals.failures:
        print(f"[test] failed: {name}")
    step(f"finished in {seconds:.0f} s")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build", help="build directory (default: build)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--label", action="append", help="only ctest tests with this label")
    parser.add_argument("--exclude-label", action="append", help="no ctest tests with this label")
    parser.add_argument("--only", action="append", help="only ctest tests whose name matches")
    parser.add_argument("--exclude", action="append", help="no ctest tests whose name matches")
    parser.add_argument("--no-python", action="store_true", help="ctest only")
    parser.add_argument("--totals", type=Path, help="also write the sums to this JSON file")
    parser.add_argument(
        "--sum", nargs="+", type=Path, metavar="FILE", help="run nothing; sum such JSON files"
    )
    return parser.parse_args(argv)


def sum_files(paths: list[Path]) -> Totals:
    totals = Totals()
    for path in paths:
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            totals.fail(f"{path.name}: no totals ({error})")
            continue
        totals.passed += values["passed"]
        totals.failed += values["failed"]
        totals.skipped += values["skipped"]
        totals.failures += values["failures"]
    return totals


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    start = time.monotonic()
    if arguments.sum:
        totals = sum_files(arguments.sum)
        for name in totals.failures:
            print(f"[test] failed: {name}")
    else:
        build = (ROOT / arguments.build).resolve()
        with tempfile.TemporaryDirectory(prefix="zbccl-tests-") as folder:
            totals = run_ctest(arguments, build, Path(folder))
            if not arguments.no_python:
                totals.add(run_pytest(arguments, build, Path(folder)))
        if arguments.totals:
            arguments.totals.write_text(json.dumps(vars(totals)))
        show(totals, time.monotonic() - start)
    if totals.passed + totals.failed == 0:
        totals.fail("no test was run")
        print("[test] failed: no test was run")
    print(totals.line(), flush=True)
    return 0 if totals.failed == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
