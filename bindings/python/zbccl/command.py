"""The command `zbccl` of a wheel: doctor, perf, run, topo and the others (docs/command.md)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

# Where a wheel has the program. In a build tree it is in bin/.
PROGRAM = Path(__file__).absolute().parent / "bin" / "zbccl"


def main() -> NoReturn:
    """Becomes the program, with this process's arguments."""
    if not PROGRAM.exists():
        sys.exit(f"zbccl: {PROGRAM} is missing: the package was built without the command")
    os.execv(PROGRAM, ["zbccl", *sys.argv[1:]])
