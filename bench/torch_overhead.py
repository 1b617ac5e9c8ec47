#!/usr/bin/env python3
"""Measures zbccl under PyTorch beside its own back ends: what a call costs, and a step of training.

    PYTHONPATH=build/python bench/torch_overhead.py [--ranks 2] [--json FILE]

On GPUs, one for each rank, the peer is NCCL, and a call's cost is the host's time until it returns,
eager and per operation of a replayed graph; else it is gloo on the processor. Back ends take turns,
so that a busy moment meets all of them. `comm.all_reduce` is zbccl's own Python API; with one rank
nobody is waited for, and all of the time is the call's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import zbccl

Row = dict[str, Any]
SIZES = (16, 64 << 10, 4 << 20)  # bytes
WIDTHS = (64, 256, 1024)  # of the trained model's layers


def timed(calls: dict[str, Callable[[], Any]], rounds: int, repeats: int, on_gpu: bool) -> Row:
    """Microseconds for a call, by name: the median over rounds of the mean over repeats."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            if on_gpu:
                torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(repeats):
                call()
            elapsed = time.perf_counter() - begin
            if on_gpu:
                torch.cuda.synchronize()
            if turn >= 2:
                times[name].append(elapsed / repeats * 1e6)
    return {name: round(statistics.median(found), 2) for name, found in times.items()}


def waited(x: Any, group: Any) -> None:
    dist.all_reduce(x, group=group, async_op=True).wait()


def calls_of(groups: dict[str, Any], comm: zbccl.Communicator, nbytes: int, device: str) -> Row:
    x = torch.ones(nbytes // 4, device=device)
    calls: dict[str, Callable[[], Any]] = {"comm": lambda: comm.all_reduce(x)}
    for name, group in groups.items():
        calls[name] = partial(dist.all_reduce, x, group=group)
        calls[f"{name} async"] = partial(waited, x, group)
    return calls


def graph_of(group: Any, nbytes: int, device: str, length: int) -> Callable[[], Any]:
    x = torch.ones(nbytes // 4, device=device)
    dist.all_reduce(x, group=group)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(length):
            dist.all_reduce(x, group=group)

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay


def step(model: Any, x: Any) -> None:
    dist.barrier()
    model(x).sum().backward()
    if x.is_cuda:
        torch.cuda.synchronize()


def training(groups: dict[str, Any], width: int, device: str) -> Row:
    """Milliseconds for forward and backward pass under DistributedDataParallel."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, group in groups.items():
        torch.manual_seed(0)
        layers = [torch.nn.Linear(width, width) for _ in range(6)]
        model = torch.nn.parallel.DistributedDataParallel(
            torch.nn.Sequential(*layers).to(device), process_group=group
        )
        x = torch.randn(16, width, device=device)

        calls[name] = partial(step, model, x)
    found = timed(calls, 30, 1, device != "cpu")
    return {name: round(value / 1e3, 3) for name, value in found.items()}


def measure(rank: int, ranks: int, store: str, on_gpu: bool, output: str) -> None:
    torch.set_num_threads(1)
    device = f"cuda:{rank}" if on_gpu else "cpu"
    if on_gpu:
        torch.cuda.set_device(rank)
    dist.init_process_group(
        "zbccl",
        init_method=f"file://{store}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=120),
    )
    peer = "nccl" if on_gpu else "gloo"
    groups = {"zbccl": dist.group.WORLD, peer: dist.new_group(backend=peer)}
    ids = [str(zbccl.get_unique_id()) if rank == 0 else None]
    dist.broadcast_object_list(ids, src=0)
    rows: list[Row] = []
    with zbccl.init(rank, ranks, ids[0], device=device) as comm:
        for nbytes in SIZES:
            repeats = 200 if nbytes <= 64 << 10 else 10
            found = timed(calls_of(groups, comm, nbytes, device), 15, repeats, on_gpu)
            rows.append({"what": "all_reduce", "ranks": ranks, "bytes": nbytes, "us": found})
            if on_gpu:
                length = 100
                replays = {name: graph_of(g, nbytes, device, length) for name, g in groups.items()}
                found = timed(replays, 15, 1, on_gpu)
                found = {name: round(value / length, 2) for name, value in found.items()}
                rows.append({"what": "graph", "ranks": ranks, "bytes": nbytes, "us": found})
        if ranks > 1:
            for width in WIDTHS:
                found = training(groups, width, device)
                rows.append({"what": "ddp step", "ranks": ranks, "width": width, "ms": found})
    if rank == 0:
        Path(output).write_text(json.dumps(rows))
    dist.destroy_process_group()


def start(ranks: int, on_gpu: bool) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="zbccl-bench-") as folder:
        output = str(Path(folder) / "rows.json")
        mp.spawn(measure, (ranks, str(Path(folder) / "store"), on_gpu, output), ranks)
        rows: list[Row] = json.loads(Path(output).read_text())
        return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the results")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= arguments.ranks
    result = {
        "torch": torch.__version__,
        "zbccl": zbccl.__version__,
        "device": torch.cuda.get_device_name(0) if on_gpu else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "rows": [*start(1, on_gpu), *start(arguments.ranks, on_gpu)],
    }
    text = json.dumps(result, indent=2)
    if arguments.json is None:
        print(text)
    else:
        arguments.json.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
