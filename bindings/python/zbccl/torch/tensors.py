"""Tensors as PyTorch gives them, and as the native module takes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from zbccl import _zbccl
from zbccl.communicator import empty
from zbccl.errors import InvalidArgumentError

# What zbccl has arithmetic for.
NATIVE = frozenset(
    {
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int8,
        torch.uint8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    }
)
# Other elements are moved as integers of their size.
_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Finish = Callable[[], Any] | None


def _plain(x: torch.Tensor) -> bool:
    """Whether the native module takes `x` as it is."""
    return (
        x.layout is torch.strided
        and x.dtype in NATIVE
        and x.is_contiguous()
        and not x.requires_grad
        and not x.is_neg()
    )


def _require_dense(x: torch.Tensor) -> None:
    if x.layout is not torch.strided:
        raise InvalidArgumentError(
            f"zbccl works on dense tensors, not on {x.layout}: convert it with to_dense() or "
            "communicate its parts"
        )


def _as_native(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor's memory under a type that the native module knows."""
    if x.dtype in NATIVE:
        return x
    if x.is_complex():
        return torch.view_as_real(x)
    return x.view(_BY_SIZE[x.dtype.itemsize])


def readable(x: torch.Tensor) -> torch.Tensor:
    """`x`, or its contents in order where its memory is not that."""
    if _plain(x):
        return x
    _require_dense(x)
    return _as_native(x.detach().resolve_conj().resolve_neg().contiguous())


def writable(x: torch.Tensor, keep: bool = False) -> tuple[torch.Tensor, Finish]:
    """Memory that becomes `x`, and what makes it so, if anything: called when it is written.

    With `keep` it holds what `x` holds.
    """
    if _plain(x):
        return x, None
    _require_dense(x)
    target = x.detach()
    if target.is_contiguous() and not target.is_conj() and not target.is_neg():
        return _as_native(target), None
    if keep:
        copy = target.resolve_conj().resolve_neg().contiguous()
    else:
        copy = torch.empty(target.shape, dtype=target.dtype, device=target.device)
    return _as_native(copy), lambda: target.copy_(copy)


def flat(x: torch.Tensor) -> torch.Tensor:
    """A contiguous tensor in one dimension."""
    return x if x.dim() == 1 else x.view(-1)


def scratch(count: int, like: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """Memory for `count` elements: as the native module takes it, and as PyTorch sees it.

    From zbccl's pool, where peers reach it in place; in a graph that is being captured from
    PyTorch's, which keeps it for the replays.
    """
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        made = torch.empty(count, dtype=like.dtype, device=like.device)
        return made, made
    tensor: _zbccl.Tensor = empty(count, like.dtype, like.device)
    return tensor, tensor.torch()


def joined(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """One flat view of tensors that lie one behind the other in one storage, or None."""
    first = tensors[0]
    if first.numel() == 0:
        return None
    storage = first.untyped_storage().data_ptr()
    end = first.data_ptr()
    count = 0
    for x in tensors:
        if (
            x.dtype is not first.dtype
            or not _plain(x)
            or x.data_ptr() != end
            or x.untyped_storage().data_ptr() != storage
        ):
            return None
        end += x.nbytes
        count += x.numel()
    return first.as_strided((count,), (1,), first.storage_offset())


def gathered_in(tensors: Sequence[torch.Tensor], copy: bool = False) -> tuple[Any, torch.Tensor]:
    """The contents of `tensors`, one behind the other, in the two forms that `scratch` gives.

    It is their own memory where they lie like that, unless it is to be a copy.
    """
    there = None if copy else joined(tensors)
    if there is not None:
        return there, there
    parts = [flat(readable(x)) for x in tensors]
    sizes = [part.numel() for part in parts]
    made, view = scratch(sum(sizes), parts[0])
    for part, place in zip(parts, view.split(sizes), strict=True):
        place.copy_(part)
    return made, view


def spread_to(tensors: Sequence[torch.Tensor]) -> tuple[Any, Finish]:
    """Memory whose contents become those of `tensors`, one behind the other, and what does it."""
    there = joined(tensors)
    if there is not None:
        return there, None
    targets = [x.detach() for x in tensors]
    for x in targets:
        _require_dense(x)
    like = _like(targets[0])
    sizes = [numel(x) for x in targets]
    made, view = scratch(sum(sizes), like)

    def finish() -> None:
        for target, part in zip(targets, view.split(sizes), strict=True):
            if target.is_complex():
                target.copy_(torch.view_as_complex(part.view(*target.shape, 2)))
            else:
                target.copy_(part.view(target.dtype).view(target.shape))
        _ = made  # the memory stays until here

    return made, finish


def _like(x: torch.Tensor) -> torch.Tensor:
    """An empty tensor of the type that `x` is moved as."""
    return _as_native(torch.empty(0, dtype=x.dtype, device=x.device))


def numel(x: torch.Tensor) -> int:
    """Elements of `x` as it is moved: a complex number is two."""
    count: int = x.numel()
    return 2 * count if x.is_complex() else count
