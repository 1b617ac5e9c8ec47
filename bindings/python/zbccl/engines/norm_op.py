"""All-reduce fused with RMSNorm as an operator of PyTorch, for compiled models.

torch.ops.zbccl.all_reduce_rms_norm(x, residual, weight, eps, group) gives the normalised rows and
the sum plus the residual, in new tensors. `group` is the name that `serve` was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zbccl.engines.peers import MAX_HIDDEN, Peers
from zbccl.errors import InvalidUsageError

_served: dict[str, Peers] = {}
_library = torch.library.Library("zbccl", "FRAGMENT")
_library.define(
    "all_reduce_rms_norm(Tensor x, Tensor? residual, Tensor weight, float eps, str group)"
    " -> (Tensor, Tensor)"
)


def serve(group: str, peers: Peers) -> None:
    """From here on the operator works for `group` in this process."""
    _served[group] = peers


def fits(values: Sequence[Any]) -> bool:
    """Whether the operator takes tensors with these types and row lengths: all alike."""
    first = values[0] if values else None
    return (
        first is not None
        and first.dtype in (torch.bfloat16, torch.float16)
        and all(value.dtype is first.dtype for value in values)
        and all(isinstance(value.shape[-1], int) for value in values)
        and all(value.shape[-1] == first.shape[-1] for value in values)
        and first.shape[-1] % 8 == 0
        and first.shape[-1] <= MAX_HIDDEN
    )


def _meta(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = x.shape
    return x.new_empty(shape), x.new_empty(shape)


def _run(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float, group: str
) -> tuple[torch.Tensor, torch.Tensor]:
    peers = _served.get(group)
    if peers is None:
        raise InvalidUsageError(
            f"zbccl::all_reduce_rms_norm: no group {group!r} is served in this process"
        )
    if x.numel() == 0:
        return _meta(x, residual, weight, eps, group)
    rest = None if residual is None else _aligned(residual)
    return peers.all_reduce_rms_norm(_aligned(x), rest, _aligned(weight), eps)


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """The tensor without gaps and on 16 bytes, as zbccl's kernels load it; seldom a copy."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


for _key in ("CPU", "CUDA"):
    _library.impl("all_reduce_rms_norm", _run, _key)
_library.impl("all_reduce_rms_norm", _meta, "Meta")
call = torch.ops.zbccl.all_reduce_rms_norm.default
