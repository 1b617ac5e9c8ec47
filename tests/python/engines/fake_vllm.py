"""A vLLM that has nothing but the seams: the names and parameters of 0.33.0, over gloo.

What it does itself is counted in the list `theirs`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from fakes import module

theirs: list[str] = []


class CustomAllreduce:
    def __init__(
        self,
        group: Any,
        device: Any,
        max_size: int = 0,
        max_all_gather_size: int = 0,
        max_mnnvl_all_gather_size: Any = None,
        max_reduce_scatter_size: int = 0,
        max_mnnvl_reduce_scatter_size: int = 0,
        max_mnnvl_multimem_reduce_scatter_size: int = 0,
        symm_mem_enabled: bool = False,
        *,
        register_graph_buffers: bool = True,
    ) -> None:
        theirs.append("CustomAllreduce")
        self.group, self.disabled, self._ptr = group, False, 1

    def capture(self) -> Any:
        return nullcontext()

    def register_graph_buffers(self) -> None:
        theirs.append("register_graph_buffers")

    def should_custom_ar(self, inp: Any) -> bool:
        return not self.disabled

    def custom_all_reduce(self, input: Any) -> Any:
        theirs.append("custom_all_reduce")
        out = input.clone()
        dist.all_reduce(out, group=self.group)
        return out

    def should_custom_all_gather(self, inp: Any) -> bool:
        return False

    def custom_all_gather(self, inp: Any) -> Any:
        return None

    def should_custom_reduce_scatter(self, inp: Any) -> bool:
        return False

    def should_mnnvl_multimem_reduce_scatter(self, inp: Any) -> bool:
        return False

    def custom_reduce_scatter(self, inp: Any) -> Any:
        return None

    def close(self) -> None:
        if not self.disabled and self._ptr:
            theirs.append("close")
            self._ptr = 0

    def __del__(self) -> None:
        self.close()


class CudaCommunicator:
    def __init__(
        self,
        cpu_group: Any,
        device: Any = None,
        device_group: Any = None,
        unique_name: str = "",
        global_ranks: Any = None,
        global_world_size: Any = None,
        tcp_store_group: Any = None,
        use_all2all: bool = False,
    ):
        self.cpu_group, self.device, self.unique_name = cpu_group, device, unique_name
        self.rank_in_group = dist.get_rank(cpu_group)
        self.world_size = dist.get_world_size(cpu_group)

    def all_reduce(self, input_: Any) -> Any:
        theirs.append("all_reduce")
        out = input_.clone()
        dist.all_reduce(out, group=self.cpu_group)
        return out

    def all_gather(self, input_: Any, dim: int = -1) -> Any:
        return self._left("all_gather")

    def all_gatherv(self, input_: Any, dim: int = 0, sizes: Any = None) -> Any:
        return self._left("all_gatherv")

    def reduce_scatter(self, input_: Any, dim: int = -1) -> Any:
        return self._left("reduce_scatter")

    def reduce_scatterv(self, input_: Any, dim: int = -1, sizes: Any = None) -> Any:
        return self._left("reduce_scatterv")

    def reduce_scatterv_into_output(
        self, input_: Any, output: Any, dim: int = -1, sizes: Any = None
    ) -> Any:
        return self._left("reduce_scatterv_into_output")

    def gather(self, input_: Any, dst: int = 0, dim: int = -1) -> Any:
        return self._left("gather")

    def send(self, tensor: Any, dst: Any = None) -> None:
        self._left("send")

    def recv(self, size: Any, dtype: Any, src: Any = None) -> Any:
        return self._left("recv")

    def broadcast(self, tensor: Any, src: int = 0) -> Any:
        return self._left("broadcast")

    def destroy(self) -> None:
        theirs.append("destroy")

    def _left(self, call: str) -> str:
        theirs.append(call)
        return call


class CudaPlatformBase:
    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "vllm.distributed.device_communicators.cuda_communicator.CudaCommunicator"


@functools.cache
def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


class Manager:
    def get_handle(self, kwargs: Any) -> Any:
        import deep_ep

        return deep_ep.Buffer


class PatternPass:
    """As vLLM's VllmPatternMatcherPass."""

    def __init__(self, config: Any) -> None:
        self.model_dtype, self.device = config.model_dtype, config.device

    def dump_patterns(self, config: Any, patterns: Any) -> None: ...


class AllReduceFusionPass(PatternPass):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        theirs.append("AllReduceFusionPass")
        self.disabled = True

    def is_applicable_for_range(self, compile_range: Any) -> bool:
        return not self.disabled

    def __call__(self, graph: Any) -> None:
        self.matched_count = self.patterns.apply(graph)

    def __del__(self) -> None: ...


def enable_fake_mode(fn: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode():
            return fn(*args, **kwargs)

    return wrapped


def _operators() -> Any:
    """Operators that stand for vLLM's, in the library fake_vllm."""

    @torch.library.custom_op("fake_vllm::all_reduce", mutates_args=())
    def all_reduce(x: torch.Tensor) -> torch.Tensor:
        theirs.append("operator all_reduce")
        out = x.clone()
        dist.all_reduce(out)
        return out

    @torch.library.custom_op("fake_vllm::rms_norm", mutates_args=())
    def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        theirs.append("operator rms_norm")
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)

    @torch.library.custom_op("fake_vllm::fused_add_rms_norm", mutates_args=())
    def fused_add_rms_norm(
        x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        theirs.append("operator fused_add_rms_norm")
        total = x + residual
        return torch.nn.functional.rms_norm(total, weight.shape, weight, eps), total

    all_reduce.register_fake(lambda x: torch.empty_like(x))
    rms_norm.register_fake(lambda x, weight, eps: torch.empty_like(x))
    fused_add_rms_norm.register_fake(
        lambda x, residual, weight, eps: (torch.empty_like(x), torch.empty_like(x))
    )
    return torch.ops.fake_vllm


def install(tp_group: Any = None) -> None:
    """Puts the modules in place; `tp_group` is what get_tp_group gives."""
    communicators = "vllm.distributed.device_communicators"
    module(f"{communicators}.custom_all_reduce", CustomAllreduce=CustomAllreduce)
    module(f"{communicators}.cuda_communicator", CudaCommunicator=CudaCommunicator)
    module(
        f"{communicators}.all2all",
        DeepEPHTAll2AllManager=Manager,
        DeepEPLLAll2AllManager=Manager,
    )
    module("vllm.platforms.cuda", CudaPlatformBase=CudaPlatformBase)
    module(
        "vllm.utils.import_utils",
        _has_module=_has_module,
        has_deep_ep=lambda: _has_module("deep_ep"),
    )
    module("vllm.distributed.parallel_state", get_tp_group=lambda: tp_group)

    passes = "vllm.compilation.passes"
    module(f"{passes}.pass_manager", AllReduceFusionPass=AllReduceFusionPass)
    module(f"{passes}.vllm_inductor_pass", VllmPatternMatcherPass=PatternPass)
    module(f"{passes}.inductor_pass", enable_fake_mode=enable_fake_mode)
    module(f"{passes}.fusion.allreduce_rms_fusion", AllReduceFusionPass=AllReduceFusionPass)
    operators = _operators()

    def tensor_model_parallel_all_reduce(input_: torch.Tensor) -> Any:
        return operators.all_reduce(input_)

    module(
        "vllm.distributed.communication_op",
        tensor_model_parallel_all_reduce=tensor_model_parallel_all_reduce,
    )
    module(
        "vllm.ir.ops",
        rms_norm=operators.rms_norm,
        fused_add_rms_norm=operators.fused_add_rms_norm,
    )
