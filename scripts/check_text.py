#!/usr/bin/env python3
"""Checks the text of the sources: unfinished work, calls a library must not make, size of files.

Standard library only. A line that needs an exception says `text-check: allow` and why, in a
comment.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sources import CXX_SUFFIXES, all_files

MAX_LINES = 600
TEXT_SUFFIXES = CXX_SUFFIXES | {".py", ".pyi", ".sh", ".md", ".cmake", ".txt", ".toml", ".map"}
# This file and its test name what they look for.
EXEMPT = {"scripts/check_text.py", "tests/scripts/test_check_text.py"}
# Long texts that are data, not sources.
DATA_FOLDERS = ("tests/corpus/", "examples/llm/data/", "bench/results/")

UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|\b(not (yet )?implemented|for now)\b", re.I)
LIBRARY_CALLS = (
    (re.compile(r"(?<![\w.>:])(?:std::|::)?(?:v?f?printf|puts|fputs|putchar)\s*\("), "prints"),
    (re.compile(r"\bstd::(?:cout|cerr|clog)\b"), "prints"),
    (
        re.compile(r"(?:\bstd::|(?<![\w:])::)(?:abort|exit|_exit|_Exit|quick_exit|terminate)\s*\("),
        "ends the process",
    ),
    (re.compile(r"(?<![\w.>:~])(?:_exit|_Exit|quick_exit|exit)\s*\("), "ends the process"),
)


def strip_comment(line: str) -> str:
    return line.split("//", 1)[0]


def check_file(root: Path, path: Path) -> list[str]:
    """Messages for one file; `path` is relative to `root`."""
    name = path.as_posix()
    if path.suffix not in TEXT_SUFFIXES or name in EXEMPT or name.startswith(DATA_FOLDERS):
        return []
    lines = (root / path).read_text(errors="replace").splitlines()
    messages = []
    if len(lines) > MAX_LINES and path.suffix not in (".md", ".txt"):
        messages.append(f"{name}:1: {len(lines)} lines; at most {MAX_LINES}: split it by subject")
    library = name.startswith("src/") and path.suffix in CXX_SUFFIXES
    for number, line in enumerate(lines, 1):
        if "text-check: allow" in line:
            continue
        match = UNFINISHED.search(line)
        if match:
            messages.append(f"{name}:{number}: '{match.group(0)}' marks unfinished work")
        if not library:
            continue
        code = strip_comment(line)
        for pattern, what in LIBRARY_CALLS:
            match = pattern.search(code)
            if match:
                messages.append(f"{name}:{number}: the library {what}: {match.group(0).strip()}")
                break
    return messages


def check(root: Path) -> list[str]:
    messages = []
    for path in all_files(root):
        messages += check_file(root, path.relative_to(root))
    return messages


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    messages = check(root)
    for message in messages:
        print(message)
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
