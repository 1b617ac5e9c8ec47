"""SGLang's registry of hooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from zbccl.engines.takeovers import Unavailable


class Hook(NamedTuple):
    """`body` after or around `target`; `kind` is "AFTER" or "AROUND", as in SGLang's HookType."""

    target: str
    body: Callable[..., Any]
    kind: str = "AROUND"


def register(hooks: Sequence[Hook]) -> None:
    """Registers hooks, which SGLang applies when all plug-ins have loaded.

    Raises Unavailable, having registered none, where a target has been patched already: SGLang
    would pass over its hook.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for hook in hooks:
        if hook.target in HookRegistry._patched:
            raise Unavailable(
                f"{hook.target} has a hook that was applied before; ask for zbccl by "
                "ZBCCL_SGLANG=1 in the environment, which comes earlier than the flag"
            )
    for hook in hooks:
        HookRegistry.register(hook.target, hook.body, HookType[hook.kind])


def apply() -> None:
    """Applies what was registered after SGLang has applied its hooks."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    HookRegistry.apply_hooks()
