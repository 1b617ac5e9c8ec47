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
        async_op: Literal[False] = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def send(
        self,
        x: T,
        peer: int,
        *,
        async_op: Literal[True],
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def send(
        self,
        x: T,
        peer: int,
        *,
        async_op: bool = False,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Sends `x` to the rank `peer`, which receives the same count and type; returns `x`.

        Returns when the peer has the data. Messages between two ranks keep their order. In a group
        many sends and receives progress at once. Follows ncclSend.
        """
        reply = self._native.send(x, peer, milliseconds(timeout), async_op)
        return self._given("send", reply, x)

    @overload
    def recv(
        self,
        x: T,
        peer: int,
        *,
        async_op: Literal[False] = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def recv(
        self,
        x: T,
        peer: int,
        *,
        async_op: Literal[True],
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def recv(
        self,
        x: T,
        peer: int,
        *,
        async_op: bool = False,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Receives what the rank `peer` sends into `x`, and returns `x`. Follows ncclRecv."""
        reply = self._native.recv(x, peer, milliseconds(timeout), async_op)
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
