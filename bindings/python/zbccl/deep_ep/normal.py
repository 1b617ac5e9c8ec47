"""Normal mode: sizes as they are, one row for each token and rank."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, TypeAlias

import torch

from zbccl import moe
from zbccl.deep_ep.config import Config
from zbccl.deep_ep.event import EventHandle, EventOverlap
from zbccl.deep_ep.ranks import Ranks
from zbccl.deep_ep.tensors import bare, bare_or_none, begin, check_shape
from zbccl.devices import launch
from zbccl.errors import InvalidArgumentError, InvalidUsageError
from zbccl.work import Work

Rows: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]
Event: TypeAlias = EventOverlap | EventHandle | None


class NormalHandle(tuple[Any, ...]):
    """DeepEP's six tensors of a dispatch: where each source's rows end on each rank, that twice
    more for the one channel there is, each row's token on its source, which token goes where, and
    the place of each token among those of its source on each rank (-1: none)."""

    routed: moe.Handle


def _outputs(call: Any, on_stream: bool) -> tuple[Any, EventOverlap]:
    """Of a call that has ended, or of one that the event waits for. `on_stream`: it has come to the
    current stream of a GPU, and the event is what that has so far."""
    if not isinstance(call, Work):
        return call, EventOverlap(EventHandle() if on_stream else None)

    def finish() -> None:
        call.wait()

    return call.output, EventOverlap(EventHandle(finish))


class NormalMode(Ranks):
    """Dispatch and combine of many tokens."""

    num_sms: ClassVar[int] = 20

    def _expert_ranks(self, num_experts: int) -> torch.Tensor:
        """The rank of each expert: contiguous blocks, of which the first may have one more."""
        small, more = divmod(num_experts, self.group_size)
        sizes = [small + (rank < more) for rank in range(self.group_size)]
        ranks = torch.arange(self.group_size, device="cpu")
        return torch.repeat_interleave(ranks, torch.tensor(sizes, device="cpu"))

    def _rank_table(self, num_experts: int, device: torch.device) -> torch.Tensor:
        """That, and one more for slots without an expert, on `device`; kept."""
        key = (num_experts, device)
        if key not in self._rank_tables:
            none = torch.tensor([self.group_size], device="cpu")
            table = torch.cat([self._expert_ranks(num_experts), none])
            self._rank_tables[key] = table.to(device)
        return self._rank_tables[key]

    @contextlib.contextmanager
    def _called(self, name: str, rows: torch.Tensor, config: Config | None) -> Iterator[None]:
        """With DeepEP's mark in a profile, which on a GPU its kernel makes, in as many blocks as
        the Config or the class says."""
        if rows.is_cuda:
            with launch(max_blocks=self.num_sms if config is None else config.num_sms):
                yield
            return
        with torch.profiler.record_function(name):
            yield

    def get_dispatch_layout(
        self,
        topk_idx: torch.Tensor,
        num_experts: int,
        previous_event: Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, EventOverlap]:
        """How many of this rank's tokens go where. Not collective.

        Of `topk_idx` (tokens, slots), -1 for no expert: tokens for each rank, None (all ranks are
        on one machine), slots for each expert, and whether a token goes to a rank.
        """
        begin(previous_event, async_finish, allocate_on_comm_stream)
        topk_idx = bare(topk_idx, "topk_idx").long()
        device = topk_idx.device
        if not topk_idx.is_cuda and topk_idx.numel():  # a GPU's would have to be waited for
            least, most = int(topk_idx.min()), int(topk_idx.max())
            if not -1 <= least <= most < num_experts:
                raise InvalidArgumentError(
                    f"get_dispatch_layout: topk_idx has an expert outside of -1 to "
                    f"{num_experts - 1}"
                )
        # Slots without an expert count for one rank, and one expert, too many.
        ranks = self._rank_table(num_experts, device)
        in_rank = torch.zeros(
            (topk_idx.shape[0], self.group_size + 1), dtype=torch.bool, device=device
        )
        in_rank.scatter_(1, ranks[topk_idx], True)
        is_token_in_rank = in_rank[:, : self.group_size].contiguous()
        per_rank = is_token_in_rank.sum(0, dtype=torch.int32)
        slots = topk_idx.flatten() + 1
        per_expert = torch.zeros(num_experts + 1, dtype=torch.int32, device=device)
        per_expert.scatter_add_(0, slots, torch.ones_like(slots, dtype=torch.int32))
        event = EventOverlap(EventHandle() if async_finish else None)
        return per_rank, None, per_expert[1:].contiguous(), is_token_in_rank, event

    def dispatch(
        self,
        x: Rows,
        handle: tuple[Any, ...] | None = None,
        num_tokens_per_rank: torch.Tensor | None = None,
        num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None,
        num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[
        Rows,
        torch.Tensor | None,
        torch.Tensor | None,
        list[int] | None,
        tuple[Any, ...] | None,
        EventOverlap,
    ]:
        """Sends each token once to each rank that holds one of its experts. Collective.

        `x`: (tokens, hidden), or e4m3 rows and their scales (tokens, n) of any strides. Rows arrive
        by source rank, then token: (recv_x, recv_topk_idx, recv_topk_weights, slots for each local
        expert rounded up to `expert_alignment`, handle, event). With `handle` the tokens go as that
        dispatch's did, and only recv_x and the event are there. With `num_worst_tokens` the outputs
        have that many rows, of which those left have -1 in recv_topk_idx, and the list is empty.
        """
        begin(previous_event, async_finish, allocate_on_comm_stream)
        rows, scales = x if isinstance(x, tuple) else (x, None)
        rows, scales = bare(rows, "x"), bare_or_none(scales, "x's scales")
        with self._called("zbccl::dispatch", rows, config):
            if handle is not None:
                if topk_idx is not None or topk_weights is not None:
                    raise InvalidArgumentError(
                        "dispatch: with a handle topk_idx and topk_weights are None"
                    )
                received, event = _send(_routed(handle), rows, scales, None, async_finish, {})
                return _rows(received), None, None, None, None, event
            if num_tokens_per_rank is None or is_token_in_rank is None:
                raise InvalidArgumentError(
                    "dispatch: give num_tokens_per_rank, is_token_in_rank and "
                    "num_tokens_per_expert, or a handle"
                )
            if num_tokens_per_expert is None:
                raise InvalidArgumentError("dispatch: num_tokens_per_expert is missing")
            in_rank = bare(is_token_in_rank, "is_token_in_rank")
            check_shape(in_rank, (rows.shape[0], self.group_size), "is_token_in_rank")
            per_expert = bare(num_tokens_per_expert, "num_tokens_per_expert")
            if topk_idx is None:
                if num_worst_tokens:
                    raise InvalidArgumentError("dispatch: num_worst_tokens needs topk_idx")
                routed = self._route_by_rank(in_rank)
                counts = self._count_experts(per_expert)
            else:
                topk_idx = bare(topk_idx, "topk_idx")
                self._check_routing(topk_idx, in_rank, per_expert.numel())
                experts = self._experts(per_expert.numel())
                routed = experts.route(topk_idx, capacity=num_worst_tokens or None)
                # With a capacity nothing waits for a GPU.
                unknown = num_worst_tokens > 0 and topk_idx.is_cuda
                counts = [] if unknown else routed.expert_counts.tolist()
            weights = bare_or_none(topk_weights, "topk_weights")
            wanted = {"out_src_idx": True, "out_topk_idx": topk_idx is not None}
            received, event = _send(routed, rows, scales, weights, async_finish, wanted)
        if num_worst_tokens and not rows.is_cuda and routed.overflow:
            if async_finish:
                event.current_stream_wait()
            raise InvalidUsageError(
                f"dispatch: {routed.needed_capacity} rows came for num_worst_tokens="
                f"{num_worst_tokens}; those beyond it were left out"
            )
        listed = [-(-count // expert_alignment) * expert_alignment for count in counts]
        return (
            _rows(received),
            received.topk_idx,
            received.topk_weights,
            [] if num_worst_tokens else listed,
            self._handle(routed, in_rank, received.src_idx, num_worst_tokens > 0),
            event,
        )

    def combine(
        self,
        x: torch.Tensor,
        handle: tuple[Any, ...],
        topk_weights: torch.Tensor | None = None,
        bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        config: Config | None = None,
        previous_event: Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """Adds up what the ranks made of each token, in FP32 in their order. Collective.

        `x`: the rows of the handle's dispatch; `topk_weights`, (rows, slots), are added up the same
        way; the sums start from `bias`, (tokens, hidden) or two of them. (combined_x,
        combined_topk_weights or None, event).
        """
        begin(previous_event, async_finish, allocate_on_comm_stream)
        biases = bias if isinstance(bias, tuple) else (bias,)
        arguments: dict[str, Any] = {
            "async_op": async_finish and not x.is_cuda,
            "bias": tuple(bare_or_none(one, "bias") for one in biases),
            "recv_topk_weights": bare_or_none(topk_weights, "topk_weights"),
        }
        routed, x = _routed(handle), bare(x, "x")
        with self._called("zbccl::combine", x, config):
            on_stream = async_finish and x.is_cuda
            combined, event = _outputs(routed.combine(x, **arguments), on_stream)
        return combined.x, combined.topk_weights, event

    def internode_dispatch(
        self,
        x: Rows,
        handle: tuple[Any, ...] | None = None,
        num_tokens_per_rank: torch.Tensor | None = None,
        num_tokens_per_rdma_rank: torch.Tensor | None = None,
        is_token_in_rank: torch.Tensor | None = None,
        num_tokens_per_expert: torch.Tensor | None = None,
        topk_idx: torch.Tensor | None = None,
        topk_weights: torch.Tensor | None = None,
        expert_alignment: int = 1,
        config: Config | None = None,
        previous_event: Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> Any:
        """As dispatch: all ranks are on one machine."""
        return self.dispatch(
            x,
            handle,
            num_tokens_per_rank,
            num_tokens_per_rdma_rank,
            is_token_in_rank,
            num_tokens_per_expert,
            topk_idx,
            topk_weights,
            expert_alignment,
            0,
            config,
            previous_event,
            async_finish,
            allocate_on_comm_stream,
        )

    def internode_combine(
        self,
        x: torch.Tensor,
        handle: tuple[Any, ...],
        topk_weights: torch.Tensor | None = None,
        bias: torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None = None,
        config: Config | None = None,
        previous_event: Event = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, EventOverlap]:
        """As combine: all ranks are on one machine."""
        return self.combine(
            x,
            handle,
            topk_weights,
            bias,
            config,
            previous_event,
            async_finish,
            allocate_on_comm_stream,
        )

    # ---- parts of dispatch

    def _check_routing(
        self, topk_idx: torch.Tensor, in_rank: torch.Tensor, num_experts: int
    ) -> None:
        """Rows follow topk_idx, so the other arguments have to say the same."""
        if topk_idx.is_cuda:  # which would have to be waited for
            return
        layout = self.get_dispatch_layout(topk_idx, num_experts)
        if not torch.equal(layout[3], in_rank):
            raise InvalidArgumentError(
                "dispatch: is_token_in_rank is not that of topk_idx; take both from one "
                "get_dispatch_layout"
            )

    def _route_by_rank(self, in_rank: torch.Tensor) -> moe.Handle:
        """Without experts the ranks stand for them."""
        ranks = torch.arange(self.group_size, dtype=torch.int32, device=in_rank.device)
        return self._experts(self.group_size).route(torch.where(in_rank, ranks, -1))

    def _count_experts(self, per_expert: torch.Tensor) -> list[int]:
        """Slots of all ranks for each of this rank's experts."""
        all_counts = self._communicator.all_gather(per_expert.to(torch.int32).contiguous())
        sums = all_counts.view(self.group_size, -1).sum(0)
        counts: list[int] = sums.cpu()[self._expert_ranks(per_expert.numel()) == self.rank].tolist()
        return counts

    def _handle(
        self,
        routed: moe.Handle,
        in_rank: torch.Tensor,
        src_idx: torch.Tensor | None,
        has_capacity: bool,
    ) -> NormalHandle:
        if in_rank.is_cuda and has_capacity:
            # What the host knows would have to be waited for.
            mine = in_rank.sum(0, dtype=torch.int32)
            table = self._communicator.all_gather(mine).view(self.group_size, -1)
        else:
            table = routed.rank_counts.to(in_rank.device)
        prefix = table.cumsum(0, dtype=torch.int32)
        channel = in_rank.sum(0, dtype=torch.int32).view(-1, 1)
        head = in_rank.cumsum(0, dtype=torch.int32) - 1
        head[~in_rank] = -1
        handle = NormalHandle(
            (prefix, channel, prefix[:, self.rank : self.rank + 1].clone(), src_idx, in_rank, head)
        )
        handle.routed = routed
        return handle


def _routed(handle: tuple[Any, ...]) -> moe.Handle:
    if not isinstance(handle, NormalHandle):
        raise InvalidUsageError("the handle is not the tuple that a dispatch of this module gave")
    return handle.routed


def _rows(received: moe.Dispatched[torch.Tensor]) -> Rows:
    return received.x if received.scales is None else (received.x, received.scales)


def _send(
    routed: moe.Handle,
    rows: torch.Tensor,
    scales: torch.Tensor | None,
    weights: torch.Tensor | None,
    asynchronous: bool,
    wanted: dict[str, Any],
) -> tuple[moe.Dispatched[torch.Tensor], EventOverlap]:
    on_stream = asynchronous and rows.is_cuda
    arguments: dict[str, Any] = {
        "async_op": asynchronous and not rows.is_cuda,
        "scales": scales,
        "topk_weights": weights,
        **wanted,
    }
    return _outputs(routed.dispatch(rows, **arguments), on_stream)
