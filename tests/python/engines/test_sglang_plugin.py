"""The plug-in in an SGLang that has only the seams, and its seams in SGLang itself where it is."""

from __future__ import annotations

import importlib.util
import logging
import os
from typing import Any

import pytest
from test_vllm_plugin import _run, total, values
from torch_ranks import run_group_processes

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
dist = torch.distributed
SIZE = 2


class Lines(logging.Handler):
    """What the plug-in logs from here on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logger = logging.getLogger("sglang.srt.zbccl")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def group(name: str = "tp", ranks: Any = None, custom: bool = False) -> Any:
    from sglang.srt.distributed.parallel_state import GroupCoordinator

    return GroupCoordinator(
        [list(range(SIZE))] if ranks is None else ranks,
        dist.get_rank(),
        "gloo",
        use_pynccl=False,
        use_mscclpp=False,
        use_custom_allreduce=custom,
        use_torch_symm_mem_all_reduce=False,
        use_hpu_communicator=False,
        use_xpu_communicator=False,
        group_name=name,
    )


def begin(parts: str) -> Any:
    import fake_sglang

    fake_sglang.install()
    os.environ["ZBCCL_SGLANG"] = parts
    fake_sglang.load_plugins()
    return fake_sglang.theirs


def _coordinator(rank: int) -> None:
    theirs = begin("communicator")
    tp = group()
    parts = [values(r, 4, 6) for r in range(SIZE)]
    x = values(rank, 4, 6)
    assert torch.equal(tp.all_reduce(x), total(4, 6))
    x = values(rank, 4, 6)
    out = torch.full((SIZE * 4, 6), 99.0)
    tp._all_gather_into_tensor(out, x)
    assert torch.equal(out, torch.cat(parts))
    out = torch.full((2, 6), 99.0)
    assert tp._reduce_scatter_tensor(out, x) is out
    assert torch.equal(out, total(4, 6)[2 * rank : 2 * rank + 2])
    out = torch.full((4, 6), 99.0)
    tp._all_to_all_single(out, x)
    assert torch.equal(out, torch.cat([p[2 * rank : 2 * rank + 2] for p in parts]))
    mine = [values(r, r + 1, 3, dtype=torch.bool) for r in range(SIZE)]
    (rows,) = tp.all_gatherv(mine[rank], sizes=[1, 2])
    assert torch.equal(rows, torch.cat(mine))
    into = torch.full((8, 6), 99.0)
    assert tp.all_gatherv(x, output=into)[0] is into
    assert torch.equal(into, torch.cat(parts))
    pair = tp.all_gatherv([x, x])
    assert torch.equal(pair[1], torch.cat(parts))
    rows = [slice(0, 3), slice(3, 4)][rank]
    assert torch.equal(tp.reduce_scatterv(x, sizes=[3, 1]), total(4, 6)[rows])
    assert torch.equal(tp.reduce_scatterv(x), total(4, 6)[2 * rank : 2 * rank + 2])
    joined = tp.gather(x, 1)
    assert (joined is None) == (rank == 0)
    assert joined is None or torch.equal(joined, torch.cat(parts, -1))
    y = values(rank, 5)
    assert tp.broadcast(y, 1) is y
    assert torch.equal(y, values(1, 5))
    assert theirs == []
    # What zbccl does not take goes SGLang's way.
    tp._reduce_scatter_tensor(out, x.to(torch.bool))
    tp._all_gather_into_tensor(torch.empty(6, 8).t(), x)
    assert theirs == ["_reduce_scatter_tensor", "_all_gather_into_tensor"]
    alone = group("pp", [[0], [1]])
    alone.broadcast(x)
    tp.destroy()
    assert theirs[2:] == ["broadcast", "destroy"]


def _slot(rank: int) -> None:
    theirs = begin("all_reduce")
    tp = group(custom=True)
    x = values(rank, 33, 7, dtype=torch.bfloat16)
    assert torch.equal(tp.all_reduce(x), total(33, 7, dtype=torch.bfloat16))
    assert torch.equal(x, values(rank, 33, 7, dtype=torch.bfloat16))
    with tp.ca_comm.capture():
        assert torch.equal(tp.all_reduce(x), total(33, 7, dtype=torch.bfloat16))
    assert theirs == []
    comm = tp.ca_comm
    tp.destroy()
    comm.close()
    assert comm.disabled


def _norm(rank: int) -> None:
    theirs = begin("rms_norm")
    import fake_sglang
    from sglang.srt.layers.flashinfer_comm_fusion import (
        flashinfer_allreduce_residual_rmsnorm as fused,
    )

    fake_sglang.groups.update(
        attn_tp=group("attn_tp"), moe_ep=group("moe_ep", [[0], [1]]), moe_tp=group("moe_tp")
    )
    dtype = torch.bfloat16
    x, w = values(rank, 5, 64, dtype=dtype), values(70, 64, dtype=dtype)
    residual = values(71, 5, 64, dtype=dtype)
    for attention in (True, False):
        rows, added = fused(
            input_tensor=x,
            residual=residual,
            weight=w,
            eps=1e-5,
            max_token_num=2048,
            use_attn_tp_group=attention,
        )
        assert torch.equal(added, total(5, 64, dtype=dtype) + residual)
        wanted = torch.nn.functional.rms_norm(added.float(), (64,), w.float(), 1e-5)
        torch.testing.assert_close(rows.float(), wanted, rtol=1e-2, atol=1e-2)
    assert theirs == []
    assert fused(x.float(), residual.float(), w.float(), use_attn_tp_group=False) == (None, None)
    assert theirs == ["fused 1e-06 2048 False"]


def _left_to_sglang(rank: int) -> None:
    theirs = begin("1")
    lines = Lines().lines
    os.environ["ZBCCL_HOST_ID"] = f"machine-{rank}"
    tp = group(custom=True)
    x = values(rank, 4)
    assert torch.equal(tp.all_reduce(x), total(4))
    tp._all_gather_into_tensor(x, x)
    tp.destroy()
    assert theirs == ["CustomAllreduce", "custom_all_reduce", "_all_gather_into_tensor", "destroy"]
    assert len(lines) == (rank == 0)
    assert all("is left to SGLang: rank " in line for line in lines)


def _flag(rank: int) -> None:
    import fake_sglang

    lines = Lines().lines
    fake_sglang.install()
    fake_sglang.load_plugins()
    assert fake_sglang.parse(["--tp-size", "2"]).enable_zbccl is False
    assert "ZBCCL_SGLANG" not in os.environ
    assert lines == []
    assert fake_sglang.parse(["--enable-zbccl", "--tp-size", "2"]).enable_zbccl is True
    assert os.environ["ZBCCL_SGLANG"] == "1"
    assert lines == [
        "INFO zbccl takes over from SGLang: deep_ep, communicator, all_reduce, rms_norm"
    ]
    tp = group(custom=True)
    assert torch.equal(tp.all_reduce(values(rank, 8)), total(8))
    out = torch.empty(SIZE * 8)
    tp._all_gather_into_tensor(out, values(rank, 8))
    assert torch.equal(out, torch.cat([values(r, 8) for r in range(SIZE)]))
    assert fake_sglang.theirs == []


def _drifted(rank: int) -> None:
    import fake_sglang

    def newer(self: Any, output: Any, input: Any, stream: Any = None) -> None:
        fake_sglang.theirs.append("newer")

    fake_sglang.GroupCoordinator._all_to_all_single = newer  # type: ignore[method-assign]
    lines = Lines().lines
    theirs = begin("1")
    assert lines == [
        "WARNING zbccl: communicator is left to SGLang: sglang.srt.distributed.parallel_state."
        "GroupCoordinator._all_to_all_single takes (self, output, input, stream=), expected "
        "(self, output, input)",
        "INFO zbccl takes over from SGLang: deep_ep, all_reduce, rms_norm",
    ]
    tp = group(custom=True)
    assert torch.equal(tp.all_reduce(values(rank, 4)), total(4))
    tp._all_to_all_single(None, None)
    assert theirs == ["newer"]


@pytest.mark.parametrize("body", [_coordinator, _slot, _norm, _left_to_sglang, _flag, _drifted])
def test_in_an_sglang_of_seams(body: Any) -> None:
    run_group_processes(SIZE, body, backend="gloo")


def test_another_plugin_that_was_first_keeps_its_hook() -> None:
    program = """
