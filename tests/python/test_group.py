"""Operations that are made together."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import zbccl
from kinds import KINDS, make, values_of
from ranks import LIMIT, run_processes, run_threads


def ring(comm: zbccl.Communicator, kinds: tuple[str, ...]) -> bool:
    """Every rank sends first, which outside a group would be a deadlock."""
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    for kind in kinds:
        for count in (1, 100_000):
            x = make(kind, np.full(count, comm.rank, np.int64))
            got = make(kind, np.full(count, -1, np.int64))
            with zbccl.group():
                assert comm.send(x, right) is x
                assert comm.recv(got, left) is got
            assert set(values_of(got).tolist()) == {left}
    return True


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ring_of_blocking_sends(kind: str, size: int) -> None:
    assert run_threads(size, lambda comm: ring(comm, (kind,))) == [True] * size


def test_ring_of_processes() -> None:
    assert run_processes(3, ring, ("zbccl", "numpy")) == dict.fromkeys(range(3), True)


def test_results_are_there_after_the_block() -> None:
    def body(comm: zbccl.Communicator) -> None:
        x = np.ones(1000)
        with zbccl.group():
            with zbccl.group():
                assert comm.all_reduce(x) is x
            gathered = comm.all_gather(np.full(3, comm.rank))  # kept by the group alone
            moved = comm.all_to_all_v(np.full(4, comm.rank), [2, 2], [2, 2])
            work = comm.all_reduce(np.full(2, 5), async_op=True)
            comm.barrier()
            gc.collect()
            assert x[0] == 1
            assert not work.is_completed()
            with pytest.raises(zbccl.InvalidUsageError, match="has not ended"):
                work.wait()
        assert x.tolist() == [2] * 1000
        assert gathered.tolist() == [0] * 3 + [1] * 3
        assert moved.tolist() == [0, 0, 1, 1]
        assert work.wait().tolist() == [10, 10]

    run_threads(2, body)


def test_one_thread_for_several_communicators() -> None:
    comms = zbccl.init_all(4)
    data = [np.full(1000, 1.0 + comm.rank) for comm in comms]
    with zbccl.group():
        for comm, x in zip(comms, data, strict=True):
            comm.all_reduce(x)
    assert [x[-1] for x in data] == [10.0] * 4
    with zbccl.group():
        parts = [comm.scatter(x[:4], 2) for comm, x in zip(comms, data, strict=True)]
    assert [part.tolist() for part in parts] == [[10.0]] * 4
    for comm in comms:
        comm.close()


def test_an_exception_cancels() -> None:
    def body(comm: zbccl.Communicator) -> None:
        x = np.ones(3)
        with pytest.raises(KeyError), zbccl.group():
            comm.all_reduce(x)
            with zbccl.group():
                work = comm.recv(x, 1 - comm.rank, async_op=True)
                raise KeyError
        assert x.tolist() == [1, 1, 1]
        with pytest.raises(zbccl.AbortedError):
            work.wait(LIMIT)
        with pytest.raises(zbccl.InvalidUsageError, match="cancelled both"), zbccl.group():
            comm.all_reduce(x)
            with pytest.raises(KeyError), zbccl.group():
                raise KeyError
        assert comm.all_reduce(x).tolist() == [2, 2, 2]

    run_threads(2, body)


def test_a_refused_call_refuses_the_group(solo: zbccl.Communicator) -> None:
    x = np.zeros(3)
    with pytest.raises(zbccl.InvalidArgumentError), zbccl.group():
        solo.broadcast(x, 5)
    with pytest.raises(zbccl.InvalidUsageError, match="refused"), zbccl.group():
        solo.all_reduce(x)
        with pytest.raises(zbccl.InvalidArgumentError):
            solo.send(x, 5)
    assert solo.get_stats()["operations"] == 0
    solo.all_reduce(x)


def test_what_a_group_cannot_hold(solo: zbccl.Communicator) -> None:
    x = np.zeros(3)
    with zbccl.group():
        solo.all_reduce(x)
        with pytest.raises(zbccl.InvalidUsageError, match="inside a group"):
            solo.all_gather_v(x)
        with pytest.raises(zbccl.InvalidUsageError, match="has calls in the group"):
            solo.close()
    assert not solo.closed


def test_errors_of_the_calls_come_at_the_end() -> None:
    def body(comm: zbccl.Communicator) -> Any:
        x = np.full(2 + comm.rank, 5.0)
        with pytest.raises(zbccl.InvalidUsageError, match="rank 1"), zbccl.group():
            comm.all_reduce(x)
        assert set(x.tolist()) == {5.0}
        return comm.all_reduce(np.ones(1)).tolist()

    assert run_threads(2, body) == [[2.0]] * 2


def test_tensors_are_kept_until_the_end() -> None:
    comms = zbccl.init_all(2)
    x = np.ones(1 << 12)
    alive = weakref.ref(x)
    with zbccl.group():
        for comm in comms:
            comm.all_reduce(x if comm.rank == 0 else np.ones(1 << 12))
        del x
        gc.collect()
        assert alive() is not None
    gc.collect()
    assert alive() is None
    for comm in comms:
        comm.close()


def test_groups_belong_to_their_thread(solo: zbccl.Communicator) -> None:
    results: list[Any] = []
    with zbccl.group():

        def other() -> None:
            results.append(solo.all_reduce(np.ones(1)).tolist())

        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        thread.join(LIMIT)
    assert results == [[1.0]]
