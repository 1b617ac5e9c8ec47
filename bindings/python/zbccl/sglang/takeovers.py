"""What zbccl takes over from SGLang, and the seams that it relies on: read in SGLang 0.5.23."""

from __future__ import annotations

import importlib
import sys

from zbccl.engines.seams import Seam
from zbccl.engines.takeovers import Takeover, Unavailable

_STATE = "sglang.srt.distributed.parallel_state"
_CUSTOM = "sglang.srt.distributed.device_communicators.custom_all_reduce"
_FUSION = "sglang.srt.layers.flashinfer_comm_fusion"
_REGISTRY = (
    Seam(
        "sglang.srt.plugins.hook_registry",
        "HookRegistry.register",
        "target, hook, hook_type=, *, source=",
    ),
    Seam("sglang.srt.plugins.hook_registry", "HookRegistry.apply_hooks", ""),
    Seam("sglang.srt.plugins.hook_registry", "HookRegistry._patched"),
)

FLAG_SEAMS = (*_REGISTRY, Seam("sglang.srt.server_args", "ServerArgs.add_cli_args", "parser"))


def _method(name: str, parameters: str) -> Seam:
    return Seam(_STATE, f"GroupCoordinator.{name}", f"self, {parameters}")


COMMUNICATOR_SEAMS = (
    *_REGISTRY,
    _method(
        "__init__",
        "group_ranks, local_rank, torch_distributed_backend, use_pynccl, use_mscclpp, "
        "use_custom_allreduce, use_torch_symm_mem_all_reduce, use_hpu_communicator, "
        "use_xpu_communicator, use_message_queue_broadcaster=, group_name=, gloo_timeout=, "
        "recovered_rank=, rank_offset=, max_world_size=",
    ),
    _method("_all_reduce_in_place", "input_"),
    _method("_all_gather_into_tensor", "output, input"),
    _method("_reduce_scatter_tensor", "output, input"),
    _method("_all_to_all_single", "output, input"),
    _method("all_gatherv", "input_, sizes=, output="),
    _method("reduce_scatterv", "input_, output=, sizes="),
    _method("gather", "input_, dst=, dim="),
    _method("broadcast", "input_, src="),
    Seam(_STATE, "GroupCoordinator.destroy", "self"),
)

SLOT_SEAMS = (
    *_REGISTRY,
    Seam(_CUSTOM, "dispatch_custom_allreduce", "group, device"),
    Seam(_CUSTOM, "CustomAllreduce.should_custom_ar", "self, inp"),
    Seam(_CUSTOM, "CustomAllreduce.custom_all_reduce", "self, input"),
    Seam(_CUSTOM, "CustomAllreduce.capture", "self"),
    Seam(_CUSTOM, "CustomAllreduce.close", "self"),
)

NORM_SEAMS = (
    *_REGISTRY,
    Seam(
        _FUSION,
        "flashinfer_allreduce_residual_rmsnorm",
        "input_tensor, residual, weight, eps=, max_token_num=, use_oneshot=, "
        "trigger_completion_at_end=, fp32_acc=, use_attn_tp_group=",
    ),
    Seam(_STATE, "get_attn_tp_group", ""),
    Seam(_STATE, "get_moe_ep_group", ""),
    Seam(_STATE, "get_moe_tp_group", ""),
)


def _take_communicator(named: bool) -> None:
    importlib.import_module("zbccl.sglang.coordinator").hook_coordinator()


def _take_slot(named: bool) -> None:
    importlib.import_module("zbccl.sglang.all_reduce").hook_slot()


def _take_norm(named: bool) -> None:
    importlib.import_module("zbccl.sglang.norm").hook_norm()


def _take_deep_ep(named: bool) -> None:
    importlib.import_module("zbccl.engines.drop_in").take_deep_ep(named)
    dispatcher = sys.modules.get("sglang.srt.layers.moe.token_dispatcher.deepep")
    if dispatcher is not None and not getattr(dispatcher, "use_deepep", True):
        raise Unavailable("this process has looked for deep_ep before, and keeps the answer")


TAKEOVERS = (
    # First, since checking the seams of the others may import what asks for deep_ep.
    Takeover("deep_ep", (), _take_deep_ep),
    Takeover("communicator", COMMUNICATOR_SEAMS, _take_communicator),
    Takeover("all_reduce", SLOT_SEAMS, _take_slot),
    Takeover("rms_norm", NORM_SEAMS, _take_norm),
)
