"""The object that stands in the place of an engine's custom all-reduce."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zbccl.engines.peers import Peers

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


class Slot:
    """What vLLM and SGLang ask of a custom all-reduce, over zbccl.

    Any size is taken. Sums are in the order of the ranks, in eager calls and in graphs alike, so
    that the result does not depend on the batch. Capturing needs nothing before or after it, since
    a graph holds no address of a peer; in the warm-up before a capture the call is made as well.
    """

    peers: Peers | None

    def _take(self, peers: Peers, group: Any) -> None:
        self.peers = peers
        self.group = group
        self.device = peers.device
        self.rank = peers.rank
        self.world_size = peers.size
        self.disabled = False
        # Engines that ask for it go on to memory of the class that is replaced.
        self.fully_connected = False
        self._IS_CAPTURING = False

    def should_custom_ar(self, inp: torch.Tensor) -> bool:
        """Whether the call takes the tensor; the same on every rank for tensors of one shape."""
        peers = self.peers
        return peers is not None and inp.dtype in _FLOATS and inp.numel() > 0 and peers.serves(inp)

    def custom_all_reduce(self, input: torch.Tensor) -> torch.Tensor | None:
        """The sum in a new tensor; None where the engine is to take another way."""
        if self.peers is None or not self.should_custom_ar(input):
            return None
        return self.peers.all_reduce(input)

    @contextmanager
    def capture(self) -> Iterator[None]:
        self._IS_CAPTURING = True
        try:
            yield
        finally:
            self._IS_CAPTURING = False

    def close(self) -> None:
        peers, self.peers = getattr(self, "peers", None), None
        self.disabled = True
        if peers is not None:
            peers.release()

    def __del__(self) -> None:
        # At the end of the interpreter communicators are left by zbccl itself.
        if not sys.is_finalizing():
            self.close()
