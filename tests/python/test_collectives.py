"""Every operation over several ranks, with every kind of tensor. The ranks are threads, so each
blocking call that kept the GIL would hang here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zbccl
from kinds import KINDS, kind_of, make, need_ml_dtypes, need_torch, values_of
from ranks import run_threads

SIZES = (2, 3)
DTYPES = ("float32", "float64", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint64")
REDUCE = {"sum": np.sum, "prod": np.prod, "min": np.min, "max": np.max}

both = pytest.mark.parametrize("size", SIZES)
kinds = pytest.mark.parametrize("kind", KINDS)


def inputs(size: int, shape: tuple[int, ...], dtype: str = "float32") -> list[np.ndarray[Any, Any]]:
    """Small integers, so that every type holds their sums and products."""
    generator = np.random.default_rng(7)
    return [generator.integers(1, 4, shape).astype(dtype) for _ in range(size)]


@both
@kinds
@pytest.mark.parametrize("op", REDUCE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_reduce(size: int, kind: str, op: str, dtype: str) -> None:
    data = inputs(size, (5, 7), dtype)
    expected = REDUCE[op](np.stack(data), axis=0).astype(dtype)

    def body(comm: zbccl.Communicator) -> None:
        x = make(kind, data[comm.rank])
        out = make(kind, np.zeros_like(data[0]))
        assert comm.all_reduce(x, op, out=out) is out
        assert values_of(x).tolist() == data[comm.rank].tolist()
        assert values_of(out).tolist() == expected.tolist()
        assert comm.all_reduce(x, op) is x
        assert values_of(x).tolist() == expected.tolist()

    run_threads(size, body)


@both
@kinds
def test_average(size: int, kind: str) -> None:
    data = inputs(size, (8,))

    def body(comm: zbccl.Communicator) -> Any:
        return values_of(comm.all_reduce(make(kind, data[comm.rank]), "avg"))

    for result in run_threads(size, body):
        np.testing.assert_allclose(result, np.mean(data, axis=0), rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1, 3, 127, 4099, 1 << 18])
@kinds
def test_sizes(kind: str, count: int) -> None:
    data = inputs(3, (count,), "int32")

    def body(comm: zbccl.Communicator) -> None:
        x = comm.all_reduce(make(kind, data[comm.rank]))
        assert values_of(x).tolist() == sum(data[1:], data[0]).tolist()

    run_threads(3, body)


@both
@kinds
def test_all_gather(size: int, kind: str) -> None:
    data = inputs(size, (2, 3))

    def body(comm: zbccl.Communicator) -> None:
        x = make(kind, data[comm.rank])
        result = comm.all_gather(x)
        assert kind_of(result) == kind
        assert values_of(result).tolist() == np.concatenate(data).tolist()
        stacked = make(kind, np.zeros((size, 2, 3), np.float32))
        assert comm.all_gather(x, out=stacked) is stacked
        assert values_of(stacked).tolist() == np.stack(data).tolist()
        with pytest.raises(zbccl.InvalidArgumentError, match="all_gather: out has shape"):
            comm.all_gather(x, out=make(kind, np.zeros((2, 3 * size), np.float32)))

    run_threads(size, body)


def test_all_gather_of_scalars_and_in_place() -> None:
    def body(comm: zbccl.Communicator) -> None:
        assert comm.all_gather(np.array(comm.rank, np.int32)).tolist() == [0, 1, 2]
        whole = np.zeros((3, 4))
        whole[comm.rank] = comm.rank
        assert comm.all_gather(whole[comm.rank], out=whole) is whole
        assert whole.tolist() == [[r] * 4 for r in range(3)]

    run_threads(3, body)


@both
@kinds
@pytest.mark.parametrize("op", ["sum", "max"])
def test_reduce_scatter(size: int, kind: str, op: str) -> None:
    data = inputs(size, (2 * size, 3))
    expected = REDUCE[op](np.stack(data), axis=0)

    def body(comm: zbccl.Communicator) -> None:
        x = make(kind, data[comm.rank])
        own = expected[2 * comm.rank : 2 * comm.rank + 2]
        result = comm.reduce_scatter(x, op)
        assert kind_of(result) == kind
        assert values_of(result).tolist() == own.tolist()
        out = make(kind, np.zeros((2, 3), np.float32))
        assert comm.reduce_scatter(x, op, out=out) is out
        assert values_of(out).tolist() == own.tolist()
        assert values_of(x).tolist() == data[comm.rank].tolist()
        with pytest.raises(zbccl.InvalidArgumentError, match="reduce_scatter: out has shape"):
            comm.reduce_scatter(x, op, out=make(kind, np.zeros(6, np.float32)))

    run_threads(size, body)


def test_reduce_scatter_shapes() -> None:
    def body(comm: zbccl.Communicator) -> None:
        x = np.arange(6.0).reshape(2, 3)
        out = np.zeros(3)
        comm.reduce_scatter(x, out=out)
        assert out.tolist() == (2 * x[comm.rank]).tolist()
        for odd in (np.ones(3), np.array(1.0)):
            with pytest.raises(zbccl.InvalidArgumentError, match="multiple of the 2 ranks"):
                comm.reduce_scatter(odd)
        comm.reduce_scatter(x, out=x[comm.rank])
        assert x[comm.rank].tolist() == out.tolist()

    run_threads(2, body)


@both
@kinds
def test_broadcast(size: int, kind: str) -> None:
    data = inputs(size, (9,))

    def body(comm: zbccl.Communicator) -> None:
        for root in range(size):
            x = make(kind, data[comm.rank])
            assert comm.broadcast(x, root) is x
            assert values_of(x).tolist() == data[root].tolist()
            source = make(kind, data[root]) if comm.rank == root else None
            out = make(kind, np.zeros(9, np.float32))
            assert comm.broadcast(source, root, out=out) is out
            assert values_of(out).tolist() == data[root].tolist()

    run_threads(size, body)


def test_broadcast_reads_a_read_only_root() -> None:
    def body(comm: zbccl.Communicator) -> Any:
        x = np.arange(4) * (comm.rank == 0)
        x.flags.writeable = comm.rank != 0
        return comm.broadcast(x).tolist()

    assert run_threads(2, body) == [[0, 1, 2, 3]] * 2


@both
@kinds
def test_send_and_recv_around_a_ring(size: int, kind: str) -> None:
    data = inputs(size, (6,))

    def body(comm: zbccl.Communicator) -> None:
        left, right = (comm.rank - 1) % size, (comm.rank + 1) % size
        x = make(kind, data[comm.rank])
        got = make(kind, np.zeros(6, np.float32))
        work = comm.send(x, right, async_op=True)
        assert comm.recv(got, left) is got
        assert work.wait() is x
        assert values_of(got).tolist() == data[left].tolist()

    run_threads(size, body)


@both
def test_bf16_and_fp8(size: int) -> None:
    torch = need_torch()

    def body(comm: zbccl.Communicator) -> None:
        for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
            x = torch.full((33,), 1.0 + comm.rank).to(dtype)
            total = float(sum(range(1, size + 1)))
            assert comm.all_gather(x).dtype == dtype
            comm.all_reduce(x)
            assert x.to(torch.float32).tolist() == [total] * 33
            y = comm.empty(33, dtype)
            y.torch().fill_(1.0 + comm.rank)
            assert comm.all_reduce(y) is y
            assert y.torch().to(torch.float32).tolist() == [total] * 33

    run_threads(size, body)


def test_bf16_with_ml_dtypes() -> None:
    ml_dtypes = need_ml_dtypes()

    def body(comm: zbccl.Communicator) -> Any:
        x = np.full(5, 1 + comm.rank).astype(ml_dtypes.bfloat16)
        return comm.all_reduce(x).astype(np.float32).tolist()

    assert run_threads(2, body) == [[3.0] * 5] * 2


def test_split() -> None:
    def body(comm: zbccl.Communicator) -> Any:
        part = comm.split(comm.rank % 2 if comm.rank < 4 else -1, key=-comm.rank)
        if part is None:
            return None
        with part:
            return part.rank, part.size, part.all_gather(np.array(comm.rank)).tolist()

    assert run_threads(5, body) == [
        (1, 2, [2, 0]),
        (1, 2, [3, 1]),
        (0, 2, [2, 0]),
        (0, 2, [3, 1]),
        None,
    ]


def test_mismatched_calls_are_reported_on_every_rank() -> None:
    def body(comm: zbccl.Communicator) -> Any:
        x = np.full(4 + comm.rank, 5.0)
        with pytest.raises(zbccl.InvalidUsageError):
            comm.all_reduce(x)
        assert set(x.tolist()) == {5.0}
        return comm.all_reduce(np.ones(2)).tolist()

    assert run_threads(2, body) == [[2.0, 2.0]] * 2


def test_two_communicators_at_once() -> None:
    def body(comm: zbccl.Communicator) -> Any:
        other = comm.split(0)
        assert other is not None
        with other:
            x, y = np.ones(1000), np.full(1000, 2.0)
            first = comm.all_reduce(x, async_op=True)
            other.all_reduce(y)
            first.wait()
            return x[0], y[0]

    assert run_threads(2, body) == [(2.0, 4.0)] * 2


@both
@kinds
@pytest.mark.parametrize("op", REDUCE)
def test_reduce(size: int, kind: str, op: str) -> None:
    data = inputs(size, (3, 4), "int16")
    expected = REDUCE[op](np.stack(data), axis=0).astype("int16").tolist()

    def body(comm: zbccl.Communicator) -> None:
        for root in range(size):
            is_root = comm.rank == root
            x = make(kind, data[comm.rank])
            out = make(kind, np.zeros_like(data[0])) if is_root else None
            assert comm.reduce(x, op, root, out=out) is (out if is_root else x)
            assert values_of(x).tolist() == data[comm.rank].tolist()
            if is_root:
                assert values_of(out).tolist() == expected
            assert comm.reduce(x, op, root) is x
            assert values_of(x).tolist() == (expected if is_root else data[comm.rank].tolist())

    run_threads(size, body)


@both
@kinds
def test_gather(size: int, kind: str) -> None:
    data = inputs(size, (2, 3))

    def body(comm: zbccl.Communicator) -> None:
        for root in range(size):
            x = make(kind, data[comm.rank])
            result = comm.gather(x, root)
            stacked = make(kind, np.zeros((size, 2, 3), np.float32))
            again = comm.gather(x, root, out=stacked)
            if comm.rank != root:
                assert result is None
                assert again is None
                assert not values_of(stacked).any()
                continue
            assert kind_of(result) == kind
            assert values_of(result).tolist() == np.concatenate(data).tolist()
            assert again is stacked
            assert values_of(stacked).tolist() == np.stack(data).tolist()
            with pytest.raises(zbccl.InvalidArgumentError, match="gather: out has shape"):
                comm.gather(x, root, out=make(kind, np.zeros((2, 3 * size), np.float32)))

    run_threads(size, body)


@both
@kinds
def test_scatter(size: int, kind: str) -> None:
    whole = inputs(1, (2 * size, 3))[0]

    def body(comm: zbccl.Communicator) -> None:
        own = whole[2 * comm.rank : 2 * comm.rank + 2].tolist()
        for root in range(size):
            x = make(kind, whole if comm.rank == root else np.zeros_like(whole))
            result = comm.scatter(x, root)
            assert kind_of(result) == kind
            assert values_of(result).tolist() == own
            out = make(kind, np.zeros((2, 3), np.float32))
            assert comm.scatter(x if comm.rank == root else None, root, out=out) is out
            assert values_of(out).tolist() == own

    run_threads(size, body)


def test_rooted_operations_in_place() -> None:
    def body(comm: zbccl.Communicator) -> None:
        whole = np.zeros((3, 4))
        whole[comm.rank] = comm.rank
        comm.gather(whole[comm.rank], 2, out=whole)
        if comm.rank == 2:
            assert whole.tolist() == [[r] * 4 for r in range(3)]
            comm.scatter(whole, 2, out=whole[2])
            assert whole.tolist() == [[r] * 4 for r in range(3)]
        else:
            part = comm.scatter(None, 2, out=np.zeros(4))
            assert part.tolist() == [comm.rank] * 4
        with pytest.raises(TypeError, match="scatter: x"):
            comm.scatter(None, 2)

    run_threads(3, body)


@both
@kinds
def test_all_to_all(size: int, kind: str) -> None:
    data = inputs(size, (2 * size, 3))

    def body(comm: zbccl.Communicator) -> None:
        own = slice(2 * comm.rank, 2 * comm.rank + 2)
        expected = np.concatenate([x[own] for x in data]).tolist()
        x = make(kind, data[comm.rank])
        result = comm.all_to_all(x)
        assert kind_of(result) == kind
        assert values_of(result).tolist() == expected
        assert values_of(x).tolist() == data[comm.rank].tolist()
        out = make(kind, np.zeros_like(data[0]))
        assert comm.all_to_all(x, out=out) is out
        assert values_of(out).tolist() == expected
        assert comm.all_to_all(x, out=x) is x
        assert values_of(x).tolist() == expected
        with pytest.raises(zbccl.InvalidArgumentError, match=f"multiple of the {size} ranks"):
            comm.all_to_all(make(kind, np.zeros((2 * size + 1, 2), np.float32)))

    run_threads(size, body)


def test_new_operations_with_bf16_and_fp8() -> None:
    torch = need_torch()

    def body(comm: zbccl.Communicator) -> None:
        for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
            x = torch.full((4, 3), 1.0 + comm.rank).to(dtype)
            mixed = torch.tensor([[1.0] * 3] * 2 + [[2.0] * 3] * 2)
            for result in (comm.all_to_all(x), comm.all_to_all_v(x, [2, 2])):
                assert result.dtype == dtype
                assert torch.equal(result.float(), mixed)
            assert torch.equal(comm.all_gather_v(x[: 2 * comm.rank], [0, 2]).float(), mixed[2:])
            assert comm.reduce_scatter_v(x, [1, 3]).float().unique().tolist() == [3.0]
            assert comm.scatter(x, 1).float().unique().tolist() == [2.0]
            gathered = comm.gather(x)
            assert gathered is None if comm.rank else gathered.shape == (8, 3)
            comm.reduce(x, "max")
            assert x.float().unique().tolist() == [2.0]

    run_threads(2, body)


def test_new_operations_with_ml_dtypes() -> None:
    ml_dtypes = need_ml_dtypes()

    def body(comm: zbccl.Communicator) -> None:
        for dtype in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2):
            x = np.full((2, 2), 1 + comm.rank).astype(dtype)
            result = comm.all_to_all(x)
            assert result.dtype == dtype
            assert result.astype(np.float32).tolist() == [[1, 1], [2, 2]]
            assert comm.all_gather_v(x).astype(np.float32).tolist() == [[1, 1]] * 2 + [[2, 2]] * 2

    run_threads(2, body)
