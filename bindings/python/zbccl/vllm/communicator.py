"""vLLM's device communicator, by zbccl."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from vllm.distributed.device_communicators.cuda_communicator import CudaCommunicator

from zbccl.engines import calls
from zbccl.engines.peers import SUMMED, Peers, join

_log = logging.getLogger("vllm.zbccl")


class Communicator(CudaCommunicator):  # type: ignore[misc]
    """zbccl's collectives where the group's ranks can join, else vLLM's, with one line in the log.

    vLLM's own communicators are made as well: for tensors that zbccl does not take, and for what
    is not here (all-to-all managers, weight transfer).
    """

    def __init__(self, cpu_group: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(cpu_group, *args, **kwargs)
        self.peers: Peers | None = None
        if self.world_size > 1:
            self.peers = join(cpu_group, self.device, f"group {self.unique_name}", "vLLM", _log)

    def all_reduce(self, input_: torch.Tensor) -> torch.Tensor:
        peers = self.peers
        x = input_ if input_.is_contiguous() else input_.contiguous()
        if peers is None or x.numel() == 0 or not peers.serves(x):
            theirs: torch.Tensor = super().all_reduce(input_)
            return theirs
        return peers.all_reduce(x)

    def all_gather(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        if self.peers is None or not self._moved(input_):
            theirs: torch.Tensor = super().all_gather(input_, dim)
            return theirs
        return calls.all_gather(self.peers, input_, dim)

    def all_gatherv(
        self,
        input_: torch.Tensor | list[torch.Tensor],
        dim: int = 0,
        sizes: Sequence[int] | None = None,
    ) -> Any:
        parts = [input_] if isinstance(input_, torch.Tensor) else input_
        peers = self.peers
        if peers is None or dim != 0 or not all(map(self._moved, parts)):
            return super().all_gatherv(input_, dim, sizes)
        made = [calls.all_gather_rows(peers, part, sizes) for part in parts]
        return made[0] if isinstance(input_, torch.Tensor) else made

    def reduce_scatter(self, input_: torch.Tensor, dim: int = -1) -> torch.Tensor:
        if self.peers is None or not self._summed(input_):
            theirs: torch.Tensor = super().reduce_scatter(input_, dim)
            return theirs
        return calls.reduce_scatter(self.peers, input_, dim, None)

    def reduce_scatterv(
        self, input_: torch.Tensor, dim: int = -1, sizes: Sequence[int] | None = None
    ) -> torch.Tensor:
        if self.peers is None or not self._summed(input_):
            theirs: torch.Tensor = super().reduce_scatterv(input_, dim, sizes)
            return theirs
        return calls.reduce_scatter(self.peers, input_, dim, sizes)

    def reduce_scatterv_into_output(
        self,
        input_: torch.Tensor,
        output: torch.Tensor,
        dim: int = -1,
        sizes: Sequence[int] | None = None,
    ) -> torch.Tensor:
        if self.peers is None or not self._summed(input_):
            theirs: torch.Tensor = super().reduce_scatterv_into_output(input_, output, dim, sizes)
            return theirs
        return calls.reduce_scatter(self.peers, input_, dim, sizes, output)

    def gather(self, input_: torch.Tensor, dst: int = 0, dim: int = -1) -> torch.Tensor | None:
        if self.peers is None or not self._moved(input_):
            theirs: torch.Tensor | None = super().gather(input_, dst, dim)
            return theirs
        return calls.gather(self.peers, input_, dst, dim)

    def send(self, tensor: torch.Tensor, dst: int | None = None) -> None:
        if self.peers is None or not self._moved(tensor):
            super().send(tensor, dst)
            return
        peer = (self.rank_in_group + 1) % self.world_size if dst is None else dst
        self.peers.send(tensor.contiguous(), peer)

    def recv(self, size: torch.Size, dtype: torch.dtype, src: int | None = None) -> torch.Tensor:
        made = torch.empty(size, dtype=dtype, device=self.device)
        if self.peers is None or not self._moved(made):
            theirs: torch.Tensor = super().recv(size, dtype, src)
            return theirs
        self.peers.recv_(made, (self.rank_in_group - 1) % self.world_size if src is None else src)
        return made

    def broadcast(self, tensor: torch.Tensor, src: int = 0) -> torch.Tensor:
        if self.peers is None or not self._moved(tensor) or not tensor.is_contiguous():
            theirs: torch.Tensor = super().broadcast(tensor, src)
            return theirs
        self.peers.broadcast_(tensor, src)
        return tensor

    def destroy(self) -> None:
        super().destroy()
        peers, self.peers = self.peers, None
        if peers is not None:
            peers.release()

    def _moved(self, x: torch.Tensor) -> bool:
        """Whether zbccl moves such a tensor; the same on every rank, whose sizes may differ."""
        return self.peers is not None and x.device == self.peers.device and x.dim() > 0

    def _summed(self, x: torch.Tensor) -> bool:
        return self._moved(x) and x.dtype in SUMMED
