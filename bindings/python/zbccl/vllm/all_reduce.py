"""vLLM's custom all-reduce of the tensor-parallel group, by zbccl."""

from __future__ import annotations

import logging
from typing import Any

import torch
from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce as Theirs

from zbccl.engines.peers import join
from zbccl.engines.slot import Slot

_log = logging.getLogger("vllm.zbccl")


class CustomAllreduce(Slot, Theirs):  # type: ignore[misc]
    """zbccl's where the group's ranks can join, else vLLM's own, with one line in the log."""

    def __init__(self, group: Any, device: Any, *args: Any, **kwargs: Any) -> None:
        self.peers = None
        place = torch.device(f"cuda:{device}" if isinstance(device, int) else device)
        peers = join(group, place, "the group of custom all-reduce", "vLLM", _log)
        if peers is None:
            Theirs.__init__(self, group, device, *args, **kwargs)
            return
        self._take(peers, group)
        # What vLLM's models read of it: no memory of multicast objects, no own C++ object.
        self._ptr = 0
        self.mnnvl_only = False
        self.mnnvl_multicast_ptr = 0
        self.mnnvl_lamport_ag_multicast_ptr = 0
        self.mnnvl_multimem_rs_multicast_ptr = 0

    def should_custom_ar(self, inp: torch.Tensor) -> bool:
        if self.peers is None:
            return bool(Theirs.should_custom_ar(self, inp))
        return Slot.should_custom_ar(self, inp)

    def custom_all_reduce(self, input: torch.Tensor) -> torch.Tensor | None:
        if self.peers is None:
            made: torch.Tensor | None = Theirs.custom_all_reduce(self, input)
            return made
        return Slot.custom_all_reduce(self, input)

    def capture(self) -> Any:
        return Theirs.capture(self) if self.peers is None else Slot.capture(self)

    def register_graph_buffers(self) -> None:
        if self.peers is None:
            Theirs.register_graph_buffers(self)

    def should_custom_all_gather(self, inp: torch.Tensor) -> bool:
        if self.peers is None:
            return bool(Theirs.should_custom_all_gather(self, inp))
        return self.should_custom_ar(inp) and inp.dim() > 0

    def custom_all_gather(self, inp: torch.Tensor) -> torch.Tensor | None:
        if self.peers is None:
            theirs: torch.Tensor | None = Theirs.custom_all_gather(self, inp)
            return theirs
        if not self.should_custom_all_gather(inp):
            return None
        out = inp.new_empty((inp.shape[0] * self.world_size, *inp.shape[1:]))
        self.peers.all_gather_into(out, inp)
        return out

    def should_custom_reduce_scatter(self, inp: torch.Tensor) -> bool:
        if self.peers is None:
            return bool(Theirs.should_custom_reduce_scatter(self, inp))
        return self.should_custom_all_gather(inp) and inp.shape[0] % self.world_size == 0

    def should_mnnvl_multimem_reduce_scatter(self, inp: torch.Tensor) -> bool:
        if self.peers is None:
            return bool(Theirs.should_mnnvl_multimem_reduce_scatter(self, inp))
        return False

    def custom_reduce_scatter(self, inp: torch.Tensor) -> torch.Tensor | None:
        if self.peers is None:
            theirs: torch.Tensor | None = Theirs.custom_reduce_scatter(self, inp)
            return theirs
        if not self.should_custom_reduce_scatter(inp):
            return None
        out = inp.new_empty((inp.shape[0] // self.world_size, *inp.shape[1:]))
        self.peers.reduce_scatter_into(out, inp)
        return out

    def close(self) -> None:
        if getattr(self, "peers", None) is not None:
            Slot.close(self)
        elif hasattr(self, "disabled"):
            # Also after a join: a closed slot is disabled, which is all that vLLM's looks at.
            Theirs.close(self)
