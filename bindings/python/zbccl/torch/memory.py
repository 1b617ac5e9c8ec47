"""CUDA memory of PyTorch's that the other ranks reach in place."""

from __future__ import annotations

from typing import Any

import torch

from zbccl import _zbccl, devices
from zbccl.errors import UnsupportedError


class MemPool(torch.cuda.MemPool):  # type: ignore[misc]
    """A torch.cuda.MemPool whose tensors are born registered.

        pool = zbccl.torch.MemPool()
        with torch.cuda.use_mem_pool(pool):
            x = torch.empty(4096, 7168, dtype=torch.bfloat16, device="cuda")
        dist.all_reduce(x)  # read and written by the other ranks where it lies

    Keep the pool as long as its tensors. Raises UnsupportedError where PyTorch finds no device.
    """

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise UnsupportedError("MemPool: PyTorch finds no CUDA device")
        memory: Any = torch.cuda.memory
        allocator = memory.CUDAPluggableAllocator(
            _zbccl.library_path(), "zbcclTorchAlloc", "zbcclTorchFree"
        )
        super().__init__(allocator.allocator())
        self._zbccl_allocator = allocator  # lives as long as the pool


def register(x: torch.Tensor) -> _zbccl.Registration:
    """Makes the CUDA memory that `x` lies in reachable for the other ranks, until it is closed.

    As zbccl.register: a context manager, to be closed before the memory is freed. Memory that is
    neither registered nor of a `MemPool` is staged where a peer would have to reach it, and
    counted.
    """
    return devices.register(x.detach())
