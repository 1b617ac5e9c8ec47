"""vLLM's fusion of all-reduce and RMSNorm in compiled models, by zbccl.

The pass finds an all-reduce whose sum is normalised, with or without a residual, and puts one
operator in their place. It stands where vLLM's own pass stands, and as that it is asked for by
pass_config.fuse_allreduce_rms.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch._inductor.pattern_matcher as pm
import vllm.ir.ops as ir
from vllm.compilation.passes.fusion.allreduce_rms_fusion import AllReduceFusionPass as Theirs
from vllm.compilation.passes.inductor_pass import enable_fake_mode
from vllm.compilation.passes.vllm_inductor_pass import VllmPatternMatcherPass
from vllm.distributed.communication_op import tensor_model_parallel_all_reduce
from vllm.distributed.parallel_state import get_tp_group

from zbccl.engines import norm_op
from zbccl.engines.peers import Peers, join

_log = logging.getLogger("vllm.zbccl")
# The epsilons that vLLM's own pass looks for.
_EPSILONS = (1e-5, 1e-6)


class AllReduceFusionPass(Theirs):  # type: ignore[misc]
    """zbccl's where the ranks of the tensor-parallel group can join, else vLLM's own."""

    def __init__(self, config: Any) -> None:
        self.ours = False
        group = get_tp_group()
        if group.world_size > 1 and config.model_config is not None:
            peers = join(group.cpu_group, group.device, f"group {group.unique_name}", "vLLM", _log)
            if peers is not None:
                self._begin(config, group.unique_name, peers)
                return
        Theirs.__init__(self, config)

    def _begin(self, config: Any, group: str, peers: Peers) -> None:
        VllmPatternMatcherPass.__init__(self, config)
        self.ours = True
        self.patterns = pm.PatternMatcherPass(pass_name="zbccl_all_reduce_rms_norm")
        norm_op.serve(group, peers)
        self._register(group)
        self.dump_patterns(config, self.patterns)
        self.disabled = False

    def is_applicable_for_range(self, compile_range: Any) -> bool:
        return self.ours or bool(Theirs.is_applicable_for_range(self, compile_range))

    @enable_fake_mode  # type: ignore[untyped-decorator]
    def _register(self, group: str) -> None:
        for epsilon in _EPSILONS:
            self._register_norm(group, epsilon)
            self._register_add_norm(group, epsilon)
            # Inductor refuses a pattern that differs from an earlier one in a number only.
            pm._seen_patterns.clear()

    def _register_norm(self, group: str, epsilon: float) -> None:
        def pattern(x: torch.Tensor, weight: torch.Tensor) -> Any:
            total = tensor_model_parallel_all_reduce(x)
            return ir.rms_norm(total, weight, epsilon), total

        def replacement(x: torch.Tensor, weight: torch.Tensor) -> Any:
            made = norm_op.call(x, None, weight, epsilon, group)
            return made[0], made[1]

        self._replace(pattern, replacement, [self._example(5, 16), self._example(16)])

    def _register_add_norm(self, group: str, epsilon: float) -> None:
        def pattern(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Any:
            total = tensor_model_parallel_all_reduce(x)
            rows, added = ir.fused_add_rms_norm(total, residual, weight, epsilon)
            return rows, added

        def replacement(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Any:
            made = norm_op.call(x, residual, weight, epsilon, group)
            return made[0], made[1]

        def rows_only(body: Any) -> Any:
            def first(residual: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> Any:
                return body(residual, x, weight)[0]

            return first

        inputs = [self._example(5, 16), self._example(5, 16), self._example(16)]
        self._replace(pattern, replacement, inputs)
        # The last norm of a model: nobody uses its residual.
        self._replace(rows_only(pattern), rows_only(replacement), inputs)

    def _replace(self, pattern: Any, replacement: Any, inputs: list[torch.Tensor]) -> None:
        pm.register_replacement(
            pattern, replacement, inputs, pm.fwd_only, self.patterns, extra_check=_fits
        )

    def _example(self, *shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=self.model_dtype, device=self.device)

    def __del__(self) -> None:
        # vLLM's frees a workspace, which only its own pass has made.
        if not getattr(self, "ours", False):
            Theirs.__del__(self)


def _fits(match: pm.Match) -> bool:
    """Whether zbccl's operator takes what the pattern was found with."""
    values = [
        node.meta["val"]
        for node in match.kwargs.values()
        if isinstance(node, torch.fx.Node) and "val" in node.meta
    ]
    return norm_op.fits(values)
