"""Communicators and their operations."""

from __future__ import annotations

import atexit
import contextlib
import math
import weakref
from collections.abc import Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, overload

from zbccl import _zbccl
from zbccl.dtypes import dtype_name
from zbccl.errors import Code, Error, InvalidArgumentError, InvalidUsageError, error_type
from zbccl.errors import TimeoutError as WaitTimeoutError

T = TypeVar("T")
Timeout = float | timedelta | None

# Left in order when the interpreter ends.
_open: weakref.WeakSet[Communicator] = weakref.WeakSet()


def milliseconds(timeout: Timeout, name: str = "timeout") -> int:
    """A time limit in the C API's unit, rounded up; 0 stands for the default."""
    if timeout is None:
        return 0
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if not seconds > 0 or math.isinf(seconds):
        raise InvalidArgumentError(
            f"{name}: expected seconds above 0, or None for the default, got {timeout!r}"
        )
    return math.ceil(seconds * 1000)


def empty(shape: int | Sequence[int], dtype: object = "f32") -> _zbccl.Tensor:
    """A `zbccl.Tensor` in the process's pool, which every rank on the machine reaches in place.

    Operations on such tensors move nothing through intermediate buffers. `dtype` is a name
    ("f32", "bf16", "float8_e4m3fn", ...) or a dtype of NumPy or PyTorch. The contents are
    undefined. Any thread. Raises InvalidArgumentError and OutOfMemoryError.
    """
    return _zbccl.empty((shape,) if isinstance(shape, int) else tuple(shape), dtype_name(dtype))


def _kind(x: object) -> str | None:
    """The package whose kind of tensor `x` is, of those that zbccl can make results for."""
    for cls in type(x).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("numpy", "torch", "zbccl"):
            return package
    return None


def _require_known_kind(x: object, name: str) -> None:
    if _kind(x) is None:
        raise InvalidArgumentError(
            f"{name}: zbccl makes results for NumPy arrays, PyTorch tensors and zbccl.Tensor; "
            f"pass out= with an input of type {type(x).__name__}"
        )


def _like(made: _zbccl.Tensor | None, x: object) -> Any:
    """A tensor of zbccl's, as the kind of tensor that `x` is."""
    assert made is not None
    match _kind(x):
        case "numpy":
            return made.numpy()
        case "torch":
            return made.torch()
        case _:
            return made


class Work(Generic[T]):
    """An operation that was started with `async_op=True`.

    It keeps its tensors alive until it is done, even if this object is dropped. Operations of one
    communicator run in the order of their calls; sends and receives progress beside them. Any
    thread may use it.
    """

    def __init__(self, flight: _zbccl.Flight, output: T, communicator: Communicator, name: str):
        self._flight = flight
        self._output = output
        self._communicator = communicator  # so that it is not closed under the work
        self._name = name

    def wait(self, timeout: Timeout = None) -> T:
        """Waits until the work is done and returns the output.

        Raises what the operation failed with, each time it is called. When `timeout` seconds pass
        first it raises TimeoutError and the work goes on; None sets no limit beyond the
        operation's own. Ctrl-C ends the wait, not the work.
        """
        if not self._flight.wait(milliseconds(timeout)):
            raise WaitTimeoutError(
                f"timeout: {self._name} is not done after {timeout} s of waiting and goes on"
            )
        self._flight.check()
        return self._output

    def is_completed(self) -> bool:
        """Whether the work is done, well or not. Never blocks, never raises its error."""
        return self._flight.poll()

    def test(self) -> bool:
        """Whether the work is done; raises what it failed with. Never blocks."""
        done = self._flight.poll()
        if done:
            self._flight.check()
        return done

    @property
    def result(self) -> T:
        """The output of work that is done; raises its error, or InvalidUsageError before."""
        if not self.test():
            raise InvalidUsageError(f"{self._name} is still running: wait() first")
        return self._output

    def __repr__(self) -> str:
        state = "done" if self.is_completed() else "running"
        return f"<zbccl.Work {self._name} {state}>"


