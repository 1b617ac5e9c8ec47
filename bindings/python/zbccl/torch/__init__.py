"""zbccl as a back end of torch.distributed, for cpu and cuda tensors.

    import torch.distributed as dist
    import zbccl.torch

    dist.init_process_group("zbccl")

Where zbccl is installed the name is known to PyTorch without the import. docs/torch.md is the page
of this module.
"""

from __future__ import annotations

import zbccl_autoload

from zbccl.errors import InvalidUsageError
from zbccl.torch.errors import AbortedError, BackendError, RemoteFailedError, TimeoutError
from zbccl.torch.memory import MemPool, register
from zbccl.torch.process_group import ProcessGroup

if not zbccl_autoload.register():
    raise InvalidUsageError(
        "zbccl.torch: another package has registered a torch.distributed back end of the name "
        "zbccl in this process; the two cannot be used together"
    )

__all__ = [
    "AbortedError",
    "BackendError",
    "MemPool",
    "ProcessGroup",
    "RemoteFailedError",
    "TimeoutError",
    "register",
]
