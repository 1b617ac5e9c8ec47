"""SGLang's all-reduce fused with residual and RMSNorm, by zbccl.

SGLang asks for it where its fusion is on (--flashinfer-allreduce-fusion-backend).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from zbccl.engines.peers import Peers, join
from zbccl.sglang.hooks import Hook, register

_log = logging.getLogger("sglang.srt.zbccl")


def hook_norm() -> None:
    """Registers the hook around SGLang's fused operator."""
    module = "sglang.srt.layers.flashinfer_comm_fusion"
    register([Hook(f"{module}.flashinfer_allreduce_residual_rmsnorm", _fused)])


def _peers(use_attn_tp_group: bool) -> Peers | None:
    """The peers of the group that SGLang's fused operator sums over."""
    from sglang.srt.distributed import parallel_state as state

    if use_attn_tp_group:
        group = state.get_attn_tp_group()
    else:
        group = state.get_moe_ep_group()
        if group is None or group.world_size == 1:
            group = state.get_moe_tp_group()
    if group.world_size == 1:
        return None
    known: Peers | None = getattr(group, "zbccl_fused_peers", None)
    if known is None:
        known = join(group.cpu_group, group.device, f"group {group.unique_name}", "SGLang", _log)
        group.zbccl_fused_peers = known
    return known


def _fused(
    original: Callable[..., Any],
    input_tensor: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    max_token_num: int = 2048,
    use_oneshot: bool | None = None,
    trigger_completion_at_end: bool = False,
    fp32_acc: bool = True,
    use_attn_tp_group: bool = True,
) -> Any:
    # A graph that is being compiled takes operators only, and this hook is none.
    if not torch.compiler.is_compiling():
        peers = _peers(use_attn_tp_group)
        if peers is not None and peers.serves_norm(input_tensor, residual, weight):
            return peers.all_reduce_rms_norm(input_tensor, residual, weight, eps)
    return original(
        input_tensor,
        residual,
        weight,
        eps,
        max_token_num,
        use_oneshot,
        trigger_completion_at_end,
        fp32_acc,
        use_attn_tp_group,
    )
