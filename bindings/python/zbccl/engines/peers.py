"""The ranks of an engine's group as peers of zbccl, and what engines ask of them."""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections.abc import Sequence
from logging import Logger
from typing import Any

import torch
import torch.distributed as dist

from zbccl._zbccl import get_unique_id
from zbccl.communicator import Communicator
from zbccl.engines.takeovers import Unavailable
from zbccl.errors import Error
from zbccl.rendezvous import init

# Element types that engines add up over ranks; the others are moved as bytes.
SUMMED = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    + (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)
)
MAX_HIDDEN = 16384  # all_reduce_rms_norm's bound
# Back ends of torch.distributed that pass objects between hosts' memories, and lose no rank.
_PASSING = ("gloo", "zbccl")
_lock = threading.Lock()
_of_group: weakref.WeakKeyDictionary[Any, Peers] = weakref.WeakKeyDictionary()
_refused: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class Peers:
    """One rank's communicator with the other ranks of a group, shared by all that serve the group.

    Any thread may call; calls take turns, and every rank has to make them in the same order.
    Tensors lie on `device`. Calls on CUDA tensors are enqueued on the current stream, and can be
    captured in graphs. A call that fails raises zbccl's error: ranks cannot go back to another way
    then, since some of them may have finished.
    """

    def __init__(self, communicator: Communicator, device: torch.device):
        self.communicator = communicator
        self.device = device
        self.rank = communicator.rank
        self.size = communicator.size
        self._turn = threading.Lock()
        self._users = 0

    def serves(self, x: torch.Tensor) -> bool:
        """Whether reductions take the tensor as it is: its device, type and layout."""
        return x.device == self.device and x.dtype in SUMMED and x.is_contiguous()

    def serves_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor
    ) -> bool:
        """Whether all_reduce_rms_norm takes them: rows of bf16 or f16, all of one type."""
        tensors = [x, weight] if residual is None else [x, weight, residual]
        hidden = x.shape[-1] if x.dim() else 0
        return (
            x.dtype in (torch.bfloat16, torch.float16)
            and 0 < hidden <= MAX_HIDDEN
            and hidden % 8 == 0
            and x.numel() > 0
            and weight.shape == (hidden,)
            and (residual is None or residual.shape == x.shape)
            and all(
                y.dtype is x.dtype and self.serves(y) and y.data_ptr() % 16 == 0 for y in tensors
            )
        )

    # ---- reductions, of sums

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum, in a new tensor; `x` is only read."""
        out = torch.empty_like(x)
        with self._turn:
            self.communicator.all_reduce(x, out=out)
        return out

    def all_reduce_(self, x: torch.Tensor) -> None:
        """The sum, in place."""
        with self._turn:
            self.communicator.all_reduce(x)

    def reduce_scatter_into(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """This rank's part of the sum of `x`, whose parts lie one behind the other."""
        with self._turn:
            self.communicator.reduce_scatter(x.view(-1), out=out.view(-1))

    def reduce_scatter_rows_into(
        self, out: torch.Tensor, x: torch.Tensor, sizes: Sequence[int]
    ) -> None:
        """The same of rows along the first dimension, `sizes[r]` of them for rank r."""
        width = _row(x)
        with self._turn:
            self.communicator.reduce_scatter_v(
                x.view(-1), [size * width for size in sizes], out=out.view(-1)
            )

    def all_reduce_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(normalised rows, sum plus residual), both new; see Communicator.all_reduce_rms_norm."""
        out, total = torch.empty_like(x), torch.empty_like(x)
        with self._turn:
            self.communicator.all_reduce_rms_norm(
                x, weight, residual=residual, eps=eps, out=out, residual_out=total
            )
        return out, total

    # ---- movements, of any element type

    def all_gather_into(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """Every rank's `x`, one behind the other."""
        with self._turn:
            self.communicator.all_gather(_plain(x), out=_plain(out))

    def all_gather_rows_into(
        self, out: torch.Tensor, x: torch.Tensor, sizes: Sequence[int]
    ) -> None:
        """The same of rows along the first dimension, `sizes[r]` of them from rank r."""
        source, target = _plain(x), _plain(out)
        width = _row(x) * (x.element_size() // source.element_size())
        with self._turn:
            self.communicator.all_gather_v(source, [size * width for size in sizes], out=target)

    def all_to_all_into(self, out: torch.Tensor, x: torch.Tensor) -> None:
        """Part r of `x` goes to rank r, whose part of this rank's number it becomes in `out`."""
        with self._turn:
            self.communicator.all_to_all(_plain(x), out=_plain(out))

    def gather(self, x: torch.Tensor, root: int) -> list[torch.Tensor] | None:
        """Every rank's `x` on the root; None elsewhere."""
        out = x.new_empty((self.size, *x.shape)) if self.rank == root else None
        with self._turn:
            self.communicator.gather(_plain(x), root, out=None if out is None else _plain(out))
        return None if out is None else list(out.unbind(0))

    def broadcast_(self, x: torch.Tensor, root: int) -> None:
        """The root's `x`, in place on the others."""
        with self._turn:
            self.communicator.broadcast(_plain(x), root)

    def send(self, x: torch.Tensor, peer: int) -> None:
        with self._turn:
            self.communicator.send(_plain(x), peer)

    def recv_(self, x: torch.Tensor, peer: int) -> None:
        with self._turn:
            self.communicator.recv(_plain(x), peer)

    # ---- life

    def release(self) -> None:
        """Ends one use of those that `join` gave out; the last one leaves the group.

        Waits for this rank's work, never raises, and may be called when the interpreter ends.
        """
        with _lock:
            self._users -= 1
            if self._users > 0:
                return
            for group, peers in list(_of_group.items()):
                if peers is self:
                    del _of_group[group]
        with contextlib.suppress(Error):
            self.communicator.close()


def _row(x: torch.Tensor) -> int:
    return math.prod(x.shape[1:])


def _plain(x: torch.Tensor) -> torch.Tensor:
    """The elements in a row, as bytes where zbccl lacks the type; a movement does not mind."""
    row = x.view(-1)
    return row if x.dtype in SUMMED else row.view(torch.uint8)


def join(group: Any, device: torch.device, name: str, engine: str, log: Logger) -> Peers | None:
    """The peers of a torch.distributed group, or None: the group is left to the engine. Collective.

    The group's back end is one that passes objects, gloo or zbccl. Peers are made once for a group
    and shared; each call is one use, which `release` ends. None on every rank alike, where one of
    them cannot take part (on another machine, say); the first rank then says why, once.
    `name` is what the log calls the group.
    """
    with _lock:
        known = _of_group.get(group)
        if known is not None and known.device == device and not known.communicator.closed:
            known._users += 1
            return known
        if group in _refused:
            return None
    reason = _unfit(group)
    if reason is None:
        try:
            made = _meet(group, device)
        except Unavailable as unavailable:
            reason = str(unavailable)
    with _lock:
        if reason is None:
            made._users += 1
            _of_group[group] = made
            if made.rank == 0:
                log.info("zbccl serves %s: %d ranks, %s", name, made.size, device)
            return made
        _refused[group] = reason
    if group.rank() == 0:
        log.warning("zbccl: %s is left to %s: %s", name, engine, reason)
    return None


def _unfit(group: Any) -> str | None:
    if group not in dist.distributed_c10d._world.pg_map:
        return "it is not one of torch.distributed's"
    backend = str(dist.get_backend(group))
    if backend not in _PASSING:
        return f"its back end {backend} is none of {', '.join(_PASSING)}"
    return None


def _meet(group: Any, device: torch.device) -> Peers:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    first = dist.get_global_rank(group, 0)
    # Rank 0 may fail to make an id; the others have to hear of it, and not wait.
    offer: list[tuple[str | None, str | None]] = [(None, None)]
    if rank == 0:
        try:
            offer = [(str(get_unique_id()), None)]
        except Error as error:
            offer = [(None, str(error))]
    communicator, complaint = None, None
    with torch.inference_mode(False):
        dist.broadcast_object_list(offer, src=first, group=group)
        unique_id, complaint = offer[0]
        if unique_id is not None:
            try:
                communicator = init(
                    rank, size, unique_id, device="cpu" if device.type == "cpu" else device
                )
            except Error as error:
                complaint = str(error)
        complaints: list[str | None] = [None] * size
        dist.all_gather_object(complaints, complaint, group=group)
    for r, text in enumerate(complaints):
        if text is not None:
            if communicator is not None:
                with contextlib.suppress(Error):
                    communicator.abort()
                    communicator.close()
            raise Unavailable(f"rank {r} of {size} cannot join: {text}")
    assert communicator is not None
    return Peers(communicator, device)
