"""Operations that reduce over the ranks."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Literal, TypeVar, overload

from zbccl.member import Member, require_known_kind
from zbccl.work import Timeout, Work, milliseconds

T = TypeVar("T")


class Reductions(Member):
    """Element by element, in the order of the ranks."""

    @overload
    def all_reduce(
        self,
        x: T,
        op: str = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def all_reduce(
        self,
        x: T,
        op: str = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def all_reduce(
        self,
        x: T,
        op: str = "sum",
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Reduces `x` over the ranks, element by element; every rank gets the result.

        Without `out` it works in place, as torch.distributed does: `x` is overwritten and
        returned. With `out`, of the same shape and dtype, `x` is only read and `out` is returned.
        `op` is "sum", "prod", "min", "max" or "avg". Floats are summed in rank order and rounded
        once: the same bits on every rank, in every run. Follows ncclAllReduce.
        """
        reply = self._native.all_reduce(x, out, op, milliseconds(timeout), async_op)
        return self._given("all_reduce", reply, x if out is None else out)

    @overload
    def reduce(
        self,
        x: T,
        op: str = ...,
        root: int = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def reduce(
        self,
        x: T,
        op: str = ...,
        root: int = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def reduce(
        self,
        x: T,
        op: str = "sum",
        root: int = 0,
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Reduces `x` over the ranks, element by element; the root gets the result.

        Without `out` the root's `x` is overwritten and returned, as torch.distributed does. With
        `out` on the root, of the same shape and dtype, `x` is only read there and `out` is
        returned. The other ranks' `x` is only read and returned, and their `out` is not used. `op`
        and the order of summation are those of all_reduce. Follows ncclReduce.
        """
        reply = self._native.reduce(x, root, out, op, milliseconds(timeout), async_op)
        return self._given("reduce", reply, x if out is None or self.rank != root else out)

    @overload
    def reduce_scatter(
        self,
        x: T,
        op: str = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def reduce_scatter(
        self,
        x: T,
        op: str = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def reduce_scatter(
        self,
        x: T,
        op: str = "sum",
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Reduces `x` over the ranks and leaves each rank its own part of the result.

        `x` of shape (size * n, ...) gives (n, ...): rank r gets elements r * n to (r + 1) * n along
        the first dimension. `x` is only read. Without `out` the result is allocated from the pool,
        as the kind of tensor that `x` is, and returned; `out` has that shape, or x.shape[1:] where
        `x` is (size, ...). In place: `out` is the view of `x` at this rank's position. `op` and the
        order of summation are those of all_reduce. Follows ncclReduceScatter.
        """
        require_known_kind(x, out, "reduce_scatter")
        reply = self._native.reduce_scatter(x, out, op, milliseconds(timeout), async_op)
        return self._made("reduce_scatter", reply, x, out)

    @overload
    def reduce_scatter_v(
        self,
        x: T,
        sizes: Sequence[int],
        op: str = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def reduce_scatter_v(
        self,
        x: T,
        sizes: Sequence[int],
        op: str = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def reduce_scatter_v(
        self,
        x: T,
        sizes: Sequence[int],
        op: str = "sum",
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """As reduce_scatter, with a size of its own for each rank.

        `sizes` has one element for each rank, the same on every rank, counted along the first
        dimension: `x` of shape (sum(sizes), ...) gives (sizes[rank], ...), this rank's rows of the
        reduced `x`, in rank order. Sizes may be 0. `x` is only read. Without `out` the result is
        allocated from the pool, as the kind of tensor that `x` is; `out` has that shape. In place:
        `out` is the view of `x` at this rank's rows. Sizes that differ between ranks raise
        InvalidUsageError on every rank, sizes that do not fit `x` InvalidArgumentError. Follows
        MPI_Reduce_scatter.
        """
        require_known_kind(x, out, "reduce_scatter_v")
        counts = [index(size) for size in sizes]
        reply = self._native.reduce_scatter_v(x, counts, out, op, milliseconds(timeout), async_op)
        return self._made("reduce_scatter_v", reply, x, out)
