"""The back end on CUDA tensors: one process and one GPU for each rank."""

from __future__ import annotations

from typing import Any

import pytest
import zbccl
from torch_ranks import dist, run_group_processes, torch
from training import train_ddp, train_flat_fsdp, train_fsdp, train_tensor_parallel

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = pytest.mark.skipif(GPUS < 2, reason="needs 2 CUDA devices")
SIZES = [size for size in (2, 4) if size <= GPUS]
COUNTS = [0, 1, 1000, 300_001]


def values(rank: int, shape: Any, dtype: Any, seed: int = 0) -> Any:
    """Small integers of that rank, on this rank's GPU: sums of them are exact in every type."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    return torch.randint(0, 7, shape, generator=generator).to(dtype).cuda()


def poison(shape: Any, dtype: Any) -> Any:
    return torch.full(shape, 42, dtype=dtype, device="cuda")


def every_collective(rank: int) -> None:
    size = dist.get_world_size()
    assert dist.group.WORLD._device is not None
    dtypes = [torch.float32, torch.bfloat16, torch.int64, torch.uint8]
    for number, dtype in enumerate(dtypes):
        for count in COUNTS:
            later = (number + count) % 2 == 0
            seed = 10 * number + count
            parts = [values(r, (count,), dtype, seed) for r in range(size)]
            total = torch.stack(parts).sum(0).to(dtype)

            def done(work: Any) -> None:
                if work is not None:
                    work.wait()

            x = parts[rank].clone()
            done(dist.all_reduce(x, async_op=later))
            assert torch.equal(x, total)
            x = parts[rank].clone()
            done(dist.all_reduce(x, op=dist.ReduceOp.MAX, async_op=later))
            assert torch.equal(x, torch.stack(parts).amax(0) if count else total)
            x = parts[rank].clone()
            done(dist.reduce(x, dst=size - 1, async_op=later))
            assert torch.equal(x, total if rank == size - 1 else parts[rank])
            x = parts[rank].clone()
            done(dist.broadcast(x, src=1, async_op=later))
            assert torch.equal(x, parts[1])
            out = poison((size * count,), dtype)
            done(dist.all_gather_into_tensor(out, parts[rank], async_op=later))
            assert torch.equal(out, torch.cat(parts))
            outs = [poison((count,), dtype) for _ in range(size)]
            done(dist.all_gather(outs, parts[rank], async_op=later))
            assert all(torch.equal(a, b) for a, b in zip(outs, parts, strict=True))
            wide = [values(r, (size * count,), dtype, seed + 1) for r in range(size)]
            summed = torch.stack(wide).sum(0).to(dtype)
            piece = poison((count,), dtype)
            done(dist.reduce_scatter_tensor(piece, wide[rank], async_op=later))
            assert torch.equal(piece, summed[rank * count : (rank + 1) * count])
            piece = poison((count,), dtype)
            done(
                dist.reduce_scatter(
                    piece,
                    list(wide[rank].split(count) if count else [wide[rank]] * size),
                    async_op=later,
                )
            )
            assert torch.equal(piece, summed[rank * count : (rank + 1) * count])
            out = poison((size * count,), dtype)
            done(dist.all_to_all_single(out, wide[rank], async_op=later))
            mine = [w[rank * count : (rank + 1) * count] for w in wide]
            assert torch.equal(out, torch.cat(mine))
            lists = [
                [values(r * size + p, (count + r,), dtype, seed) for p in range(size)]
                for r in range(size)
            ]
            outs = [poison((count + r,), dtype) for r in range(size)]
            done(dist.all_to_all(outs, lists[rank], async_op=later))
            assert all(torch.equal(outs[r], lists[r][rank]) for r in range(size))
            outs = [poison((count,), dtype) for _ in range(size)] if rank == 0 else None
            done(dist.gather(parts[rank], outs, dst=0, async_op=later))
            if outs is not None:
                assert all(torch.equal(a, b) for a, b in zip(outs, parts, strict=True))
            piece = poison((count,), dtype)
            done(dist.scatter(piece, parts if rank == 0 else None, src=0, async_op=later))
            assert torch.equal(piece, parts[rank])
    x = torch.tensor([True, rank == 0], device="cuda")
    dist.all_reduce(x, op=dist.ReduceOp.BAND)
    assert x.tolist() == [True, False]
    x = torch.tensor([1 << rank], device="cuda")
    dist.all_reduce(x, op=dist.ReduceOp.BOR)
    assert x.tolist() == [(1 << size) - 1]
    x = torch.full((6, 4), float(rank), device="cuda").t()
    dist.all_reduce(x)
    assert (x == sum(range(size))).all()
    host = torch.ones(3)
    dist.all_reduce(host)
    assert host[0] == size
    dist.barrier()
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, rank)
    assert objects == list(range(size))


def order_of_streams(rank: int) -> None:
    """Work of the current stream before a call is seen by it, and what follows wait() sees it."""
    size = dist.get_world_size()
    x = torch.zeros(1 << 20, device="cuda")
    for turn in range(20):
        torch.cuda._sleep(1_000_000)
        x.fill_(rank + turn)
        work = dist.all_reduce(x, async_op=True)
        work.wait()
        y = x * 2
        x.zero_()
        assert (y == 2 * sum(r + turn for r in range(size))).all()
    # Dropped tensors are not handed out while the other stream uses them.
    works = []
    for turn in range(50):
        z = torch.full((1 << 18,), float(turn), device="cuda")
        works.append((dist.all_reduce(z, async_op=True), z.data_ptr()))
        del z
        torch.full((1 << 18,), -1.0, device="cuda")
    for turn, (work, _) in enumerate(works):
        work.wait()
        assert (work.result()[0] == turn * size).all()
    z = torch.ones(1000, device="cuda")
    future = dist.all_reduce(z, async_op=True).get_future().then(lambda done: done.value()[0] * 3)
    assert (future.wait() == 3 * size).all()


def graphs(rank: int) -> None:
    size = dist.get_world_size()
    static = torch.zeros(5000, device="cuda")
    out = torch.zeros(size * 5000, device="cuda")
    parts = [torch.zeros(5000, device="cuda") for _ in range(size)]

    def step() -> Any:
        y = static + 1
        dist.all_reduce(y)
        work = dist.all_gather_into_tensor(out, y, async_op=True)
        work.wait()
        dist.all_gather(parts, y)
        return out.view(size, -1).sum(0) + parts[-1]

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    for turn in range(4):
        static.fill_(float(turn * 10 + rank))
        graph.replay()
        total = sum(turn * 10 + r + 1 for r in range(size))
        assert (result == total * (size + 1)).all(), turn


def messages(rank: int) -> None:
    size = dist.get_world_size()
    for count in (1, 1000, 1 << 20):
        sent = values(rank, (count,), torch.float32, count)
        got = {r: poison((count,), torch.float32) for r in range(size) if r != rank}
        ops = [dist.P2POp(dist.isend, sent, r) for r in got]
        ops += [dist.P2POp(dist.irecv, x, r) for r, x in got.items()]
        for work in dist.batch_isend_irecv(ops):
            work.wait()
        for r, x in got.items():
            assert torch.equal(x, values(r, (count,), torch.float32, count))
        with dist.distributed_c10d._coalescing_manager(
            device=sent.device, async_ops=True
        ) as manager:
            dist.isend(sent, (rank + 1) % size)
            x = poison((count,), torch.float32)
            dist.irecv(x, (rank - 1) % size)
        manager.wait()
        assert torch.equal(x, values((rank - 1) % size, (count,), torch.float32, count))
        if rank == 0:
            dist.send(sent, 1)
        elif rank == 1:
            wide = poison((count, 2), torch.float32)
            dist.recv(wide[:, 0], 0)
            assert torch.equal(wide[:, 0], values(0, (count,), torch.float32, count))
            assert (wide[:, 1] == 42).all()


def memory(rank: int) -> None:
    from zbccl.torch import MemPool, register

    size = dist.get_world_size()
    count = 4 << 20

    def staged() -> int:
        return zbccl.memory_report()["staged_bytes"]

    pool = MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = torch.ones(count, device="cuda")
    before = staged()
    dist.all_reduce(x)
    dist.all_reduce(x, async_op=True).wait()
    assert (x == size * size).all()
    assert staged() == before
    y = torch.ones(count, device="cuda")
    with register(y):
        before = staged()
        dist.all_reduce(y)
        torch.cuda.synchronize()
        assert staged() == before
    assert (y == size).all()
    dist.barrier()


def nothing(rank: int) -> None:
    """Empty tensors, which have no address, on all ranks and on some."""
    size = dist.get_world_size()
    for later in (False, True):
        for turn in range(2):
            # Something of every rank is in flight before and after.
            around = torch.full((5000,), float(rank), device="cuda")
            works = [dist.all_reduce(around, async_op=later)]
            empty = torch.empty(0, device="cuda")
            assert empty.data_ptr() == 0
            works.append(dist.all_reduce(empty, async_op=later))
            works.append(dist.broadcast(empty, src=0, async_op=later))
            works.append(dist.all_gather_into_tensor(empty, empty, async_op=later))
            works.append(dist.reduce_scatter_tensor(empty, empty, async_op=later))
            works.append(dist.all_to_all_single(empty, empty, async_op=later))
            # One rank has nothing to send and gets nothing.
            idle = turn % size
            sizes = [
                [0 if idle in (r, p) else 100 + 10 * r + p for p in range(size)]
                for r in range(size)
            ]
            x = values(rank, (sum(sizes[rank]),), torch.float32, turn)
            gets = [sizes[r][rank] for r in range(size)]
            out = poison((sum(gets),), torch.float32)
            works.append(dist.all_to_all_single(out, x, gets, sizes[rank], async_op=later))
            counts = [0 if r == idle else 1000 + r for r in range(size)]
            parts = [values(r, (counts[r],), torch.float32, 10 + turn) for r in range(size)]
            outs = [poison((count,), torch.float32) for count in counts]
            works.append(dist.all_gather(outs, parts[rank], async_op=later))
            ops = [dist.P2POp(dist.isend, empty, (rank + 1) % size)]
            ops += [dist.P2POp(dist.irecv, torch.empty(0, device="cuda"), (rank - 1) % size)]
            works += dist.batch_isend_irecv(ops)
            # Host memory without an address is on the host.
            host = torch.empty(0)
            works.append(dist.all_reduce(host, async_op=later))
            for work in works:
                if work is not None:
                    work.wait()
            assert (around == sum(range(size))).all()
            theirs = [
                values(r, (sum(sizes[r]),), torch.float32, turn).split(sizes[r])[rank]
                for r in range(size)
            ]
            assert torch.equal(out, torch.cat(theirs))
            assert all(torch.equal(a, b) for a, b in zip(outs, parts, strict=True))


def in_turn(rank: int, parts: Any) -> None:
    for part in parts:
        try:
            part(rank)
        except BaseException as error:
            raise AssertionError(f"in {part.__name__}") from error


def everything(rank: int) -> None:
    parts = [nothing, every_collective, order_of_streams, graphs, messages, memory]
    if dist.get_world_size() == 2:
        parts += [premultiplied, training, compiled, aborted]
    in_turn(rank, parts)


def premultiplied(rank: int) -> None:
    """Sums of inputs times a factor: a number, or a tensor on either side."""
    size = dist.get_world_size()
    make = torch.distributed._make_nccl_premul_sum
    for count in (0, 1, 5000):
        for factor in (0.5, torch.tensor([0.25], device="cuda"), torch.tensor([2.0])):
            for dtype in (torch.float32, torch.bfloat16):
                number = float(factor)
                parts = [values(r, (count,), dtype, count) for r in range(size)]
                total = sum((part * number).to(dtype).float() for part in parts).to(dtype)
                x = parts[rank].clone()
                dist.all_reduce(x, op=make(factor))
                assert torch.equal(x, total)
                wide = [values(r, (size * count,), dtype, count + 1) for r in range(size)]
                piece = poison((count,), dtype)
                dist.reduce_scatter_tensor(piece, wide[rank].clone(), op=make(factor))
                total = sum((part * number).to(dtype).float() for part in wide).to(dtype)
                assert torch.equal(piece, total[rank * count : (rank + 1) * count])


def training(rank: int) -> None:
    """The losses of NCCL, which for two ranks has the same one order of summation."""
    device = f"cuda:{rank}"
    nccl = dist.new_group(backend="nccl")
    meshes = [
        dist.device_mesh.DeviceMesh.from_group(group, "cuda") for group in (nccl, dist.group.WORLD)
    ]
    runs = {
        "ddp": [train_ddp(group, device) for group in (nccl, dist.group.WORLD)],
        "views": [
            train_ddp(group, device, gradient_as_bucket_view=True)
            for group in (nccl, dist.group.WORLD)
        ],
        "fsdp": [train_fsdp(mesh, device) for mesh in meshes],
        "flat fsdp": [train_flat_fsdp(group, device) for group in (nccl, dist.group.WORLD)],
        "tensor parallel": [train_tensor_parallel(mesh, device) for mesh in meshes],
    }
    for name, (theirs, ours) in runs.items():
        assert ours[-1] < ours[0], name
        assert ours == pytest.approx(theirs, rel=1e-5), name


def compiled(rank: int) -> None:
    import torch.distributed._functional_collectives as functional

    def step(x: Any) -> Any:
        y = functional.all_reduce(x * 2, "sum", dist.group.WORLD)
        dist.all_reduce(x)
        return y + x

    run = torch.compile(step, fullgraph=True)
    for turn in range(3):
        x = torch.full((3000,), float(rank + turn), device="cuda")
        total = float(sum(r + turn for r in range(dist.get_world_size())))
        assert (run(x) == 3 * total).all()


def late_devices(rank: int) -> None:
    """A group that was made when its ranks had not chosen their devices."""
    world = dist.group.WORLD
    assert world._device is None
    torch.cuda.set_device(rank)
    x = torch.ones(10, device="cuda")
    with pytest.raises(RuntimeError, match="set_device"):
        dist.isend(x, (rank + 1) % 2)
    dist.all_reduce(x)
    assert (x == 2).all()
    assert world._device is not None
    part = world.split_group([0, 1])
    part.allreduce([x]).wait()
    assert (x == 4).all()
    part.shutdown()


def test_late_devices() -> None:
    run_group_processes(2, late_devices, cuda=False)


def aborted(rank: int) -> None:
    """A peer that never comes: the deadline's error is raised, and the host goes on."""
    from datetime import timedelta

    group = dist.new_group(timeout=timedelta(seconds=2))
    x = torch.ones(1000, device="cuda")
    dist.all_reduce(x, group=group)
    torch.cuda.synchronize()
    if rank == 0:
        dist.all_reduce(x, group=group)
        torch.cuda.synchronize()
        with pytest.raises(dist.DistBackendError, match="rank 1"):
            dist.all_reduce(x, group=group)
    dist.barrier()


@pytest.mark.parametrize("size", SIZES)
def test_everything(size: int) -> None:
    run_group_processes(size, everything, cuda=True)
