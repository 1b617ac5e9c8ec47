"""Names of layouts and of ways to quantize, and the numbers that the C interface has for them."""

from __future__ import annotations

from typing import Any, Literal

from zbccl.errors import InvalidArgumentError

Layout = Literal["rank_major", "expert_major", "expert_masked"]
Quant = Literal["fp8", "fp8_pow2", "fp8_ue8m0", "int8"]

LAYOUTS = {"rank_major": 0, "expert_major": 1, "expert_masked": 2}
QUANTS = {None: 0, "fp8": 1, "fp8_pow2": 2, "fp8_ue8m0": 3, "int8": 4}


def choice(name: str, known: dict[Any, int], value: object) -> int:
    """The number of `value`; InvalidArgumentError for a name that is not known."""
    if value not in known:
        raise InvalidArgumentError(f"{name}: expected {', '.join(map(repr, known))}; got {value!r}")
    return known[value]
