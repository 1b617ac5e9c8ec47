"""Ranks for tests: threads of this process, or processes of their own."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import zbccl

LIMIT = 120.0  # seconds; far above what any test needs, so that a hang fails and does not block
GRACE = 5.0  # what the other ranks get after the first failure, to say what they saw
# What takes seconds to import. A server that has done so, and nothing else, forks the ranks.
PRELOADED = ["torch", "torch.distributed", "zbccl.torch", "torch.distributed.tensor.parallel"]
PRELOADED += ["torch.distributed.fsdp", "torch._dynamo", "torch._functorch.aot_autograd"]


def forking_server() -> Any:
    """The context of that server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def collect(processes: Sequence[Any], answers: Any, silent: Sequence[int] = ()) -> dict[int, Any]:
    """Starts the ranks' processes, and gives what they answer with (rank, good, value), by rank.

    The first failure, or a rank that ends without an answer, ends the others too. No process is
    left. Ranks in `silent` are not waited for.
    """
    for process in processes:
        process.start()
    results: dict[int, Any] = {}
    failures: dict[int, str] = {}
    gone: set[int] = set()
    missing = set(range(len(processes))) - set(silent)
    end = time.monotonic() + LIMIT
    try:
        while missing and time.monotonic() < end:
            try:
                rank, good, value = answers.get(timeout=0.2)
            except queue.Empty:
                # What it has put may be on its way still, but no longer than until the next look.
                for rank in missing & gone:
                    failures[rank] = f"ended without an answer: {processes[rank].exitcode}"
                    end = min(end, time.monotonic() + GRACE)
                missing -= failures.keys()
                gone = {rank for rank in missing if processes[rank].exitcode is not None}
                continue
            missing.discard(rank)
            if good:
                results[rank] = value
            else:
                failures[rank] = value
                end = min(end, time.monotonic() + GRACE)
    finally:
        for process in processes:
            process.join(10.0 if not missing and not failures else 1.0)
            if process.is_alive():
                process.kill()
                process.join()
    for rank in sorted(missing):
        limit = f"within {GRACE if failures else LIMIT} s"
        failures.setdefault(rank, f"did not answer {limit}{' of that' if failures else ''}")
    assert not failures, "\n".join(f"rank {rank}: {why}" for rank, why in failures.items())
    return results


def run_threads(size: int, body: Callable[[zbccl.Communicator], Any], **options: Any) -> list[Any]:
    """Calls `body` with each rank's communicator on a thread of its own; results by rank.

    The first exception is raised here; it aborts the communicators, so that no other rank waits.
    """
    comms = zbccl.init_all(size, **options)
    results: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = body(comms[rank])
        except BaseException as error:
            errors.append(error)
            comms[rank].abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + LIMIT
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    hung = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    if hung:
        comms[0].abort()
        raise AssertionError(f"ranks {hung} did not return within {LIMIT} s")
    for comm in comms:
        comm.close()
    if errors:
        raise errors[0]
    return results


def _enter(
    answers: multiprocessing.Queue[tuple[int, bool, Any]],
    body: Callable[..., Any],
    rank: int,
    size: int,
    unique_id: str,
    arguments: tuple[Any, ...],
    cuda: bool,
) -> None:
    try:
        if cuda:
            import torch

            torch.cuda.set_device(rank)
        device = rank if cuda else None
        with zbccl.init(rank, size, unique_id, timeout=LIMIT / 2, device=device) as comm:
            result = body(comm, *arguments)
        answers.put((rank, True, result))
    except BaseException:
        answers.put((rank, False, traceback.format_exc()))


def run_processes(
    size: int,
    body: Callable[..., Any],
    *arguments: Any,
    silent: tuple[int, ...] = (),
    cuda: bool = False,
) -> dict[int, Any]:
    """Calls `body(comm, *arguments)` in `size` fresh processes; results by rank.

    Ranks in `silent` are not waited for: they are expected to die. With `cuda` each rank has the
    CUDA device of its number.
    """
    context = forking_server() if cuda else multiprocessing.get_context("spawn")
    answers = context.Queue()
    unique_id = zbccl.get_unique_id()
    processes = [
        context.Process(
            target=_enter,
            args=(answers, body, rank, size, str(unique_id), arguments, cuda),
            daemon=True,
        )
        for rank in range(size)
    ]
    return collect(processes, answers, silent)
