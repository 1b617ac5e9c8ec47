"""Models that are trained over zbccl lose as much as over gloo."""

from __future__ import annotations

from typing import Any

from torch_ranks import dist, run_group_processes, torch
from training import train_ddp, train_flat_fsdp, train_fsdp, train_tensor_parallel

SIZE = 2


def mesh_of(group: Any) -> Any:
    return dist.device_mesh.DeviceMesh.from_group(group, "cpu")


def data_parallel(rank: int) -> None:
    gloo = dist.new_group(backend="gloo")
    expected = train_ddp(gloo, "cpu")
    assert expected[-1] < expected[0]
    # With two ranks there is one order of summation.
    assert train_ddp(None, "cpu") == expected
    assert train_ddp(None, "cpu", gradient_as_bucket_view=True) == expected
    assert train_ddp(None, "cpu", static_graph=True) == expected
    assert train_ddp(None, "cpu", find_unused_parameters=True) == expected

    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    wrapped = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))
    wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
    wrapped(torch.ones(2, 8) * (rank + 1)).sum().backward()
    assert torch.equal(wrapped.module.weight.grad, torch.full((8, 8), 3.0))
    with wrapped.join():
        for _ in range(rank + 1):  # inputs that run out on one rank first
            wrapped(torch.ones(2, 8)).sum().backward()


def sharded(rank: int) -> None:
    gloo = dist.new_group(backend="gloo")
    expected = train_fsdp(mesh_of(gloo), "cpu")
    assert train_fsdp(mesh_of(dist.group.WORLD), "cpu") == expected
    assert train_flat_fsdp(dist.group.WORLD, "cpu") == train_flat_fsdp(gloo, "cpu")


def tensor_parallel(rank: int) -> None:
    gloo = dist.new_group(backend="gloo")
    expected = train_tensor_parallel(mesh_of(gloo), "cpu")
    assert train_tensor_parallel(mesh_of(dist.group.WORLD), "cpu") == expected

    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = mesh_of(dist.group.WORLD)
    whole = torch.arange(24.0).view(4, 6)
    rows = distribute_tensor(whole, mesh, [Shard(0)])
    assert torch.equal(rows.to_local(), whole[2 * rank : 2 * rank + 2])
    columns = rows.redistribute(mesh, [Shard(1)])
    assert torch.equal(columns.to_local(), whole[:, 3 * rank : 3 * rank + 3])
    assert torch.equal(columns.redistribute(mesh, [Replicate()]).to_local(), whole)
    assert torch.equal((rows @ columns.t()).full_tensor(), whole @ whole.t())


def compiled(rank: int) -> None:
    """Functional collectives, and those of torch.distributed that the compiler turns into them."""
    import torch.distributed._functional_collectives as functional

    def step(x: Any, out: Any) -> Any:
        y = functional.all_reduce(x * 2, "sum", dist.group.WORLD)
        dist.all_gather_into_tensor(out, x + 1)
        dist.all_reduce(x)
        return y + out[: len(x)] + x

    for mode in ("eager", "aot_eager"):
        run = torch.compile(step, backend=mode, fullgraph=True)
        for turn in range(3):
            x = torch.full((3,), float(rank + turn))
            out = torch.full((3 * SIZE,), -1.0)
            total = float(sum(r + turn for r in range(SIZE)))
            assert torch.equal(run(x, out), torch.full((3,), 3 * total + turn + 1))
            assert torch.equal(out, torch.tensor([turn + 1.0] * 3 + [turn + 2.0] * 3))


def everything(rank: int) -> None:
    for part in (data_parallel, sharded, tensor_parallel, compiled):
        try:
            part(rank)
        except BaseException as error:
            raise AssertionError(f"in {part.__name__}") from error


def test_training() -> None:
    run_group_processes(SIZE, everything)
