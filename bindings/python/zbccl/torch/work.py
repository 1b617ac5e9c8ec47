"""Handles of operations, as torch.distributed has them."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from zbccl import _zbccl
from zbccl.errors import Error
from zbccl.torch.errors import TimeoutError, for_torch
from zbccl.torch.tensors import Finish


def milliseconds(timeout: timedelta | None) -> int:
    """A limit of PyTorch's in the C API's unit; 0, for none, where it is unset."""
    seconds = 0.0 if timeout is None else timeout.total_seconds()
    return math.ceil(seconds * 1000) if seconds > 0 else 0


class Work(dist.Work):  # type: ignore[misc]
    """What the handles share. Any thread."""

    def __init__(self, outputs: Sequence[torch.Tensor], source: int = -1):
        super().__init__()
        self._outputs = list(outputs)
        self._source = source

    def result(self) -> list[torch.Tensor]:
        """The outputs, which are complete when the work is."""
        return self._outputs

    def source_rank(self) -> int:
        """The rank that a message came from."""
        if self._source < 0:
            raise RuntimeError("source_rank: the work is no receive")
        return self._source

    _source_rank = source_rank


class Done(Work):
    """An operation that was complete, or enqueued on the current stream, when it returned."""

    def wait(self, timeout: timedelta | None = None) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def is_success(self) -> bool:
        return True

    def exception(self) -> None:
        return None

    def synchronize(self) -> None:
        pass

    def block_current_stream(self) -> None:
        pass

    def get_future(self) -> Any:
        future = torch.futures.Future()
        future.set_result(self._outputs)
        return future


DONE = Done(())


class HostWork(Work):
    """An operation on host memory. `finish` is called once, when its flights are done.

    What the flights use is kept by them; `finish` keeps what it copies. `watch` calls what waits,
    on another thread.
    """

    def __init__(
        self,
        flights: list[_zbccl.Flight],
        finish: Finish,
        outputs: Sequence[torch.Tensor],
        watch: Callable[[Callable[[], None]], None],
        source: int = -1,
    ):
        super().__init__(outputs, source)
        self._flights = flights
        self._finish = finish
        self._watch = watch
        self._once = threading.Lock() if finish is not None else None
        self._future: Any = None

    def settle(self, timeout_ms: int = 0) -> None:
        """Waits and finishes; raises what the operation failed with."""
        try:
            for flight in self._flights:
                if not flight.wait(timeout_ms):
                    raise TimeoutError(
                        f"Timed out: the operation is not done after {timeout_ms} ms of waiting, "
                        "and goes on"
                    )
            for flight in self._flights:
                flight.check()
        except Error as error:
            raise for_torch(error) from None
        if self._once is not None:
            with self._once:
                if self._finish is not None:
                    self._finish()
                    self._finish = None

    def wait(self, timeout: timedelta | None = None) -> bool:
        self.settle(milliseconds(timeout))
        return True

    def synchronize(self) -> None:
        self.settle()

    def block_current_stream(self) -> None:
        self.settle()

    def is_completed(self) -> bool:
        if not all(flight.poll() for flight in self._flights):
            return False
        self.exception()  # what is done is also finished
        return True

    def exception(self) -> BaseException | None:
        """What a done operation failed with, or None."""
        if not all(flight.poll() for flight in self._flights):
            return None
        try:
            self.settle()
        except Error as error:
            return error
        return None

    def is_success(self) -> bool:
        return all(flight.poll() for flight in self._flights) and self.exception() is None

    def get_future(self) -> Any:
        """A future of the outputs; it is completed on a thread of the group."""
        if self._future is None:
            self._future = torch.futures.Future()
            self._watch(self._complete)
        return self._future

    def _complete(self) -> None:
        try:
            self.settle()
        except Exception as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(self._outputs)


class DeviceWork(Work):
    """An operation on a stream of the group's own; `event` comes after it."""

    def __init__(
        self,
        stream: torch.cuda.Stream,
        event: torch.cuda.Event,
        kept: list[Any],
        outputs: Sequence[torch.Tensor],
        source: int = -1,
    ):
        super().__init__(outputs, source)
        self._stream = stream
        self._event = event
        self._kept = kept  # what the stream uses until then; the group holds the list as well

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Makes the current stream wait; the host does not."""
        torch.cuda.current_stream(self._stream.device).wait_event(self._event)
        # What frees the tensors from here on does so behind the event.
        self._kept.clear()
        return True

    def synchronize(self) -> None:
        self.wait()

    def block_current_stream(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        done: bool = self._event.query()
        return done

    def is_success(self) -> bool:
        return self.is_completed()

    def exception(self) -> None:
        """None: what goes wrong on the device is raised by the group's next call."""
        return

    def get_future(self) -> Any:
        """A future whose waiters' streams wait for the operation."""
        future = torch.futures.Future(devices=[self._stream.device])
        with torch.cuda.stream(self._stream):
            future.set_result(self._outputs)
        return future


class JoinedWork(Work):
    """Several operations as one."""

    def __init__(self, works: list[Any]):
        super().__init__([x for work in works for x in work.result()])
        self._works = works

    def wait(self, timeout: timedelta | None = None) -> bool:
        for work in self._works:
            work.wait(timeout) if timeout is not None else work.wait()
        return True

    def synchronize(self) -> None:
        self.wait()

    def block_current_stream(self) -> None:
        self.wait()

    def is_completed(self) -> bool:
        return all(work.is_completed() for work in self._works)

    def is_success(self) -> bool:
        return all(work.is_success() for work in self._works)

    def exception(self) -> BaseException | None:
        for work in self._works:
            error: BaseException | None = work.exception()
            if error is not None:
                return error
        return None

    def get_future(self) -> Any:
        futures = [work.get_future() for work in self._works]
        outputs = self._outputs
        return torch.futures.collect_all(futures).then(lambda all_of: (all_of.wait(), outputs)[1])
