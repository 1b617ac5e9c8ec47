"""The calls that engines make, between processes, on CPU tensors; every element checked."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
from torch_ranks import run_group_processes

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
dist = torch.distributed
LOG = logging.getLogger("zbccl.tests.engines")
SIZE = 3


def values(rank: int, *shape: int, dtype: Any = torch.float32) -> Any:
    """A rank's input; small integers, whose sums have the same bits in any order and type."""
    generator = torch.Generator().manual_seed(1000 + rank)
    return torch.randint(-8, 9, shape, generator=generator).to(dtype)


def all_values(*shape: int, dtype: Any = torch.float32) -> list[Any]:
    return [values(r, *shape, dtype=dtype) for r in range(SIZE)]


def same(a: Any, b: Any) -> None:
    assert a.dtype is b.dtype and a.shape == b.shape, (a.dtype, b.dtype, a.shape, b.shape)
    assert torch.equal(a.contiguous().view(-1), b.contiguous().view(-1))


def _join(rank: int) -> Any:
    from zbccl.engines.peers import join

    peers = join(dist.group.WORLD, torch.device("cpu"), "the world", "the test", LOG)
    assert peers is not None and (peers.rank, peers.size) == (rank, SIZE)
    return peers


def _reductions(rank: int) -> None:
    from zbccl.engines import calls

    peers = _join(rank)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int64):
        x = values(rank, 5, 7, dtype=dtype)
        before = x.clone()
        total = sum(all_values(5, 7, dtype=dtype))
        same(peers.all_reduce(x), total)
        same(x, before)
        peers.all_reduce_(x)
        same(x, total)
    x = values(rank, 2, 6, 5)
    total = sum(all_values(2, 6, 5))
    for dim in (1, -2):
        same(calls.reduce_scatter(peers, x, dim, None), total[:, 2 * rank : 2 * rank + 2])
    sizes = [1, 0, 5]
    first = sum(sizes[:rank])
    part = total.movedim(1, 0)[first : first + sizes[rank]]
    same(calls.reduce_scatter(peers, x, 1, sizes), part.movedim(0, 1))
    out = torch.full((sizes[rank], 2, 5), 77.0)
    given = calls.reduce_scatter(peers, x.movedim(1, 0), 0, sizes, out)
    assert given is out
    same(out, part)
    with pytest.raises(ValueError, match="do not divide"):
        calls.reduce_scatter(peers, values(rank, 4, 2), 0, None)


def _movements(rank: int) -> None:
    from zbccl.engines import calls

    peers = _join(rank)
    for dtype in (torch.float32, torch.bool, torch.float8_e4m3fn, torch.complex64):
        x = values(rank, 2, 3, 4, dtype=dtype)
        parts = all_values(2, 3, 4, dtype=dtype)
        for dim in (0, 1, -1):
            gathered = calls.all_gather(peers, x, dim)
            same(gathered.view(torch.uint8), torch.cat([p.view(torch.uint8) for p in parts], dim))
    strided = values(rank, 4, 6).t()
    same(calls.all_gather(peers, strided, 0), torch.cat([p.t() for p in all_values(4, 6)]))
    sizes = [2, 0, 3]
    for dtype in (torch.int32, torch.bool):
        rows = [values(r, sizes[r], 4, dtype=dtype) for r in range(SIZE)]
        out = torch.full((5, 4), 1, dtype=dtype)
        given = calls.all_gather_rows(peers, rows[rank], sizes, out)
        assert given is out
        same(out, torch.cat(rows))
    with pytest.raises(ValueError, match="rows, sizes say"):
        calls.all_gather_rows(peers, values(rank, 7, 2), sizes)
    target = torch.empty(SIZE, 2)
    peers.all_to_all_into(target, values(rank, SIZE, 2))
    same(target, torch.stack([p[rank] for p in all_values(SIZE, 2)]))
    joined = calls.gather(peers, values(rank, 3, 2), 1, -1)
    assert (joined is not None) == (rank == 1)
    if joined is not None:
        same(joined, torch.cat(all_values(3, 2), -1))
    x = values(rank, 9)
    peers.broadcast_(x, 2)
    same(x, values(2, 9))
    if rank == 0:
        peers.send(values(0, 4, 4), 1)
    elif rank == 1:
        got = torch.empty(4, 4)
        peers.recv_(got, 0)
        same(got, values(0, 4, 4))


