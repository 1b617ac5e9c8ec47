"""zbccl.deep_ep in low-latency mode: what DeepEP's own test asks of it, on CPU tensors. The ranks
are threads that pass their communicator in the place of a group."""

from __future__ import annotations

import itertools
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
    hash_tensor,
    per_token_cast_back,
)

FORMATS = [(False, False, False), (True, False, False), (True, True, False), (True, True, True)]


class LowLatency:
    """One rank's inputs: the rank's number everywhere, but the token's in the last group."""

    OFFSET = 128

    def __init__(self, comm: zbccl.Communicator, experts: int):
        self.comm = comm
        self.experts = experts
        self.local = experts // comm.size
        self.x = torch.full((TOKENS, HIDDEN), float(comm.rank - self.OFFSET)).bfloat16()
        self.x[:, -128:] = torch.arange(TOKENS).bfloat16().view(-1, 1)
        generator = torch.Generator().manual_seed(comm.rank)
        self.random = (torch.randn((TOKENS, HIDDEN), generator=generator) * 0.1).bfloat16()
        self.topk_idx = random_topk(comm, experts, seed=2)
        self.weights = torch.randn((TOKENS, SLOTS), generator=generator).abs()
        self.all_topk = gathered(comm, self.topk_idx)


def unpacked(packed: Any, hidden: int) -> Any:
    """bf16 of what came, and garbage where nothing did."""
    if not isinstance(packed, tuple):
        return packed.clone()
    codes, scales = packed
    rows = per_token_cast_back(codes.view(-1, hidden), scales.contiguous().view(-1, scales.size(2)))
    return rows.view(codes.shape)


def check_packed(
    case: LowLatency, x: Any, packed: Any, count: Any, handle: Any, round_scale: bool
) -> None:
    rows = unpacked(packed, HIDDEN)
    low = 2**32 - 1
    for i in range(case.local):
        expert = case.comm.rank * case.local + i
        n = int(count[i])
        src_info, ranges = handle[0][i][:n], handle[1][i]
        assert n == int((case.all_topk == expert).sum()) == int((ranges & low).sum())
        at = 0
        for rank in range(case.comm.size):
            begin, number = int(ranges[rank] >> 32), int(ranges[rank] & low)
            assert begin == at or number == 0
            at += number
            tokens = (case.all_topk[rank] == expert).nonzero()[:, 0]
            assert torch.equal(src_info[begin : begin + number].long(), tokens)
            if x is case.x:
                part = rows[i, begin : begin + number]
                wanted = torch.full((number, HIDDEN - 128), float(rank - case.OFFSET))
                assert number == 0 or calc_diff(part[:, :-128], wanted) < 7e-3
        if x is case.x:
            got, wanted = rows[i, :n, -1].float(), src_info.float()
            assert (
                torch.equal(got, wanted)
                if not round_scale
                else n == 0 or calc_diff(got, wanted) < 7e-3
            )


@pytest.mark.parametrize("size", (2, 3))
def test_low_latency_mode(size: int) -> None:
    """Hooks and events, every format, zero_copy and out, with the limits of DeepEP's test."""
    experts = 4 * size
    most = TOKENS + 8

    def body(comm: zbccl.Communicator) -> None:
        hint = deep_ep.Buffer.get_low_latency_rdma_size_hint(most, HIDDEN, size, experts)
        buffer = deep_ep.Buffer(
            comm, num_rdma_bytes=hint, low_latency_mode=True, num_qps_per_rank=4
        )
        case = LowLatency(comm, experts)
        stats = torch.zeros(case.local, dtype=torch.int32)
        total = torch.zeros_like(stats)
        every = itertools.product((case.x, case.random), (False, True), FORMATS)
        for i, (x, hooked, (fp8, rounded, ue8m0)) in enumerate(every):
            finish = {"async_finish": not hooked, "return_recv_hook": hooked}
            for _ in range(i % 2 + 1):  # also two dispatches before a combine
                packed, count, handle, event, hook = buffer.low_latency_dispatch(
                    x,
                    case.topk_idx,
                    most,
                    experts,
                    cumulative_local_expert_recv_stats=stats,
                    use_fp8=fp8,
                    round_scale=rounded,
                    use_ue8m0=ue8m0,
                    **finish,
                )
                hook() if hooked else event.current_stream_wait()
                total += count
            assert torch.equal(stats, total)
            check_formats(packed, (case.local, size * most), fp8, ue8m0)
            check_packed(case, x, packed, count, handle, rounded)
            results = unpacked(packed, HIDDEN)
            for zero_copy in (False, True):
                if zero_copy:
                    buffer.get_next_low_latency_combine_buffer(handle)[:, :, :] = results
                out = torch.full_like(x, float("nan")) if zero_copy else None
                combined, event, hook = buffer.low_latency_combine(
                    results if not zero_copy else torch.full_like(results, float("nan")),
                    case.topk_idx,
                    case.weights,
                    handle,
                    use_logfmt=hooked,
                    zero_copy=zero_copy,
                    out=out,
                    **finish,
                )
                hook() if hooked else event.current_stream_wait()
                assert out is None or combined is out
                weight = case.weights.masked_fill(case.topk_idx == -1, 0).sum(dim=1).view(-1, 1)
                limit = 7e-3 if rounded else 9e-4 if fp8 else 1e-5
                assert not torch.isnan(combined).any()
                assert calc_diff(x * weight, combined) < limit

    run_threads(size, body)


