"""Completes the futures of a group's operations."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable


class Watcher:
    """Calls what waits for operations, one after another, on a thread of its own.

    Operations of one group end in the order of their calls, so each waits for the one that ends
    next. The thread starts with the first call and ends with `close`. Any thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, call: Callable[[], None]) -> None:
        """`call` waits for its operation itself and does not raise."""
        with self._lock:
            if not self._closed:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                    self._thread.start()
                self._calls.put(call)
                return
        call()  # everything of a closed group is done

    def close(self) -> None:
        """Returns when all calls have been made. Not from such a call."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            if thread is not None:
                self._calls.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
            del call  # its tensors are not kept while the next one is waited for
