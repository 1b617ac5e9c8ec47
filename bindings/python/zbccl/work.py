"""Handles of running operations, and how long to wait for them."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Generic, TypeVar

from zbccl import _zbccl
from zbccl.errors import InvalidArgumentError, InvalidUsageError
from zbccl.errors import TimeoutError as WaitTimeoutError

T = TypeVar("T")
Timeout = float | timedelta | None


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


class Work(Generic[T]):
    """An operation that was started with `async_op=True`.

    It keeps its tensors alive until it is done, even if this object is dropped. Operations of one
    communicator run in the order of their calls; sends and receives progress beside them. Any
    thread may use it.
    """

    def __init__(self, flight: _zbccl.Flight, output: T, communicator: object, name: str):
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

    @property
    def output(self) -> T:
        """The output, which is complete when the work is done. Never blocks, never raises."""
        return self._output

    def __repr__(self) -> str:
        state = "done" if self.is_completed() else "running"
        return f"<zbccl.Work {self._name} {state}>"
