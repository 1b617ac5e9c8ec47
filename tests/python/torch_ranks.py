"""Ranks with groups of torch.distributed: threads of this process, or processes of their own."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zbccl
from ranks import LIMIT, collect, forking_server, run_threads

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
dist = torch.distributed
if not dist.is_available():
    pytest.skip("PyTorch was built without torch.distributed", allow_module_level=True)


def run_group_threads(size: int, body: Callable[[Any], Any]) -> list[Any]:
    """Calls `body(group)` on a thread for each rank, with groups that PyTorch knows nothing of."""
    from zbccl.torch import ProcessGroup

    def run(comm: zbccl.Communicator) -> Any:
        limit = timedelta(seconds=LIMIT / 2)
        group = ProcessGroup(None, comm.rank, comm.size, limit, "threads", (comm, None))
        result = body(group)
        group.shutdown()
        return result

    return run_threads(size, run, timeout=LIMIT / 2)


def _enter(
    answers: multiprocessing.Queue[tuple[int, bool, Any]],
    body: Callable[..., Any],
    rank: int,
    size: int,
    store: str,
    arguments: tuple[Any, ...],
    backend: str,
    cuda: bool,
) -> None:
    try:
        torch.set_num_threads(1)
        if cuda:
            torch.cuda.set_device(rank)
        dist.init_process_group(
            backend,
            init_method=f"file://{store}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=LIMIT / 2),
        )
        result = body(rank, *arguments)
        dist.destroy_process_group()
        answers.put((rank, True, result))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))


def run_group_processes(
    size: int,
    body: Callable[..., Any],
    *arguments: Any,
    backend: str = "zbccl",
    cuda: bool = False,
    silent: tuple[int, ...] = (),
) -> dict[int, Any]:
    """Calls `body(rank, *arguments)` in `size` processes with a default group; results by rank.

    Ranks in `silent` are not waited for: they are expected to die. With `cuda` each rank has the
    CUDA device of its number.
    """
    context = forking_server()
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        processes = [
            context.Process(
                target=_enter,
                args=(answers, body, rank, size, store, arguments, backend, cuda),
                daemon=True,
            )
            for rank in range(size)
        ]
        return collect(processes, answers, silent)
