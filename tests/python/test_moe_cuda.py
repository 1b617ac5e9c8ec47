"""Dispatch and combine of CUDA tensors: the bits that the same calls give on CPU tensors."""

from __future__ import annotations

from typing import Any

import pytest
import zbccl
from ranks import run_processes

try:
    import torch

    GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
except ImportError:
    GPUS = 0

pytestmark = pytest.mark.skipif(GPUS < 2, reason="needs PyTorch and 2 CUDA devices")
SIZES = [size for size in (2, 4) if size <= GPUS]
TOKENS, SLOTS, HIDDEN, EXPERTS = 50, 4, 1024, 16
LAYOUTS: list[tuple[Any, dict[str, Any]]] = [
    ("rank_major", {}),
    ("expert_major", {"alignment": 8}),
    ("expert_masked", {"capacity": 90}),
]


def routing(rank: int, seed: int, tokens: int = TOKENS) -> Any:
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    scores = torch.rand((tokens, EXPERTS), generator=generator)
    topk = scores.topk(SLOTS).indices
    topk[torch.rand((tokens, SLOTS), generator=generator) < 0.1] = -1
    return topk


def rows(rank: int, shape: tuple[int, ...], seed: int) -> Any:
    generator = torch.Generator().manual_seed(7000 * seed + rank)
    return torch.randn(shape, generator=generator)


def assert_same(ours: Any, theirs: Any) -> None:
    assert ours.is_cuda
    # Copies right behind a call that waits for a peer have stood still (docs/limits.md).
    torch.cuda.current_stream().synchronize()
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    here = ours.cpu().contiguous().view(torch.uint8)
    there = theirs.contiguous().view(torch.uint8)
    assert torch.equal(here, there)


def every_layout(comm: zbccl.Communicator) -> None:
    rank = comm.rank
    experts = zbccl.moe.Experts(comm, EXPERTS)
    for layout, how in LAYOUTS:
        for seed, quant in enumerate((None, "fp8", "fp8_pow2", "fp8_ue8m0", "int8")):
            topk = routing(rank, seed, tokens=0 if rank == 1 and seed == 1 else TOKENS)
            tokens = topk.shape[0]
            x = rows(rank, (tokens, HIDDEN), seed).bfloat16()
            weights = rows(rank, (tokens, SLOTS), 50 + seed).abs()
            there = experts.route(topk, layout, **how)
            here = experts.route(topk.cuda(), layout, **how)
            wishes: dict[str, Any] = {
                "quant": quant,
                "zero_padding": True,
                "out_src_idx": True,
                "transposed_scales": quant is not None and seed % 2 == 1,
            }
            a = there.dispatch(x, topk_weights=weights, **wishes)
            b = here.dispatch(x.cuda(), topk_weights=weights.cuda(), **wishes)
            for name in ("x", "scales", "topk_idx", "topk_weights", "row_weights", "src_idx"):
                ours, theirs = getattr(b, name), getattr(a, name)
                assert (ours is None) == (theirs is None)
                if ours is not None:
                    assert_same(ours, theirs)
            for name in ("num_rows", "allocated_rows", "needed_capacity", "overflow"):
                assert getattr(here, name) == getattr(there, name)
            assert torch.equal(here.expert_counts, there.expert_counts)
            y = rows(rank, tuple(a.x.shape), 90 + seed).bfloat16()
            bias = rows(rank, (tokens, HIDDEN), 95).bfloat16()
            more: dict[str, Any] = {}
            if layout == "rank_major":
                more["recv_topk_weights"] = a.topk_weights
            else:
                more["topk_weights"] = weights
            out = there.combine(y, bias=bias, **more)
            more = {name: tensor.cuda() for name, tensor in more.items()}
            got = here.combine(y.cuda(), bias=bias.cuda(), **more)
            assert_same(got.x, out.x)
            if layout == "rank_major":
                assert_same(got.topk_weights, out.topk_weights)
            # In two phases, and with work handles.
            pending = here.send_dispatch(x.cuda(), quant=quant, zero_padding=True)
            assert_same(pending.receive().x, a.x)
            sent = here.send_combine(y.cuda(), bias=bias.cuda(), **more)
            assert_same(sent.receive().x, out.x)
            work = here.dispatch(x.cuda(), quant=quant, zero_padding=True, async_op=True)
            assert_same(work.wait(timeout=60).x, a.x)
    assert experts.report()["staged_bytes"] == 0
    with pytest.raises(zbccl.InvalidArgumentError, match="host memory"):
        here.dispatch(x)


