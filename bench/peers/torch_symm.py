"""PyTorch's symmetric memory beside zbccl: all_reduce by one-shot and two-shot, in CUDA graphs.

    torchrun --nproc-per-node N bench/peers/torch_symm.py --json FILE [--quick]

Timed as `zbccl perf --graph` does it: an untimed replay lets the ranks begin together, a sample is
the time from the end of one replay to the end of the next, of the slowest rank, over the calls in
the graph; the median of the samples counts.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

# Before PyTorch is loaded: NVLink multicast stays off.
os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
os.environ["NCCL_NVLS_ENABLE"] = "0"
os.environ["NVSHMEM_DISABLE_NVLS"] = "1"

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.distributed._symmetric_memory as symmetric  # noqa: E402

KB, MB = 1 << 10, 1 << 20
QUICK = (8 * KB, 64 * KB, 256 * KB, MB, 4 * MB, 16 * MB)
FULL = tuple(KB << i for i in range(19))
ONE_SHOT_MOST = 4 * MB
ROUNDS, REPLAYS = 4, 8


def captured(
    call: Callable[[], object], calls: int, stream: torch.cuda.Stream
) -> torch.cuda.CUDAGraph:
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    dist.barrier()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    return graph


def median_us(call: Callable[[], object], calls: int) -> float:
    stream = torch.cuda.Stream()
    graph = captured(call, calls, stream)
    samples: list[float] = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        dist.barrier()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            graph.replay()
            events[0].record()
            for event in events[1:]:
                graph.replay()
                event.record()
        torch.cuda.synchronize()
        samples += [
            a.elapsed_time(b) * 1e3 / calls for a, b in zip(events, events[1:], strict=False)
        ]
    slowest = torch.tensor(samples, device="cuda")
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    return float(slowest.median())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl", device_id=device)
    group = dist.group.WORLD
    assert group is not None
    group_name = group.group_name
    rows = []
    for size in QUICK if arguments.quick else FULL:
        x = symmetric.empty(size // 2, dtype=torch.bfloat16, device=device)
        symmetric.rendezvous(x, group)
        x.zero_()
        calls = 50 if size <= 256 * KB else 20 if size <= 4 * MB else 4
        forms = {"torch two-shot": torch.ops.symm_mem.two_shot_all_reduce_}
        if size <= ONE_SHOT_MOST:
            forms["torch one-shot"] = torch.ops.symm_mem.one_shot_all_reduce
        for name, form in forms.items():
            time = median_us(partial(form, x, "sum", group_name), calls)
            rows.append(
                {
                    "op": "all_reduce",
                    "ranks": dist.get_world_size(),
                    "size": size,
                    "name": name,
                    "p50_us": round(time, 3),
                }
            )
    if dist.get_rank() == 0:
        arguments.json.write_text(json.dumps(rows))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
