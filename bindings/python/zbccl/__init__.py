"""zbccl: zero-buffer collective communication for distributed LLM inference.

    import zbccl

    comm = zbccl.init()  # under torchrun, srun, mpirun or `zbccl run`
    x = comm.empty((4, 1024), "bf16")
    x.torch().fill_(comm.rank)
    comm.all_reduce(x)

Not the Ascend library of the same name.
"""

from __future__ import annotations

import json
from typing import Any

from zbccl import _zbccl, moe
from zbccl._zbccl import Tensor, UniqueId, get_unique_id
from zbccl.communicator import Communicator, empty
from zbccl.devices import launch, mem_pool, register
from zbccl.drop_in import install_deep_ep
from zbccl.errors import (
    AbortedError,
    Code,
    CudaError,
    Error,
    InternalError,
    InvalidArgumentError,
    InvalidUsageError,
    NetworkError,
    OperatingSystemError,
    OutOfMemoryError,
    RemoteFailedError,
    RevokedError,
    TimeoutError,
    UnsupportedError,
    VersionMismatchError,
)
from zbccl.fused import RmsNorm
from zbccl.groups import group
from zbccl.rendezvous import C10dStore, LocalStore, Store, from_store, init, init_all
from zbccl.work import Work

__version__: str = _zbccl.version()


def memory_report() -> dict[str, int]:
    """What the library moved and holds in this process since it started. Any thread.

    `staged_bytes`, `landing_bytes`, `metadata_bytes` and `held_bytes` are defined in
    docs/architecture.md; `user_bytes` are live tensors of the pool, `reserved_bytes` address
    space; `direct_calls` used every buffer in place, `staged_calls` fell back to copies;
    `attached_bytes` moved straight between processes by cross-memory attach. The counts with
    `device_` are of CUDA memory, on all devices together.
    """
    return _zbccl.memory_report()


def env() -> list[dict[str, Any]]:
    """The ZBCCL_* variables: name, type, default, range, text, value and whether it is set."""
    variables: list[dict[str, Any]] = json.loads(_zbccl.environment())
    return variables


__all__ = [
    "AbortedError",
    "C10dStore",
    "Code",
    "Communicator",
    "CudaError",
    "Error",
    "InternalError",
    "InvalidArgumentError",
    "InvalidUsageError",
    "LocalStore",
    "NetworkError",
    "OperatingSystemError",
    "OutOfMemoryError",
    "RemoteFailedError",
    "RevokedError",
    "RmsNorm",
    "Store",
    "Tensor",
    "TimeoutError",
    "UniqueId",
    "UnsupportedError",
    "VersionMismatchError",
    "Work",
    "__version__",
    "empty",
    "env",
    "from_store",
    "get_unique_id",
    "group",
    "init",
    "init_all",
    "install_deep_ep",
    "launch",
    "mem_pool",
    "memory_report",
    "moe",
    "register",
]
