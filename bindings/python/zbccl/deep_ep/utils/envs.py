"""Joining the other processes."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist


def init_dist(local_rank: int, num_local_ranks: int) -> tuple[int, int, Any]:
    """(rank, number of ranks, group) of torch.distributed: NCCL where each rank has a GPU, or gloo.

    MASTER_ADDR (127.0.0.1) and MASTER_PORT (8361) say where to meet, WORLD_SIZE and RANK the number
    of nodes and which this is. New tensors are bf16 from here on and lie on the GPU `local_rank`,
    if there is one, as DeepEP's programs expect.
    """
    on_gpus = torch.cuda.device_count() >= num_local_ranks
    nodes = int(os.getenv("WORLD_SIZE", "1"))
    node = int(os.getenv("RANK", "0"))
    address = os.getenv("MASTER_ADDR", "127.0.0.1")
    port = int(os.getenv("MASTER_PORT", "8361"))
    size = nodes * num_local_ranks
    dist.init_process_group(
        backend="nccl" if on_gpus else "gloo",
        init_method=f"tcp://{address}:{port}",
        world_size=size,
        rank=node * num_local_ranks + local_rank,
    )
    torch.set_default_dtype(torch.bfloat16)
    if on_gpus:
        torch.set_default_device("cuda")
        torch.cuda.set_device(local_rank)
    return dist.get_rank(), dist.get_world_size(), dist.new_group(list(range(size)))
