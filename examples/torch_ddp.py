"""Data-parallel training with PyTorch's DistributedDataParallel over zbccl.

    python examples/torch_ddp.py                    two ranks of its own
    torchrun --nproc-per-node 4 examples/torch_ddp.py
    python examples/torch_ddp.py --backend gloo     the same over another back end

Each rank takes the GPU of its number where there are enough, else the processor.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def make_model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 512),
        torch.nn.GELU(),
        torch.nn.Linear(512, 512),
        torch.nn.GELU(),
        torch.nn.Linear(512, 8),
    )


def train(rank: int, steps: int, device: str) -> tuple[list[float], float]:
    """The mean loss over the ranks at each step, and milliseconds for a step."""
    model = torch.nn.parallel.DistributedDataParallel(make_model().to(device), bucket_cap_mb=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(1000 + rank)  # its part of the data
    teacher = torch.randn(64, 8, generator=torch.Generator().manual_seed(2))
    losses = []
    begin = time.perf_counter()
    for step in range(steps):
        if step == 1:
            begin = time.perf_counter()  # the first one sets things up
        x = torch.randn(32, 64, generator=generator)
        loss = torch.nn.functional.mse_loss(model(x.to(device)), (x @ teacher).to(device))
        optimizer.zero_grad()
        loss.backward()  # gradients are summed while the rest is computed
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(mean.item() / dist.get_world_size())
    return losses, (time.perf_counter() - begin) / max(steps - 1, 1) * 1e3


def main(rank: int, ranks: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    device = f"cuda:{rank}" if torch.cuda.device_count() >= ranks else "cpu"
    if device != "cpu":
        torch.cuda.set_device(rank)
    dist.init_process_group(options.backend)
    losses, milliseconds = train(rank, options.steps, device)
    if rank == 0:
        print(
            f"{options.backend}, {ranks} ranks on {device.partition(':')[0]}: loss "
            f"{losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps of {milliseconds:.2f} ms"
        )
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="zbccl")
    parser.add_argument("--ranks", type=int, default=2, help="without a launcher")
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        main(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), arguments)
    else:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29512")
        )
        mp.spawn(main, (arguments.ranks, arguments), arguments.ranks)
