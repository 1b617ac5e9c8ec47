"""The plug-in in a vLLM that has only the seams, and its seams in vLLM itself where it is."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import pytest
from torch_ranks import run_group_processes

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
dist = torch.distributed
SIZE = 2
CPU = torch.device("cpu")


class Lines(logging.Handler):
    """What the plug-in logs from here on."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logger = logging.getLogger("vllm.zbccl")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


def begin(parts: str, **groups: Any) -> list[str]:
    import fake_vllm

    fake_vllm.install(**groups)
    os.environ["ZBCCL_VLLM"] = parts
    from zbccl.vllm import register

    done = register()
    assert register() == done
    return done


def communicator() -> Any:
    """As vLLM makes it: by the name that the platform gives."""
    platform = importlib.import_module("vllm.platforms.cuda").CudaPlatformBase
    module, _, name = platform.get_device_communicator_cls().rpartition(".")
    return getattr(importlib.import_module(module), name)(
        cpu_group=dist.group.WORLD, device=CPU, device_group=None, unique_name="tp:0"
    )


def slot() -> Any:
    custom = importlib.import_module("vllm.distributed.device_communicators.custom_all_reduce")
    return custom.CustomAllreduce(group=dist.group.WORLD, device=CPU, symm_mem_enabled=False)


def values(rank: int, *shape: int, dtype: Any = torch.float32) -> Any:
    generator = torch.Generator().manual_seed(2000 + rank)
    return torch.randint(-8, 9, shape, generator=generator).to(dtype)


def total(*shape: int, dtype: Any = torch.float32) -> Any:
    return sum(values(r, *shape, dtype=dtype) for r in range(SIZE))


def _communicator(rank: int) -> None:
    import fake_vllm

    assert begin("communicator") == ["communicator"]
    comm = communicator()
    assert isinstance(comm, fake_vllm.CudaCommunicator)
    x = values(rank, 4, 6)
    assert torch.equal(comm.all_reduce(x), total(4, 6))
    assert torch.equal(comm.all_reduce(x.t()), total(4, 6).t())
    assert torch.equal(x, values(rank, 4, 6))
    parts = [values(r, 4, 6) for r in range(SIZE)]
    assert torch.equal(comm.all_gather(x), torch.cat(parts, -1))
    assert torch.equal(comm.all_gather(x, 0), torch.cat(parts, 0))
    assert torch.equal(comm.reduce_scatter(x, 0), total(4, 6)[2 * rank : 2 * rank + 2])
    assert torch.equal(comm.reduce_scatter(x), total(4, 6)[:, 3 * rank : 3 * rank + 3])
    rows = [slice(0, 3), slice(3, 4)][rank]
    assert torch.equal(comm.reduce_scatterv(x, 0, [3, 1]), total(4, 6)[rows])
    out = torch.full((rows.stop - rows.start, 6), 99.0)
    assert comm.reduce_scatterv_into_output(x, out, 0, [3, 1]) is out
    assert torch.equal(out, total(4, 6)[rows])
    mine = [values(r, r + 1, 3, dtype=torch.bool) for r in range(SIZE)]
    assert torch.equal(comm.all_gatherv(mine[rank], 0, [1, 2]), torch.cat(mine))
    pair = comm.all_gatherv([x, mine[rank][:1]])
    assert torch.equal(pair[0], torch.cat(parts))
    assert torch.equal(pair[1], torch.cat([m[:1] for m in mine]))
    gathered = comm.gather(x, 1)
    assert (gathered is None) == (rank == 0)
    assert gathered is None or torch.equal(gathered, torch.cat(parts, -1))
    if rank == 0:
        comm.send(x)
    else:
        assert torch.equal(comm.recv(x.shape, x.dtype), parts[0])
    assert torch.equal(comm.broadcast(values(rank, 5), 1), values(1, 5))
    # What zbccl does not add up goes the engine's way.
    assert fake_vllm.theirs == []
    assert comm.reduce_scatter(x.to(torch.bool)) == "reduce_scatter"
    comm.all_reduce(x[:0])
    assert fake_vllm.theirs == ["reduce_scatter", "all_reduce"]
    comm.destroy()
    assert comm.peers is None


