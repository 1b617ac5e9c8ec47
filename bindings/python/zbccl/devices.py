"""Names of places in memory, and how calls on CUDA devices are launched."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zbccl import _zbccl
from zbccl.errors import InvalidArgumentError, UnsupportedError

_HOST = -1
_NO_DEVICE = -2  # ZBCCL_DEVICE_NONE


def _torch_cuda() -> Any:
    """torch.cuda where the program uses it, else None. PyTorch is never imported for this."""
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    return cuda if cuda is not None and cuda.is_initialized() else None


def device_ordinal(device: object) -> int:
    """Ordinal of a CUDA device, or -1 for host memory, which None and "cpu" stand for.

    `device` is "cpu", "cuda" (PyTorch's current device, or the first), "cuda:1", an ordinal, or a
    torch.device.
    """
    if device is None:
        return _HOST
    if isinstance(device, int) and not isinstance(device, bool) and device >= 0:
        return device
    name = str(device)
    if name in ("cpu", "cpu:0"):
        return _HOST
    if name.startswith("cuda:") and name[5:].isdecimal():
        return int(name[5:])
    if name == "cuda":
        cuda = _torch_cuda()
        return int(cuda.current_device()) if cuda is not None else 0
    raise InvalidArgumentError(
        f'unknown device {device!r}; expected "cpu", "cuda", "cuda:N", an ordinal from 0, or a '
        "torch.device"
    )


def communicator_device(device: object) -> int:
    """What the C API calls the device of a communicator."""
    if device is not None:
        ordinal = device_ordinal(device)
        return _NO_DEVICE if ordinal == _HOST else ordinal
    cuda = _torch_cuda()
    return _NO_DEVICE if cuda is None else int(cuda.current_device())


def _stream_handle(stream: object) -> int:
    """The cudaStream_t of a number, or of a stream of PyTorch, CuPy or cuda.core."""
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        return int(protocol()[1])
    for name in ("cuda_stream", "ptr"):
        handle = getattr(stream, name, None)
        if isinstance(handle, int):
            return handle
    raise InvalidArgumentError(
        "stream: expected a cudaStream_t as a number, or a stream of PyTorch or CuPy, "
        f"got {stream!r}"
    )


@contextmanager
def launch(stream: object = None, max_blocks: int | None = None) -> Iterator[None]:
    """How calls of this thread on CUDA tensors are launched inside the block.

    `stream` is the stream that they are enqueued on: a cudaStream_t as a number, or a stream of
    PyTorch, CuPy or cuda.core. Without one it is PyTorch's current stream where the program uses
    PyTorch, else the legacy default stream. With one, `barrier` meets on that stream too.
    `max_blocks` limits the thread blocks, and so the SMs, of each call; the same on every rank.
    What is not given stays as it was outside.
    """
    if max_blocks is not None and max_blocks < 0:
        raise InvalidArgumentError(f"max_blocks: expected 0 or more, got {max_blocks}")
    handle = None if stream is None else _stream_handle(stream)
    before = _zbccl.set_launch(None, 0)
    try:
        _zbccl.set_launch(
            before[0] if handle is None else handle,
            before[1] if max_blocks is None else max_blocks,
        )
        yield
    finally:
        _zbccl.set_launch(*before)


def register(x: object) -> _zbccl.Registration:
    """Makes the CUDA memory that `x` lies in reachable for the other ranks, without a copy.

    Operations on registered memory use it in place; other memory of another allocator than
    zbccl's is staged, and counted. The allocation is registered as a whole. It lasts until the
    result is closed, used as a context manager, or dropped, which must be before the memory is
    freed. Raises UnsupportedError for memory that the driver cannot share.
    """
    return _zbccl.Registration(x)


def mem_pool() -> Any:
    """A zbccl.torch.MemPool: a torch.cuda.MemPool whose tensors are born registered.

        pool = zbccl.mem_pool()
        with torch.cuda.use_mem_pool(pool):
            x = torch.empty(4096, 7168, dtype=torch.bfloat16, device="cuda")

    Keep the pool as long as its tensors. Raises UnsupportedError without PyTorch for CUDA.
    """
    try:
        import torch
    except ImportError:
        raise UnsupportedError("mem_pool: PyTorch is not installed") from None
    if not torch.cuda.is_available():
        raise UnsupportedError("mem_pool: PyTorch finds no CUDA device")
    return importlib.import_module("zbccl.torch").MemPool()
