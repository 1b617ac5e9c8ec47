"""One rank of two that train a small model by DDP on GPUs; prints its losses and what serves NCCL.

python ddp_losses.py BACKEND RANK STORE
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

from torch_ranks import dist, torch
from training import train_ddp


def main(backend: str, rank: int, store: str) -> None:
    torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    device = f"cuda:{rank}"
    losses = train_ddp(None, device)
    # What DDP calls besides: objects, a barrier, tensors of other types, an empty one.
    total = torch.arange(3, device=device) + rank
    dist.all_reduce(total)
    empty = torch.empty(0, device=device)
    dist.all_reduce(empty)
    names: list[str | None] = [None, None]
    dist.all_gather_object(names, f"rank {rank}")
    dist.barrier()
    dist.destroy_process_group()
    maps = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    libraries = sorted(Path(path).name for path in maps if "nccl" in Path(path).name)
    print(json.dumps([losses, total.tolist(), names, libraries]))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
