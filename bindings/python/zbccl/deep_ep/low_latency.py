"""Low-latency mode: outputs of a fixed size, one matrix for each local expert."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from zbccl import moe
from zbccl.deep_ep.event import EventHandle, EventOverlap
from zbccl.deep_ep.ranks import Ranks
from zbccl.deep_ep.tensors import bare, bare_or_none, check_shape, new
from zbccl.errors import InvalidArgumentError, InvalidUsageError, UnsupportedError
from zbccl.work import Work

Hook: TypeAlias = Callable[[], None]
Packed: TypeAlias = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class LowLatencyHandle(tuple[Any, ...]):
    """DeepEP's five values: each row's token on its source; count (low half) and first row (high
    half) of each source's rows for each local expert; tokens at most, hidden, experts. The first
    two are filled when the dispatch is complete."""

    routed: moe.Handle
    topk_idx: torch.Tensor  # as dispatched
    combine_buffer: torch.Tensor | None = None


def _mark(name: str, rows: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """DeepEP's mark in a profile; on a GPU the kernel makes it."""
    if rows.is_cuda:
        return contextlib.nullcontext()
    mark: contextlib.AbstractContextManager[Any] = torch.profiler.record_function(name)
    return mark


class Finish:
    """Runs the steps that complete a call, once."""

    def __init__(self, name: str, rows: torch.Tensor, *steps: Callable[[], Any]):
        self._name = name
        self._rows = rows
        self._steps = list(steps)

    def __call__(self) -> None:
        """With DeepEP's mark in a profile, of which a call in two phases has two."""
        with _mark(self._name, self._rows):
            self.run()

    def run(self) -> None:
        """Without the mark."""
        while self._steps:
            self._steps.pop(0)()


class LowLatencyMode(Ranks):
    """Dispatch and combine of few tokens."""

    def clean_low_latency_buffer(
        self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int
    ) -> None:
        """There is no buffer to clean: the modes may be mixed freely. Returns at once."""

    def low_latency_dispatch(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: torch.Tensor | None = None,
        dispatch_wait_recv_cost_stats: torch.Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Packed, torch.Tensor, tuple[Any, ...], EventOverlap, Hook | None]:
        """One row for each token and slot, for its local expert. Collective.

        (rows, rows for each local expert, handle, event, hook). Rows: (experts, ranks * tokens at
        most, hidden) of x's type, or e4m3 and their scales, stored transposed; by source rank, then
        token. With `return_recv_hook` the call returns at once and the hook waits for the rows;
        with `async_finish` the event does.
        """
        _refuse_both(async_finish, return_recv_hook)
        _refuse_costs(dispatch_wait_recv_cost_stats, "dispatch_wait_recv_cost_stats")
        if use_ue8m0 and not round_scale:
            raise InvalidArgumentError("use_ue8m0 needs round_scale=True")
        x, topk_idx = bare(x, "x"), bare(topk_idx, "topk_idx")
        most = num_max_dispatch_tokens_per_rank
        if not x.shape[0] == topk_idx.shape[0] <= most:
            raise InvalidArgumentError(
                f"low_latency_dispatch: {x.shape[0]} rows of x, {topk_idx.shape[0]} of topk_idx; "
                f"expected as many of each, and at most {most}"
            )
        quant: Any = None
        if use_fp8:
            quant = "fp8_ue8m0" if use_ue8m0 else "fp8_pow2" if round_scale else "fp8"
        experts = self._experts(num_experts)
        local = len(experts.local_experts)
        stats = bare_or_none(
            cumulative_local_expert_recv_stats, "cumulative_local_expert_recv_stats"
        )
        if stats is not None:
            check_shape(stats, (local,), "cumulative_local_expert_recv_stats")
        counts = new(local, "i32", x.device)
        ranges = new((local, self.group_size), "i64", x.device)
        wishes: dict[str, Any] = {"quant": quant, "transposed_scales": use_fp8, "out_src_idx": True}
        # On a GPU calls come to the current stream, and nothing here waits for them.
        on_thread = not x.is_cuda and (async_finish or return_recv_hook)
        with _mark("zbccl::dispatch", x):
            # With a hook or an event nothing here waits for the other ranks.
            routing: dict[str, Any] = {
                "layout": "expert_masked",
                "capacity": self.group_size * most,
                "recv_counts": counts,
                "recv_ranges": ranges,
                "with_dispatch": True,
                "async_op": on_thread,
            }
            routed, counted = _parts(experts.route(topk_idx, **routing))
            if return_recv_hook:
                received, complete = _parts(routed.send_dispatch(x, **wishes))
            else:
                wishes["async_op"] = on_thread
                received, complete = _parts(routed.dispatch(x, **wishes))
        finish = Finish(
            "zbccl::dispatch",
            x,
            *counted,
            *complete,
            lambda: _add(stats, counts),
            lambda: None if x.is_cuda else _refuse_overflow(routed),
        )
        handle = LowLatencyHandle((received.src_idx, ranges, most, x.shape[1], num_experts))
        handle.routed = routed
        handle.topk_idx = topk_idx.clone()
        packed = received.x if received.scales is None else (received.x, received.scales)
        event, hook = _completion(finish, async_finish, return_recv_hook, x.is_cuda)
        return packed, counts, handle, event, hook

    def low_latency_combine(
        self,
        x: torch.Tensor,
        topk_idx: torch.Tensor,
        topk_weights: torch.Tensor,
        handle: tuple[Any, ...],
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: torch.Tensor | None = None,
        combine_wait_recv_cost_stats: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, EventOverlap, Hook | None]:
        """Adds up the weighted rows of each token, in FP32 in the order of its slots. Collective.

        `x`: (experts, ranks * tokens at most, hidden), rows of the handle's dispatch; with
        `zero_copy` those that were written to get_next_low_latency_combine_buffer. `use_logfmt` is
        a format of DeepEP's wire; rows are read as they are here, which is more exact. (combined_x,
        event, hook).
        """
        _refuse_both(async_finish, return_recv_hook)
        _refuse_costs(combine_wait_recv_cost_stats, "combine_wait_recv_cost_stats")
        given = _handle(handle)
        x = bare(x, "x")
        if zero_copy:
            if given.combine_buffer is None:
                raise InvalidUsageError(
                    "low_latency_combine: zero_copy needs get_next_low_latency_combine_buffer "
                    "before each combine"
                )
            x, given.combine_buffer = given.combine_buffer, None
        weights = _weights(given.topk_idx, bare(topk_idx, "topk_idx"), topk_weights)
        arguments: dict[str, Any] = {"topk_weights": weights, "out": bare_or_none(out, "out")}
        with _mark("zbccl::combine", x):
            if return_recv_hook:
                combined, complete = _parts(given.routed.send_combine(x, **arguments))
            else:
                arguments["async_op"] = async_finish and not x.is_cuda
                combined, complete = _parts(given.routed.combine(x, **arguments))
        finish = Finish("zbccl::combine", x, *complete)
        event, hook = _completion(finish, async_finish, return_recv_hook, x.is_cuda)
        return combined.x if out is None else out, event, hook

    def get_next_low_latency_combine_buffer(self, handle: tuple[Any, ...]) -> torch.Tensor:
        """Memory for the experts' results that combine reads in place: (experts, ranks * tokens at
        most, hidden) of bf16. For one combine."""
        given = _handle(handle)
        shape = (given[1].shape[0], self.group_size * given[2], given[3])
        given.combine_buffer = new(shape, "bf16", given[1].device)
        return given.combine_buffer