class Communicator:
    """One rank's membership in a group. Made by `zbccl.init` and its relatives.

    Tensors are NumPy arrays, PyTorch CPU tensors, `zbccl.Tensor`, or any object with DLPack or the
    buffer protocol; they are used in place, never copied to be passed on. They must lie in host
    memory and be C-contiguous, outputs must be writable, and a PyTorch tensor must not require
    grad (pass `x.detach()`). Element types are f32 f64 f16 bf16 e4m3 e5m2 and the signed and
    unsigned integers of 8 to 64 bits; bool and complex are refused.

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

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        return self._native.rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._native.size

    # ---- operations

    @overload
    def all_reduce(
        self,
        x: T,
        op: str = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def all_reduce(
        self,
        x: T,
        op: str = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def all_reduce(
        self,
        x: T,
        op: str = "sum",
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Reduces `x` over the ranks, element by element; every rank gets the result.

        Without `out` it works in place, as torch.distributed does: `x` is overwritten and
        returned. With `out`, of the same shape and dtype, `x` is only read and `out` is returned.
        `op` is "sum", "prod", "min", "max" or "avg". Floats are summed in rank order and rounded
        once: the same bits on every rank, in every run. Follows ncclAllReduce.
        """
        flight, _ = self._native.all_reduce(x, out, op, milliseconds(timeout), async_op)
        return self._reply(flight, x if out is None else out, "all_reduce")

    @overload
    def all_gather(
        self,
        x: T,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def all_gather(
        self,
        x: T,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def all_gather(
        self,
        x: T,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Gathers every rank's `x`, in rank order, on every rank.

        `x` of shape (n, ...) gives (size * n, ...); a scalar gives (size,). `x` has the same shape
        on every rank and is only read. Without `out` the result is allocated from the pool, as the
        kind of tensor that `x` is, and returned; `out` has that shape, or (size, *x.shape). In
        place: `x` is the view of `out` at this rank's position. Follows ncclAllGather.
        """
        if out is None:
            _require_known_kind(x, "all_gather")
        flight, made = self._native.all_gather(x, out, milliseconds(timeout), async_op)
        result: T = _like(made, x) if out is None else out
        return self._reply(flight, result, "all_gather")

    @overload
    def reduce_scatter(
        self,
        x: T,
        op: str = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def reduce_scatter(
        self,
        x: T,
        op: str = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def reduce_scatter(
        self,
        x: T,
        op: str = "sum",
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Reduces `x` over the ranks and leaves each rank its own part of the result.

        `x` of shape (size * n, ...) gives (n, ...): rank r gets elements r * n to (r + 1) * n along
        the first dimension. `x` is only read. Without `out` the result is allocated from the pool,
        as the kind of tensor that `x` is, and returned; `out` has that shape, or x.shape[1:] where
        `x` is (size, ...). In place: `out` is the view of `x` at this rank's position. `op` and the
        order of summation are those of all_reduce. Follows ncclReduceScatter.
        """
        if out is None:
            _require_known_kind(x, "reduce_scatter")
        flight, made = self._native.reduce_scatter(x, out, op, milliseconds(timeout), async_op)
        result: T = _like(made, x) if out is None else out
        return self._reply(flight, result, "reduce_scatter")

    @overload
    def broadcast(
        self,
        x: T,
        root: int = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def broadcast(
        self,
        x: T,
        root: int = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def broadcast(
        self,
        x: T,
        root: int = 0,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Gives every rank the root's `x`.

        Without `out` it works in place: the root's `x` is read, the others' is overwritten, and `x`
        is returned. With `out`, which is returned, every rank gets the data there; the root's `x`
        is only read, and the others may pass None for `x`. Follows ncclBroadcast.
        """
        flight, _ = self._native.broadcast(x, root, out, milliseconds(timeout), async_op)
        return self._reply(flight, x if out is None else out, "broadcast")

    @overload
    def barrier(self, *, async_op: Literal[False] = ..., timeout: Timeout = ...) -> None: ...
    @overload
    def barrier(self, *, async_op: Literal[True], timeout: Timeout = ...) -> Work[None]: ...
    def barrier(self, *, async_op: bool = False, timeout: Timeout = None) -> Work[None] | None:
        """Returns when every rank has called it."""
        flight, _ = self._native.barrier(milliseconds(timeout), async_op)
        return self._reply(flight, None, "barrier")

    @overload
    def send(
        self, x: T, peer: int, *, async_op: Literal[False] = ..., timeout: Timeout = ...
    ) -> T: ...
    @overload
    def send(
        self, x: T, peer: int, *, async_op: Literal[True], timeout: Timeout = ...
    ) -> Work[T]: ...
    def send(
        self, x: T, peer: int, *, async_op: bool = False, timeout: Timeout = None
    ) -> T | Work[T]:
        """Sends `x` to the rank `peer`, which receives the same count and type; returns `x`.

        Returns when the peer has the data. Messages between two ranks keep their order.
        """
        flight, _ = self._native.send(x, peer, milliseconds(timeout), async_op)
        return self._reply(flight, x, "send")

    @overload
    def recv(
        self, x: T, peer: int, *, async_op: Literal[False] = ..., timeout: Timeout = ...
    ) -> T: ...
    @overload
    def recv(
        self, x: T, peer: int, *, async_op: Literal[True], timeout: Timeout = ...
    ) -> Work[T]: ...
    def recv(
        self, x: T, peer: int, *, async_op: bool = False, timeout: Timeout = None
    ) -> T | Work[T]:
        """Receives what the rank `peer` sends into `x`, and returns `x`."""
        flight, _ = self._native.recv(x, peer, milliseconds(timeout), async_op)
        return self._reply(flight, x, "recv")

    def _reply(self, flight: _zbccl.Flight | None, output: T, name: str) -> T | Work[T]:
        return output if flight is None else Work(flight, output, self, name)

    # ---- memory, groups, life

    def empty(self, shape: int | Sequence[int], dtype: object = "f32") -> _zbccl.Tensor:
        """As `zbccl.empty`: a tensor in memory that the other ranks reach in place."""
        return empty(shape, dtype)

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
