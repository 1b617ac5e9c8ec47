"""What dispatch and combine bring, and what stands between their phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from zbccl import _zbccl
from zbccl.work import Timeout, milliseconds

T = TypeVar("T")


@dataclass(frozen=True)
class Dispatched(Generic[T]):
    """What a dispatch brought: tensors of the kind that `x` was, or those that were given.

    `x`: (rows, hidden), or (experts, capacity, hidden) of an expert_masked handle; `scales` of
    these rows, where there are any: (rows, scales) or (experts, capacity, scales). `topk_idx` and
    `topk_weights`, (rows, slots): the local expert or -1, and its weight or 0. `row_weights` and
    `src_idx`, (rows,) or (experts, capacity): the weight of the slot that a row stands for, and its
    token's number on its source rank. What was not asked for is None. Rows that no token fills have
    -1 and 0 there, but an expert_masked handle leaves them as they were without `zero_padding`.
    """

    x: T
    scales: T | None = None
    topk_idx: T | None = None
    topk_weights: T | None = None
    row_weights: T | None = None
    src_idx: T | None = None


@dataclass(frozen=True)
class Combined(Generic[T]):
    """A combine's outputs: `x`, (tokens, hidden), and `topk_weights`, (tokens, slots), or None."""

    x: T
    topk_weights: T | None = None


class Pending(Generic[T]):
    """A dispatch or a combine that was sent; its tensors belong to it until it is received."""

    def __init__(self, exchange: _zbccl.Exchange, output: T, owner: object):
        self._exchange = exchange
        self._output = output
        self._owner = owner

    def receive(self, timeout: Timeout = None) -> T:
        """Waits until the outputs are complete and returns them.

        In the order in which the calls were sent, once for each; a second time, or out of order,
        raises InvalidUsageError. A program that never receives keeps the tensors until the
        communicator is closed.
        """
        self._exchange.receive(milliseconds(timeout))
        return self._output

    @property
    def output(self) -> T:
        """The outputs, which are complete when they are received."""
        return self._output

    @property
    def received(self) -> bool:
        """Whether it was received."""
        return self._exchange.received
