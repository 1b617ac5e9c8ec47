"""The operations with sizes of their own for each rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zbccl
from kinds import KINDS, kind_of, make, need_torch, values_of
from ranks import run_processes, run_threads

SIZES = ([2, 3], [0, 4, 1], [0, 0, 0], [5, 0])
kinds = pytest.mark.parametrize("kind", KINDS)
splits = pytest.mark.parametrize("sizes", SIZES, ids=str)


def rows(rank: int, count: int, dtype: str = "int32") -> np.ndarray[Any, Any]:
    return (1000 * rank + np.arange(count * 2)).reshape(count, 2).astype(dtype)


@kinds
@splits
def test_all_gather_v(kind: str, sizes: list[int]) -> None:
    expected = np.concatenate([rows(r, n) for r, n in enumerate(sizes)]).tolist()

    def body(comm: zbccl.Communicator) -> None:
        x = make(kind, rows(comm.rank, sizes[comm.rank]))
        for result in (comm.all_gather_v(x, sizes), comm.all_gather_v(x)):
            assert kind_of(result) == kind
            assert values_of(result).tolist() == expected
        out = make(kind, np.zeros((sum(sizes), 2), np.int32))
        assert comm.all_gather_v(x, sizes, out=out) is out
        assert values_of(out).tolist() == expected

    run_threads(len(sizes), body)


@kinds
@splits
@pytest.mark.parametrize("op", ["sum", "max"])
def test_reduce_scatter_v(kind: str, sizes: list[int], op: str) -> None:
    data = [rows(r, sum(sizes), "float64") for r in range(len(sizes))]
    reduced = np.sum(data, axis=0) if op == "sum" else np.max(data, axis=0)
    starts = np.cumsum([0, *sizes]).tolist()

    def body(comm: zbccl.Communicator) -> None:
        own = reduced[starts[comm.rank] : starts[comm.rank + 1]].tolist()
        x = make(kind, data[comm.rank])
        result = comm.reduce_scatter_v(x, sizes, op)
        assert kind_of(result) == kind
        assert values_of(result).tolist() == own
        out = make(kind, np.zeros((sizes[comm.rank], 2)))
        assert comm.reduce_scatter_v(x, sizes, op, out=out) is out
        assert values_of(out).tolist() == own
        assert values_of(x).tolist() == data[comm.rank].tolist()

    run_threads(len(sizes), body)


def plan(size: int) -> np.ndarray[Any, Any]:
    """How many rows each rank (first index) has for each: some pairs have none."""
    return np.array([[(3 * r + 5 * s) % 4 for s in range(size)] for r in range(size)])


def exchanged(size: int, rank: int) -> list[list[int]]:
    """What `rank` receives when every rank sends its rows by `plan`."""
    table = plan(size)
    parts = []
    for source in range(size):
        first = table[source, :rank].sum()
        parts.append(rows(source, table[source].sum())[first : first + table[source, rank]])
    got: list[list[int]] = np.concatenate(parts).tolist()
    return got


@kinds
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_all_to_all_v(kind: str, size: int) -> None:
    table = plan(size)

    def body(comm: zbccl.Communicator) -> None:
        sent, received = table[comm.rank], table[:, comm.rank]
        x = make(kind, rows(comm.rank, sent.sum()))
        for recv_sizes in (received, None):
            result = comm.all_to_all_v(x, sent, recv_sizes)
            assert kind_of(result) == kind
            assert values_of(result).tolist() == exchanged(size, comm.rank)
        out = make(kind, np.zeros((received.sum(), 2), np.int32))
        work = comm.all_to_all_v(x, sent.tolist(), tuple(received), out=out, async_op=True)
        assert work.wait() is out
        assert values_of(out).tolist() == exchanged(size, comm.rank)

    run_threads(size, body)


def test_as_all_to_all_single() -> None:
    """The sizes of torch.distributed.all_to_all_single: input_split_sizes, output_split_sizes."""
    torch = need_torch()

    def body(comm: zbccl.Communicator) -> None:
        # The example of PyTorch's documentation, with two ranks.
        x = torch.arange(5) + 10 * comm.rank
        sent = [[2, 3], [1, 4]][comm.rank]
        received = [[2, 1], [3, 4]][comm.rank]
        result = comm.all_to_all_v(x, sent, received)
        assert result.tolist() == [[0, 1, 10], [2, 3, 4, 11, 12, 13, 14]][comm.rank]

    run_threads(2, body)


def test_in_place() -> None:
    def body(comm: zbccl.Communicator) -> None:
        sizes = [1, 0, 3]
        start = [0, 1, 1][comm.rank]
        whole = np.zeros((4, 2))
        own = whole[start : start + sizes[comm.rank]]
        own[:] = 1 + comm.rank
        comm.all_gather_v(own, sizes, out=whole)
        assert whole[:, 0].tolist() == [1, 3, 3, 3]
        assert comm.reduce_scatter_v(whole, sizes, out=own) is own
        assert own.tolist() == [[3 * v] * 2 for v in ([1], [], [3, 3, 3])[comm.rank]]
        with pytest.raises(zbccl.InvalidArgumentError, match="overlap"):
            comm.all_to_all_v(whole, [2, 2, 0], [2, 2, 0], out=whole)

    run_threads(3, body)


def test_async_forms_keep_their_tensors() -> None:
    def body(comm: zbccl.Communicator) -> None:
        sizes = [3, 1]
        works = []
        for i in range(50):
            works.append(comm.all_gather_v(np.full(sizes[comm.rank], i), sizes, async_op=True))
            works.append(comm.reduce_scatter_v(np.full(4, i), sizes, async_op=True))
            works.append(
                comm.all_to_all_v(np.full(4, i), [3, 1], sizes[:1] * 2, async_op=True)
                if comm.rank == 0
                else comm.all_to_all_v(np.full(4, i), [3, 1], [1, 1], async_op=True)
            )
        for i in range(50):
            gathered, scattered, moved = (work.wait() for work in works[3 * i : 3 * i + 3])
            assert gathered.tolist() == [i] * 4
            assert scattered.tolist() == [2 * i] * sizes[comm.rank]
            assert moved.tolist() == [i] * (6 if comm.rank == 0 else 2)

    run_threads(2, body)


def test_sizes_that_do_not_fit() -> None:
    def body(comm: zbccl.Communicator) -> None:
        x = np.zeros((4, 2))
        bad = zbccl.InvalidArgumentError
        with pytest.raises(bad, match="sizes has 3 elements; there are 2 ranks"):
            comm.all_gather_v(x, [4, 4, 4])
        with pytest.raises(bad, match=r"sizes\[1\] is -1"):
            comm.reduce_scatter_v(x, [5, -1])
        with pytest.raises(bad, match=r"x has shape \(4, 2\), but sizes\[\d\] is 3"):
            comm.all_gather_v(x, [3, 3])
        with pytest.raises(bad, match="the sum of sizes is 5"):
            comm.reduce_scatter_v(x, [2, 3])
        with pytest.raises(bad, match="the sum of send_sizes is 3"):
            comm.all_to_all_v(x, [1, 2], [2, 2])
        with pytest.raises(bad, match="recv_sizes has 1 elements"):
            comm.all_to_all_v(x, [2, 2], [2])
        with pytest.raises(bad, match=r"out has shape \(3, 2\); expected \(4, 2\)"):
            comm.all_to_all_v(x, [2, 2], [2, 2], out=np.zeros((3, 2)))
        with pytest.raises(bad, match="is a scalar"):
            comm.all_gather_v(np.array(1.0))
        with pytest.raises(bad, match="more than memory"):
            comm.all_to_all_v(x, [2, 2], [2**62, 2**62])
        with pytest.raises(TypeError):
            comm.all_to_all_v(x, [2.5, 1.5], [2, 2])  # type: ignore[list-item]
        comm.barrier()

    run_threads(2, body)


def test_sizes_that_differ_between_ranks() -> None:
    def body(comm: zbccl.Communicator) -> None:
        out = np.full((5, 2), 7.0)
        with pytest.raises(zbccl.InvalidUsageError, match="rank 1"):
            comm.all_gather_v(
                np.zeros((2 + comm.rank, 2)), [2, 2 + comm.rank], out=out[: 4 + comm.rank]
            )
        with pytest.raises(zbccl.InvalidUsageError, match=r"rank 1 sends 2 to rank 0.*expects 4"):
            comm.all_to_all_v(
                np.zeros((2, 1)),
                [1, 1] if comm.rank == 0 else [2, 0],
                [1, 4] if comm.rank == 0 else [1, 0],
                out=out.reshape(-1, 1)[: 5 if comm.rank == 0 else 1],
            )
        assert set(out.ravel().tolist()) == {7.0}
        assert comm.all_gather_v(np.ones(1)).tolist() == [1, 1]

    run_threads(2, body)


def in_processes(comm: zbccl.Communicator, kinds: tuple[str, ...]) -> dict[str, int]:
    size, rank = comm.size, comm.rank
    table = plan(size)
    for kind in kinds:
        for scale in (1, 3000):
            x = make(kind, np.repeat(rows(rank, table[rank].sum()), scale, axis=0))
            result = comm.all_to_all_v(x, table[rank] * scale, table[:, rank] * scale)
            assert values_of(result)[::scale].tolist() == exchanged(size, rank)
            gathered = comm.all_gather_v(make(kind, rows(rank, rank * scale)))
            assert (
                values_of(gathered)[-1].tolist() == rows(size - 1, (size - 1) * scale)[-1].tolist()
            )
            ones = make(kind, np.ones((scale * 3, 4), np.float32))
            part = comm.reduce_scatter_v(ones, [scale, 2 * scale, 0])
            assert values_of(part).shape == ([scale, 2 * scale, 0][rank], 4)
            assert set(values_of(part).ravel().tolist()) <= {float(size)}
            same = make(kind, np.full((size, 1000), rank))
            assert values_of(comm.all_to_all(same))[:, 0].tolist() == list(range(size))
            assert values_of(comm.scatter(same, 1)).tolist() == [[1] * 1000]
            whole = comm.gather(same, 2)
            assert whole is None or values_of(whole)[::size, 7].tolist() == list(range(size))
            comm.reduce(same, "max", 1)
            assert values_of(same)[0, 0] == (size - 1 if rank == 1 else rank)
    return comm.get_stats()


@pytest.mark.parametrize("kinds", [("zbccl",), ("numpy", "torch")], ids="-".join)
def test_in_processes(kinds: tuple[str, ...]) -> None:
    if "torch" in kinds:
        need_torch()
    for stats in run_processes(3, in_processes, kinds).values():
        assert stats["failures"] == 0
        if kinds == ("zbccl",):
            assert stats["staged_bytes"] == 0
