"""The ranks of a buffer and their experts."""

from __future__ import annotations

import torch

from zbccl import moe
from zbccl.communicator import Communicator


class Ranks:
    """What both modes stand on."""

    def __init__(self, communicator: Communicator):
        self._communicator = communicator
        self.rank = communicator.rank
        self.group_size = communicator.size
        self._experts_by_number: dict[int, moe.Experts] = {}
        self._masked: set[int] = set()
        self._rank_tables: dict[tuple[int, torch.device], torch.Tensor] = {}

    def _experts(self, num_experts: int) -> moe.Experts:
        """Made when their number is first met, which is at the same call on every rank."""
        if num_experts not in self._experts_by_number:
            experts = moe.Experts(self._communicator, num_experts)
            for rank in self._masked:
                experts.set_mask(rank)
            self._experts_by_number[num_experts] = experts
        return self._experts_by_number[num_experts]

    def _mask(self, rank: int, masked: bool) -> None:
        """In what there is of experts, and in what will be."""
        if masked:
            self._masked.add(rank)
        else:
            self._masked.discard(rank)
        for experts in self._experts_by_number.values():
            experts.set_mask(rank, masked)
