"""SGLang's custom all-reduce, by zbccl."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from zbccl.engines.peers import Peers, join
from zbccl.engines.slot import Slot
from zbccl.sglang.hooks import Hook, register

_log = logging.getLogger("sglang.srt.zbccl")


class CustomAllreduce(Slot):
    """What a group's `ca_comm` is where zbccl serves the group."""

    def __init__(self, group: Any, peers: Peers):
        self._take(peers, group)


def hook_slot() -> None:
    """Registers the choice of every custom all-reduce that is made from here on."""
    module = "sglang.srt.distributed.device_communicators.custom_all_reduce"
    register([Hook(f"{module}.dispatch_custom_allreduce", _choose)])


def _choose(original: Callable[..., Any], group: Any, device: torch.device) -> Any:
    """What makes the group's custom all-reduce: zbccl's, or what SGLang would have chosen."""
    peers = join(group, device, "the group of custom all-reduce", "SGLang", _log)
    if peers is None:
        return original(group=group, device=device)
    served = peers

    def make(group: Any, device: torch.device) -> CustomAllreduce:
        return CustomAllreduce(group, served)

    return make
