"""The module zbccl.deep_ep: statics, helpers, wrong arguments, and how programs get at it."""

from __future__ import annotations

import inspect
import os
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import zbccl
from kinds import need_torch
from ranks import LIMIT, run_processes, run_threads

torch = need_torch()
from zbccl import deep_ep  # noqa: E402
from zbccl.deep_ep.utils.math import (  # noqa: E402
    calc_diff,
    create_grouped_scores,
    hash_tensor,
    inplace_unique,
    per_token_cast_back,
    per_token_cast_to_fp8,
)


def test_statics() -> None:
    assert deep_ep.topk_idx_t == torch.int64
    assert deep_ep.Buffer.is_sm90_compiled()
    for ranks in (2, 4, 8, 16):
        assert deep_ep.Buffer.get_dispatch_config(ranks).num_sms == deep_ep.Buffer.num_sms == 20
        assert deep_ep.Buffer.get_combine_config(ranks).get_nvl_buffer_size_hint(7168, ranks) == 0
    assert deep_ep.Config(24, 8, 512, 16, 128).get_rdma_buffer_size_hint(7168, 16) == 0
    assert deep_ep.Buffer.get_low_latency_rdma_size_hint(128, 7168, 8, 288) == 0
    with pytest.raises(zbccl.InvalidArgumentError, match="even"):
        deep_ep.Buffer.set_num_sms(3)
    with deep_ep.Buffer.capture() as event:
        assert event.event is not None
    with pytest.raises(AssertionError):
        deep_ep.EventOverlap().current_stream_wait()


def test_signatures() -> None:
    """Programs pass arguments by place and by name."""
    layout = "num_tokens_per_rank num_tokens_per_rdma_rank is_token_in_rank num_tokens_per_expert"
    stream = "config previous_event async_finish allocate_on_comm_stream"
    routed = f"{layout} topk_idx topk_weights expert_alignment"
    known = {
        "__init__": "group num_nvl_bytes num_rdma_bytes low_latency_mode num_qps_per_rank "
        "allow_nvlink_for_low_latency_mode allow_mnnvl explicitly_destroy enable_shrink comm "
        "use_fabric",
        "get_dispatch_layout": "topk_idx num_experts previous_event async_finish "
        "allocate_on_comm_stream",
        "dispatch": f"x handle {routed} num_worst_tokens {stream}",
        "internode_dispatch": f"x handle {routed} {stream}",
        "combine": f"x handle topk_weights bias {stream}",
        "internode_combine": f"x handle topk_weights bias {stream}",
        "clean_low_latency_buffer": "num_max_dispatch_tokens_per_rank hidden num_experts",
        "low_latency_dispatch": "x topk_idx num_max_dispatch_tokens_per_rank num_experts "
        "cumulative_local_expert_recv_stats dispatch_wait_recv_cost_stats use_fp8 round_scale "
        "use_ue8m0 async_finish return_recv_hook",
        "low_latency_combine": "x topk_idx topk_weights handle use_logfmt zero_copy async_finish "
        "return_recv_hook out combine_wait_recv_cost_stats",
        "low_latency_update_mask_buffer": "rank_to_mask mask",
        "low_latency_query_mask_buffer": "mask_status",
        "get_local_buffer_tensor": "dtype size offset use_rdma_buffer",
        "get_low_latency_rdma_size_hint": "num_max_dispatch_tokens_per_rank hidden num_ranks "
        "num_experts",
    }
    for name, expected in known.items():
        found = list(inspect.signature(getattr(deep_ep.Buffer, name)).parameters)
        assert [parameter for parameter in found if parameter != "self"] == expected.split(), name


