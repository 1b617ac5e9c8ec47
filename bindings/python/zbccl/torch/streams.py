"""Streams that asynchronous operations on CUDA tensors run on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from zbccl import _zbccl
from zbccl.torch.tensors import Finish
from zbccl.torch.work import DeviceWork


class Aside:
    """A stream beside the current one. Used under the group's lock."""

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device=device, priority=-1)
        # What the stream still uses: PyTorch would otherwise hand out freed memory at once.
        self._held: deque[tuple[torch.cuda.Event, list[Any]]] = deque()

    def run(self, body: Any, kept: Sequence[Any], outputs: Sequence[torch.Tensor]) -> DeviceWork:
        """Runs `body`, which enqueues and gives what to call behind it, after the current stream.

        It may be captured in a graph: the stream then joins the capture, and the work's wait
        leads back.
        """
        capturing = torch.cuda.is_current_stream_capturing()
        if not capturing:
            self._sweep()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        before = _zbccl.set_launch(None, 0)
        _zbccl.set_launch(None, before[1])
        try:
            with torch.cuda.stream(self._stream):
                finish: Finish = body()
                if finish is not None:
                    finish()
                event = torch.cuda.Event()
                event.record(self._stream)
        finally:
            _zbccl.set_launch(*before)
        holds = [*kept, *outputs, finish]
        if capturing:
            # The graph's memory lives on; what is freed in between is not reused in the capture.
            for x in (*kept, *outputs):
                if isinstance(x, torch.Tensor):
                    x.record_stream(self._stream)
        else:
            self._held.append((event, holds))
        return DeviceWork(self._stream, event, holds, outputs)

    def _sweep(self) -> None:
        while self._held and (not self._held[0][1] or self._held[0][0].query()):
            self._held.popleft()
