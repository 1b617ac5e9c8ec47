"""Drives the zbccl command from outside. Standard library only; ZBCCL_BIN names the command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

BIN = os.environ.get("ZBCCL_BIN", "zbccl")
TIMEOUT = 100

# A launcher around these tests must not be taken for theirs.
FOREIGN = ("ZBCCL_", "SLURM_", "OMPI_", "PMI_")
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")


def environment(**more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(FOREIGN) and name not in TORCHRUN
    }
    return kept | more


def zbccl(
    *arguments: object, stdin: str | bytes | None = None, text: bool = True, **more: str
) -> subprocess.CompletedProcess:
    """Runs the command to its end."""
    return subprocess.run(
        [BIN, *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=text,
        timeout=TIMEOUT,
        env=environment(**more),
    )


def start(*arguments: object, **more: str) -> subprocess.Popen:
    """Starts the command; its output is read as text from pipes."""
    return subprocess.Popen(
        [BIN, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
    )


def shell(script: str) -> list[str]:
    """The arguments of a rank that runs a shell script."""
    return ["--", "sh", "-c", script]


def python(script: str) -> list[str]:
    """The arguments of a rank that runs a Python script."""
    return ["--", sys.executable, "-u", "-c", script]


def processes_with(mark: str) -> list[int]:
    """Living processes that have `mark` in their environment or command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in text and state != "Z" and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def wait_until(condition, seconds: float = 20) -> bool:
    """True as soon as the condition holds; False when it did not in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False
