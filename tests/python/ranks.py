"""Ranks for tests: threads of this process, or processes of their own."""

from __future__ import annotations

import multiprocessing
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import zbccl

LIMIT = 120.0  # seconds; far above what any test needs, so that a hang fails and does not block


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
    context = multiprocessing.get_context("spawn")
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
    for process in processes:
        process.start()
    results = {}
    failures = []
    end = time.monotonic() + LIMIT
    try:
        for _ in range(size - len(silent)):
            try:
                rank, good, value = answers.get(timeout=max(0.1, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"only ranks {sorted(results)} answered") from None
            if good:
                results[rank] = value
            else:
                failures.append(f"rank {rank}:\n{value}")
    finally:
        for process in processes:
            process.join(1.0 if len(results) + len(silent) < size else 10.0)
            if process.is_alive():
                process.kill()
                process.join()
    assert not failures, "\n".join(failures)
    return results
