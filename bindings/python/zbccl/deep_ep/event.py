"""What is waited for. On host memory there is one stream, and it is the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any


class EventHandle:
    """The end of an asynchronous call or, made without arguments, of everything before it, which on
    host memory has ended already."""

    def __init__(self, finish: Callable[[], None] | None = None):
        self._finish = finish

    def current_stream_wait(self) -> None:
        """Waits for the call and raises what it failed with."""
        if self._finish is not None:
            self._finish()
            self._finish = None


class EventOverlap:
    """An event, and tensors that live until it is dropped. `event` is None after a call that did
    not ask for `async_finish`: its results are complete."""

    def __init__(
        self, event: EventHandle | None = None, extra_tensors: tuple[Any, ...] | None = None
    ):
        self.event = event
        self.extra_tensors = extra_tensors

    def current_stream_wait(self) -> None:
        """Waits for the event; without one it fails, as in DeepEP."""
        assert self.event is not None
        self.event.current_stream_wait()

    def __enter__(self) -> EventOverlap:
        """For work that overlaps with the event's."""
        return self

    def __exit__(
        self,
        exception: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.event is not None:
            self.event.current_stream_wait()
