"""The back end under torch.distributed itself: processes with a default group."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zbccl
import zbccl_autoload
from torch_ranks import dist, run_group_processes, torch

importlib.import_module("zbccl.torch")

SIZE = 3


def collectives() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.arange(5.0) * (rank + 1)
    dist.all_reduce(x)
    assert torch.equal(x, torch.arange(5.0) * 6)
    work = dist.all_reduce(x, op=dist.ReduceOp.MAX, async_op=True)
    assert work.wait()
    assert work.is_completed()
    assert work.is_success()
    assert torch.equal(work.result()[0], x)
    out = torch.full((size, 2), -1)
    dist.all_gather_into_tensor(out, torch.tensor([rank, rank]))
    assert out.tolist() == [[r, r] for r in range(size)]
    piece = torch.empty(2)
    dist.reduce_scatter_tensor(piece, torch.ones(size * 2) * rank)
    assert piece.tolist() == [3.0, 3.0]
    outs = [torch.empty(1) for _ in range(size)]
    dist.all_to_all(outs, [torch.tensor([10.0 * rank + r]) for r in range(size)])
    assert [int(y) for y in outs] == [10 * r + rank for r in range(size)]
    out = torch.empty(size)
    dist.all_to_all_single(out, torch.arange(float(size)) + 10 * rank)
    assert out.tolist() == [10.0 * r + rank for r in range(size)]
    z = torch.tensor([complex(rank, 1)])
    dist.all_reduce(z)
    assert z.tolist() == [complex(3, 3)]
    parts = [torch.empty(2) for _ in range(size)] if rank == 1 else None
    dist.gather(torch.full((2,), float(rank)), parts, dst=1)
    if parts is not None:
        assert [int(y[0]) for y in parts] == [0, 1, 2]
    dist.scatter(piece, parts, src=1)
    assert piece.tolist() == [float(rank)] * 2
    assert dist.reduce(piece, dst=2) is None
    assert piece[0] == (3.0 if rank == 2 else rank)
    dist.barrier()
    dist.barrier(async_op=True).wait()


def objects() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    mine = {"rank": rank, "text": "x" * (10 * rank)}
    all_of: list[Any] = [None] * size
    dist.all_gather_object(all_of, mine)
    assert [each["rank"] for each in all_of] == list(range(size))
    gathered = [None] * size if rank == 2 else None
    dist.gather_object(mine, gathered, dst=2)
    assert gathered is None or gathered == all_of
    listed = [("a", rank), None] if rank == 1 else [None, None]
    dist.broadcast_object_list(listed, src=1)
    assert listed == [("a", 1), None]
    out = [None]
    dist.scatter_object_list(out, list(range(size)) if rank == 0 else None, src=0)
    assert out == [rank]
    if rank == 0:
        dist.send_object_list([mine, 7], dst=1)
    elif rank == 1:
        received = [None, None]
        dist.recv_object_list(received, src=0)
        assert received == [{"rank": 0, "text": ""}, 7]


def messages() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    right, left = (rank + 1) % size, (rank - 1) % size
    sent, got = torch.arange(1000.0) + rank, torch.full((1000,), -1.0)
    ops = [dist.P2POp(dist.isend, sent, right), dist.P2POp(dist.irecv, got, left)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    assert torch.equal(got, torch.arange(1000.0) + left)
    # A ring of sends that nobody receives yet.
    work = dist.isend(sent, right, tag=3)
    wide = torch.full((1000, 2), -1.0)
    receive = dist.irecv(wide[:, 1], left, tag=3)
    receive.wait()
    work.wait()
    assert torch.equal(wide[:, 1], torch.arange(1000.0) + left)
    assert (wide[:, 0] == -1).all()
    assert receive.source_rank() == left
    # Asked for in another order than they are sent.
    works = [dist.isend(sent * tag, right, tag=tag) for tag in (1, 2, 3)]
    for tag in (3, 1, 2):
        assert dist.recv(got, left, tag=tag) == left
        assert torch.equal(got, (torch.arange(1000.0) + left) * tag)
    for work in works:
        work.wait()
    future = dist.irecv(got.zero_(), left).get_future()
    dist.send(sent * 2, right)
    assert torch.equal(future.wait()[0], (torch.arange(1000.0) + left) * 2)
    with dist.distributed_c10d._coalescing_manager(
        device=torch.device("cpu"), async_ops=True
    ) as coalesced:
        dist.isend(sent, right)
        dist.irecv(got, left)
    coalesced.wait()
    assert torch.equal(got, torch.arange(1000.0) + left)
    with pytest.raises(NotImplementedError):
        dist.irecv(got)


def coalesced() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    xs = [torch.full((n,), float(rank)) for n in (1, 5, 0)]
    with dist.distributed_c10d._coalescing_manager():
        for x in xs:
            dist.all_reduce(x)
    assert all((x == 3).all() for x in xs)
    outs = [torch.empty(size * n) for n in (2, 3)]
    with dist.distributed_c10d._coalescing_manager(async_ops=True) as manager:
        for n, out in zip((2, 3), outs, strict=True):
            dist.all_gather_into_tensor(out, torch.full((n,), float(rank)))
    manager.wait()
    assert outs[0].tolist() == [0, 0, 1, 1, 2, 2]
    parts = [torch.empty(n) for n in (2, 3)]
    with dist.distributed_c10d._coalescing_manager():
        for n, part in zip((2, 3), parts, strict=True):
            dist.reduce_scatter_tensor(part, torch.ones(size * n))
    assert all((part == size).all() for part in parts)


def functional() -> None:
    import torch.distributed._functional_collectives as functional

    rank, size = dist.get_rank(), dist.get_world_size()
    world = dist.group.WORLD
    gather = getattr(functional, "all_gather_single", None) or functional.all_gather_tensor
    scatter = getattr(functional, "reduce_scatter_single", None) or functional.reduce_scatter_tensor
    x = torch.full((size, 2), float(rank + 1))
    assert torch.equal(functional.all_reduce(x, "sum", world) + 0, torch.full((size, 2), 6.0))
    assert torch.equal(functional.all_reduce(x, "avg", world) + 0, torch.full((size, 2), 2.0))
    gathered = gather(x, 0, world) + 0
    assert gathered[:, 0].tolist() == [float(r + 1) for r in range(size) for _ in range(size)]
    assert torch.equal(scatter(x, "sum", 0, world) + 0, torch.full((1, 2), 6.0))
    assert torch.equal(functional.broadcast(x, 1, world) + 0, torch.full((size, 2), 2.0))
    swapped = functional.all_to_all_single(x + torch.arange(size).view(-1, 1), None, None, world)
    assert (swapped + 0)[:, 0].tolist() == [float(r + 1 + rank) for r in range(size)]
    uneven = functional.all_to_all_single(
        torch.full((sum(range(size)),), float(rank)), [rank] * size, list(range(size)), world
    )
    assert (uneven + 0).tolist() == [float(r) for r in range(size) for _ in range(rank)]
    several = functional.all_reduce_coalesced([x, x * 2], "max", world)
    assert (several[1] + 0).max() == 2 * size
    scattered = functional.reduce_scatter_tensor_coalesced([x, x], "sum", [0, 0], world)
    assert torch.equal(scattered[1] + 0, torch.full((1, 2), 6.0))
    gathered = functional.all_gather_into_tensor_coalesced([x, x], world)
    assert (gathered[1] + 0).shape == (size * size, 2)


def groups() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    pair = dist.new_group([0, 2])
    x = torch.ones(3)
    if rank in (0, 2):
        dist.all_reduce(x, group=pair)
        assert dist.get_world_size(pair) == 2
        assert dist.get_rank(pair) == rank // 2
        assert dist.get_backend(pair) == "zbccl"
        dist.broadcast(x.fill_(rank), src=2, group=pair)
        assert x[0] == 2
        assert pair.group_name != dist.group.WORLD.group_name
        assert pair.name() == "zbccl"
        dist.destroy_process_group(pair)
    others = dist.new_group(backend="gloo")
    dist.all_reduce(x.fill_(1), group=others)
    assert x[0] == size
    mine, _ = dist.new_subgroups(group_size=1)
    dist.all_reduce(x, group=mine)
    assert x[0] == size
    world = dist.group.WORLD
    part = world.split_group([1, 0] if rank < 2 else [2])
    dist.barrier()
    y = torch.full((2,), float(rank))
    part.allreduce([y]).wait()
    assert y[0] == (1 if rank < 2 else 2)
    assert part.rank() == (1 - rank if rank < 2 else 0)
    part.shutdown()
    assert world._get_backend(torch.device("cpu")).supports_splitting
    assert dist.distributed_c10d._get_object_coll_device() == "cpu"
    world.set_timeout(timedelta(seconds=50))
    before = world._get_sequence_number_for_group()
    dist.barrier()
    assert world._get_sequence_number_for_group() == before + 1
    mesh = dist.device_mesh.init_device_mesh("cpu", (size,), mesh_dim_names=("all",))
    assert mesh["all"].get_group().size() == size


def futures() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    x = torch.ones(4)
    works = [dist.all_reduce(x, async_op=True) for _ in range(3)]
    future = works[-1].get_future().then(lambda done: done.wait()[0] * 2)
    assert future.wait()[0] == 2 * size**3
    assert works[0].get_future().wait()[0] is x
    wide = torch.zeros(4, 2)
    out = wide[:, 0]
    work = dist.broadcast(out if rank else out.add_(5), src=0, async_op=True)
    work.get_future().wait()
    assert (wide[:, 0] == 5).all()
    assert (wide[:, 1] == 0).all()
    # Others wait their turn while one thread is inside of a group.
    other = dist.new_group()
    results = []

    def call(group: Any) -> None:
        for _ in range(50):
            y = torch.ones(2)
            dist.all_reduce(y, group=group)
            results.append(int(y[0]))

    threads = [threading.Thread(target=call, args=(group,)) for group in (dist.group.WORLD, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [size] * 100


def everything(rank: int) -> None:
    assert dist.get_backend() == "zbccl"
    assert dist.get_rank() == rank
    for part in (collectives, objects, messages, coalesced, functional, groups, futures):
        try:
            part()
        except BaseException as error:
            raise AssertionError(f"in {part.__name__}") from error


def test_everything() -> None:
    run_group_processes(SIZE, everything)


def failures(rank: int) -> None:
    x = torch.ones(3 + rank)
    with pytest.raises(RuntimeError, match="differs between ranks"):
        dist.all_reduce(x)
    dist.barrier()
    waits = dist.new_group(timeout=timedelta(seconds=0.5))
    if rank == 0:
        from zbccl.torch import TimeoutError as GroupTimeoutError

        with pytest.raises(dist.DistBackendError, match="waited 500 ms"):
            dist.barrier(group=waits)
        with pytest.raises(GroupTimeoutError):
            dist.barrier(group=waits)
    aborted = dist.new_group()
    dist.barrier()
    if rank == 0:
        work = dist.all_reduce(torch.ones(1), group=aborted, async_op=True)
        assert not work.is_completed()
        threading.Timer(0.2, aborted.abort).start()
        with pytest.raises(RuntimeError, match="abort"):
            work.wait()
        assert work.is_completed()
        assert not work.is_success()
        assert isinstance(work.exception(), dist.DistBackendError)
        with pytest.raises(RuntimeError, match="abort"):
            work.get_future().wait()
        dist.send_object_list([0], dst=1)
        pending = dist.new_group()
        receive = dist.irecv(torch.empty(1), src=1, group=pending)
        with pytest.raises(RuntimeError, match="Timed out"):
            receive.wait(timedelta(seconds=0.1))
        dist.recv_object_list([None], src=1)
        receive.wait()
    else:
        dist.recv_object_list([None], src=0)  # rank 0 has aborted
        with pytest.raises(RuntimeError, match="abort"):
            dist.all_reduce(torch.ones(1), group=aborted)
        pending = dist.new_group()
        dist.send_object_list([1], dst=0)
        dist.send(torch.ones(1), dst=0, group=pending)
    dist.barrier()


def test_failures() -> None:
    run_group_processes(2, failures)


def lose_a_rank(rank: int) -> str:
    dist.barrier()
    if rank == 1:
        os._exit(3)
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        while True:
            dist.all_reduce(torch.ones(1))
    assert time.monotonic() - begin < 30
    return str(error.value)


def test_a_lost_rank_is_named() -> None:
    results = run_group_processes(2, lose_a_rank, silent=(1,))
    assert "rank 1" in results[0]


def run_python(text: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


INIT = """
dist.init_process_group("zbccl", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
x = torch.ones(2)
dist.all_reduce(x)
work = dist.all_reduce(x, async_op=True)
work.get_future()
print(dist.get_backend(), x.tolist())
"""


def again(rank: int, folder: str) -> None:
    """A store that outlives groups, as that of torchrun's agent."""
    dist.destroy_process_group()
    store = dist.FileStore(f"{folder}/again", 2)
    for turn in range(3):
        dist.init_process_group("zbccl", store=store, rank=rank, world_size=2)
        part = dist.new_group()
        x = torch.ones(2)
        dist.all_reduce(x, group=part)
        assert x[0] == 2
        if turn < 2:
            dist.destroy_process_group()
    work = dist.all_reduce(x, async_op=True)
    work.get_future()
    work.wait()


def test_groups_again(tmp_path: Path) -> None:
    run_group_processes(2, again, str(tmp_path))


def test_the_name_is_known() -> None:
    """By the entry point; and the process may end without destroying its groups."""
    text = "import torch, torch.distributed as dist, sys; assert 'zbccl' not in sys.modules" + INIT
    assert run_python(text) == "zbccl [1.0, 1.0]\n"


def test_another_back_end_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert zbccl_autoload.register()
    plugin = dist.Backend._plugins["ZBCCL"]
    monkeypatch.setitem(dist.Backend._plugins, "ZBCCL", plugin._replace(creator_fn=print))
    assert not zbccl_autoload.register()
    with pytest.raises(RuntimeError, match="another package has registered"):
        importlib.reload(zbccl.torch)
