"""The collectives of SGLang's groups, by zbccl.

The hooks stand under SGLang's custom operators, so that compiled models and graphs see no change.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from zbccl.engines import calls
from zbccl.engines.peers import SUMMED, Peers, join
from zbccl.sglang.hooks import Hook, register

_TARGET = "sglang.srt.distributed.parallel_state.GroupCoordinator"
_ATTRIBUTE = "zbccl_peers"
_log = logging.getLogger("sglang.srt.zbccl")
Original = Callable[..., Any]


def hook_coordinator() -> None:
    """Registers the hooks of every group that is made from here on."""
    bodies: dict[str, Callable[..., Any]] = {
        "destroy": _destroy,
        "_all_reduce_in_place": _all_reduce,
        "_all_gather_into_tensor": _all_gather,
        "_reduce_scatter_tensor": _reduce_scatter,
        "_all_to_all_single": _all_to_all,
        "all_gatherv": _all_gather_rows,
        "reduce_scatterv": _reduce_scatter_rows,
        "gather": _gather,
        "broadcast": _broadcast,
    }
    around = [Hook(f"{_TARGET}.{name}", body) for name, body in bodies.items()]
    register([Hook(f"{_TARGET}.__init__", _made, "AFTER"), *around])


def peers_of(group: Any) -> Peers | None:
    """The peers of a GroupCoordinator, if zbccl serves it."""
    peers: Peers | None = getattr(group, _ATTRIBUTE, None)
    return peers


def _made(result: Any, group: Any, *args: Any, **kwargs: Any) -> None:
    if group.world_size > 1:
        peers = join(group.cpu_group, group.device, f"group {group.unique_name}", "SGLang", _log)
        setattr(group, _ATTRIBUTE, peers)


def _destroy(original: Original, group: Any) -> None:
    peers = peers_of(group)
    setattr(group, _ATTRIBUTE, None)
    if peers is not None:
        peers.release()
    original(group)


def _moving(group: Any, *tensors: torch.Tensor) -> Peers | None:
    """The peers, if they move these tensors as they lie."""
    peers = peers_of(group)
    if peers is None:
        return None
    fit = all(x.device == peers.device and x.is_contiguous() for x in tensors)
    return peers if fit else None


def _summing(group: Any, *tensors: torch.Tensor) -> Peers | None:
    """The same for sums."""
    return _moving(group, *tensors) if all(x.dtype in SUMMED for x in tensors) else None


def _all_reduce(original: Original, group: Any, input_: torch.Tensor) -> None:
    peers = _summing(group, input_)
    if peers is None:
        original(group, input_)
    else:
        peers.all_reduce_(input_)


def _all_gather(original: Original, group: Any, output: torch.Tensor, input: torch.Tensor) -> Any:
    peers = _moving(group, output, input)
    if peers is None:
        return original(group, output, input)
    peers.all_gather_into(output, input)
    return None


def _reduce_scatter(
    original: Original, group: Any, output: torch.Tensor, input: torch.Tensor
) -> Any:
    peers = _summing(group, output, input)
    if peers is None:
        return original(group, output, input)
    peers.reduce_scatter_into(output, input)
    return output


def _all_to_all(original: Original, group: Any, output: torch.Tensor, input: torch.Tensor) -> Any:
    peers = _moving(group, output, input)
    if peers is None:
        return original(group, output, input)
    peers.all_to_all_into(output, input)
    return None


def _all_gather_rows(
    original: Original,
    group: Any,
    input_: torch.Tensor | list[torch.Tensor],
    sizes: Sequence[int] | None = None,
    output: torch.Tensor | None = None,
) -> Any:
    parts = [input_] if isinstance(input_, torch.Tensor) else input_
    peers = _moving(group, *parts)
    if peers is None or (output is not None and len(parts) != 1):
        return original(group, input_, sizes, output)
    # A list for one tensor too, as SGLang gives it.
    return [calls.all_gather_rows(peers, part, sizes, output) for part in parts]


def _reduce_scatter_rows(
    original: Original,
    group: Any,
    input_: torch.Tensor,
    output: torch.Tensor | None = None,
    sizes: Sequence[int] | None = None,
) -> Any:
    peers = _summing(group, input_)
    if peers is None:
        return original(group, input_, output, sizes)
    return calls.reduce_scatter(peers, input_, 0, sizes, output)


def _gather(
    original: Original, group: Any, input_: torch.Tensor, dst: int = 0, dim: int = -1
) -> Any:
    peers = _moving(group, input_)
    if peers is None or input_.dim() == 0:
        return original(group, input_, dst, dim)
    return calls.gather(peers, input_, dst, dim)


def _broadcast(original: Original, group: Any, input_: torch.Tensor, src: int = 0) -> Any:
    peers = _moving(group, input_)
    if peers is None:
        return original(group, input_, src)
    peers.broadcast_(input_, src)
    return input_
