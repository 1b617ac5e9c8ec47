#!/usr/bin/env python3
"""Writes the training text: the King James Bible of Debian's bible-kjv and bible-kjv-text.

    apt-get install bible-kjv && python3 corpus.py corpus.txt

One verse a line, an empty line between chapters; the text is in the public domain.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

# One chapter of every kHeldOutEvery is held out: 17 chapters from 14 books.
HELD_OUT_EVERY = 70
HELD_OUT_FIRST = 30


def read_debian_text() -> str:
    """The text as `bible` prints it, references cut off."""
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    try:
        printed = subprocess.run(
            ["bible", "-f", "gen1:1-rev22:21"],
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        ).stdout
    except FileNotFoundError:
        sys.exit("corpus.py: the program `bible` is missing; run: apt-get install bible-kjv")
    lines: list[str] = []
    previous = ""
    for line in printed.splitlines():
        match = re.fullmatch(r"([1-3]?[A-Za-z]+\d+):\d+ (.*)", line)
        if match is None:
            sys.exit(f"corpus.py: not a verse: {line!r}")
        chapter, verse = match.groups()
        if previous not in ("", chapter):
            lines.append("")
        previous = chapter
        lines.append(" ".join(verse.split()))
    return "\n".join(lines) + "\n"


def split_chapters(text: str) -> tuple[str, str]:
    """(training text, held-out text), divided by whole chapters, always the same."""
    chapters = text.strip("\n").split("\n\n")
    held_out = chapters[HELD_OUT_FIRST::HELD_OUT_EVERY]
    training = [c for i, c in enumerate(chapters) if i % HELD_OUT_EVERY != HELD_OUT_FIRST]
    return "\n\n".join(training) + "\n", "\n\n".join(held_out) + "\n"


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUTPUT")
    text = read_debian_text()
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
    training, held_out = split_chapters(text)
    print(f"{len(text)} bytes: {len(training)} to train on, {len(held_out)} held out")


if __name__ == "__main__":
    main()