def test_attributes_and_mistakes(solo: zbccl.Communicator) -> None:
    buffer = deep_ep.Buffer(solo, 128, 256, True)
    assert (buffer.rank, buffer.group_size, buffer.group) == (0, 1, solo)
    assert (buffer.num_nvl_bytes, buffer.num_rdma_bytes, buffer.low_latency_mode) == (128, 256, 1)
    assert buffer.runtime.is_available() and buffer.runtime.get_num_rdma_ranks() == 1
    assert buffer.get_local_buffer_tensor(torch.uint8).numel() == 0
    assert buffer.get_comm_stream() is not None
    x, topk = torch.zeros((2, 64)).bfloat16(), torch.zeros((2, 1), dtype=torch.int64)
    layout = buffer.get_dispatch_layout(topk, 1)
    given = {
        "num_tokens_per_rank": layout[0],
        "num_tokens_per_expert": layout[2],
        "is_token_in_rank": layout[3],
    }
    meta = torch.empty((2, 64), dtype=torch.bfloat16, device="meta")
    handle = buffer.dispatch(x, topk_idx=topk, **given)[4]
    argument, usage = zbccl.InvalidArgumentError, zbccl.InvalidUsageError
    wrong: list[tuple[type[Exception], str, Any]] = [
        (argument, "the CPU or a GPU", lambda: buffer.dispatch(meta, topk_idx=topk, **given)),
        (argument, "or a handle", lambda: buffer.dispatch(x)),
        (argument, "handle", lambda: buffer.dispatch(x, handle, topk_idx=topk)),
        (argument, "previous_event", lambda: buffer.dispatch(x, handle, async_finish=True,
                                                             allocate_on_comm_stream=True)),
        (argument, "not that of topk_idx", lambda: buffer.dispatch(x, topk_idx=topk - 1, **given)),
        (argument, "topk_idx", lambda: buffer.dispatch(x, num_worst_tokens=4, **given)),
        (usage, "2 rows came", lambda: buffer.dispatch(x, topk_idx=topk, num_worst_tokens=1,
                                                       **given)),
        (usage, "not the tuple", lambda: buffer.combine(x, tuple(handle))),
        (usage, "explicitly_destroy", buffer.destroy),
        (usage, "enable_shrink", buffer.low_latency_clean_mask_buffer),
        (argument, "at most 1", lambda: buffer.low_latency_dispatch(x, topk, 1, 1)),
        (argument, "round_scale", lambda: buffer.low_latency_dispatch(x, topk, 2, 1,
                                                                      use_ue8m0=True)),
        (argument, "exclude", lambda: buffer.low_latency_dispatch(
            x, topk, 2, 1, async_finish=True, return_recv_hook=True)),
        (NotImplementedError, "wait", lambda: buffer.low_latency_dispatch(
            x, topk, 2, 1, dispatch_wait_recv_cost_stats=torch.zeros(1, dtype=torch.int64))),
        (usage, "more than once", lambda: buffer.low_latency_dispatch(
            x, torch.zeros((2, 2), dtype=torch.int64), 2, 1)),
        (argument, "0 bytes", lambda: buffer.get_local_buffer_tensor(torch.int8, torch.Size([1]))),
        (argument, "group", lambda: deep_ep.Buffer(None)),
    ]  # fmt: skip
    for kind, text, call in wrong:
        with pytest.raises(kind, match=text):
            call()


def test_helpers() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((5, 200), generator=generator)
    codes, scales = per_token_cast_to_fp8(x)
    assert codes.shape == (5, 200) and scales.shape == (5, 2)
    assert calc_diff(per_token_cast_back(codes, scales), x) < 1e-3
    assert calc_diff(x, x) < 1e-12
    powers = torch.tensor([[0.25, 2.0, 1.0, 0.5]])
    packed = (powers.view(torch.int32) >> 23).to(torch.uint8).view(torch.int32)
    ones = torch.ones((1, 512)).to(torch.float8_e4m3fn)
    assert torch.equal(per_token_cast_back(ones, packed)[0, ::128], powers[0].to(torch.bfloat16))
    index = torch.tensor([[3, 1, 3, -1], [2, 2, 2, 0]])
    inplace_unique(index, 4)
    assert [sorted(set(row.tolist()) - {-1}) for row in index] == [[1, 3], [0, 2]]
    assert [row.tolist().count(-1) for row in index] == [2, 2]
    grouped = create_grouped_scores(torch.ones((1, 6)), torch.tensor([[0, 2]]), 3)
    assert grouped.tolist() == [[1, 1, 0, 0, 1, 1]]
    low, high = torch.tensor([1, 2]).int(), torch.tensor([2, 1]).int()
    assert hash_tensor(low) == hash_tensor(high)


# ---- how programs get at it


def _gloo(comm: zbccl.Communicator, port: int) -> Any:
    """As DeepEP's own tests begin: processes that spawn, a group of torch.distributed."""
    import torch.distributed as dist

    zbccl.install_deep_ep()
    import deep_ep  # type: ignore[import-not-found]
    from deep_ep.utils.envs import init_dist  # type: ignore[import-not-found]

    os.environ["MASTER_PORT"] = str(port)
    rank, ranks, group = init_dist(comm.rank, comm.size)
    assert (rank, ranks) == (comm.rank, comm.size)
    buffer = deep_ep.Buffer(group, low_latency_mode=True, explicitly_destroy=True)
    x = torch.full((8, 256), float(rank), dtype=torch.bfloat16)
    topk = torch.arange(16).view(8, 2) % 4
    weights = torch.full((8, 2), 0.5, dtype=torch.float32)

    def both(hooked: bool) -> Any:
        packed, count, handle, _, hook = buffer.low_latency_dispatch(
            x, topk, 8, 4, use_fp8=False, return_recv_hook=hooked
        )
        if hooked:
            hook()
        combined, _, hook = buffer.low_latency_combine(
            packed, topk, weights, handle, return_recv_hook=hooked
        )
        if hooked:
            hook()
        return combined

    assert torch.equal(both(True), x) and torch.equal(both(False), x)
    buffer.destroy()
    dist.barrier()
    dist.destroy_process_group()
    return tuple(combined.shape for combined in (x, topk))


