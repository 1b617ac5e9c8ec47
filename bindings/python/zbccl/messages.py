"""Messages between two ranks, and the meeting of all."""

from __future__ import annotations

from typing import Literal, TypeVar, overload

from zbccl.member import Member
from zbccl.work import Timeout, Work, milliseconds

T = TypeVar("T")


class Messages(Member):
    """Sends and receives progress beside the operations of all ranks."""

    @overload
    def send(
        self,
        x: T,
        peer: int,
        *,
        tag: int = ...,
        async_op: Literal[False] = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def send(
        self,
        x: T,
        peer: int,
        *,
        tag: int = ...,
        async_op: Literal[True],
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def send(
        self,
        x: T,
        peer: int,
        *,
        tag: int = 0,
        async_op: bool = False,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Sends `x` to the rank `peer`, which receives the same count and type; returns `x`.

        Returns when the peer has the data. Messages between two ranks that have the same `tag`
        keep their order; one on a CUDA device has none. In a group many sends and receives progress
        at once. Follows ncclSend.
        """
        reply = self._native.send(x, peer, tag, milliseconds(timeout), async_op)
        return self._given("send", reply, x)

    @overload
    def recv(
        self,
        x: T,
        peer: int,
        *,
        tag: int = ...,
        async_op: Literal[False] = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def recv(
        self,
        x: T,
        peer: int,
        *,
        tag: int = ...,
        async_op: Literal[True],
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def recv(
        self,
        x: T,
        peer: int,
        *,
        tag: int = 0,
        async_op: bool = False,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Receives what the rank `peer` sends with `tag` into `x`, and returns `x`.

        Of messages with unlike tags, those that come before they are asked for are put aside in a
        copy, which is counted as staged. Follows ncclRecv.
        """
        reply = self._native.recv(x, peer, tag, milliseconds(timeout), async_op)
        return self._given("recv", reply, x)

    @overload
    def barrier(
        self,
        *,
        async_op: Literal[False] = ...,
        timeout: Timeout = ...,
    ) -> None: ...
    @overload
    def barrier(
        self,
        *,
        async_op: Literal[True],
        timeout: Timeout = ...,
    ) -> Work[None]: ...
    def barrier(
        self,
        *,
        async_op: bool = False,
        timeout: Timeout = None,
    ) -> None | Work[None]:
        """Returns when every rank has called it. Follows MPI_Barrier."""
        reply = self._native.barrier(milliseconds(timeout), async_op)
        return self._given("barrier", reply, None)
