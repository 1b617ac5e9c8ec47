"""What a zbccl call raises: one class for each result code of the C API, under `zbccl.Error`.

Where Python has an exception of the same meaning the class derives from it as well, so that
`except TimeoutError` or `except ValueError` catch what they say.
"""

from __future__ import annotations

import builtins
from enum import IntEnum


class Code(IntEnum):
    """Result codes of the C API (`zbcclResult_t`)."""

    SUCCESS = 0
    INVALID_ARGUMENT = 1
    INVALID_USAGE = 2
    SYSTEM = 3
    CUDA = 4
    NETWORK = 5
    TIMEOUT = 6
    REMOTE_FAILED = 7
    ABORTED = 8
    REVOKED = 9
    OUT_OF_MEMORY = 10
    UNSUPPORTED = 11
    VERSION_MISMATCH = 12
    INTERNAL = 13


class Error(Exception):
    """Base of everything that zbccl raises; `code` is the result code of the C API."""

    code: Code = Code.INTERNAL


class InvalidArgumentError(Error, ValueError):
    """An argument is wrong by itself: a shape, a dtype, a layout, a rank."""

    code = Code.INVALID_ARGUMENT


class InvalidUsageError(Error, RuntimeError):
    """The call does not fit the state, or the other ranks' calls."""

    code = Code.INVALID_USAGE


class OperatingSystemError(Error):
    """The operating system refused something."""

    code = Code.SYSTEM


class CudaError(Error):
    """The CUDA driver or run time refused something."""

    code = Code.CUDA


class NetworkError(Error, ConnectionError):
    """A connection could not be made, or broke."""

    code = Code.NETWORK


class TimeoutError(Error, builtins.TimeoutError):
    """A deadline passed. Named as in asyncio and concurrent.futures."""

    code = Code.TIMEOUT


class RemoteFailedError(Error):
    """Another rank died, failed or timed out; the message names it."""

    code = Code.REMOTE_FAILED


class AbortedError(Error):
    """The communicator was aborted, here or by another rank."""

    code = Code.ABORTED


class RevokedError(Error):
    """The communicator or the memory was taken back."""

    code = Code.REVOKED


class OutOfMemoryError(Error, MemoryError):
    """Memory, descriptors or address space ran out."""

    code = Code.OUT_OF_MEMORY


class UnsupportedError(Error, NotImplementedError):
    """This build or this machine cannot do it."""

    code = Code.UNSUPPORTED


class VersionMismatchError(Error):
    """Ranks run incompatible versions of zbccl."""

    code = Code.VERSION_MISMATCH


class InternalError(Error):
    """A defect in zbccl."""

    code = Code.INTERNAL


_TYPES: dict[int, type[Error]] = {
    int(cls.code): cls
    for cls in (
        InvalidArgumentError,
        InvalidUsageError,
        OperatingSystemError,
        CudaError,
        NetworkError,
        TimeoutError,
        RemoteFailedError,
        AbortedError,
        RevokedError,
        OutOfMemoryError,
        UnsupportedError,
        VersionMismatchError,
        InternalError,
    )
}


def error_type(code: int) -> type[Error]:
    """The class that stands for a result code; `Error` itself for one that this version lacks."""
    return _TYPES.get(code, Error)
