#!/usr/bin/env python3
"""All checks that need no run of the code; `--fix` rewrites files in the project's format instead.

Every check prints `ok` or what is wrong; the exit status is 1 when any found something.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import check_layers
import check_text
import tidy
from sources import CXX_SUFFIXES, all_files, with_suffix

ROOT = Path(__file__).resolve().parent.parent
CLANG_FORMAT_MAJOR = "14"
PYTHON_FOLDERS = ("scripts", "bench", "tests", "bindings", "examples")
MAX_MESSAGE_LINES = 60
ENVIRONMENT_PAGE = ROOT / "docs/environment.md"


def run(command: list[str | Path]) -> tuple[int, str]:
    result = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout.strip()


def clang_format() -> str | None:
    """Versions differ in what they produce, so only the project's is used."""
    for name in (f"clang-format-{CLANG_FORMAT_MAJOR}", "clang-format"):
        path = shutil.which(name)
        if path and f"version {CLANG_FORMAT_MAJOR}." in run([path, "--version"])[1]:
            return path
    return None


def cxx_files() -> list[Path]:
    return with_suffix(all_files(ROOT), CXX_SUFFIXES)


def python_paths() -> list[str]:
    return [name for name in PYTHON_FOLDERS if any((ROOT / name).rglob("*.py"))]


def module(name: str) -> list[str]:
    return [sys.executable, "-m", name]


def check_format() -> list[str]:
    program = clang_format()
    if program is None:
        return [
            f"clang-format {CLANG_FORMAT_MAJOR} is missing: scripts/install_dependencies.sh lint"
        ]
    code, output = run(
        [program, "--dry-run", "-Werror", "--ferror-limit=20", "--style=file", *cxx_files()]
    )
    return [output, "run `make format`"] if code else []


def check_ruff() -> list[str]:
    messages = []
    for arguments in (["check", "--quiet", "--output-format=concise"], ["format", "--check"]):
        code, output = run([*module("ruff"), *arguments, *python_paths()])
        if code:
            messages.append(output or f"ruff {arguments[0]} ended with code {code}")
    return messages


def check_mypy() -> list[str]:
    # One call for each folder of scripts: they share module names such as conftest.
    messages = []
    for name in ("scripts", "bench", "bindings/python/zbccl"):
        if not any((ROOT / name).rglob("*.py")):
            continue
        code, output = run([*module("mypy"), "--no-error-summary", name])
        if code:
            messages.append(output or f"mypy {name} ended with code {code}")
    return messages


def check_shell() -> list[str]:
    program = shutil.which("shellcheck")
    if program is None:
        return ["shellcheck is missing: scripts/install_dependencies.sh lint"]
    scripts = [
        path
        for path in all_files(ROOT)
        if path.suffix in (".sh", "")
        and path.read_bytes()[:64].startswith(
            (b"#!/usr/bin/env bash", b"#!/bin/sh", b"#!/bin/bash")
        )
    ]
    code, output = run([program, "-x", *scripts])
    return [output] if code else []


def environment_page(build: Path) -> str:
    """What docs/environment.md must hold."""
    code, output = run([build / "bin/zbccl", "env", "--markdown"])
    if code:
        raise RuntimeError(f"zbccl env --markdown ended with code {code}: {output}")
    return output + "\n"


def check_environment_page(build: Path) -> list[str]:
    if not (build / "bin/zbccl").exists():
        return [f"{build}/bin/zbccl is not built: make build"]
    wanted = environment_page(build)
    found = ENVIRONMENT_PAGE.read_text() if ENVIRONMENT_PAGE.exists() else ""
    if wanted == found:
        return []
    difference = difflib.unified_diff(
        found.splitlines(),
        wanted.splitlines(),
        "docs/environment.md",
        "zbccl env",
        lineterm="",
        n=0,
    )
    return [*list(difference)[:20], "run `make format`"]


def fix(build: Path) -> int:
    program = clang_format()
    if program is None:
        print(f"clang-format {CLANG_FORMAT_MAJOR} is missing")
        return 1
    code, output = run([program, "-i", "--style=file", *cxx_files()])
    if code:
        print(output)
        return 1
    for arguments in (["check", "--fix", "--quiet"], ["format", "--quiet"]):
        print(run([*module("ruff"), *arguments, *python_paths()])[1], end="")
    if (build / "bin/zbccl").exists():
        ENVIRONMENT_PAGE.write_text(environment_page(build))
    print("formatted")
    return 0


def shorten(message: str) -> str:
    lines = message.splitlines()
    if len(lines) <= MAX_MESSAGE_LINES:
        return message
    return "\n".join(
        [*lines[:MAX_MESSAGE_LINES], f"... {len(lines) - MAX_MESSAGE_LINES} more lines"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build", help="build directory (default: build)")
    parser.add_argument("--fix", action="store_true", help="rewrite instead of checking")
    parser.add_argument("--no-tidy", action="store_true", help="leave clang-tidy out")
    arguments = parser.parse_args()
    build = (ROOT / arguments.build).resolve()
    if arguments.fix:
        return fix(build)

    checks: list[tuple[str, Callable[[], list[str]]]] = [
        ("layers", lambda: check_layers.check(ROOT)),
        ("text", lambda: check_text.check(ROOT)),
        ("clang-format", check_format),
        ("ruff", check_ruff),
        ("mypy", check_mypy),
        ("shellcheck", check_shell),
        ("environment page", lambda: check_environment_page(build)),
    ]
    if not arguments.no_tidy:
        checks.append(("clang-tidy", lambda: tidy.check(ROOT, build)))
    failed = 0
    for name, check in checks:
        start = time.monotonic()
        messages = check()
        seconds = time.monotonic() - start
        print(f"[lint] {name}: {'FAILED' if messages else 'ok'} ({seconds:.1f} s)", flush=True)
        for message in messages:
            print(shorten(message))
        failed += bool(messages)
    print(f"[lint] {failed} of {len(checks)} checks failed" if failed else "[lint] ok", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
