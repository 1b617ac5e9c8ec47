"""What the GPU benchmark measures, and the commands that do it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

KB, MB, GB = 1 << 10, 1 << 20, 1 << 30
MAIN = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
OTHERS = (
    "reduce",
    "all_gather_v",
    "reduce_scatter_v",
    "all_to_all_v",
    "gather",
    "scatter",
    "sendrecv",
    "barrier",
)
# The sizes that goals name.
KEY_SIZES = (KB, 8 * KB, 64 * KB, 256 * KB, MB, 4 * MB, 16 * MB, 64 * MB, 256 * MB, GB)
OTHER_KEY_SIZES = (KB, 8 * KB, 64 * KB, MB, 16 * MB, 256 * MB, GB)
CHECKED = 16 * MB
# What becomes of rows and of sums, beside the plain all_reduce of the same bytes: rows of 4096
# elements with a residual, and the same with FP8 codes and scales instead of the rows.
FUSED = (
    ("all_reduce_rms_norm", "none"),
    ("all_reduce_rms_norm", "fp8"),
    ("all_reduce_quantized", "fp8"),
    ("all_reduce_quantized", "int8"),
)
FUSED_SIZES = (8 * KB, 256 * KB, MB, 16 * MB)


def powers(first: int, last: int, factor: int) -> tuple[int, ...]:
    sizes = []
    while first <= last:
        sizes.append(first)
        first *= factor
    return tuple(sizes)


@dataclass(frozen=True)
class Case:
    """One operation over some sizes on some ranks, beside NCCL in the same processes."""

    operation: str
    ranks: int
    sizes: tuple[int, ...] = ()  # none for a barrier
    types: str = "bf16"
    both_places: bool = False
    memory: str = ""  # "", "--plain" or "--register"
    nccl: bool = True
    quant: str = ""

    def command(self, program: Path, seconds: float, output: Path) -> list[str]:
        words = [str(program), "perf", self.operation, "--device", "cuda", "--graph"]
        words += ["--ranks", str(self.ranks), "--seconds", str(seconds), "--check"]
        if self.sizes:
            words += ["-d", self.types, "--sizes", ",".join(str(size) for size in self.sizes)]
            words += ["--check-max", str(CHECKED)]
        words += [] if self.both_places or not self.sizes else ["--out-of-place"]
        words += [self.memory] if self.memory else []
        words += ["--compare", "nccl"] if self.nccl else []
        words += ["--quant", self.quant] if self.quant else []
        return [*words, "--json", str(output)]


def fused(ranks: int) -> list[Case]:
    return [
        Case(operation, ranks, FUSED_SIZES, nccl=False, quant=quant) for operation, quant in FUSED
    ]


def quick(ranks: int) -> list[Case]:
    """What the goals name."""
    return [
        Case("all_reduce", ranks, KEY_SIZES, both_places=True),
        *[Case(operation, ranks, OTHER_KEY_SIZES) for operation in MAIN[1:]],
        *fused(ranks),
    ]


def full(ranks: int) -> list[Case]:
    """Every operation from 1 KB to 1 GB; other types and other memory where these matter."""
    sizes = powers(KB, GB, 2)
    some = powers(KB, 256 * MB, 4)
    return [
        Case("all_reduce", ranks, sizes, both_places=True),
        *[Case(operation, ranks, sizes) for operation in MAIN[1:]],
        *[Case(operation, ranks, some) for operation in OTHERS if operation != "barrier"],
        Case("barrier", ranks),
        *fused(ranks),
        Case("all_reduce", ranks, KEY_SIZES[:7], types="f32,f16,e4m3,i32,f64"),
        Case("all_reduce", ranks, KEY_SIZES[:7], memory="--plain", nccl=False),
        Case("all_gather", ranks, KEY_SIZES[:7], memory="--register", nccl=False),
    ]


# Dispatch and combine of experts, hidden 7168 and 8 of 256 (normal) or 288 experts (low latency),
# as the goals have it; `given`: rows that are FP8 with scales before the call.
MOE = {
    "bf16": ("--tokens", "4096", "--cached"),
    "fp8 given": ("--tokens", "4096", "--cached", "--quant", "given"),
    "fp8": ("--tokens", "4096", "--cached", "--quant", "fp8"),
    "fp8, routed each time": ("--tokens", "4096", "--graph", "--quant", "fp8"),
    "low latency, bf16": ("--mode", "ll", "--tokens", "8,32,128"),
    "low latency, fp8": ("--mode", "ll", "--tokens", "8,32,128", "--quant", "fp8"),
}


def moe(program: Path, ranks: int, seconds: float, output: Path) -> dict[str, list[str]]:
    common = [str(program), "moe", "--device", "cuda", "--ranks", str(ranks), "--check"]
    common += ["--seconds", str(seconds)]
    return {name: [*common, *words, "--json", str(output)] for name, words in MOE.items()}


def sanitized(program: Path, gpus: int, all_of_them: bool) -> list[list[str]]:
    """Small calls for compute-sanitizer; ranks in processes of their own where there are GPUs."""
    cases = (
        ("all_reduce", "bf16,i32"),
        ("all_gather", "u8"),
        ("reduce_scatter", "f32"),
        ("all_to_all", "bf16"),
    )
    place = ["--ranks", "2"] if gpus >= 2 else ["--ranks", "2", "--one-gpu"]
    common = ["--device", "cuda", *place, "-n", "2", "-w", "1", "--check", "--out-of-place"]
    return [
        [str(program), "perf", operation, *common, "-d", types, "--sizes", "1000,66000,1000000"]
        for operation, types in (cases if all_of_them else cases[:2])
    ]
