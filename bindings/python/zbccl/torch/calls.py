"""How the operations of a group reach its communicators."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from zbccl import _zbccl
from zbccl.communicator import Communicator
from zbccl.errors import Error, InvalidUsageError
from zbccl.torch.errors import for_torch
from zbccl.torch.streams import Aside
from zbccl.torch.tensors import Finish
from zbccl.torch.watcher import Watcher
from zbccl.torch.work import DONE, HostWork, Work, milliseconds

# Makes one operation's calls: with the communicator, the timeout, and whether they are to be
# asynchronous. Gives their flights and what is to be called when they are done.
Body = Callable[[_zbccl.Communicator, int, bool], tuple[list[_zbccl.Flight], Finish]]


def flights_of(*replies: tuple[_zbccl.Flight | None, Any]) -> list[_zbccl.Flight]:
    """The flights in what native operations gave."""
    return [flight for flight, _ in replies if flight is not None]


class Calls:
    """One operation at a time enters a communicator; other threads wait for their turn."""

    _host: Communicator
    _device: Communicator | None
    _lock: threading.Lock
    _watcher: Watcher
    _aside: Aside | None
    _timeout_ms: int  # of calls that give none; 0: the communicator's
    _sequence: int
    _collected: list[Any] | None  # works since _start_coalescing

    def _connect_device(self, device: torch.device) -> Communicator:
        raise NotImplementedError

    def _communicator_for(self, x: torch.Tensor) -> Communicator:
        """The communicator that serves the memory of `x`; a first collective on CUDA makes it."""
        if not x.is_cuda:
            return self._host
        return self._device or self._connect_device(x.device)

    def _limit(self, opts: Any) -> int:
        return milliseconds(opts.timeout) or self._timeout_ms

    def _run(
        self,
        call: str,
        opts: Any,
        x: torch.Tensor,
        body: Body,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> Work:
        """Runs the operation on the memory that `x` lies in.

        If it is not to be asynchronous it is complete, or enqueued on the current stream, on
        return. In a profile it stands as zbccl:`call`.
        """
        if torch.autograd._profiler_enabled():
            with torch.profiler.record_function(f"zbccl:{call}"):
                return self._run_quietly(opts, x, body, inputs, outputs)
        return self._run_quietly(opts, x, body, inputs, outputs)

    def _run_quietly(
        self,
        opts: Any,
        x: torch.Tensor,
        body: Body,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> Work:
        limit = self._limit(opts)
        with self._lock:
            try:
                native = self._communicator_for(x)._native
                self._sequence += 1
                if not opts.asyncOp:
                    _, finish = body(native, limit, False)
                    if finish is not None:
                        finish()
                    return DONE
                work: Work
                if x.is_cuda:
                    work = self._run_aside(x.device, native, limit, body, inputs, outputs)
                else:
                    flights, finish = body(native, limit, True)
                    work = HostWork(flights, finish, outputs, self._watcher.watch)
            except Error as error:
                raise for_torch(error) from None
        if self._collected is not None:
            self._collected.append(work)
        return work

    def _run_aside(
        self,
        device: torch.device,
        native: _zbccl.Communicator,
        limit: int,
        body: Body,
        inputs: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> Work:
        if self._aside is None:
            self._aside = Aside(device)
        return self._aside.run(lambda: body(native, limit, False)[1], inputs, outputs)


def single(tensors: Sequence[Any], call: str) -> Any:
    """The one tensor, or list of tensors, of a call that PyTorch gives a list for."""
    if len(tensors) != 1:
        raise InvalidUsageError(
            f"{call}: expected a list of one element for each process, got {len(tensors)}; zbccl "
            "serves one device in a process"
        )
    return tensors[0]
