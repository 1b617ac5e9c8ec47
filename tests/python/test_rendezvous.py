"""How ranks find each other."""

from __future__ import annotations

import copy
import functools
import os
import pickle
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest
import zbccl
from ranks import LIMIT


def test_unique_id_hides_its_secret() -> None:
    unique_id = zbccl.get_unique_id()
    address, _, secret = str(unique_id).partition("/")
    assert len(secret) >= 32
    assert secret not in repr(unique_id)
    assert address in repr(unique_id)
    again = zbccl.UniqueId.from_string(str(unique_id))
    assert again == unique_id
    assert hash(again) == hash(unique_id)
    assert unique_id != str(unique_id)
    assert zbccl.get_unique_id() != unique_id
    assert pickle.loads(pickle.dumps(unique_id)) == unique_id
    assert copy.copy(unique_id) == unique_id


@pytest.mark.parametrize("text", ["", "nonsense", "127.0.0.1:80", "127.0.0.1:80/short"])
def test_malformed_unique_id(text: str) -> None:
    with pytest.raises(zbccl.Error, match="malformed unique id"):
        zbccl.UniqueId.from_string(text)


def test_init_without_an_environment() -> None:
    with zbccl.init() as comm:
        assert (comm.rank, comm.size) == (0, 1)
        assert comm.all_reduce(np.ones(2)).tolist() == [1, 1]


def test_init_of_one_rank_needs_no_id() -> None:
    with zbccl.init(rank=0, world_size=1) as comm:
        assert comm.size == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "none of the three"),
        ({"world_size": 2}, "none of the three"),
        ({"unique_id": "127.0.0.1:1/x"}, "none of the three"),
        ({"rank": 0, "world_size": 2}, "unique_id is missing"),
        ({"wait": "nap"}, "wait: expected auto, spin, sleep"),
        ({"timeout": 0}, "timeout: expected seconds above 0"),
        ({"init_timeout": -1}, "init_timeout: expected seconds above 0"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(zbccl.InvalidArgumentError, match=message):
        zbccl.init(**arguments)


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0), (0, -3)])
def test_ranks_that_do_not_fit(rank: int, size: int) -> None:
    # A wrong size is wrong by itself; a wrong rank is reported to the other ranks too.
    expected = zbccl.InvalidArgumentError if size < 1 else zbccl.InvalidUsageError
    with pytest.raises(expected):
        zbccl.init(rank, size, zbccl.get_unique_id())


def test_init_times_out_when_a_rank_is_missing() -> None:
    with pytest.raises(zbccl.Error) as caught:
        zbccl.init(0, 2, zbccl.get_unique_id(), init_timeout=0.5)
    assert isinstance(caught.value, TimeoutError)


def on_threads(bodies: list[Any]) -> list[Any]:
    results: list[Any] = [None] * len(bodies)

    def run(index: int) -> None:
        results[index] = bodies[index]()

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    return results


def test_from_id_on_threads() -> None:
    unique_id = zbccl.get_unique_id()

    def rank(index: int, given: Any) -> Any:
        with zbccl.init(index, 2, given) as comm:
            return comm.all_gather(np.array([index])).tolist()

    results = on_threads([lambda: rank(0, unique_id), lambda: rank(1, str(unique_id))])
    assert results == [[0, 1], [0, 1]]


def test_from_local_store() -> None:
    store = zbccl.LocalStore()

    def rank(index: int, name: str) -> Any:
        with zbccl.from_store(store, name, index, 3) as comm:
            return comm.all_gather(np.array([index])).tolist()

    for name in ("first", "second"):
        bodies = [functools.partial(rank, index, name) for index in range(3)]
        assert on_threads(bodies) == [[0, 1, 2]] * 3


def test_from_the_store_of_torch() -> None:
    distributed = pytest.importorskip("torch.distributed", reason="PyTorch is not installed")
    server = distributed.TCPStore("127.0.0.1", 0, is_master=True)

    def rank(index: int) -> Any:
        store = zbccl.C10dStore("127.0.0.1", server.port)
        with zbccl.from_store(store, "group", index, 2) as comm:
            return comm.all_gather(np.array([index])).tolist()

    assert on_threads([lambda: rank(0), lambda: rank(1)]) == [[0, 1], [0, 1]]


def test_store_that_is_not_there() -> None:
    code = """
import zbccl
try:
    store = zbccl.C10dStore("127.0.0.1", 1)
    zbccl.from_store(store, "group", 0, 2)
except zbccl.Error as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "ZBCCL_INIT_TIMEOUT": "500ms"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.stdout.startswith(("TimeoutError", "NetworkError")), done.stdout + done.stderr
    assert "127.0.0.1:1" in done.stdout


def test_init_all() -> None:
    comms = zbccl.init_all(3)
    assert [(comm.rank, comm.size) for comm in comms] == [(0, 3), (1, 3), (2, 3)]
    for comm in comms:
        comm.close()
    for count in (0, -1):
        with pytest.raises(zbccl.InvalidArgumentError, match="at least 1 rank"):
            zbccl.init_all(count)
