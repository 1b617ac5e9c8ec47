"""CUDA tensors of PyTorch and of zbccl, one process and one GPU for each rank."""

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
Case = dict[str, Any]


def values(rank: int, shape: Any, dtype: Any, seed: int = 0) -> Any:
    """Random numbers of that rank, on its GPU."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randn(shape, generator=generator).to(dtype).cuda()


def summed(size: int, shape: Any, dtype: Any, seed: int = 0) -> Any:
    """In rank order in f32, rounded once."""
    total = values(0, shape, dtype, seed).float()
    for rank in range(1, size):
        total += values(rank, shape, dtype, seed).float()
    return total.to(dtype)


def every_operation(comm: zbccl.Communicator) -> None:
    rank, size = comm.rank, comm.size
    assert comm.device == f"cuda:{rank}"
    for seed, (count, dtype) in enumerate(
        [(1000, torch.float32), (70_001, torch.bfloat16), (3_000_000, torch.float16)]
    ):
        x = values(rank, count, dtype, seed)
        expected = summed(size, count, dtype, seed)
        out = torch.full_like(x, float("nan"))
        assert comm.all_reduce(x, out=out) is out
        assert torch.equal(out, expected)
        copy = x.clone()
        assert comm.all_reduce(copy) is copy
        assert torch.equal(copy, expected)
        gathered = comm.all_gather(x)
        assert gathered.is_cuda
        for r in range(size):
            assert torch.equal(gathered[r * count : (r + 1) * count], values(r, count, dtype, seed))
        root = size - 1
        copy = x.clone()
        comm.broadcast(copy, root=root)
        assert torch.equal(copy, values(root, count, dtype, seed))
    many = values(rank, (size * 500, 3), torch.float32, 50)
    piece = comm.reduce_scatter(many)
    total = summed(size, (size * 500, 3), torch.float32, 50)
    assert torch.equal(piece, total[rank * 500 : (rank + 1) * 500])
    swapped = comm.all_to_all(many)
    for r in range(size):
        theirs = values(r, (size * 500, 3), torch.float32, 50)
        assert torch.equal(swapped[r * 500 : (r + 1) * 500], theirs[rank * 500 : (rank + 1) * 500])
    # As many rows to each rank as its number, one more from each rank than from the one before.
    sizes = [r * (rank + 1) for r in range(size)]
    rows = values(rank, (sum(sizes), 5), torch.bfloat16, 60)
    got = comm.all_to_all_v(rows, sizes)
    expected = torch.cat(
        [
            values(r, (sum(q * (r + 1) for q in range(size)), 5), torch.bfloat16, 60)[
                sum(range(rank)) * (r + 1) :
            ][: rank * (r + 1)]
            for r in range(size)
        ]
    )
    assert torch.equal(got, expected)
    # The fused ones give the bits that they give on the host.
    x = values(rank, (33, 1024), torch.bfloat16, 60)
    weight, residual = values(0, (1024,), torch.bfloat16, 61), values(0, x.shape, x.dtype, 62)
    here = comm.all_reduce_rms_norm(x, weight, residual=residual.clone(), codes="group")
    there = comm.all_reduce_rms_norm(x.cpu(), weight.cpu(), residual=residual.cpu(), codes="group")
    for ours, theirs in zip(here, there, strict=True):
        assert ours.is_cuda
        assert torch.equal(ours.cpu().view(torch.uint8), theirs.view(torch.uint8))
    for code in ("e4m3", "i8"):
        ours, theirs = x.clone(), x.cpu()
        comm.all_reduce_quantized(ours, code)
        comm.all_reduce_quantized(theirs, code)
        assert torch.equal(ours.cpu(), theirs)
    with zbccl.group():
        sent = values(rank, 999, torch.float32, 70)
        received = torch.full_like(sent, float("nan"))
        comm.send(sent, (rank + 1) % size)
        comm.recv(received, (rank - 1) % size)
    assert torch.equal(received, values((rank - 1) % size, 999, torch.float32, 70))
    # Device memory does not disturb host memory.
    host = torch.full((100,), float(rank + 1))
    comm.all_reduce(host)
    assert host[0] == size * (size + 1) / 2


def memory(comm: zbccl.Communicator) -> None:
    rank, size = comm.rank, comm.size
    count = 2_000_000
    expected = summed(size, count, torch.bfloat16)

    def staged() -> int:
        return zbccl.memory_report()["staged_bytes"]

    # zbccl's own tensors, as PyTorch sees them.
    mine = comm.empty(count, "bf16", device="cuda")
    assert mine.device == f"cuda:{rank}"
    view = mine.torch()
    assert view.data_ptr() == mine.data_ptr
    assert view.device.index == rank
    before = staged()
    view.copy_(values(rank, count, torch.bfloat16))
    comm.all_reduce(mine)
    assert torch.equal(view, expected)
    gathered = comm.all_gather(mine)
    assert isinstance(gathered, zbccl.Tensor)
    assert gathered.shape == (size * count,)
    assert staged() == before
    # Tensors of a pool of PyTorch's that allocates with zbccl.
    pool = zbccl.mem_pool()
    with torch.cuda.use_mem_pool(pool):
        x = torch.empty(count, dtype=torch.bfloat16, device="cuda")
        out = torch.full_like(x, float("nan"))
    x.copy_(values(rank, count, torch.bfloat16))
    comm.all_reduce(x, out=out)
    assert torch.equal(out, expected)
    assert staged() == before
    # Others, registered for the time of a call.
    foreign = values(rank, count, torch.bfloat16)
    with zbccl.register(foreign):
        comm.all_reduce(foreign)
        assert torch.equal(foreign, expected)
    assert staged() == before
    with pytest.raises(BufferError, match="lies on a CUDA device"):
        memoryview(mine)
    with pytest.raises(zbccl.UnsupportedError, match="NumPy does not reach"):
        mine.numpy()
    # Memory comes and goes under calls that are still running.
    for _ in range(20):
        part = zbccl.empty(count, "bf16", device=rank)
        part.torch().copy_(values(rank, count, torch.bfloat16))
        result = torch.empty(count, dtype=torch.bfloat16, device="cuda")
        comm.all_reduce(part, out=result)
        del part
        other = zbccl.empty(count, "bf16", device=rank)
        other.torch().fill_(7)
        assert torch.equal(result, expected)


def streams_and_graphs(comm: zbccl.Communicator) -> None:
    rank, size = comm.rank, comm.size
    count = 50_000
    side = torch.cuda.Stream()
    for seed in range(10):
        with torch.cuda.stream(side):
            x = values(rank, count, torch.float32, seed)
            torch.cuda._sleep(2_000_000 * (1 + (rank + seed) % size))
            x += 1
            comm.all_reduce(x)
            x -= size
            done = x.clone()
        side.synchronize()
        shifted = values(0, count, torch.float32, seed) + 1
        for r in range(1, size):
            shifted += values(r, count, torch.float32, seed) + 1
        assert torch.equal(done, shifted - size)
    x = values(rank, count, torch.float32)
    torch.cuda.synchronize()
    with zbccl.launch(stream=side, max_blocks=2):
        comm.all_reduce(x)
        comm.barrier()
    side.synchronize()
    assert torch.equal(x, summed(size, count, torch.float32))
    work = comm.all_reduce(values(rank, count, torch.float32), async_op=True)
    assert torch.equal(work.wait(timeout=30), summed(size, count, torch.float32))
    assert work.is_completed()
    # Captured once, replayed with other numbers.
    buffer = values(rank, count, torch.float32)
    output = torch.empty_like(buffer)
    comm.all_reduce(buffer, out=output)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        comm.all_reduce(buffer, out=output)
        output.mul_(2)
    for seed in range(50):
        buffer.copy_(values(rank, count, torch.float32, seed))
        graph.replay()
        assert torch.equal(output, 2 * summed(size, count, torch.float32, seed))


def mistakes(comm: zbccl.Communicator) -> None:
    rank, size = comm.rank, comm.size
    x = torch.ones(100, device="cuda")
    with pytest.raises(zbccl.InvalidArgumentError, match="not C-contiguous"):
        comm.all_reduce(torch.ones(10, 10, device="cuda").t())
    with pytest.raises(zbccl.InvalidArgumentError, match="host memory"):
        comm.all_gather(x, out=torch.empty(size * 100))
    elsewhere = torch.ones(100, device=f"cuda:{(rank + 1) % size}")
    with pytest.raises(zbccl.InvalidUsageError, match=f"serves device {rank}"):
        comm.all_reduce(elsewhere)
    part = comm.split(rank % 2)
    assert part is not None
    assert part.device == comm.device
    y = torch.ones(100, device="cuda")
    part.all_reduce(y)
    assert y[0].item() == part.size
    part.close()
    comm.all_reduce(x)
    assert x[0].item() == size


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("body", [every_operation, memory, streams_and_graphs, mistakes])
def test_cuda(size: int, body: Any) -> None:
    run_processes(size, body, cuda=True)