def check_formats(packed: Any, shape: tuple[int, int], fp8: bool, ue8m0: bool) -> None:
    if not fp8:
        assert packed.shape == (*shape, HIDDEN) and packed.dtype == torch.bfloat16
        return
    codes, scales = packed
    assert codes.shape == (*shape, HIDDEN) and codes.dtype == torch.float8_e4m3fn
    number = HIDDEN // 512 if ue8m0 else HIDDEN // 128
    assert scales.shape == (*shape, number)
    assert scales.dtype == (torch.int32 if ue8m0 else torch.float32)
    assert scales.stride() == (number * shape[1], 1, shape[1])


def test_low_latency_details() -> None:
    def body(comm: zbccl.Communicator) -> None:
        buffer = deep_ep.Buffer(comm, low_latency_mode=True)
        case = LowLatency(comm, 4)
        buffer.clean_low_latency_buffer(TOKENS, HIDDEN, 4)
        # Plain: complete on return. Repeated: the same bits. Two on their way at once.
        one = buffer.low_latency_dispatch(case.random, case.topk_idx, TOKENS, 4)
        assert one[3].event is None and one[4] is None
        two = buffer.low_latency_dispatch(
            case.random, case.topk_idx, TOKENS, 4, return_recv_hook=True
        )
        three = buffer.low_latency_dispatch(
            case.random, case.topk_idx.int(), TOKENS, 4, return_recv_hook=True
        )
        three[4]()  # in any order
        two[4]()
        two[4]()  # and again, without an effect
        for i, n in enumerate(one[1].tolist()):
            hashes = {hash_tensor(got[0][0][i, :n]) for got in (one, two, three)}
            assert len(hashes) == 1
        # Slots taken out since the dispatch do not count.
        rows = torch.ones((2, comm.size * TOKENS, HIDDEN)).bfloat16()
        topk = case.topk_idx.clone()
        topk[:, 0] = -1
        combined, _, _ = buffer.low_latency_combine(rows, topk, torch.ones(topk.shape), one[2])
        assert torch.equal(combined[:, 0].float(), (topk >= 0).sum(dim=1).float())
        with pytest.raises(zbccl.InvalidArgumentError, match="other experts"):
            buffer.low_latency_combine(rows, topk + 1, case.weights, one[2])
        with pytest.raises(zbccl.InvalidUsageError, match="zero_copy"):
            buffer.low_latency_combine(rows, topk, case.weights, one[2], zero_copy=True)

    run_threads(2, body)


def test_masks() -> None:
    def body(comm: zbccl.Communicator) -> None:
        buffer = deep_ep.Buffer(comm, low_latency_mode=True, enable_shrink=True)
        case = LowLatency(comm, 6)
        status = torch.full((3,), 7, dtype=torch.int32)
        if comm.rank != 1:
            buffer.low_latency_update_mask_buffer(1, True)
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0, int(comm.rank != 1), 0]
        packed, count, handle, _, _ = buffer.low_latency_dispatch(
            case.random, case.topk_idx, TOKENS, 6, use_fp8=False
        )
        apart = [1] if comm.rank != 1 else [0, 2]
        live = [r for r in range(3) if r not in apart]
        for i in range(2):
            named = case.all_topk[live] == 2 * comm.rank + i
            assert int(count[i]) == int(named.sum())
            assert not (handle[1][i, apart] & (2**32 - 1)).any()
        combined, _, _ = buffer.low_latency_combine(packed, case.topk_idx, case.weights, handle)
        owner = torch.where(case.topk_idx < 0, -1, case.topk_idx // 2)
        here = sum((owner == r) for r in live)
        assert calc_diff(case.random * (case.weights * here).sum(1).view(-1, 1), combined) < 1e-5
        buffer.low_latency_clean_mask_buffer()
        buffer.low_latency_query_mask_buffer(status)
        assert status.tolist() == [0, 0, 0]
        count = buffer.low_latency_dispatch(case.random, case.topk_idx, TOKENS, 6)[1]
        assert int(count.sum()) == int((case.all_topk // 2 == comm.rank).sum())

    run_threads(3, body)
