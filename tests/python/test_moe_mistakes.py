"""zbccl.moe: arguments that are wrong, on one rank or all, and handles that are stale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zbccl
from ranks import run_threads


def test_wrong_arguments(solo: zbccl.Communicator) -> None:
    experts = zbccl.moe.Experts(solo, 2)
    index = np.array([[0, 1]])
    wrong: list[tuple[str, Any]] = [
        ("layout", lambda: experts.route(index, "by_rank")),  # type: ignore[call-overload]
        ("capacity", lambda: experts.route(index, capacity=0)),
        ("capacity", lambda: experts.route(index, "expert_masked")),
        ("slots", lambda: experts.route(index[0])),
        ("i32 or i64", lambda: experts.route(index.astype(np.int16))),
        ("2", lambda: experts.route(np.array([[2]]))),
        ("recv_counts", lambda: experts.route(index, recv_counts=np.zeros(3, np.int32))),
        ("expert_ranks", lambda: zbccl.moe.Experts(solo, 2, [0])),
        ("rank", lambda: zbccl.moe.Experts(solo, 1, [1])),
    ]
    handle = experts.route(index)
    x = np.zeros((1, 8), np.float32)
    wrong += [
        ("quant", lambda: handle.dispatch(x, quant="fp4")),  # type: ignore[call-overload]
        ("x has shape", lambda: handle.dispatch(x[:0])),
        ("quantized again", lambda: handle.dispatch(x, quant="fp8", scales=x)),
        ("x_scales", lambda: handle.dispatch(x, scales=x.astype(np.float64))),
        ("topk_weights", lambda: handle.dispatch(x, topk_weights=x)),
        ("recv_x", lambda: handle.dispatch(x, out=np.zeros((1, 4), np.float32))),
        ("recv_x", lambda: handle.dispatch(x, out=np.zeros((1, 8), np.float16))),
        ("overlap", lambda: handle.dispatch(x, out=x)),
        ("side by side", lambda: handle.dispatch(np.zeros((1, 16), np.float32)[:, ::2])),
        ("overlap", lambda: handle.dispatch(np.broadcast_to(x[:, :1], (1, 8)))),
        ("multiple of 16", lambda: handle.dispatch(x[:, :3].copy())),
        ("y has shape", lambda: handle.combine(x[:0])),
        ("biases", lambda: handle.combine(x, bias=(x, x, x))),
        ("bias has", lambda: handle.combine(x, bias=x[:, :4].copy())),
        ("y", lambda: handle.combine(x.astype(np.int32))),
    ]
    for text, call in wrong:
        with pytest.raises(zbccl.InvalidArgumentError, match=text):
            call()
    with pytest.raises(TypeError, match="must be a tensor"):
        handle.dispatch("x", out=x)
    assert handle.combine(handle.dispatch(x).x).x.shape == x.shape  # still of use


def test_another_rank_is_wrong() -> None:
    """Each rank hears of it, nothing is written, and the communicator goes on."""

    def body(comm: zbccl.Communicator) -> None:
        experts = zbccl.moe.Experts(comm, 2)
        bad = np.array([[7 if comm.rank == 1 else 0]])
        with pytest.raises(zbccl.Error, match="7" if comm.rank == 1 else "rank 1"):
            experts.route(bad)
        handle = experts.route(np.array([[0]]))
        out = np.full((handle.num_rows, 8 + comm.rank * 8), -1, np.float32)
        with pytest.raises(zbccl.InvalidUsageError, match="hidden"):
            handle.dispatch(np.zeros((1, 8 + comm.rank * 8), np.float32), out=out)
        assert (out == -1).all()
        handle.dispatch(np.zeros((1, 8), np.float32))

    run_threads(2, body)


def test_stale_handles() -> None:
    comm = zbccl.init_all(1)[0]
    x = np.zeros((1, 8), np.float32)
    experts = zbccl.moe.Experts(comm, 1)
    handle = experts.route(np.array([[0]]))
    handle.close()
    handle.close()
    with pytest.raises(zbccl.InvalidUsageError, match="closed"):
        handle.dispatch(x)
    handle = experts.route(np.array([[0]]))
    with experts:
        assert "1 experts" in repr(experts)
    for call in (lambda: handle.dispatch(x), lambda: handle.combine(x), experts.report):
        with pytest.raises(zbccl.InvalidUsageError, match="closed"):
            call()
    later = zbccl.moe.Experts(comm, 1)
    handle = later.route(np.array([[0]]))
    pending = handle.send_dispatch(x)
    handle.close()
    handle = later.route(np.array([[0]]))
    other = handle.send_dispatch(x)
    with pytest.raises(zbccl.InvalidUsageError, match="closed"):
        pending.receive()
    assert other.receive().x.shape == x.shape
    pending = handle.send_dispatch(x)
    comm.close()
    for call in (lambda: handle.dispatch(x), pending.receive, lambda: later.mask):
        with pytest.raises(zbccl.InvalidUsageError, match="closed"):
            call()
    with pytest.raises(zbccl.InvalidUsageError, match="closed"):
        zbccl.moe.Experts(comm, 1)


def test_not_in_a_group(solo: zbccl.Communicator) -> None:
    experts = zbccl.moe.Experts(solo, 1)
    with pytest.raises(zbccl.InvalidUsageError, match="group"), zbccl.group():
        experts.route(np.array([[0]]))
