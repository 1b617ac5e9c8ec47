"""What is waited for. On host memory there is one stream, and it is the calling thread; on a GPU
calls are made on PyTorch's current stream."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch


class EventHandle:
    """The end of an asynchronous call on host memory or, made without arguments, of everything
    before it: on host memory that has ended already, on a GPU it is what the current stream has."""

    def __init__(self, finish: Callable[[], None] | None = None):
        self._finish = finish
        self._event: Any = None
        if finish is None and torch.cuda.is_initialized():
            self._event = torch.cuda.Event()
            self._event.record()

    def current_stream_wait(self) -> None:
        """Waits for the call and raises what it failed with; on a GPU the current stream waits."""
        if self._event is not None:
            torch.cuda.current_stream().wait_event(self._event)
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
