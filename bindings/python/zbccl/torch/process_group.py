"""The process group that torch.distributed works with."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import weakref
from datetime import timedelta
from multiprocessing import util
from typing import Any

import torch
import torch.distributed as dist

from zbccl import get_unique_id
from zbccl.communicator import Communicator
from zbccl.errors import Error, InvalidUsageError, UnsupportedError
from zbccl.rendezvous import init
from zbccl.torch.errors import for_torch
from zbccl.torch.messages import Messages
from zbccl.torch.movements import Movements
from zbccl.torch.watcher import Watcher
from zbccl.torch.work import milliseconds

_open: weakref.WeakSet[ProcessGroup] = weakref.WeakSet()
_DEVICES = (torch.device("cpu"), torch.device("cuda"))


class Options:
    """What torch.distributed asks of a back end's options."""

    def __init__(self, timeout: timedelta):
        self.backend = "zbccl"
        self._timeout = timeout


class ProcessGroup(Movements, Messages, dist.ProcessGroup):  # type: ignore[misc]
    """One rank's place in a group, made by torch.distributed.init_process_group and new_group.

    Serves tensors in host memory and on one CUDA device. Any thread may call; calls of several
    threads take turns.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        size: int,
        timeout: timedelta,
        name: str,
        communicators: tuple[Communicator, Communicator | None],
    ):
        super().__init__(rank, size)
        self._store = store
        self._name = name
        self._desc = ""
        self.options = Options(timeout)
        self._timeout_ms = 0
        self._host, self._device = communicators
        self._lock = threading.Lock()
        self._watcher = Watcher(f"zbccl-torch-{name}")
        self._aside = None
        self._message_aside = None
        self._batch = None
        self._collected = None
        self._sequence = 0
        _leave_at_exit()
        _open.add(self)

    # ---- the group's devices

    def _connect_device(self, device: torch.device) -> Communicator:
        """Makes the communicator of the ranks' CUDA devices; every rank does at the same call."""
        try:
            self._device = _meet(
                self._store, "cuda", self.rank(), self.size(), self.options._timeout, device.index
            )
        except Error as error:
            raise for_torch(error) from None
        return self._device

    def eager_connect_single_device(self, device: torch.device | None) -> None:
        """Collective: the device of init_process_group's device_id."""
        if device is None or device.type != "cuda":
            return
        if self._device is not None and self._device.device != f"cuda:{device.index}":
            raise InvalidUsageError(
                f"the group works on {self._device.device} already, not on {device}: call "
                "torch.cuda.set_device with the device that you pass"
            )
        self.bound_device_id = device
        if self._device is None:
            self._connect_device(device)

    supports_splitting = True
    supports_coalescing = True
    supports_time_estimate = False
    supports_shrinking = False

    def supports_tensor_alloc(self, device: torch.device) -> bool:
        return False

    def perform_nocolor_split(self, device: torch.device) -> None:
        """Groups meet by themselves, so those who stay out have nothing to do."""

    @property
    def _device_types(self) -> list[torch.device]:
        return list(_DEVICES)

    def _get_backend(self, device: torch.device) -> ProcessGroup:
        if torch.device(device).type not in ("cpu", "cuda"):
            raise RuntimeError(f"zbccl serves cpu and cuda tensors, not {device}")
        return self

    # ---- names and numbers

    def name(self) -> str:
        return "zbccl"

    def getBackendName(self) -> str:
        return "zbccl"

    _get_backend_name = getBackendName

    def getGroupName(self) -> str:
        return self._name

    def setGroupName(self, name: str) -> None:
        self._name = name

    _set_group_name = setGroupName
    group_name = property(getGroupName)

    def getGroupDesc(self) -> str:
        return self._desc

    def setGroupDesc(self, desc: str) -> None:
        self._desc = desc

    _set_group_desc = setGroupDesc
    group_desc = property(getGroupDesc)

    def get_group_store(self) -> Any:
        return self._store

    def _set_sequence_number_for_group(self) -> None:
        self._sequence = 0

    def _get_sequence_number_for_group(self) -> int:
        return self._sequence

    def set_timeout(self, timeout: timedelta) -> None:
        """Of the calls from here on that give none themselves."""
        self.options._timeout = timeout
        self._timeout_ms = milliseconds(timeout)

    _set_default_timeout = set_timeout

    # ---- life

    def split_group(
        self,
        new_ranks: list[int],
        timeout: timedelta | None = None,
        opts: Any = None,
        group_name: str | None = None,
        group_desc: str | None = None,
        device_types: Any = None,
    ) -> ProcessGroup | None:
        """Collective: the ranks of `new_ranks`, of this group, in their order; None to others.

        Ranks that make different groups of it call at the same time, with lists that do not
        overlap.
        """
        ranks = list(new_ranks)
        mine = self.rank() in ranks
        color, key = (ranks[0], ranks.index(self.rank())) if mine else (-1, 0)
        limit = timeout or self.options._timeout
        with self._lock:
            try:
                host = self._host.split(color, key, timeout=limit)
                device = self._host if self._device is self._host else None
                if self._device is not None and device is None:
                    device = self._device.split(color, key, timeout=limit)
                elif device is not None:
                    device = host
            except Error as error:
                raise for_torch(error) from None
        if host is None:
            return None
        name = group_name or f"{self._name}:split:{'-'.join(map(str, ranks))}"
        made = ProcessGroup(
            dist.PrefixStore(f"{name}/", self._store),
            key,
            len(ranks),
            limit,
            name,
            (host, device),
        )
        made.setGroupDesc(group_desc or "")
        return made

    def merge_remote_group(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedError(
            "merge_remote_group: zbccl's groups keep their ranks; make a new one"
        )

    def _communicators(self) -> list[Communicator]:
        if self._device is None or self._device is self._host:
            return [self._host]
        return [self._host, self._device]

    def abort(self) -> None:
        """Ends every wait of the group, here and on the other ranks, with AbortedError."""
        for communicator in self._communicators():
            with contextlib.suppress(Error):
                if not communicator.closed:
                    communicator.abort()

    def shutdown(self) -> None:
        """Waits for this rank's operations and leaves the group."""
        for communicator in self._communicators():
            # What went wrong before has been reported by the calls that it went wrong in.
            with contextlib.suppress(Error):
                communicator.close()
        self._watcher.close()
        _open.discard(self)


def _meet(
    store: Any, what: str, rank: int, size: int, timeout: timedelta, device: object
) -> Communicator:
    """A communicator of all ranks, which pass the id of their meeting through PyTorch's store."""
    key = _fresh(store, what, rank)
    if rank == 0:
        unique_id = str(get_unique_id())
        store.set(key, unique_id)
    else:
        unique_id = store.get(key).decode()
    return init(rank, size, unique_id, timeout, init_timeout=timeout, device=device)


def _fresh(store: Any, what: str, rank: int) -> str:
    """A key for `what` that no earlier group used: torchrun's store outlives the groups."""
    return f"zbccl/{what}/{store.add(f'zbccl/{what}/of/{rank}', 1)}"


def _device_plan(store: Any, rank: int, size: int) -> int | None:
    """This rank's CUDA device, if all ranks have chosen one, each its own; else None."""
    mine = ""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        ordinal = torch.cuda.current_device()
        identity = getattr(torch.cuda.get_device_properties(ordinal), "uuid", ordinal)
        mine = f"{socket.gethostname()} {identity}"
    if size == 1:
        return torch.cuda.current_device() if mine else None
    key = _fresh(store, "plan", rank)
    store.set(f"{key}/{rank}", mine or "none")
    if rank == 0:
        theirs = [store.get(f"{key}/{r}").decode() for r in range(size)]
        good = "none" not in theirs and len(set(theirs)) == size
        store.set(key, "cuda" if good else "cpu")
    plan = store.get(key).decode()
    return torch.cuda.current_device() if plan == "cuda" else None


def create(opts: Any, backend_options: Any = None) -> ProcessGroup:
    """What torch.distributed calls for the back end "zbccl"; collective."""
    rank, size, store, timeout = opts.group_rank, opts.group_size, opts.store, opts.timeout
    device = _device_plan(store, rank, size)
    try:
        communicator = _meet(
            store, "host", rank, size, timeout, "cpu" if device is None else device
        )
    except Error as error:
        raise for_torch(error) from None
    return ProcessGroup(
        store,
        rank,
        size,
        timeout,
        str(opts.group_id),
        (communicator, None if device is None else communicator),
    )


def _leave() -> None:
    for group in list(_open):
        with contextlib.suppress(Error):
            if group._host._native.busy:
                group.abort()
        group.shutdown()


@functools.cache
def _exit_hook(process: int) -> object:
    return util.Finalize(None, _leave, exitpriority=100)


def _leave_at_exit() -> None:
    """Groups that are still open when the process ends are left in order.

    multiprocessing's children, which PyTorch's launchers start, call nothing of atexit.
    """
    _exit_hook(os.getpid())


__all__ = ["Options", "ProcessGroup", "create"]
