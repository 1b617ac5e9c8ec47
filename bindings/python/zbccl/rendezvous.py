"""How ranks find each other."""

from __future__ import annotations

from typing import Literal

from zbccl import _zbccl
from zbccl.communicator import Communicator
from zbccl.devices import communicator_device
from zbccl.errors import InvalidArgumentError
from zbccl.work import Timeout, milliseconds

Wait = Literal["auto", "spin", "sleep"]
_WAITS = {"auto": 0, "spin": 1, "sleep": 2}


class Store:
    """A key-value store that ranks can meet in. Any thread."""

    _native: _zbccl.Store


class LocalStore(Store):
    """A store inside this process, for ranks that are threads; they share the object."""

    def __init__(self) -> None:
        self._native = _zbccl.local_store()


class C10dStore(Store):
    """A client of the store that torchrun (torch.distributed.TCPStore) serves at `host`:`port`.

    A secret that is passed through it is as private as that store.
    """

    def __init__(self, host: str, port: int) -> None:
        self._native = _zbccl.c10d_store(host, port)


def _config(
    timeout: Timeout, init_timeout: Timeout, wait: Wait, device: object, max_blocks: int
) -> tuple[int, int, int, int, int]:
    if wait not in _WAITS:
        raise InvalidArgumentError(f"wait: expected {', '.join(_WAITS)}, got {wait!r}")
    if max_blocks < 0:
        raise InvalidArgumentError(f"max_blocks: expected 0 or more, got {max_blocks}")
    return (
        milliseconds(timeout),
        milliseconds(init_timeout, "init_timeout"),
        _WAITS[wait],
        communicator_device(device),
        max_blocks,
    )


def init(
    rank: int | None = None,
    world_size: int | None = None,
    unique_id: _zbccl.UniqueId | str | None = None,
    timeout: Timeout = None,
    *,
    init_timeout: Timeout = None,
    wait: Wait = "auto",
    device: object = None,
    max_blocks: int = 0,
) -> Communicator:
    """Joins the other ranks and returns this rank's communicator. Collective.

    With no rank, world_size and unique_id they come from the environment: ZBCCL_RANK,
    ZBCCL_WORLD_SIZE and ZBCCL_UNIQUE_ID, torchrun, Slurm, Open MPI or MPICH, in that order; with
    none of these it is a communicator of one rank. Otherwise all three are given: the id is one
    rank's `get_unique_id()`, passed to the others (as the object, or as its str).

    `timeout` is the deadline of every wait in seconds (None: ZBCCL_TIMEOUT, 10 minutes),
    `init_timeout` that of this call (None: ZBCCL_INIT_TIMEOUT, 5 minutes). `wait` says how a rank
    waits: "spin", "sleep", or "auto" by the number of cores. `device` is this rank's CUDA device
    ("cuda:1", an ordinal, a torch.device), or "cpu" for host memory only; None stands for PyTorch's
    current device where the program uses CUDA with PyTorch, else for "cpu". All ranks have a device
    or none has. `max_blocks` limits the thread blocks of every call there; 0 leaves them to the
    library.

    No global state is set: each call makes one communicator, and the caller keeps it. Ctrl-C ends
    the call. A wrong world size, a duplicate rank or a version mismatch raises on every rank.
    Follows ncclCommInitRank and
    torch.distributed.init_process_group.
    """
    config = _config(timeout, init_timeout, wait, device, max_blocks)
    if rank is None and world_size is None and unique_id is None:
        return Communicator(_zbccl.init_env(*config))
    if rank is None or world_size is None:
        raise InvalidArgumentError(
            "init: give rank and world_size together with unique_id, or none of the three to read "
            "them from the environment"
        )
    if unique_id is None:
        if world_size != 1:
            raise InvalidArgumentError(
                f"init: unique_id is missing: rank 0 calls zbccl.get_unique_id() and passes it to "
                f"the other {world_size - 1} ranks"
            )
        unique_id = _zbccl.get_unique_id()
    if isinstance(unique_id, str):
        unique_id = _zbccl.UniqueId.from_string(unique_id)
    return Communicator(_zbccl.init_rank(unique_id, rank, world_size, *config))


def init_all(
    n: int,
    timeout: Timeout = None,
    *,
    init_timeout: Timeout = None,
    wait: Wait = "auto",
    device: object = None,
    max_blocks: int = 0,
) -> list[Communicator]:
    """`n` communicators of this process, one for each of its threads. Follows ncclCommInitAll."""
    made = _zbccl.init_all(n, *_config(timeout, init_timeout, wait, device, max_blocks))
    return [Communicator(native) for native in made]


def from_store(
    store: Store,
    name: str,
    rank: int,
    world_size: int,
    timeout: Timeout = None,
    *,
    init_timeout: Timeout = None,
    wait: Wait = "auto",
    device: object = None,
    max_blocks: int = 0,
) -> Communicator:
    """As `init`, meeting in `store` under `name`; a name is used for one communicator only."""
    config = _config(timeout, init_timeout, wait, device, max_blocks)
    native = _zbccl.init_store(store._native, name, rank, world_size, *config)
    return Communicator(native)
