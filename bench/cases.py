"""What the host benchmark measures, and the commands that do it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

OPERATIONS = (
    "all_reduce",
    "reduce",
    "all_gather",
    "all_gather_v",
    "reduce_scatter",
    "reduce_scatter_v",
    "broadcast",
    "all_to_all",
    "all_to_all_v",
    "gather",
    "scatter",
    "sendrecv",
    "barrier",
)
KB, MB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Case:
    """One operation over some sizes, and the libraries that are measured beside zbccl."""

    operation: str
    ranks: int
    first: int
    last: int
    factor: int = 4
    types: str = "f32"
    fresh: bool = False
    gloo: bool = True
    mpi: bool = True
    copy: bool = False  # in turn with zbccl: every rank copies the size at once
    both_places: bool = False

    def perf(self, command: Path, seconds: float, check: bool) -> list[str]:
        words = [str(command), "perf", self.operation, "--ranks", str(self.ranks), "-d", self.types]
        words += ["-b", str(self.first), "-e", str(self.last), "-f", str(self.factor)]
        words += ["--seconds", str(seconds)]
        words += ["--fresh"] if self.fresh else []
        return [*words, "--check"] if check else words

    def own(self, command: Path, seconds: float, check: bool, output: Path | str) -> list[str]:
        """zbccl, in processes that hold nothing else."""
        words = self.perf(command, seconds, check)
        words += [] if self.both_places else ["--out-of-place"]
        words += ["--compare", "copy"] if self.copy else []
        return [*words, "--json", str(output)]

    def beside_gloo(
        self, command: Path, seconds: float, check: bool, output: Path | str
    ) -> list[str]:
        """gloo, and zbccl once more in the processes where gloo's threads and sockets are."""
        words = self.perf(command, seconds, check)
        words += ["--out-of-place", "--warmup", "3", "--compare", "gloo"]
        return [*words, "--json", str(output)]

    def open_mpi(self, program: Path, seconds: float, check: bool) -> list[str]:
        words = ["mpirun", "-n", str(self.ranks), "--oversubscribe"]
        words += ["--allow-run-as-root"] if os.geteuid() == 0 else []
        words += ["--mca", "btl", "self,vader"]
        words += [str(program), self.operation, "-b", str(self.first), "-e", str(self.last)]
        words += ["-f", str(self.factor), "--seconds", str(seconds)]
        words += ["--fresh"] if self.fresh else []
        return [*words, "--check"] if check else words


def collectives(ranks: int) -> list[Case]:
    """Every operation beside both peers."""
    return [
        Case(operation, ranks, 4 * KB, 16 * MB, both_places=operation == "all_reduce")
        for operation in OPERATIONS
    ]


def extra() -> list[Case]:
    """What single goals ask for, and data that is written anew before each call."""
    main = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
    return [
        Case("all_reduce", 2, 8 * KB, 8 * KB, both_places=True),
        Case("all_reduce", 8, 8 * KB, 8 * KB),
        Case("all_reduce", 64, 8 * KB, 8 * KB, gloo=False, mpi=False),
        Case("all_reduce", 2, 4 * KB, 4 * MB, types="f32,bf16", gloo=False, mpi=False),
        Case("all_reduce", 2, 32 * MB, 32 * MB, gloo=False, mpi=False, copy=True),
        Case("all_reduce", 2, 32 * MB, 32 * MB, gloo=False, mpi=False, copy=True, fresh=True),
        *[
            Case(operation, 2, 4 * KB, 16 * MB, fresh=True, both_places=operation == "all_reduce")
            for operation in main
        ],
    ]


# A part takes one to three minutes; its rows can be measured again by themselves.
PARTS = {
    "2": lambda: collectives(2),
    "4": lambda: collectives(4),
    "8": lambda: collectives(8),
    "extra": extra,
}
