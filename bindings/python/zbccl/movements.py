"""Operations that move data between all ranks."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Literal, TypeVar, overload

from zbccl.member import Member, require_known_kind
from zbccl.work import Timeout, Work, milliseconds

T = TypeVar("T")


class Movements(Member):
    """Nothing is computed: every bit arrives as it was."""

    @overload
    def all_gather(
        self,
        x: T,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def all_gather(
        self,
        x: T,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def all_gather(
        self,
        x: T,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Gathers every rank's `x`, in rank order, on every rank.

        `x` of shape (n, ...) gives (size * n, ...); a scalar gives (size,). `x` has the same shape
        on every rank and is only read. Without `out` the result is allocated from the pool, as the
        kind of tensor that `x` is, and returned; `out` has that shape, or (size, *x.shape). In
        place: `x` is the view of `out` at this rank's position. Follows ncclAllGather.
        """
        require_known_kind(x, out, "all_gather")
        reply = self._native.all_gather(x, out, milliseconds(timeout), async_op)
        return self._made("all_gather", reply, x, out)

    @overload
    def all_gather_v(
        self,
        x: T,
        sizes: Sequence[int] | None = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def all_gather_v(
        self,
        x: T,
        sizes: Sequence[int] | None = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def all_gather_v(
        self,
        x: T,
        sizes: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """As all_gather, with a size of its own for each rank.

        `sizes` has one element for each rank, the same on every rank, counted along the first
        dimension: `x` of shape (sizes[rank], ...) gives (sum(sizes), ...), in rank order. Sizes may
        be 0. Without `sizes` the ranks exchange them first, by a small all_gather that blocks even
        with `async_op=True` and that a group cannot contain; every rank gives them, or none. `x` is
        only read. Without `out` the result is allocated from the pool, as the kind of tensor that
        `x` is; `out` has that shape. In place: `x` is the view of `out` at this rank's rows. Sizes
        that differ between ranks raise InvalidUsageError on every rank, sizes that do not fit `x`
        InvalidArgumentError. Follows MPI_Allgatherv.
        """
        require_known_kind(x, out, "all_gather_v")
        counts = None if sizes is None else [index(size) for size in sizes]
        reply = self._native.all_gather_v(x, counts, out, milliseconds(timeout), async_op)
        return self._made("all_gather_v", reply, x, out)

    @overload
    def broadcast(
        self,
        x: T,
        root: int = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def broadcast(
        self,
        x: T,
        root: int = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def broadcast(
        self,
        x: T,
        root: int = 0,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Gives every rank the root's `x`.

        Without `out` it works in place: the root's `x` is read, the others' is overwritten, and `x`
        is returned. With `out`, which is returned, every rank gets the data there; the root's `x`
        is only read, and the others may pass None for `x`. Follows ncclBroadcast.
        """
        reply = self._native.broadcast(x, root, out, milliseconds(timeout), async_op)
        return self._given("broadcast", reply, x if out is None else out)

    @overload
    def gather(
        self,
        x: T,
        root: int = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T | None: ...
    @overload
    def gather(
        self,
        x: T,
        root: int = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T | None]: ...
    def gather(
        self,
        x: T,
        root: int = 0,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | None | Work[T | None]:
        """Gathers every rank's `x`, in rank order, on the root; the other ranks get None.

        Shapes are those of all_gather: `x` of shape (n, ...), the same on every rank and only read,
        gives the root (size * n, ...). Without `out` the root's result is allocated from the pool,
        as the kind of tensor that `x` is; the other ranks' `out` is not used. In place: the root's
        `x` is the view of `out` at its position. Follows MPI_Gather.
        """
        if self.rank == root:
            require_known_kind(x, out, "gather")
        reply = self._native.gather(x, root, out, milliseconds(timeout), async_op)
        if self.rank != root:
            return self._given("gather", reply, None)
        return self._made("gather", reply, x, out)

    @overload
    def scatter(
        self,
        x: T | None,
        root: int = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def scatter(
        self,
        x: T | None,
        root: int = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def scatter(
        self,
        x: T | None,
        root: int = 0,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Gives each rank its own part of the root's `x`.

        The root's `x` of shape (size * n, ...) gives rank r elements r * n to (r + 1) * n along the
        first dimension. It is only read. Without `out` the result is allocated from the pool, as
        the kind of tensor that `x` is; then the other ranks give an `x` too, which is not read, for
        its shape and type. With `out`, of shape (n, ...), or x.shape[1:] where `x` is (size, ...),
        the others may pass None for `x`. In place: the root's `out` is the view of `x` at its
        position. Follows MPI_Scatter.
        """
        require_known_kind(x, out, "scatter")
        reply = self._native.scatter(x, root, out, milliseconds(timeout), async_op)
        return self._made("scatter", reply, x, out)

    @overload
    def all_to_all(
        self,
        x: T,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def all_to_all(
        self,
        x: T,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def all_to_all(
        self,
        x: T,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Sends part r of `x` to rank r and receives every rank's part for this one, in rank order.

        `x` of shape (size * n, ...) gives the same shape: elements r * n to (r + 1) * n along the
        first dimension go to and come from rank r. Without `out` the result is allocated from the
        pool, as the kind of tensor that `x` is, and `x` is only read. In place, on every rank or on
        none: `out` is `x`. Follows torch.distributed.all_to_all_single without split sizes.
        """
        require_known_kind(x, out, "all_to_all")
        reply = self._native.all_to_all(x, out, milliseconds(timeout), async_op)
        return self._made("all_to_all", reply, x, out)

    @overload
    def all_to_all_v(
        self,
        x: T,
        send_sizes: Sequence[int],
        recv_sizes: Sequence[int] | None = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def all_to_all_v(
        self,
        x: T,
        send_sizes: Sequence[int],
        recv_sizes: Sequence[int] | None = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def all_to_all_v(
        self,
        x: T,
        send_sizes: Sequence[int],
        recv_sizes: Sequence[int] | None = None,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """As all_to_all, with a size of its own for each pair of ranks.

        `send_sizes` and `recv_sizes` have one element for each rank, counted along the first
        dimension: `x` of shape (sum(send_sizes), ...) gives (sum(recv_sizes), ...); its rows go to
        the ranks in rank order, and the result's rows come from them in rank order. Sizes may be 0.
        What a rank receives from another is what that one sends to it: sizes that do not agree
        raise InvalidUsageError on every rank, sizes that do not fit `x` InvalidArgumentError.
        Without `recv_sizes` the ranks exchange them first, by a small all_to_all that blocks even
        with `async_op=True` and that a group cannot contain; every rank gives them, or none. `x` is
        only read. Without `out` the result is allocated from the pool, as the kind of tensor that
        `x` is; `out` does not overlap `x`. Follows torch.distributed.all_to_all_single, whose
        input_split_sizes and output_split_sizes these are.
        """
        require_known_kind(x, out, "all_to_all_v")
        sent = [index(size) for size in send_sizes]
        received = None if recv_sizes is None else [index(size) for size in recv_sizes]
        reply = self._native.all_to_all_v(x, sent, received, out, milliseconds(timeout), async_op)
        return self._made("all_to_all_v", reply, x, out)
