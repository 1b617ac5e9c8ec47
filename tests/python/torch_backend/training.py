"""Small models that are trained over a group; used with several back ends, to compare them."""

from __future__ import annotations

from typing import Any

from torch_ranks import dist, torch


def model(device: str) -> Any:
    torch.manual_seed(7)
    return torch.nn.Sequential(
        torch.nn.Linear(16, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 4),
    ).to(device)


def batches(rank: int, steps: int, device: str) -> Any:
    for step in range(steps):
        generator = torch.Generator().manual_seed(100 + 2 * rank + step % 2)
        x = torch.randn(8, 16, generator=generator)
        yield x.to(device), (x[:, :4] * 2).to(device)


def train(wrapped: Any, device: str, steps: int = 6) -> list[float]:
    """Losses of this rank's steps."""
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for x, y in batches(dist.get_rank(), steps, device):
        loss = torch.nn.functional.mse_loss(wrapped(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def train_ddp(group: Any, device: str, **options: Any) -> list[float]:
    parallel = torch.nn.parallel.DistributedDataParallel
    wrapped = parallel(model(device), process_group=group, bucket_cap_mb=0.01, **options)
    return train(wrapped, device)


def train_fsdp(mesh: Any, device: str) -> list[float]:
    from torch.distributed.fsdp import fully_shard

    whole = model(device)
    for layer in whole:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(whole, mesh=mesh)
    return train(whole, device)


def train_flat_fsdp(group: Any, device: str) -> list[float]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return train(
        FullyShardedDataParallel(
            model(device), process_group=group, device_id=torch.device(device)
        ),
        device,
    )


def train_tensor_parallel(mesh: Any, device: str) -> list[float]:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    whole = parallelize_module(
        model(device), mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()}
    )
    # The last layer is whole on every rank, and PyTorch updates no tensors of both kinds at once.
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1, foreach=False)
    losses = []
    for x, y in batches(0, 6, device):
        loss = torch.nn.functional.mse_loss(whole(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
