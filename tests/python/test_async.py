"""Handles of asynchronous operations, deadlines, abort, and the life of a communicator."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import zbccl
from kinds import KINDS, make, values_of
from ranks import LIMIT, run_threads


@pytest.mark.parametrize("kind", KINDS)
def test_every_operation_asynchronously(kind: str) -> None:
    def body(comm: zbccl.Communicator) -> None:
        x = make(kind, np.arange(6, dtype=np.float32).reshape(2, 3))
        y = make(kind, np.full(4, comm.rank, np.float32))
        works = [
            comm.all_reduce(x, async_op=True),
            comm.all_gather(y, async_op=True),
            comm.reduce_scatter(x, "max", async_op=True),
            comm.broadcast(y, 1, async_op=True),
            comm.barrier(async_op=True),
        ]
        reduced, gathered, scattered, sent, nothing = (work.wait() for work in works)
        assert reduced is x
        assert values_of(x).tolist() == [[0, 2, 4], [6, 8, 10]]
        assert values_of(gathered).tolist() == [0] * 4 + [1] * 4
        assert values_of(scattered).tolist() == [values_of(x)[comm.rank].tolist()]
        assert sent is y
        assert values_of(y).tolist() == [1] * 4
        assert nothing is None
        for work in works:
            assert work.is_completed()
            assert work.test()
            assert work.result is work.wait()
            assert "done" in repr(work)

    run_threads(2, body)


def test_a_handle_before_it_is_done() -> None:
    comms = zbccl.init_all(2)
    x, y = np.ones(4), np.ones(4)
    work = comms[0].all_reduce(x, async_op=True)
    assert not work.test()
    assert not work.is_completed()
    assert "running" in repr(work)
    with pytest.raises(zbccl.InvalidUsageError, match="still running"):
        _ = work.result
    for timeout in (0.02, timedelta(milliseconds=20)):
        with pytest.raises(zbccl.TimeoutError, match="is not done after.*goes on"):
            work.wait(timeout)
    comms[1].all_reduce(y)
    assert work.wait(LIMIT) is x
    assert x.tolist() == y.tolist() == [2, 2, 2, 2]
    for comm in comms:
        comm.close()


def test_tensors_outlive_their_names() -> None:
    """Neither the handle nor the tensors are held here while the operation runs."""
    comms = zbccl.init_all(2)
    x = np.ones(1 << 16)
    alive = weakref.ref(x)
    work: Any = comms[0].all_reduce(x, async_op=True)
    del x, work
    gc.collect()
    assert alive() is not None
    y = np.ones(1 << 16)
    comms[1].all_reduce(y)
    assert set(y.tolist()) == {2.0}
    for comm in comms:
        comm.close()
    gc.collect()
    assert alive() is None


def test_many_operations_in_flight() -> None:
    def body(comm: zbccl.Communicator) -> None:
        tensors = [np.full(3, i) for i in range(200)]
        works = [comm.all_reduce(x, async_op=True) for x in tensors]
        for i, work in enumerate(works):
            assert work.wait().tolist() == [2 * i] * 3

    run_threads(2, body)


def test_waiting_on_another_thread() -> None:
    comms = zbccl.init_all(2)
    work = comms[0].barrier(async_op=True)
    waiter = threading.Thread(target=work.wait, daemon=True)
    waiter.start()
    comms[1].barrier()
    waiter.join(LIMIT)
    assert not waiter.is_alive()
    for comm in comms:
        comm.close()


def test_timeout_of_a_call() -> None:
    comms = zbccl.init_all(2)
    with pytest.raises(zbccl.TimeoutError) as caught:
        comms[0].barrier(timeout=0.2)
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.code == zbccl.Code.TIMEOUT
    for comm in comms:
        comm.abort()
        comm.close()


def test_timeout_of_a_communicator() -> None:
    comms = zbccl.init_all(2, timeout=0.2)
    work = comms[0].barrier(async_op=True)
    with pytest.raises(zbccl.TimeoutError):
        work.wait()
    with pytest.raises(zbccl.TimeoutError):
        work.test()
    assert work.is_completed()
    for comm in comms:
        comm.abort()
        comm.close()


def test_abort_ends_waits_everywhere() -> None:
    comms = zbccl.init_all(2)
    assert comms[0].async_error is None
    work = comms[1].recv(np.zeros(3), 0, async_op=True)
    timer = threading.Timer(0.2, comms[1].abort)
    timer.start()
    with pytest.raises(zbccl.AbortedError):
        comms[0].barrier()
    timer.join()
    with pytest.raises(zbccl.AbortedError):
        work.wait(LIMIT)
    for comm in comms:
        assert isinstance(comm.async_error, zbccl.AbortedError)
        with pytest.raises(zbccl.Error):
            comm.barrier()
        comm.close()


def test_closed_communicator(solo: zbccl.Communicator) -> None:
    assert not solo.closed
    solo.close()
    solo.close()
    assert solo.closed
    assert "closed" in repr(solo)
    assert (solo.rank, solo.size) == (0, 1)
    for call in (
        lambda: solo.all_reduce(np.ones(3)),
        lambda: solo.barrier(async_op=True),
        lambda: solo.split(0),
        solo.abort,
        solo.get_stats,
        lambda: solo.async_error,
        lambda: solo.last_algorithm,
    ):
        with pytest.raises(zbccl.InvalidUsageError, match="the communicator is closed"):
            call()


def test_context_manager_aborts_on_an_exception() -> None:
    comms = zbccl.init_all(2)
    failed = threading.Event()

    def other() -> None:
        with pytest.raises(zbccl.Error):
            comms[1].barrier()
        failed.set()

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    with pytest.raises(KeyError, match="mine"), comms[0]:
        raise KeyError("mine")
    assert comms[0].closed
    thread.join(LIMIT)
    assert failed.is_set()
    comms[1].close()


def test_one_thread_at_a_time() -> None:
    """A second thread gets an error instead of a race."""
    comms = zbccl.init_all(2)
    errors: list[zbccl.Error] = []

    def wait() -> None:
        try:
            comms[0].barrier()
        except zbccl.InvalidUsageError as error:
            errors.append(error)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    # The first to come waits for rank 1, so the second finds it there.
    end = time.monotonic() + LIMIT
    while not errors and time.monotonic() < end:
        time.sleep(0.01)
    assert len(errors) == 1
    assert "another thread is inside barrier" in str(errors[0])
    comms[1].barrier()
    for thread in threads:
        thread.join(LIMIT)
    for comm in comms:
        comm.close()


def test_stats(solo: zbccl.Communicator) -> None:
    assert solo.last_algorithm == "none"
    before = solo.get_stats()
    assert before["operations"] == 0
    solo.all_reduce(np.ones(10, np.float32))
    stats = solo.get_stats()
    assert stats["operations"] == 1
    assert stats["bytes"] == 40
    assert stats["failures"] == 0
    assert {"staged_bytes", "landing_bytes", "metadata_bytes", "wait_ns"} <= set(stats)
    assert all(isinstance(value, int) for value in stats.values())
    assert solo.last_algorithm != "none"
    report = zbccl.memory_report()
    assert {"held_bytes", "user_bytes", "direct_calls", "staged_calls"} <= set(report)
