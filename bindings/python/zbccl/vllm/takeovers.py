"""What zbccl takes over from vLLM, and the seams that it relies on: read in vLLM 0.33.0."""

from __future__ import annotations

import importlib
from typing import Any

from zbccl.engines.seams import Seam
from zbccl.engines.takeovers import Takeover

_DISTRIBUTED = "vllm.distributed"
_COMMUNICATORS = f"{_DISTRIBUTED}.device_communicators"
_SLOT = f"{_COMMUNICATORS}.custom_all_reduce"
_CUDA = f"{_COMMUNICATORS}.cuda_communicator"
_PASSES = "vllm.compilation.passes"


def _of(module: str, owner: str, **parameters: str | None) -> tuple[Seam, ...]:
    """Seams of one class: each method with its parameters after self."""
    return tuple(
        Seam(module, f"{owner}.{name}", f"self, {text}" if text else "self")
        for name, text in parameters.items()
    )


SLOT_SEAMS = (
    Seam(
        _SLOT,
        "CustomAllreduce",
        "group, device, max_size=, max_all_gather_size=, max_mnnvl_all_gather_size=, "
        "max_reduce_scatter_size=, max_mnnvl_reduce_scatter_size=, "
        "max_mnnvl_multimem_reduce_scatter_size=, symm_mem_enabled=, *, register_graph_buffers=",
    ),
    *_of(
        _SLOT,
        "CustomAllreduce",
        capture=None,
        register_graph_buffers=None,
        should_custom_ar="inp",
        custom_all_reduce="input",
        should_custom_all_gather="inp",
        custom_all_gather="inp",
        should_custom_reduce_scatter="inp",
        should_mnnvl_multimem_reduce_scatter="inp",
        custom_reduce_scatter="inp",
        close=None,
    ),
)

COMMUNICATOR_SEAMS = (
    Seam(
        _CUDA,
        "CudaCommunicator",
        "cpu_group, device=, device_group=, unique_name=, global_ranks=, global_world_size=, "
        "tcp_store_group=, use_all2all=",
    ),
    *_of(
        _CUDA,
        "CudaCommunicator",
        all_reduce="input_",
        all_gather="input_, dim=",
        all_gatherv="input_, dim=, sizes=",
        reduce_scatter="input_, dim=",
        reduce_scatterv="input_, dim=, sizes=",
        reduce_scatterv_into_output="input_, output, dim=, sizes=",
        gather="input_, dst=, dim=",
        send="tensor, dst=",
        recv="size, dtype, src=",
        broadcast="tensor, src=",
        destroy=None,
    ),
    Seam("vllm.platforms.cuda", "CudaPlatformBase.get_device_communicator_cls", ""),
)

NORM_SEAMS = (
    Seam(f"{_PASSES}.pass_manager", "AllReduceFusionPass", "config"),
    Seam(f"{_PASSES}.vllm_inductor_pass", "VllmPatternMatcherPass", "config"),
    Seam(f"{_PASSES}.inductor_pass", "enable_fake_mode", "fn"),
    Seam(
        f"{_PASSES}.fusion.allreduce_rms_fusion",
        "AllReduceFusionPass.is_applicable_for_range",
        "self, compile_range",
    ),
    Seam(f"{_DISTRIBUTED}.parallel_state", "get_tp_group", ""),
    Seam(f"{_DISTRIBUTED}.communication_op", "tensor_model_parallel_all_reduce", "input_"),
    Seam("vllm.ir.ops", "rms_norm"),
    Seam("vllm.ir.ops", "fused_add_rms_norm"),
)

DEEP_EP_SEAMS = (Seam("vllm.utils.import_utils", "has_deep_ep", ""),)


def _take_slot(named: bool) -> None:
    ours = importlib.import_module("zbccl.vllm.all_reduce")
    importlib.import_module(_SLOT).CustomAllreduce = ours.CustomAllreduce  # type: ignore[attr-defined]


def _take_communicator(named: bool) -> None:
    importlib.import_module("zbccl.vllm.communicator")
    platform: Any = importlib.import_module("vllm.platforms.cuda")

    def get_device_communicator_cls(cls: type) -> str:
        return "zbccl.vllm.communicator.Communicator"

    platform.CudaPlatformBase.get_device_communicator_cls = classmethod(get_device_communicator_cls)


def _take_norm(named: bool) -> None:
    ours = importlib.import_module("zbccl.vllm.norm")
    manager: Any = importlib.import_module(f"{_PASSES}.pass_manager")
    manager.AllReduceFusionPass = ours.AllReduceFusionPass


def _take_deep_ep(named: bool) -> None:
    importlib.import_module("zbccl.engines.drop_in").take_deep_ep(named)
    # vLLM may have looked for the module before, and keeps the answer.
    look: Any = getattr(importlib.import_module("vllm.utils.import_utils"), "_has_module", None)
    if hasattr(look, "cache_clear"):
        look.cache_clear()


TAKEOVERS = (
    # First, since checking the seams of the others may import what asks for deep_ep.
    Takeover("deep_ep", DEEP_EP_SEAMS, _take_deep_ep),
    Takeover("communicator", COMMUNICATOR_SEAMS, _take_communicator),
    Takeover("all_reduce", SLOT_SEAMS, _take_slot),
    Takeover("rms_norm", NORM_SEAMS, _take_norm),
)