def _norms(rank: int) -> None:
    from zbccl.engines import norm_op

    peers = _join(rank)
    norm_op.serve("tp:0", peers)
    dtype = torch.bfloat16
    x, weight = values(rank, 5, 64, dtype=dtype), values(90, 64, dtype=dtype)
    total = sum(all_values(5, 64, dtype=dtype))
    residual = values(91, 5, 64, dtype=dtype)
    assert peers.serves_norm(x, residual, weight)
    assert not peers.serves_norm(x[:, :60], residual[:, :60], weight[:60])
    assert not peers.serves_norm(x.float(), residual.float(), weight.float())

    compiled = torch.compile(norm_op.call, backend="eager", fullgraph=True)
    for run in (norm_op.call, compiled):
        for rest in (residual, None):
            rows, added = run(x, rest, weight, 1e-6, "tp:0")
            same(added, total if rest is None else total + rest)
            exact = torch.nn.functional.rms_norm(added.float(), (64,), weight.float(), 1e-6)
            torch.testing.assert_close(rows.float(), exact, rtol=1e-2, atol=1e-2)
    # Rows that lie on no boundary of 16 bytes are copied first.
    store = torch.empty(5 * 64 + 1, dtype=dtype)
    odd = store[1:].view(5, 64).copy_(x)
    same(norm_op.call(odd, residual, weight, 1e-6, "tp:0")[1], total + residual)
    empty = norm_op.call(x[:0], residual[:0], weight, 1e-6, "tp:0")
    assert [tuple(y.shape) for y in empty] == [(0, 64), (0, 64)]
    with pytest.raises(RuntimeError, match="no group 'other'"):
        norm_op.call(x, None, weight, 1e-6, "other")


def _shared_life(rank: int) -> None:
    first, second = _join(rank), _join(rank)
    assert first is second
    first.release()
    assert not first.communicator.closed
    same(second.all_reduce(values(rank, 3)), sum(all_values(3)))
    second.release()
    assert second.communicator.closed
    again = _join(rank)
    assert again is not first
    same(again.all_reduce(values(rank, 3)), sum(all_values(3)))


def _refusal(rank: int) -> list[str]:
    from zbccl.engines.peers import join

    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    LOG.addHandler(Keep())
    # As a rank on another machine has it.
    os.environ["ZBCCL_HOST_ID"] = f"machine-{rank // 2}"
    for _ in range(2):
        assert join(dist.group.WORLD, torch.device("cpu"), "group tp:0", "the engine", LOG) is None
    # The group still serves its engine.
    x = values(rank, 3)
    dist.all_reduce(x)
    same(x, sum(all_values(3)))
    return lines


@pytest.mark.parametrize("body", [_reductions, _movements, _norms, _shared_life])
def test_between_processes(body: Any) -> None:
    run_group_processes(SIZE, body, backend="gloo")


def test_a_group_over_machines_is_left_to_the_engine() -> None:
    lines = run_group_processes(SIZE, _refusal, backend="gloo")
    assert lines[1] == lines[2] == []
    (line,) = lines[0]
    assert line.startswith("zbccl: group tp:0 is left to the engine: rank ")


def _over_zbccl(rank: int) -> None:
    peers = _join(rank)
    same(peers.all_reduce(values(rank, 3)), sum(all_values(3)))


def test_a_group_of_zbccl_serves_as_well_as_gloo() -> None:
    run_group_processes(SIZE, _over_zbccl, backend="zbccl")