def graphs(comm: zbccl.Communicator) -> None:
    rank = comm.rank
    experts = zbccl.moe.Experts(comm, EXPERTS)
    topk, x = routing(rank, 0).cuda(), rows(rank, (TOKENS, HIDDEN), 0).bfloat16().cuda()
    weights = rows(rank, (TOKENS, SLOTS), 1).abs().cuda()
    counts = torch.zeros(EXPERTS // comm.size, dtype=torch.int32, device="cuda")

    def step() -> Any:
        handle = experts.route(topk, "expert_masked", capacity=120, recv_counts=counts)
        sent = handle.dispatch(x, zero_padding=True)
        return handle, sent, handle.combine(sent.x, topk_weights=weights).x

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        handle, sent, out = step()
    for seed in range(1, 30):
        indices = routing(rank, seed)
        topk.copy_(indices)
        graph.replay()
        torch.cuda.current_stream().synchronize()
        there = experts.route(indices, "expert_masked", capacity=120)
        expected = there.dispatch(x.cpu(), zero_padding=True)
        assert_same(sent.x, expected.x)
        assert_same(counts, there.expert_counts)
        assert_same(out, there.combine(expected.x, topk_weights=weights.cpu()).x)
    del handle


def deep_ep(comm: zbccl.Communicator) -> None:
    from zbccl import deep_ep as module

    rank = comm.rank
    buffer = module.Buffer(comm, 1 << 20, 0, explicitly_destroy=True)
    for seed in range(3):
        topk = routing(rank, seed)
        x = rows(rank, (TOKENS, HIDDEN), seed).bfloat16()
        weights = rows(rank, (TOKENS, SLOTS), 1).abs()
        results = []
        for place in ("cpu", "cuda"):
            idx, data, scale = topk.to(place), x.to(place), weights.to(place)
            layout = buffer.get_dispatch_layout(idx, EXPERTS)
            received = buffer.dispatch(
                data,
                num_tokens_per_rank=layout[0],
                is_token_in_rank=layout[3],
                num_tokens_per_expert=layout[2],
                topk_idx=idx,
                topk_weights=scale,
                previous_event=buffer.capture(),
                async_finish=place == "cuda",
            )
            recv_x, recv_idx, recv_weights, counts, handle, event = received
            if place == "cuda":
                event.current_stream_wait()
            cached = buffer.dispatch(data, handle=handle)[0]
            out, out_weights, _ = buffer.combine(recv_x, handle, topk_weights=recv_weights)
            worst = buffer.dispatch(
                data,
                num_tokens_per_rank=layout[0],
                is_token_in_rank=layout[3],
                num_tokens_per_expert=layout[2],
                topk_idx=idx,
                topk_weights=scale,
                num_worst_tokens=comm.size * TOKENS,
            )
            packed, count, low, _, hook = buffer.low_latency_dispatch(
                data, idx, TOKENS, EXPERTS, return_recv_hook=True
            )
            assert hook is not None
            hook()
            sums, _, hook = buffer.low_latency_combine(
                packed[0].to(torch.bfloat16), idx, scale, low, return_recv_hook=True
            )
            assert hook is not None
            hook()
            assert worst[3] == []
            tensors = [*layout[:1], *layout[2:4], recv_x, recv_idx, recv_weights, handle[0]]
            tensors += [cached, out, out_weights, worst[1], worst[4][0], count, low[1], sums]
            results.append((tensors, counts))
        (theirs, their_counts), (ours, our_counts) = results
        assert their_counts == our_counts
        for here, there in zip(ours, theirs, strict=True):
            assert_same(here, there)
    buffer.destroy()


def everything(comm: zbccl.Communicator) -> None:
    for body in (every_layout, graphs, deep_ep):
        try:
            body(comm)
        except BaseException as error:
            raise AssertionError(f"in {body.__name__}") from error


@pytest.mark.parametrize("size", SIZES)
def test_cuda(size: int) -> None:
    run_processes(size, everything, cuda=True)