def _parts(call: Any) -> tuple[Any, list[Callable[[], Any]]]:
    """The outputs of a call, and how to wait for them where it has not ended."""
    if isinstance(call, Work):
        return call.output, [call.wait]
    if isinstance(call, moe.Pending):
        return call.output, [call.receive]
    return call, []


def _completion(
    finish: Finish, async_finish: bool, return_recv_hook: bool, on_stream: bool
) -> tuple[EventOverlap, Hook | None]:
    if return_recv_hook:
        return EventOverlap(), finish
    if on_stream:
        finish.run()
        return EventOverlap(EventHandle() if async_finish else None), None
    if async_finish:
        return EventOverlap(EventHandle(finish.run)), None
    finish.run()
    return EventOverlap(), None


def _add(stats: torch.Tensor | None, counts: torch.Tensor) -> None:
    if stats is not None:
        stats += counts


def _refuse_overflow(routed: moe.Handle) -> None:
    """Only a token that names an expert twice can bring more rows than there is room for."""
    if routed.overflow:
        raise InvalidUsageError(
            f"low_latency_dispatch: {routed.needed_capacity} rows came for one expert, more than "
            "tokens: a token names the expert more than once"
        )


def _weights(
    dispatched: torch.Tensor, topk_idx: torch.Tensor, topk_weights: torch.Tensor
) -> torch.Tensor:
    """Weights of the rows, 0 for slots that were taken out since the dispatch."""
    check_shape(topk_idx, tuple(dispatched.shape), "topk_idx")
    weights = bare(topk_weights, "topk_weights").float().contiguous()
    gone = topk_idx == -1
    if topk_idx.is_cuda:  # to compare would be to wait
        return weights.masked_fill(gone, 0)
    if torch.equal(topk_idx, dispatched):
        return weights
    if not torch.equal(torch.where(gone, dispatched, topk_idx), dispatched):
        raise InvalidArgumentError(
            "low_latency_combine: topk_idx names other experts than that of the dispatch"
        )
    return weights.masked_fill(gone, 0)


def _handle(handle: tuple[Any, ...]) -> LowLatencyHandle:
    if not isinstance(handle, LowLatencyHandle):
        raise InvalidUsageError(
            "the handle is not the tuple that a low_latency_dispatch of this module gave"
        )
    return handle


def _refuse_both(async_finish: bool, return_recv_hook: bool) -> None:
    if async_finish and return_recv_hook:
        raise InvalidArgumentError("async_finish and return_recv_hook exclude each other")


def _refuse_costs(stats: torch.Tensor | None, name: str) -> None:
    if stats is not None:
        raise UnsupportedError(
            f"{name}: the time waited for each source is not measured here; pass None "
            "(Communicator.get_stats has the time waited for all)"
        )