def _slot(rank: int) -> None:
    import fake_vllm

    assert begin("all_reduce") == ["all_reduce"]
    made = slot()
    assert isinstance(made, fake_vllm.CustomAllreduce)
    assert not made.disabled
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = values(rank, 33, 7, dtype=dtype)
        assert made.should_custom_ar(x)
        assert torch.equal(made.custom_all_reduce(x), total(33, 7, dtype=dtype))
        assert torch.equal(x, values(rank, 33, 7, dtype=dtype))
    with made.capture():
        assert torch.equal(made.custom_all_reduce(x), total(33, 7, dtype=x.dtype))
    x = values(rank, 4, 3)
    for refused in (x.long(), x.t(), x[:0]):
        assert not made.should_custom_ar(refused)
        assert made.custom_all_reduce(refused) is None
    parts = [values(r, 4, 3) for r in range(SIZE)]
    assert torch.equal(made.custom_all_gather(x), torch.cat(parts))
    assert torch.equal(made.custom_reduce_scatter(x), total(4, 3)[2 * rank : 2 * rank + 2])
    assert made.custom_reduce_scatter(x[:3]) is None
    made.close()
    made.close()
    assert made.disabled
    assert not made.should_custom_ar(x)
    assert fake_vllm.theirs == []


def _left_to_vllm(rank: int) -> None:
    import fake_vllm

    assert begin("1") == ["deep_ep", "communicator", "all_reduce", "rms_norm"]
    lines = Lines().lines
    os.environ["ZBCCL_HOST_ID"] = f"machine-{rank}"
    comm, made = communicator(), slot()
    x = values(rank, 4)
    assert torch.equal(comm.all_reduce(x), total(4))
    assert comm.all_gather(x) == "all_gather"
    assert torch.equal(made.custom_all_reduce(x), total(4))
    made.close()
    assert fake_vllm.theirs == [
        "CustomAllreduce", "all_reduce", "all_gather", "custom_all_reduce", "close",
    ]  # fmt: skip
    assert len(lines) == (rank == 0)
    assert all("group tp:0 is left to vLLM: rank " in line for line in lines)


def _drifted(rank: int) -> None:
    lines = Lines().lines
    import fake_vllm

    def newer(self: Any, inp: Any, stream: Any) -> bool:
        return False

    fake_vllm.CustomAllreduce.should_custom_ar = newer  # type: ignore[method-assign]
    assert begin("1") == ["deep_ep", "communicator", "rms_norm"]
    assert lines == [
        "WARNING zbccl: all_reduce is left to vLLM: vllm.distributed.device_communicators."
        "custom_all_reduce.CustomAllreduce.should_custom_ar takes (self, inp, stream), expected "
        "(self, inp)",
        "INFO zbccl takes over from vLLM: deep_ep, communicator, rms_norm",
    ]
    assert slot().custom_all_reduce(values(rank, 4)).shape == (4,)
    assert torch.equal(communicator().all_reduce(values(rank, 4)), total(4))


