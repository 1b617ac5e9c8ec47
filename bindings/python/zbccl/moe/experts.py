"""Which rank holds which expert, and the exchange of counts."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Literal, overload

from zbccl import _zbccl
from zbccl.communicator import Communicator
from zbccl.errors import InvalidArgumentError
from zbccl.member import kind
from zbccl.moe.handle import Handle
from zbccl.moe.names import LAYOUTS, Layout, choice
from zbccl.work import Timeout, Work, milliseconds


class Experts:
    """Which rank holds which expert. Collective; the same arguments on every rank.

    `expert_ranks` has the rank of each of the `num_experts` experts (a replica is an expert of its
    own; a rank may hold none); None stands for contiguous blocks, of which the first
    num_experts % size ranks have one more. The experts of one rank bear local numbers in the order
    of their numbers.

    Creation, `route`, `dispatch` and `combine` are operations of the communicator: every rank calls
    them in the same order, also one without tokens or experts; not in a group. Wrong arguments that
    the library finds give an error on every rank before any output is written.
    """

    def __init__(
        self,
        comm: Communicator,
        num_experts: int,
        expert_ranks: Sequence[int] | None = None,
        *,
        timeout: Timeout = None,
    ):
        ranks = [] if expert_ranks is None else [int(rank) for rank in expert_ranks]
        self._communicator = comm
        self._native = _zbccl.Experts.create(
            comm._native, num_experts, ranks, milliseconds(timeout)
        )
        self.num_experts = num_experts

    @property
    def local_experts(self) -> list[int]:
        """The numbers of this rank's experts, ascending."""
        return self._native.local_experts()

    @property
    def mask(self) -> list[bool]:
        """For each rank, whether this rank has taken it out."""
        return [masked != 0 for masked in self._native.mask()]

    def set_mask(self, rank: int, masked: bool = True) -> None:
        """Takes `rank` out, or back in, for this rank, from the next route on.

        No row goes between the two, in either direction; a combine skips rows that lie on a rank
        masked when it is called. All ranks go on making the same calls. Not while a call runs.
        """
        self._native.set_mask(rank, masked)

    @overload
    def route(
        self,
        topk_idx: object,
        layout: Layout = ...,
        *,
        async_op: Literal[False] = ...,
        alignment: int = ...,
        capacity: int | None = ...,
        recv_counts: object = ...,
        recv_status: object = ...,
        recv_ranges: object = ...,
        with_dispatch: bool = ...,
        timeout: Timeout = ...,
    ) -> Handle: ...
    @overload
    def route(
        self,
        topk_idx: object,
        layout: Layout = ...,
        *,
        async_op: Literal[True],
        alignment: int = ...,
        capacity: int | None = ...,
        recv_counts: object = ...,
        recv_status: object = ...,
        recv_ranges: object = ...,
        with_dispatch: bool = ...,
        timeout: Timeout = ...,
    ) -> Work[Handle]: ...
    def route(
        self,
        topk_idx: object,
        layout: Layout = "rank_major",
        *,
        async_op: bool = False,
        alignment: int = 1,
        capacity: int | None = None,
        recv_counts: object = None,
        recv_status: object = None,
        recv_ranges: object = None,
        with_dispatch: bool = False,
        timeout: Timeout = None,
    ) -> Handle | Work[Handle]:
        """Exchanges how many rows go where. Collective.

        `topk_idx`: (tokens, slots) of i32 or i64, the experts of each token, -1 for none; at most
        32 slots, as many on every rank. `layout` is that of what dispatch brings:

        - "rank_major": one row for each token and rank with at least one of its experts, by source
          rank, then token;
        - "expert_major": one row for each token and slot, by local expert, then source rank, token
          and slot; every expert starts at a multiple of `alignment` rows;
        - "expert_masked": (experts, capacity) rows, those of an expert at its beginning.

        `capacity`: rows that the outputs hold (for each expert of "expert_masked", which needs
        one); None: as many as come. Rows beyond it are left out, which `Handle.overflow` reports.
        `recv_counts` (i32, one for each local expert), `recv_status` (i64: rows, needed capacity,
        overflow) and, but for rank_major, `recv_ranges` (i64, (experts, ranks): rows from each
        source in the lower half, the first of them in the upper) are filled where given. Layout,
        alignment, slots and dtype are the same on every rank.

        With `topk_idx` on the communicator's GPU all tensors of the handle are there, calls go to
        PyTorch's current stream and nothing waits for them; but without a capacity the first use of
        the handle waits for the counts.

        With `with_dispatch=True`, which needs a capacity and is the same on every rank, the call
        only takes note of its arguments, and the handle's first dispatch exchanges the counts in
        one step with its rows: the fastest way for few tokens. What is wrong is told there, and
        the handle's tables are known after it.

        With `async_op=True` calls may be made with the work's `output`, the handle, at once; they
        run after the route. Outputs whose size depends on what the ranks tell each other (those
        without a capacity) can be allocated only when it is done.
        """
        if capacity is not None and capacity < 1:
            raise InvalidArgumentError(f"route: capacity must be at least 1, got {capacity}")
        flight, native = self._native.route(
            topk_idx,
            choice("route: layout", LAYOUTS, layout),
            alignment,
            capacity or 0,
            recv_counts,
            recv_status,
            recv_ranges,
            with_dispatch,
            milliseconds(timeout),
            async_op,
        )
        handle = Handle(native, layout, kind(topk_idx), self._communicator)
        return handle if flight is None else Work(flight, handle, self._communicator, "route")

    def report(self) -> dict[str, int]:
        """Counters of this rank: metadata_bytes, held_bytes, staged_bytes, calls, and the thread
        blocks of the last ones on a GPU. Any thread."""
        return self._native.report()

    def close(self) -> None:
        """Ends the use of these experts; their handles are stale from here on. Not collective.

        Done when the communicator is closed.
        """
        self._native.close()

    def __enter__(self) -> Experts:
        return self

    def __exit__(
        self,
        exception: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = " closed" if self._native.closed else ""
        return f"<zbccl.moe.Experts {self.num_experts} experts{state}>"
