"""Collectives along any dimension, as engines' group objects offer them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from zbccl.engines.peers import Peers
from zbccl.errors import InvalidArgumentError


def dimension(dim: int, x: torch.Tensor, call: str) -> int:
    """`dim`, counted from the first one."""
    if not -x.dim() <= dim < x.dim():
        raise InvalidArgumentError(f"{call}: dim is {dim}, but the tensor has {x.dim()} dimensions")
    return dim if dim >= 0 else dim + x.dim()


def all_gather(peers: Peers, x: torch.Tensor, dim: int) -> torch.Tensor:
    """Every rank's tensor, joined along `dim`."""
    dim = dimension(dim, x, "all_gather")
    out = x.new_empty((peers.size, *x.shape))
    peers.all_gather_into(out, x.contiguous())
    shape = list(x.shape)
    shape[dim] *= peers.size
    return out.movedim(0, dim).reshape(shape)


def all_gather_rows(
    peers: Peers, x: torch.Tensor, sizes: Sequence[int] | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Every rank's rows, one behind the other; `sizes` of them, or as many of each."""
    x = x.contiguous()
    rows = peers.size * x.shape[0] if sizes is None else sum(sizes)
    if sizes is not None:
        _check_sizes(peers, sizes, "all_gather")
        if x.shape[0] != sizes[peers.rank]:
            raise InvalidArgumentError(
                f"all_gather: the tensor has {x.shape[0]} rows, sizes say {sizes[peers.rank]}"
            )
    made = _output(out, x, rows, "all_gather")
    if sizes is None or all(size == sizes[0] for size in sizes):
        peers.all_gather_into(made, x)
    else:
        peers.all_gather_rows_into(made, x, sizes)
    return _delivered(made, out)


def reduce_scatter(
    peers: Peers,
    x: torch.Tensor,
    dim: int,
    sizes: Sequence[int] | None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """This rank's part of the sum along `dim`: `sizes` of it, or an equal part."""
    dim = dimension(dim, x, "reduce_scatter")
    rows = x.movedim(dim, 0).contiguous()
    if sizes is None:
        if rows.shape[0] % peers.size != 0:
            raise InvalidArgumentError(
                f"reduce_scatter: {rows.shape[0]} rows along dimension {dim} do not divide into "
                f"{peers.size} equal parts"
            )
        sizes = [rows.shape[0] // peers.size] * peers.size
    _check_sizes(peers, sizes, "reduce_scatter")
    if sum(sizes) != rows.shape[0]:
        raise InvalidArgumentError(
            f"reduce_scatter: the tensor has {rows.shape[0]} rows, sizes say {sum(sizes)}"
        )
    made = _output(out if dim == 0 else None, rows, sizes[peers.rank], "reduce_scatter")
    if all(size == sizes[0] for size in sizes):
        peers.reduce_scatter_into(made, rows)
    else:
        peers.reduce_scatter_rows_into(made, rows, sizes)
    moved = made.movedim(0, dim)
    return moved.contiguous() if out is None else _delivered(moved, out)


def gather(peers: Peers, x: torch.Tensor, root: int, dim: int) -> torch.Tensor | None:
    """Every rank's tensor, joined along `dim`, on the root; None elsewhere."""
    dim = dimension(dim, x, "gather")
    parts = peers.gather(x.contiguous(), root)
    return None if parts is None else torch.cat(parts, dim=dim)


def _check_sizes(peers: Peers, sizes: Sequence[int], call: str) -> None:
    if len(sizes) != peers.size:
        raise InvalidArgumentError(f"{call}: {len(sizes)} sizes for {peers.size} ranks")


def _output(out: torch.Tensor | None, x: torch.Tensor, rows: int, call: str) -> torch.Tensor:
    shape = (rows, *x.shape[1:])
    if out is None:
        return x.new_empty(shape)
    if tuple(out.shape) != shape or out.dtype is not x.dtype or out.device != x.device:
        raise InvalidArgumentError(
            f"{call}: the output is {tuple(out.shape)} of {out.dtype} on {out.device}, expected "
            f"{shape} of {x.dtype} on {x.device}"
        )
    return out if out.is_contiguous() else x.new_empty(shape)


def _delivered(made: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    if out is None or out is made or out.data_ptr() == made.data_ptr():
        return made if out is None else out
    return out.copy_(made)
