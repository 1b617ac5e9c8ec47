"""A tensor-parallel MLP: its first matrix is split by columns, its second by rows.

    python examples/tp_mlp.py                       two ranks of its own
    torchrun --nproc-per-node 4 examples/tp_mlp.py

Each rank holds a part of both matrices and computes with it; one all-reduce adds up what they
give. The same layer runs over every back end that is there (NCCL where each rank has a GPU, gloo on
the processor, zbccl on either), side by side, and is compared with the layer on one rank.
"""

from __future__ import annotations

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


class ParallelMlp(torch.nn.Module):
    """down(gelu(up(x))), of which this rank holds `inner / ranks` inner features."""

    def __init__(self, up: torch.Tensor, down: torch.Tensor, group: dist.ProcessGroup):
        super().__init__()
        ranks, rank = group.size(), group.rank()
        self.up = torch.nn.Parameter(up.chunk(ranks, dim=0)[rank].clone())
        self.down = torch.nn.Parameter(down.chunk(ranks, dim=1)[rank].clone())
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mine = torch.nn.functional.gelu(x @ self.up.t()) @ self.down.t()
        dist.all_reduce(mine, group=self.group)
        return mine


def run(rank: int, tokens: int, hidden: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Of each back end: largest relative error, and microseconds for a forward pass."""
    ranks = dist.get_world_size()
    on_gpu = torch.cuda.device_count() >= ranks
    device = f"cuda:{rank}" if on_gpu else "cpu"
    groups = {"zbccl": dist.new_group(backend="zbccl")}
    if not on_gpu:
        groups["gloo"] = dist.new_group(backend="gloo")
    elif dist.is_nccl_available():
        groups["nccl"] = dist.new_group(backend="nccl")

    generator = torch.Generator().manual_seed(3)
    inner = 4 * hidden
    up = torch.randn(inner, hidden, generator=generator).to(device) / hidden**0.5
    down = torch.randn(hidden, inner, generator=generator).to(device) / inner**0.5
    x = torch.randn(tokens, hidden, generator=generator).to(device)
    whole = torch.nn.functional.gelu(x @ up.t()) @ down.t()

    layers = {name: ParallelMlp(up, down, group) for name, group in groups.items()}
    errors = {}
    times: dict[str, list[float]] = {name: [] for name in layers}
    with torch.no_grad():
        for name, layer in layers.items():
            errors[name] = float((layer(x) - whole).abs().max() / whole.abs().max())
        for _ in range(rounds):  # in turns, so that a busy moment meets all of them
            for name, layer in layers.items():
                dist.barrier(groups[name])
                begin = time.perf_counter()
                layer(x)
                if on_gpu:
                    torch.cuda.synchronize()
                times[name].append((time.perf_counter() - begin) * 1e6)
    return {name: (errors[name], sorted(times[name])[rounds // 2]) for name in layers}


def main(rank: int, ranks: int, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    if torch.cuda.device_count() >= ranks:
        torch.cuda.set_device(rank)
    dist.init_process_group("zbccl")
    results = run(rank, options.tokens, options.hidden, options.rounds)
    if rank == 0:
        print(f"{options.tokens} tokens, {options.hidden} features, {ranks} ranks")
        for name, (error, microseconds) in results.items():
            print(f"{name:6} error {error:.1e}  forward {microseconds:8.1f} us")
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2, help="without a launcher")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=50)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        main(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), arguments)
    else:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=os.environ.get("MASTER_PORT", "29513")
        )
        mp.spawn(main, (arguments.ranks, arguments), arguments.ranks)
