"""What MoE dispatch and combine must give, in plain NumPy, one row after the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
GROUP = 128


@dataclass
class Row:
    """A row of a dispatch's output: where it comes from; source -1: no token fills it."""

    source: int = -1
    token: int = -1
    slot: int = -1
    expert: int = -1  # local


@dataclass
class World:
    """The routing of all ranks."""

    topk: list[Array]  # of each rank: (tokens, slots)
    expert_ranks: list[int]
    layout: str = "rank_major"
    alignment: int = 1
    capacity: int | None = None
    blocked: set[frozenset[int]] = field(default_factory=set)  # pairs of ranks

    def experts_of(self, rank: int) -> list[int]:
        return [e for e, owner in enumerate(self.expert_ranks) if owner == rank]

    def rank_of(self, expert: int) -> int:
        return -1 if expert < 0 else self.expert_ranks[expert]

    def slots(self, source: int, rank: int) -> list[tuple[int, int, int]]:
        """(token, slot, expert) of what goes from `source` to `rank`."""
        if frozenset((source, rank)) in self.blocked:
            return []
        return [
            (token, slot, int(expert))
            for (token, slot), expert in np.ndenumerate(self.topk[source])
            if self.rank_of(int(expert)) == rank
        ]


def rows_of(world: World, rank: int) -> list[Row]:
    """The rows of `rank`'s output in their order."""
    sources = range(len(world.topk))
    rows: list[Row] = []
    if world.layout == "rank_major":
        for source in sources:
            tokens = sorted({token for token, _, _ in world.slots(source, rank)})
            rows += [Row(source, token) for token in tokens]
        return _cut(rows, world.capacity)
    for local, expert in enumerate(world.experts_of(rank)):
        own = [
            Row(source, token, slot, local)
            for source in sources
            for token, slot, named in world.slots(source, rank)
            if named == expert
        ]
        if world.layout == "expert_masked":
            own = _cut(own, world.capacity)
        else:
            own += [Row()] * (-len(own) % world.alignment)
        rows += own
    return rows if world.layout == "expert_masked" else _cut(rows, world.capacity)


def _cut(rows: list[Row], capacity: int | None) -> list[Row]:
    if capacity is None:
        return rows
    return (rows + [Row()] * capacity)[:capacity]


def round_to(value: Array, dtype: Any) -> Array:
    """f32 to `dtype` and back."""
    return value.astype(dtype).astype(np.float32)


def codes_of(x: Array, quant: str) -> tuple[Array, Array]:
    """Codes and scales of rows (tokens, hidden) of f32: bytes, and f32 or i32."""
    if quant == "int8":
        most = np.maximum(np.abs(x).max(axis=1, initial=0, keepdims=True), np.float32(1e-10))
        scale = (most / np.float32(127)).astype(np.float32)
        return np.rint(x * (np.float32(1) / scale)).astype(np.int8), scale
    import ml_dtypes

    hidden = x.shape[1]
    groups = -(-hidden // GROUP)
    codes = np.empty(x.shape, np.uint8)
    scales = np.empty((x.shape[0], groups), np.float32)
    for group in range(groups):
        part = x[:, group * GROUP : (group + 1) * GROUP]
        most = np.maximum(np.abs(part).max(axis=1, initial=0), np.float32(1e-4))
        scale = most / np.float32(448)
        if quant != "fp8":
            fraction, exponent = np.frexp(scale)
            scale = np.ldexp(np.float32(1), exponent - (fraction == 0.5)).astype(np.float32)
        scales[:, group] = scale
        scaled = np.clip(part * (np.float32(1) / scale)[:, None], -448, 448)
        code = scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        codes[:, group * GROUP : (group + 1) * GROUP] = code
    if quant != "fp8_ue8m0":
        return codes, scales
    exponents = np.zeros((x.shape[0], -(-groups // 4) * 4), np.uint8)
    exponents[:, :groups] = scales.view(np.uint32) >> 23
    return codes, exponents.view(np.int32)


def combined(
    world: World,
    rank: int,
    outputs: list[Array],
    dtype: Any,
    *,
    weights: Array | None = None,
    biases: tuple[Array, ...] = (),
    pre_reduce: bool = False,
) -> Array:
    """f32 values, before the last rounding, of what `rank`'s tokens get. `outputs`: each rank's
    rows as f32, with the rows of all its experts one behind the other."""
    ranks = range(len(world.topk))
    places = [
        {(row.source, row.token, row.slot): i for i, row in enumerate(rows_of(world, r))}
        for r in ranks
    ]
    tokens, slots = world.topk[rank].shape
    hidden = outputs[0].shape[-1]
    result = np.zeros((tokens, hidden), np.float32)
    for bias in biases:
        result = bias.copy() if bias is biases[0] else result + bias
    for token in range(tokens):
        if world.layout == "rank_major":
            for r in ranks:
                if (i := places[r].get((rank, token, -1))) is not None:
                    result[token] += outputs[r][i]
            continue
        sums: dict[int, Array] = {}
        for slot in range(slots):
            r = world.rank_of(int(world.topk[rank][token, slot]))
            i = None if r < 0 else places[r].get((rank, token, slot))
            if i is None:
                continue
            weight = np.float32(1) if weights is None else weights[token, slot]
            product = weight * outputs[r][i]
            if pre_reduce:
                sums[r] = sums.get(r, np.zeros(hidden, np.float32)) + product
            else:
                result[token] += product
        for r in sorted(sums):
            result[token] += round_to(sums[r], dtype)
    return result
