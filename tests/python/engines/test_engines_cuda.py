"""The plug-ins' objects on two GPUs, eager and in graphs, beside sums made on the host."""

from __future__ import annotations

from typing import Any

import pytest
import zbccl
from test_vllm_plugin import begin, values
from torch_ranks import run_group_processes

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
dist = torch.distributed
SIZE = 2


def _can_run() -> str:
    """Why these tests cannot run, or an empty string."""
    if not torch.cuda.is_available() or torch.cuda.device_count() < SIZE:
        return "two CUDA devices are needed"
    try:
        zbccl.empty(1, device="cuda:0")
    except zbccl.Error as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(_can_run()), reason=_can_run() or "none")


def device() -> Any:
    return torch.device("cuda", torch.cuda.current_device())


def total(*shape: int, dtype: Any) -> Any:
    return sum(values(r, *shape, dtype=dtype) for r in range(SIZE)).to(device())


def _peers(rank: int) -> Any:
    import logging

    from zbccl.engines.peers import join

    peers = join(dist.group.WORLD, device(), "the world", "the test", logging.getLogger("test"))
    assert peers is not None
    return peers


def _slot(rank: int) -> None:
    import fake_vllm

    assert begin("all_reduce") == ["all_reduce"]
    from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce

    made = CustomAllreduce(group=dist.group.WORLD, device=rank)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        # Sizes of every algorithm, and one that is no multiple of 16 bytes.
        for count in (7, 1000, 1 << 17, 3 << 20, 8 << 20):
            x = values(rank, count, dtype=dtype).to(device())
            assert made.should_custom_ar(x)
            assert torch.equal(made.custom_all_reduce(x), total(count, dtype=dtype))
            assert torch.equal(x, values(rank, count, dtype=dtype).to(device()))
    assert fake_vllm.theirs == []
    made.close()


def _graph(rank: int) -> None:
    begin("all_reduce")
    from vllm.distributed.device_communicators.custom_all_reduce import CustomAllreduce

    made = CustomAllreduce(group=dist.group.WORLD, device=device())
    x = values(rank, 64, 512, dtype=torch.bfloat16).to(device())
    stream = torch.cuda.Stream()
    with made.capture(), torch.cuda.stream(stream):
        made.custom_all_reduce(x)
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            out = made.custom_all_reduce(x)
            out = made.custom_all_reduce(out)
    for step in range(3):
        x.copy_(values(rank + 10 * step, 64, 512, dtype=torch.bfloat16))
        graph.replay()
        once = sum(values(r + 10 * step, 64, 512, dtype=torch.bfloat16) for r in range(SIZE))
        torch.cuda.synchronize()
        assert torch.equal(out.cpu(), once * SIZE)
    made.close()


def _norms(rank: int) -> None:
    from zbccl.engines import norm_op

    peers = _peers(rank)
    norm_op.serve("tp:0", peers)
    for rows, hidden in ((1, 64), (7, 4096), (600, 7168)):
        for dtype in (torch.bfloat16, torch.float16):
            x = values(rank, rows, hidden, dtype=dtype).to(device())
            w = values(70, hidden, dtype=dtype).to(device())
            residual = values(71, rows, hidden, dtype=dtype).to(device())
            out, added = norm_op.call(x, residual, w, 1e-6, "tp:0")
            assert torch.equal(added, total(rows, hidden, dtype=dtype) + residual)
            wanted = torch.nn.functional.rms_norm(added.float(), (hidden,), w.float(), 1e-6)
            torch.testing.assert_close(out.float(), wanted, rtol=1e-2, atol=1e-2)


def _movements(rank: int) -> None:
    from zbccl.engines import calls

    peers = _peers(rank)
    parts = [values(r, 6, 4096, dtype=torch.bfloat16).to(device()) for r in range(SIZE)]
    x = parts[rank].clone()
    assert torch.equal(calls.all_gather(peers, x, -1), torch.cat(parts, -1))
    summed = sum(parts)
    assert torch.equal(calls.reduce_scatter(peers, x, 0, None), summed[3 * rank : 3 * rank + 3])
    rows = [slice(0, 4), slice(4, 6)][rank]
    assert torch.equal(calls.reduce_scatter(peers, x, 0, [4, 2]), summed[rows])
    mine = parts[rank][: rank + 1]
    assert torch.equal(
        calls.all_gather_rows(peers, mine, [1, 2]), torch.cat([parts[0][:1], parts[1][:2]])
    )
    peers.broadcast_(x, 1)
    assert torch.equal(x, parts[1])


@pytest.mark.parametrize("body", [_slot, _graph, _norms, _movements])
def test_on_two_gpus(body: Any) -> None:
    run_group_processes(SIZE, body, backend="gloo", cuda=True)