def test_processes_and_gloo() -> None:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("PyTorch was built without gloo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = run_processes(2, _gloo, port)
    assert set(results.values()) == {((8, 256), (8, 2))}


class Mpi:
    """As much of an mpi4py communicator as Buffer uses, between threads."""

    said: Any = None

    def __init__(self, comm: zbccl.Communicator):
        self.comm = comm

    def Get_rank(self) -> int:
        return self.comm.rank

    def Get_size(self) -> int:
        return self.comm.size

    def bcast(self, value: Any, root: int) -> Any:
        if self.comm.rank == root:
            Mpi.said = value
        self.comm.barrier()
        return Mpi.said


def test_mpi_communicator() -> None:
    def body(comm: zbccl.Communicator) -> None:
        buffer = deep_ep.Buffer(None, comm=Mpi(comm), explicitly_destroy=True)
        assert (buffer.rank, buffer.group_size) == (comm.rank, 2)
        x, topk = torch.ones((3, 16)), torch.full((3, 1), 1 - comm.rank)
        packed, count, handle, _, _ = buffer.low_latency_dispatch(x, topk, 3, 2, use_fp8=False)
        assert count.tolist() == [3] and torch.equal(packed[0, :3], x)
        buffer.destroy()

    run_threads(2, body)


def test_timing(solo: zbccl.Communicator) -> None:
    """The marks in a profile that bench_kineto counts: one for each call, or for each phase."""
    from zbccl.deep_ep.utils.testing import bench, bench_kineto

    buffer = deep_ep.Buffer(solo)
    x, topk, weights = torch.zeros((4, 64)), torch.zeros((4, 1)).long(), torch.ones((4, 1))

    def both(hooked: bool) -> None:
        packed, _, handle, _, hook = buffer.low_latency_dispatch(
            x, topk, 4, 1, use_fp8=False, return_recv_hook=hooked
        )
        if hook:
            hook()
        _, _, hook = buffer.low_latency_combine(
            packed, topk, weights, handle, return_recv_hook=hooked
        )
        if hook:
            hook()

    assert bench(lambda: both(False), num_warmups=1, num_tests=3)[1] > 0
    names = ("dispatch", "combine")
    whole = bench_kineto(lambda: both(False), names, num_tests=3, suppress_kineto_output=True)
    halves = bench_kineto(lambda: both(True), names, num_tests=3, num_kernels_per_period=2)
    assert min(whole) > 0 and all(len(half) == 2 for half in halves)
    layout = buffer.get_dispatch_layout(topk, 1)
    given = {
        "topk_idx": topk,
        "num_tokens_per_rank": layout[0],
        "num_tokens_per_expert": layout[2],
        "is_token_in_rank": layout[3],
    }
    assert bench_kineto(lambda: buffer.dispatch(x, **given), "dispatch", num_tests=2) > 0
    with pytest.raises(zbccl.InvalidArgumentError, match="0 events"):
        bench_kineto(lambda: None, "dispatch", num_tests=1)


def test_install_refuses_another(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "deep_ep"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "deep_ep", types.ModuleType("deep_ep"))
    with pytest.raises(zbccl.InvalidUsageError, match="loaded already"):
        zbccl.install_deep_ep()


def test_shims() -> None:
    """A program that knows nothing of zbccl, and the command that prints the folder."""
    package = str(Path(zbccl.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": package}
    done = subprocess.run(
        [sys.executable, "-m", "zbccl", "shims"],
        env=environment, capture_output=True, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    folder = done.stdout.strip()
    assert (Path(folder) / "deep_ep/__init__.py").exists()
    program = """
from deep_ep.utils.math import calc_diff
import deep_ep, deep_ep.buffer, zbccl
from deep_ep import Buffer, Config, EventOverlap, topk_idx_t
zbccl.install_deep_ep()
import zbccl.deep_ep
assert deep_ep is zbccl.deep_ep and Buffer is zbccl.deep_ep.buffer.Buffer is deep_ep.buffer.Buffer
print("as one", calc_diff.__module__)
"""
    environment["PYTHONPATH"] = os.pathsep.join((folder, package))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment, capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.stdout == "as one zbccl.deep_ep.utils.math\n", done.stderr