def _norm(rank: int) -> None:
    import fake_vllm
    from torch.fx.experimental.proxy_tensor import make_fx

    group = types.SimpleNamespace(
        world_size=SIZE, cpu_group=dist.group.WORLD, device=CPU, unique_name="tp:0"
    )
    assert begin("rms_norm", tp_group=group) == ["rms_norm"]
    from vllm.compilation.passes.pass_manager import AllReduceFusionPass
    from vllm.distributed.communication_op import tensor_model_parallel_all_reduce as reduce
    from vllm.ir import ops

    dtype = torch.bfloat16
    config = types.SimpleNamespace(model_dtype=dtype, device="cpu", model_config=object())
    fusion = AllReduceFusionPass(config)
    assert fusion.is_applicable_for_range(None)

    def model(x: Any, residual: Any, w: Any) -> Any:
        reduced = reduce(x)
        h = ops.rms_norm(reduced, w, 1e-6)
        h, residual = ops.fused_add_rms_norm(reduce(h + reduced), residual, w, 1e-6)
        h, residual = ops.fused_add_rms_norm(reduce(h), residual, w, 1e-5)
        return ops.fused_add_rms_norm(reduce(h), residual, w, 1e-5)[0]

    x, w = values(rank, 6, 64, dtype=dtype), values(70, 64, dtype=dtype)
    residual = values(71, 6, 64, dtype=dtype)
    wanted = model(x, residual, w)
    graph = make_fx(model, tracing_mode="fake")(x, residual, w)
    fusion(graph.graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    assert fusion.matched_count == 4
    fake_vllm.theirs.clear()
    torch.testing.assert_close(graph(x, residual, w).float(), wanted.float(), rtol=3e-2, atol=3e-2)
    assert fake_vllm.theirs == []

    # Another epsilon, another type, or rows that the operator does not take stay as they are.
    def others(x: Any, w: Any) -> Any:
        return ops.rms_norm(reduce(x), w, 1e-3), ops.rms_norm(reduce(x.float()), w.float(), 1e-6)

    graph = make_fx(others, tracing_mode="fake")(x, w)
    fusion(graph.graph)
    assert fusion.matched_count == 0
    short = make_fx(lambda x, w: ops.rms_norm(reduce(x), w, 1e-6), tracing_mode="fake")(
        x[:, :60].contiguous(), w[:60].contiguous()
    )
    fusion(short.graph)
    assert fusion.matched_count == 0


def _drop_in(rank: int) -> None:
    import fake_vllm

    fake_vllm.install()
    look = importlib.import_module("vllm.utils.import_utils")
    assert not look.has_deep_ep()
    assert begin("deep_ep") == ["deep_ep"]
    assert look.has_deep_ep()
    manager = importlib.import_module("vllm.distributed.device_communicators.all2all")
    import zbccl.deep_ep

    assert manager.DeepEPHTAll2AllManager().get_handle({}) is zbccl.deep_ep.Buffer


def _other_deep_ep(rank: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "deep_ep.py").write_text("Buffer = 'another'")
        sys.path.insert(0, folder)
        lines = Lines().lines
        assert "deep_ep" not in begin("1")
        assert "INFO zbccl: deep_ep is left to vLLM: a deep_ep is installed" in "".join(lines)
        import deep_ep

        assert deep_ep.Buffer == "another"


BODIES = [_communicator, _slot, _left_to_vllm, _drifted, _norm, _drop_in, _other_deep_ep]


@pytest.mark.parametrize("body", BODIES)
def test_in_a_vllm_of_seams(body: Any) -> None:
    run_group_processes(SIZE, body, backend="gloo")


def _run(program: str, **variables: str) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if k != "ZBCCL_VLLM"}
    paths = [str(Path(__file__).parent), *sys.path]
    environment.update(variables, PYTHONPATH=os.pathsep.join(filter(None, paths)))
    made = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.split()


def test_nothing_is_touched_unless_asked() -> None:
    program = """
import sys
from importlib.metadata import entry_points
(entry,) = [e for e in entry_points(group="vllm.general_plugins") if e.name == "zbccl"]
assert entry.load()() == []
assert not [m for m in sys.modules if m.split(".")[0] in ("vllm", "torch")]
"""
    _run(program)
    _run(program, ZBCCL_VLLM="0")


def test_the_drop_in_reaches_spawned_processes() -> None:
    program = """
import fake_vllm, importlib, multiprocessing
fake_vllm.install()
from zbccl.vllm import register
assert register() == ["deep_ep"]
context = multiprocessing.get_context("spawn")
child = context.Process(target=importlib.import_module, args=("deep_ep",))
child.start()
child.join()
print(child.exitcode)
"""
    assert _run(program, ZBCCL_VLLM="deep_ep") == ["0"]


def test_without_vllm_there_are_warnings_only() -> None:
    program = """
import sys
sys.modules["vllm"] = None
from zbccl.vllm import register
print(len(register()))
"""
    assert _run(program, ZBCCL_VLLM="1") == ["0"]


def test_the_seams_of_the_installed_vllm() -> None:
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    program = """
import torch
from zbccl.engines.seams import drift
from zbccl.vllm.takeovers import TAKEOVERS
for takeover in TAKEOVERS:
    # vLLM has its pass for CUDA only.
    if takeover.name != "rms_norm" or torch.cuda.is_available():
        for seam in takeover.seams:
            assert drift(seam) is None, drift(seam)
"""
    _run(program)
