"""What zbccl raises, in the classes that programs written for torch.distributed catch."""

from __future__ import annotations

import torch.distributed as dist

from zbccl import errors


class TimeoutError(errors.TimeoutError, dist.DistBackendError):  # type: ignore[misc]
    """A deadline passed. Also a RuntimeError, as with PyTorch's own back ends."""


class RemoteFailedError(errors.RemoteFailedError, dist.DistBackendError):  # type: ignore[misc]
    """Another rank died, failed or timed out; the message names it."""


class AbortedError(errors.AbortedError, dist.DistBackendError):  # type: ignore[misc]
    """The group was aborted, here or by another rank."""


class BackendError(errors.Error, dist.DistBackendError):  # type: ignore[misc]
    """Anything else that went wrong below; `code` says what."""


_CLASSES: dict[errors.Code, type[errors.Error]] = {
    errors.Code.TIMEOUT: TimeoutError,
    errors.Code.REMOTE_FAILED: RemoteFailedError,
    errors.Code.ABORTED: AbortedError,
}
# Mistakes of the caller and what cannot be done keep their classes, which are ValueError,
# RuntimeError and NotImplementedError already.
_KEPT = (
    errors.InvalidArgumentError,
    errors.InvalidUsageError,
    errors.UnsupportedError,
    errors.OutOfMemoryError,
    dist.DistBackendError,
)


def for_torch(error: errors.Error) -> errors.Error:
    """`error`, as a dist.DistBackendError where a back end of PyTorch would raise one."""
    if isinstance(error, _KEPT):
        return error
    text = str(error)
    if error.code == errors.Code.TIMEOUT:
        # The words that programs look for in what gloo raises.
        text = f"zbccl: Timed out waiting for other ranks: {text.removeprefix('timeout: ')}"
    made = _CLASSES.get(error.code, BackendError)(text)
    made.code = error.code
    return made