import fake_sglang, logging, os
logging.basicConfig(format="%(message)s")
fake_sglang.install()
fake_sglang.load_plugins()
target = "sglang.srt.distributed.parallel_state.GroupCoordinator.gather"
registry, kinds = fake_sglang.HookRegistry, fake_sglang.HookType
registry.register(target, lambda original, *rest: "another's", kinds.AROUND)
registry.apply_hooks()
fake_sglang.parse(["--enable-zbccl"])
from zbccl.sglang import take_over
print(*take_over())
assert not hasattr(fake_sglang.GroupCoordinator.destroy, "__wrapped__")
assert fake_sglang.GroupCoordinator.gather(None, 1) == "another's"
"""
    assert _run(program) == ["deep_ep", "all_reduce", "rms_norm"]


def test_the_flag_alone_loads_nothing() -> None:
    program = """
import sys
from importlib.metadata import entry_points
(entry,) = [e for e in entry_points(group="sglang.srt.plugins") if e.name == "zbccl"]
assert entry.value == "zbccl.sglang:register"
import zbccl.sglang
assert not [m for m in sys.modules if m.split(".")[0] in ("sglang", "torch")]
sys.modules["sglang"] = None
entry.load()()
"""
    _run(program)


def test_the_seams_of_the_installed_sglang() -> None:
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("SGLang is not installed")
    program = """
from zbccl.engines.seams import drift
from zbccl.sglang.takeovers import FLAG_SEAMS, TAKEOVERS
for seam in (*FLAG_SEAMS, *(seam for takeover in TAKEOVERS for seam in takeover.seams)):
    assert drift(seam) is None, drift(seam)
"""
    _run(program)
