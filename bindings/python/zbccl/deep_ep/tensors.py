"""What every call does with the tensors and events it is given."""

from __future__ import annotations

import torch

from zbccl.communicator import empty
from zbccl.deep_ep.event import EventHandle, EventOverlap
from zbccl.errors import InvalidArgumentError


def bare(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """The tensor without autograd's marks; InvalidArgumentError for one that is elsewhere."""
    if tensor.device.type not in ("cpu", "cuda"):
        raise InvalidArgumentError(f"{name} is on {tensor.device}; expected the CPU or a GPU")
    return tensor.detach()


def bare_or_none(tensor: torch.Tensor | None, name: str) -> torch.Tensor | None:
    return None if tensor is None else bare(tensor, name)


def new(shape: int | tuple[int, ...], dtype: str, device: torch.device) -> torch.Tensor:
    """A tensor of the pool, which peers reach where it is."""
    where = "cpu" if device.type == "cpu" else f"cuda:{device.index}"
    made: torch.Tensor = empty(shape, dtype, device=where).torch()
    return made


def check_shape(tensor: torch.Tensor, shape: tuple[int, ...], name: str) -> None:
    if tuple(tensor.shape) != shape:
        raise InvalidArgumentError(f"{name} has shape {tuple(tensor.shape)}; expected {shape}")


def begin(
    previous_event: EventOverlap | EventHandle | None,
    async_finish: bool,
    allocate_on_comm_stream: bool = False,
) -> None:
    """Checks DeepEP's rules for streams, and waits for what the call comes after."""
    if allocate_on_comm_stream and (previous_event is None or not async_finish):
        raise InvalidArgumentError(
            "allocate_on_comm_stream needs previous_event and async_finish=True"
        )
    if isinstance(previous_event, EventOverlap):
        previous_event = previous_event.event
    if previous_event is not None:
        previous_event.current_stream_wait()
