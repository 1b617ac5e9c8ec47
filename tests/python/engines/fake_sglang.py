"""An SGLang that has nothing but the seams: the names and parameters of 0.5.23, over gloo.

What it does itself is counted in the list `theirs`.
"""

from __future__ import annotations

import argparse
import functools
import types
from datetime import timedelta
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist
from fakes import module

theirs: list[str] = []


class HookType(Enum):
    BEFORE = "before"
    AFTER = "after"
    AROUND = "around"
    REPLACE = "replace"


class HookRegistry:
    """Hooks are registered first and applied later, each target once, as SGLang's."""

    _hooks: dict[str, list[tuple[HookType, Any]]] = {}
    _patched: set[str] = set()

    @classmethod
    def register(
        cls, target: str, hook: Any, hook_type: HookType = HookType.AFTER, *, source: Any = None
    ) -> None:
        cls._hooks.setdefault(target, []).append((hook_type, hook))

    @classmethod
    def apply_hooks(cls) -> None:
        import pkgutil

        for target, hooks in cls._hooks.items():
            if target in cls._patched:
                continue
            path, _, name = target.rpartition(".")
            owner = pkgutil.resolve_name(path)
            body = getattr(owner, name)
            for kind, hook in hooks:
                body = _wrapped(body, hook, kind)
            static = isinstance(owner, type) and isinstance(owner.__dict__[name], staticmethod)
            setattr(owner, name, staticmethod(body) if static else body)
            cls._patched.add(target)


def _wrapped(body: Any, hook: Any, kind: HookType) -> Any:
    @functools.wraps(body)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if kind is HookType.AROUND:
            return hook(body, *args, **kwargs)
        result = body(*args, **kwargs)
        changed = hook(result, *args, **kwargs)
        return result if changed is None else changed

    return wrapper


class ServerArgs:
    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--tp-size", type=int, default=1)


class CustomAllreduce:
    def __init__(self, group: Any, device: Any):
        theirs.append("CustomAllreduce")
        self.group, self.disabled = group, False

    def should_custom_ar(self, inp: Any) -> bool:
        return True

    def custom_all_reduce(self, input: Any) -> Any:
        theirs.append("custom_all_reduce")
        out = input.clone()
        dist.all_reduce(out, group=self.group)
        return out

    def capture(self) -> Any: ...

    def close(self) -> None: ...


def dispatch_custom_allreduce(group: Any, device: Any) -> Any:
    return CustomAllreduce


class GroupCoordinator:
    def __init__(
        self,
        group_ranks: list[list[int]],
        local_rank: int,
        torch_distributed_backend: str,
        use_pynccl: bool,
        use_mscclpp: bool,
        use_custom_allreduce: bool,
        use_torch_symm_mem_all_reduce: bool,
        use_hpu_communicator: bool,
        use_xpu_communicator: bool,
        use_message_queue_broadcaster: bool = False,
        group_name: str | None = None,
        gloo_timeout: timedelta = timedelta(minutes=1),
        recovered_rank: bool = False,
        rank_offset: int = 0,
        max_world_size: int | None = None,
    ):
        self.unique_name = f"{group_name}:0"
        self.device = torch.device("cpu")
        for ranks in group_ranks:
            group = dist.new_group(ranks, backend="gloo")
            if dist.get_rank() in ranks:
                self.ranks, self.cpu_group = ranks, group
                self.world_size = len(ranks)
                self.rank_in_group = ranks.index(dist.get_rank())
        self.ca_comm = None
        if use_custom_allreduce and self.world_size > 1:
            from sglang.srt.distributed.device_communicators.custom_all_reduce import (
                dispatch_custom_allreduce,
            )

            made = dispatch_custom_allreduce(group=self.cpu_group, device=self.device)
            self.ca_comm = made(group=self.cpu_group, device=self.device)

    def all_reduce(self, input_: Any) -> Any:
        comm: Any = self.ca_comm
        if comm is not None and not comm.disabled and comm.should_custom_ar(input_):
            return comm.custom_all_reduce(input_)
        self._all_reduce_in_place(input_)
        return input_

    def _all_reduce_in_place(self, input_: Any) -> None:
        theirs.append("_all_reduce_in_place")
        dist.all_reduce(input_, group=self.cpu_group)

    def _all_gather_into_tensor(self, output: Any, input: Any) -> None:
        theirs.append("_all_gather_into_tensor")

    def _reduce_scatter_tensor(self, output: Any, input: Any) -> Any:
        theirs.append("_reduce_scatter_tensor")
        return output

    def _all_to_all_single(self, output: Any, input: Any) -> None:
        theirs.append("_all_to_all_single")

    def all_gatherv(self, input_: Any, sizes: Any = None, output: Any = None) -> Any:
        theirs.append("all_gatherv")

    def reduce_scatterv(self, input_: Any, output: Any = None, sizes: Any = None) -> Any:
        theirs.append("reduce_scatterv")

    def gather(self, input_: Any, dst: int = 0, dim: int = -1) -> Any:
        theirs.append("gather")

    def broadcast(self, input_: Any, src: int = 0) -> Any:
        theirs.append("broadcast")
        return input_

    def destroy(self) -> None:
        theirs.append("destroy")
        self.ca_comm = None


def flashinfer_allreduce_residual_rmsnorm(
    input_tensor: Any,
    residual: Any,
    weight: Any,
    eps: float = 1e-6,
    max_token_num: int = 2048,
    use_oneshot: bool | None = None,
    trigger_completion_at_end: bool = False,
    fp32_acc: bool = True,
    use_attn_tp_group: bool = True,
) -> Any:
    theirs.append(f"fused {eps} {max_token_num} {use_attn_tp_group}")
    return None, None


groups: dict[str, GroupCoordinator] = {}


def install() -> None:
    """Puts the modules in place; the groups of get_..._group are those in `groups`."""
    module("sglang.srt.plugins.hook_registry", HookRegistry=HookRegistry, HookType=HookType)
    module("sglang.srt.server_args", ServerArgs=ServerArgs)
    module(
        "sglang.srt.distributed.device_communicators.custom_all_reduce",
        CustomAllreduce=CustomAllreduce,
        dispatch_custom_allreduce=dispatch_custom_allreduce,
    )
    module(
        "sglang.srt.distributed.parallel_state",
        GroupCoordinator=GroupCoordinator,
        get_attn_tp_group=lambda: groups["attn_tp"],
        get_moe_ep_group=lambda: groups["moe_ep"],
        get_moe_tp_group=lambda: groups["moe_tp"],
    )
    module(
        "sglang.srt.layers.flashinfer_comm_fusion",
        flashinfer_allreduce_residual_rmsnorm=flashinfer_allreduce_residual_rmsnorm,
    )


def load_plugins() -> None:
    """As SGLang does in each process: plug-ins first, then their hooks."""
    from zbccl.sglang import register

    register()
    HookRegistry.apply_hooks()


def parse(arguments: list[str]) -> types.SimpleNamespace:
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    return types.SimpleNamespace(**vars(parser.parse_args(arguments)))
