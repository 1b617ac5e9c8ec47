"""Messages between two ranks of a group, under PyTorch's names."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from zbccl import _zbccl
from zbccl.errors import Error, InvalidUsageError, UnsupportedError
from zbccl.groups import group
from zbccl.torch.calls import Calls, single
from zbccl.torch.errors import for_torch
from zbccl.torch.streams import Aside
from zbccl.torch.tensors import Finish, flat, readable, writable
from zbccl.torch.work import DeviceWork, HostWork, JoinedWork, Work

_BATCH_CODE = inspect.unwrap(dist.batch_isend_irecv).__code__


@dataclass
class _Message:
    """A send or a receive of device memory that is to be launched with others."""

    is_send: bool
    x: torch.Tensor
    peer: int
    work: _Noted


class _Noted(Work):
    """A message that is launched when its batch is complete."""

    def __init__(self, x: torch.Tensor, source: int):
        super().__init__([x], source)
        self.launched: DeviceWork | None = None

    def _get(self) -> DeviceWork:
        if self.launched is None:
            raise InvalidUsageError(
                "the message is part of a batch that has not been launched: wait for it after the "
                "last operation of the batch"
            )
        return self.launched

    def wait(self, timeout: Any = None) -> bool:
        return self._get().wait(timeout)

    def synchronize(self) -> None:
        self._get().wait()

    def block_current_stream(self) -> None:
        self._get().wait()

    def is_completed(self) -> bool:
        return self.launched is not None and self.launched.is_completed()

    def is_success(self) -> bool:
        return self.is_completed()

    def exception(self) -> None:
        return None

    def get_future(self) -> Any:
        return self._get().get_future()


@dataclass
class _Batch:
    key: object = None  # what the messages have in common, kept so that it stays unique
    size: int = 0
    messages: list[_Message] = field(default_factory=list)


def _in_thread(call: Callable[[], None]) -> None:
    # Messages end in any order, so none waits for another.
    threading.Thread(target=call, name="zbccl-torch-p2p", daemon=True).start()


class Messages(Calls):
    """Sends and receives.

    Those between two ranks that have the same tag match in the order of their calls. Of CUDA
    tensors tags say nothing, as with NCCL, and the messages of a group run in the order of their
    calls, but for those of a batch, which are in flight together.
    """

    _message_aside: Aside | None
    _batch: _Batch | None  # of device messages, while one is being collected

    def send(self, tensors: Any, dst: int, tag: int = 0) -> Work:
        """Complete when the peer has the data."""
        x = tensors if isinstance(tensors, torch.Tensor) else single(tensors, "send")
        if x.is_cuda:
            return self._message_on_device(True, x, dst, sys._getframe(1))
        with self._lock:
            try:
                reply = self._host._native.send(readable(x), dst, tag, self._timeout_ms, True)
            except Error as error:
                raise for_torch(error) from None
        return self._message_work(reply[0], None, x, -1)

    def recv(self, tensors: Any, src: int, tag: int = 0) -> Work:
        """Of the same count and type as was sent."""
        x = tensors if isinstance(tensors, torch.Tensor) else single(tensors, "recv")
        if x.is_cuda:
            return self._message_on_device(False, x, src, sys._getframe(1))
        target, finish = writable(x)
        with self._lock:
            try:
                reply = self._host._native.recv(target, src, tag, self._timeout_ms, True)
            except Error as error:
                raise for_torch(error) from None
        return self._message_work(reply[0], finish, x, src)

    def recv_anysource(self, tensors: Any, tag: int = 0) -> Work:
        """Not here: a receive names its sender."""
        raise UnsupportedError(
            "recv: zbccl receives from a named rank only: pass src, or take a gloo group for this "
            "message"
        )

    def _message_work(
        self, flight: _zbccl.Flight | None, finish: Finish, x: torch.Tensor, source: int
    ) -> Work:
        assert flight is not None
        work = HostWork([flight], finish, (x,), _in_thread, source)
        if self._collected is not None:
            self._collected.append(work)
        return work

    # ---- several at once

    def _start_coalescing(self, device: torch.device) -> None:
        """Collects what is called until _end_coalescing. Messages on CUDA are launched together."""
        self._collected = []
        if torch.device(device).type == "cuda":
            self._batch = _Batch(key=self, size=sys.maxsize)

    def _end_coalescing(self, device: torch.device) -> Work:
        works, self._collected = self._collected or [], None
        batch, self._batch = self._batch, None
        if batch is not None and batch.messages:
            self._launch(batch.messages)
        return JoinedWork(works)

    def _message_on_device(
        self, is_send: bool, x: torch.Tensor, peer: int, caller: FrameType
    ) -> Work:
        work = _Noted(x, -1 if is_send else peer)
        message = _Message(is_send, x, peer, work)
        if self._collected is not None:
            self._collected.append(work)
        if self._batch is not None and self._batch.key is self:
            self._batch.messages.append(message)
            return work
        # torch.distributed.batch_isend_irecv tells a back end in Python nothing of its batches,
        # whose messages have to be in flight together.
        above = caller.f_back
        ops = above.f_locals.get("p2p_op_list") if above and above.f_code is _BATCH_CODE else None
        if not ops:
            self._launch([message])
            return work
        if self._batch is None or self._batch.key is not ops:
            self._batch = _Batch(ops, len(ops))
        batch = self._batch
        batch.messages.append(message)
        if len(batch.messages) == batch.size:
            self._batch = None
            self._launch(batch.messages)
        return work

    def _launch(self, messages: list[_Message]) -> None:
        first = messages[0].x
        if self._device is None:
            raise InvalidUsageError(
                "send and recv: the group does not know its CUDA devices yet: call "
                "torch.cuda.set_device before init_process_group, pass device_id to it, or begin "
                "with a collective"
            )
        native = self._device._native
        if self._message_aside is None:
            self._message_aside = Aside(first.device)

        def body() -> Finish:
            endings = []
            with group():
                for message in messages:
                    if message.is_send:
                        native.send(
                            flat(readable(message.x)), message.peer, 0, self._timeout_ms, False
                        )
                    else:
                        target, finish = writable(message.x)
                        native.recv(flat(target), message.peer, 0, self._timeout_ms, False)
                        if finish is not None:
                            endings.append(finish)
            return (lambda: [ending() for ending in endings]) if endings else None

        tensors = [message.x for message in messages]
        with self._lock:
            try:
                launched = self._message_aside.run(body, tensors, tensors)
            except Error as error:
                raise for_torch(error) from None
        for message in messages:
            message.work.launched = launched
