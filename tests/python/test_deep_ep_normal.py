"""zbccl.deep_ep in normal mode: what DeepEP's own test asks of it, on CPU tensors. The ranks are
threads that pass their communicator in the place of a group."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import zbccl
from deep_ep_routing import HIDDEN, SLOTS, TOKENS, gathered, random_topk
from kinds import need_torch
from ranks import run_threads

torch = need_torch()
from zbccl import deep_ep  # noqa: E402
from zbccl.deep_ep.utils.math import (  # noqa: E402
    calc_diff,
    per_token_cast_back,
    per_token_cast_to_fp8,
)


class Normal:
    """One rank's inputs, and what its dispatch must bring."""

    def __init__(self, comm: zbccl.Communicator, experts: int):
        self.comm = comm
        self.local = experts // comm.size
        self.topk_idx = random_topk(comm, experts, seed=1)
        generator = torch.Generator().manual_seed(comm.rank)
        self.random = torch.randn((TOKENS, HIDDEN), generator=generator).bfloat16()
        self.constant = torch.full((TOKENS, HIDDEN), float(comm.rank)).bfloat16()
        self.weights = torch.randn((TOKENS, SLOTS), generator=generator)
        ranks = torch.where(self.topk_idx < 0, -1, self.topk_idx // self.local)
        self.in_rank = torch.stack([(ranks == r).any(dim=1) for r in range(comm.size)], dim=1)
        self.per_rank = self.in_rank.sum(dim=0).int()
        self.per_expert = torch.stack([(self.topk_idx == e).sum() for e in range(experts)]).int()
        self.all_in_rank = gathered(comm, self.in_rank.to(torch.uint8)).bool()
        self.all_topk = gathered(comm, self.topk_idx)

    def sources(self) -> list[tuple[int, int]]:
        """(rank, token) of each row that comes here."""
        mine = self.all_in_rank[:, :, self.comm.rank]
        return [(int(rank), int(token)) for rank, token in mine.nonzero()]

    def layout(self) -> dict[str, Any]:
        return {
            "num_tokens_per_rank": self.per_rank,
            "is_token_in_rank": self.in_rank,
            "num_tokens_per_expert": self.per_expert,
        }


def check_layout(buffer: Any, case: Normal) -> None:
    per_rank, per_rdma_rank, per_expert, in_rank, event = buffer.get_dispatch_layout(
        case.topk_idx, case.per_expert.numel()
    )
    assert per_rdma_rank is None and event.event is None
    assert torch.equal(per_rank, case.per_rank) and per_rank.dtype == torch.int32
    assert torch.equal(per_expert, case.per_expert) and per_expert.dtype == torch.int32
    assert torch.equal(in_rank, case.in_rank) and in_rank.dtype == torch.bool


def check_rows(case: Normal, rows: Any, constant: bool) -> None:
    sources = case.sources()
    assert rows.shape == (len(sources), HIDDEN)
    if constant:
        assert torch.equal(rows.amin(dim=1), rows.amax(dim=1))
        assert rows[:, 0].tolist() == [rank for rank, _ in sources]


def check_handle(case: Normal, handle: Any) -> None:
    per_rank = gathered(case.comm, case.per_rank)
    prefix, channel, recv_channel, src_idx, in_rank, head = handle
    assert torch.equal(prefix, per_rank.cumsum(0).int()) and prefix.dtype == torch.int32
    assert torch.equal(channel[:, 0], case.per_rank)
    assert torch.equal(recv_channel[:, 0], prefix[:, case.comm.rank])
    assert src_idx.tolist() == [token for _, token in case.sources()]
    assert torch.equal(in_rank, case.in_rank)
    assert torch.equal(head >= 0, case.in_rank)
    assert [int(head[:, r].max()) + 1 for r in range(case.comm.size)] == case.per_rank.tolist()


def check_topk(case: Normal, recv_idx: Any, recv_weights: Any, counts: list[int]) -> None:
    first = case.comm.rank * case.local
    all_weights = gathered(case.comm, case.weights)
    assert recv_idx.dtype == deep_ep.topk_idx_t and recv_weights.dtype == torch.float32
    for i, (rank, token) in enumerate(case.sources()):
        local = case.all_topk[rank, token] - first
        here = (local >= 0) & (local < case.local)
        assert torch.equal(recv_idx[i], torch.where(here, local, -1))
        assert torch.equal(recv_weights[i], torch.where(here, all_weights[rank, token], 0))
    assert [int((recv_idx == e).sum()) for e in range(case.local)] == counts


@pytest.mark.parametrize("size", (2, 4))
def test_normal_mode(size: int) -> None:
    """Every way to call dispatch and combine, with the limits of DeepEP's test."""

    def body(comm: zbccl.Communicator) -> None:
        buffer = deep_ep.Buffer(
            comm, int(2e9), 0, low_latency_mode=False, num_qps_per_rank=1, explicitly_destroy=True
        )
        case = Normal(comm, 8)
        check_layout(buffer, case)
        fp8 = per_token_cast_to_fp8(case.random)
        fp8_columns = per_token_cast_to_fp8(case.constant)
        fp8_columns = (fp8_columns[0], fp8_columns[1].T.contiguous().T)
        kinds = ((case.random, 0), (case.constant, 1), (fp8, 0), (fp8_columns, 1))
        for previous, asynchronous, (x, constant), with_topk in itertools.product(
            (False, True), (False, True), kinds, (False, True)
        ):
            stream: dict[str, Any] = {"async_finish": asynchronous}
            if previous:
                stream["previous_event"] = buffer.capture()
                stream["allocate_on_comm_stream"] = asynchronous
            one_round(buffer, case, x, bool(constant), with_topk, stream)
        buffer.destroy()

    run_threads(size, body)


def one_round(
    buffer: Any, case: Normal, x: Any, constant: bool, with_topk: bool, stream: dict[str, Any]
) -> None:
    config = deep_ep.Config(24, 8, 256)
    arguments = {"x": x, **case.layout(), "config": config, **stream}
    if with_topk:
        arguments |= {"topk_idx": case.topk_idx, "topk_weights": case.weights}

    def wait(event: Any) -> None:
        assert (event.event is not None) == stream["async_finish"]
        if stream["async_finish"]:
            event.current_stream_wait()

    recv, recv_idx, recv_weights, counts, handle, event = buffer.dispatch(**arguments)
    wait(event)
    rows = per_token_cast_back(*recv) if isinstance(recv, tuple) else recv
    if isinstance(recv, tuple):
        assert recv[1].is_contiguous() and recv[1].shape == (len(case.sources()), HIDDEN // 128)
    check_rows(case, rows, constant)
    check_handle(case, handle)
    first = case.comm.rank * case.local
    assert counts == gathered(case.comm, case.per_expert).sum(0)[first:][: case.local].tolist()
    if with_topk:
        check_topk(case, recv_idx, recv_weights, counts)
        check_worst_tokens(buffer, arguments, recv, recv_idx, recv_weights, wait)
    else:
        assert recv_idx is None and recv_weights is None
    cached = buffer.dispatch(x=x, handle=handle, config=config, **stream)
    wait(cached[5])
    assert cached[1:5] == (None, None, None, None)
    for one, other in zip(as_tuple(recv), as_tuple(cached[0]), strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    combined, combined_weights, event = buffer.combine(
        rows, handle, topk_weights=recv_weights, bias=None, config=config, **stream
    )
    wait(event)
    times = case.in_rank.sum(dim=1, keepdim=True)
    wanted = case.constant if constant else case.random
    assert calc_diff(combined.float(), wanted.float() * times) < (
        5e-4 if isinstance(x, tuple) and not constant else 5e-6
    )
    assert torch.equal(combined[times[:, 0] == 0], torch.zeros_like(combined[times[:, 0] == 0]))
    if with_topk:
        sent = torch.where(case.topk_idx < 0, 0, case.weights)
        assert calc_diff(combined_weights, sent) < 1e-9
    else:
        assert combined_weights is None


def as_tuple(x: Any) -> tuple[Any, ...]:
    return x if isinstance(x, tuple) else (x,)


def check_worst_tokens(
    buffer: Any,
    arguments: dict[str, Any],
    recv: Any,
    recv_idx: Any,
    recv_weights: Any,
    wait: Callable[[Any], None],
) -> None:
    worst = buffer.group_size * TOKENS
    big, big_idx, big_weights, counts, handle, event = buffer.dispatch(
        **arguments, num_worst_tokens=worst
    )
    wait(event)
    n = recv_idx.shape[0]
    assert counts == [] and handle[3].shape == (worst,)
    for one, other in zip(as_tuple(big), as_tuple(recv), strict=True):
        assert one.shape[0] == worst
        assert torch.equal(one[:n].view(torch.uint8), other.view(torch.uint8))
    assert torch.equal(big_idx[:n], recv_idx) and bool((big_idx[n:] == -1).all())
    assert torch.equal(big_weights[:n], recv_weights)


def test_expert_alignment_bias_and_internode() -> None:
    def body(comm: zbccl.Communicator) -> None:
        buffer = deep_ep.Buffer(comm)
        case = Normal(comm, 4)
        recv, _, _, counts, handle, _ = buffer.internode_dispatch(
            case.random, topk_idx=case.topk_idx, topk_weights=case.weights, expert_alignment=32,
            **case.layout(),
        )  # fmt: skip
        assert all(count % 32 == 0 for count in counts)
        bias = (torch.ones_like(case.random), case.random)
        combined, _, event = buffer.internode_combine(recv, handle, bias=bias)
        times = case.in_rank.sum(dim=1, keepdim=True)
        wanted = 1 + (1 + times) * case.random.float()
        assert event.event is None and calc_diff(combined, wanted) < 5e-6
        alone, _, _ = buffer.combine(recv, handle, bias=bias[0])
        assert calc_diff(alone, 1 + times * case.random.float()) < 5e-6

    run_threads(2, body)


def test_layout_of_uneven_experts(solo: zbccl.Communicator) -> None:
    def body(comm: zbccl.Communicator) -> None:
        buffer = deep_ep.Buffer(comm)
        topk = torch.tensor([[0, 1, -1], [2, 4, 4], [-1, -1, -1], [3, 3, 3]])
        per_rank, _, per_expert, in_rank, event = buffer.get_dispatch_layout(
            topk, 5, async_finish=True
        )
        event.current_stream_wait()
        assert per_expert.tolist() == [1, 1, 1, 3, 2]
        assert per_rank.tolist() == [2, 2]  # experts 0 to 2, 3 and 4
        assert in_rank.tolist() == [[True, False], [True, True], [False, False], [False, True]]
        x = torch.arange(4.0).view(4, 1).expand(4, 8).bfloat16().contiguous()
        recv, _, _, counts, _, _ = buffer.dispatch(
            x,
            num_tokens_per_rank=per_rank,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
        )
        assert recv[:, 0].tolist() == ([0, 1, 0, 1] if comm.rank == 0 else [1, 3, 1, 3])
        assert counts == [2 * n for n in ([1, 1, 1] if comm.rank == 0 else [3, 2])]

    run_threads(2, body)
    with pytest.raises(zbccl.InvalidArgumentError, match="outside"):
        deep_ep.Buffer(solo).get_dispatch_layout(torch.tensor([[5]]), 5)


def test_a_rank_without_tokens() -> None:
    """In both modes, and int32 indices."""

    def body(comm: zbccl.Communicator) -> None:
        buffer = deep_ep.Buffer(comm)
        tokens = 0 if comm.rank == 1 else 4
        x = torch.ones((tokens, 32), dtype=torch.float32) * (comm.rank + 1)
        topk = torch.full((tokens, 2), 1, dtype=torch.int32)  # expert 1 twice
        weights = torch.ones((tokens, 2))
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(topk, 3)
        recv, recv_idx, _, counts, handle, _ = buffer.dispatch(
            x,
            num_tokens_per_rank=per_rank,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=topk,
            topk_weights=weights,
        )
        rows = 8 if comm.rank == 1 else 0
        assert recv.shape == (rows, 32) and recv_idx.dtype == torch.int32
        assert counts == ([16] if comm.rank == 1 else [0])
        combined, _, _ = buffer.combine(recv, handle)
        assert torch.equal(combined, x)
        packed, count, handle, _, _ = buffer.low_latency_dispatch(
            x, topk[:, :1].contiguous(), 4, 3, use_fp8=False
        )
        assert count.tolist() == ([8] if comm.rank == 1 else [0])
        combined, _, _ = buffer.low_latency_combine(packed, topk[:, :1], weights[:, :1], handle)
        assert torch.equal(combined, x)

    run_threads(3, body)
