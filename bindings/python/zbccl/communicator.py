"""Communicators: their life, and what can be seen of them."""

from __future__ import annotations

import atexit
import contextlib
import weakref
from collections.abc import Sequence
from types import TracebackType

from zbccl import _zbccl
from zbccl.devices import device_ordinal
from zbccl.dtypes import dtype_name
from zbccl.errors import Code, Error, error_type
from zbccl.fused import Fused
from zbccl.messages import Messages
from zbccl.movements import Movements
from zbccl.reductions import Reductions
from zbccl.work import Timeout, milliseconds

# Left in order when the interpreter ends.
_open: weakref.WeakSet[Communicator] = weakref.WeakSet()


def empty(
    shape: int | Sequence[int], dtype: object = "f32", device: object = None
) -> _zbccl.Tensor:
    """A `zbccl.Tensor` in the process's pool, which every rank on the machine reaches in place.

    Operations on such tensors move nothing through intermediate buffers. `dtype` is a name
    ("f32", "bf16", "float8_e4m3fn", ...) or a dtype of NumPy or PyTorch, `device` "cpu" (also for
    None), "cuda", "cuda:1", an ordinal or a torch.device. The contents are undefined. Memory of a
    device is used again, after the tensor's life, once the stream of its last operation has come
    past it. Any thread. Raises InvalidArgumentError, OutOfMemoryError and UnsupportedError.
    """
    lengths = (shape,) if isinstance(shape, int) else tuple(shape)
    return _zbccl.empty(lengths, dtype_name(dtype), device_ordinal(device))


class Communicator(Reductions, Fused, Movements, Messages):
    """One rank's membership in a group. Made by `zbccl.init` and its relatives.

    Tensors are NumPy arrays, PyTorch tensors, `zbccl.Tensor`, or any object with DLPack or the
    buffer protocol; they are used in place, never copied to be passed on. They lie in host memory
    or on the communicator's CUDA device and are C-contiguous, outputs must be writable, and a
    PyTorch tensor must not require grad (pass `x.detach()`). A call on CUDA tensors is enqueued on
    the current stream and returns (`zbccl.launch` names another stream); its work handle is done
    once the stream has come past the call. Element types are f32 f64 f16 bf16 e4m3 e5m2 and the
    signed and unsigned integers of 8 to 64 bits; bool and complex are refused.

    Every rank makes the same calls in the same order with the same counts, types, operators and
    roots. A mismatch raises InvalidUsageError on every rank before any output is written.

    One thread at a time uses a communicator, except for `abort`, `async_error`, `get_stats` and
    works' own methods, which any thread may call. Every blocking call lets other Python threads
    run. Ctrl-C during a blocking call on the main thread aborts the communicator, here and on the
    other ranks, and raises KeyboardInterrupt; with a SIGINT handler of the program's own the call
    ends first. `timeout` is in seconds (or a timedelta); None means the communicator's.

    As a context manager it is closed at the end of the block, and aborted first if an exception
    leaves the block, so that no other rank waits for this one.
    """

    def __init__(self, native: _zbccl.Communicator):
        self._native = native
        _open.add(self)

    # ---- memory, parts, life

    def empty(
        self, shape: int | Sequence[int], dtype: object = "f32", device: object = None
    ) -> _zbccl.Tensor:
        """As `zbccl.empty`; "cuda" is the communicator's device."""
        return empty(shape, dtype, self.device if device == "cuda" else device)

    def split(self, color: int, key: int = 0, *, timeout: Timeout = None) -> Communicator | None:
        """Collective: ranks that give the same `color` >= 0 form a communicator.

        They are ordered by `key`, then by their old rank. A negative color joins none and gets
        None. `timeout` is that of the new communicator. Ctrl-C closes this one. Follows
        MPI_Comm_split.
        """
        made = self._native.split(color, key, milliseconds(timeout))
        return None if made is None else Communicator(made)

    def abort(self) -> None:
        """Ends every wait on this communicator, here and on the other ranks, with AbortedError.

        Any thread. The communicator can then only be closed.
        """
        self._native.abort()

    def close(self) -> None:
        """Waits for this rank's asynchronous work, tells the others that it leaves, and ends.

        Closing twice is allowed. Called for every communicator still open when the interpreter
        ends.
        """
        self._native.close()
        _open.discard(self)

    @property
    def device(self) -> str:
        """The CUDA device whose memory it serves besides host memory, "cuda:N", or "cpu"."""
        ordinal = self._native.device
        return "cpu" if ordinal < 0 else f"cuda:{ordinal}"

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._native.closed

    def __enter__(self) -> Communicator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        orderly = isinstance(error, SystemExit) and error.code in (None, 0)
        if error is None or orderly:
            self.close()
            return
        # The exception of the block is the one to be seen.
        with contextlib.suppress(Error):
            if not self.closed:
                self.abort()
        with contextlib.suppress(Error):
            self.close()

    # ---- looking inside

    @property
    def async_error(self) -> Error | None:
        """The error that made the communicator unusable, or None. Any thread, never blocks."""
        code = self._native.async_error
        if code == Code.SUCCESS:
            return None
        return error_type(code)(_zbccl.error_string(code))

    def get_stats(self) -> dict[str, int]:
        """Counters of this rank since the communicator was made. Any thread.

        `operations` and `failures` count calls, `bytes` their payload; `staged_bytes`,
        `landing_bytes` and `metadata_bytes` are defined in docs/architecture.md; `wait_ns` is the
        time spent waiting for other ranks.
        """
        return self._native.stats()

    @property
    def last_algorithm(self) -> str:
        """What the last collective used: "one_shot", "two_shot", "direct", ...; "none" at first."""
        return self._native.last_algorithm

    def __repr__(self) -> str:
        state = " closed" if self.closed else ""
        return f"<zbccl.Communicator rank {self.rank} of {self.size}{state}>"


@atexit.register
def _leave() -> None:
    for communicator in list(_open):
        # Work that nobody waited for may never end; the other ranks are told.
        with contextlib.suppress(Error):
            if communicator._native.busy:
                communicator.abort()
            communicator.close()
