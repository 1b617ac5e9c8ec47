"""zbccl in vLLM: the plug-in that vLLM loads in every process (entry point vllm.general_plugins).

It does nothing unless ZBCCL_VLLM asks for it. docs/vllm.md is the page of this package.
"""

from __future__ import annotations

import logging
import os

_installed: list[str] | None = None


def register() -> list[str]:
    """Takes over what ZBCCL_VLLM names; the parts that were taken. Never raises.

    vLLM calls it once or more in each of its processes; only the first call does anything.
    """
    global _installed
    if _installed is None:
        text = os.environ.get("ZBCCL_VLLM", "")
        # A child of vLLM's logger, so that the lines stand among the engine's.
        log = logging.getLogger("vllm.zbccl")
        from zbccl.engines.takeovers import install, wanted
        from zbccl.vllm.takeovers import TAKEOVERS

        _installed = install(wanted(text, TAKEOVERS, "ZBCCL_VLLM", log), "vLLM", log)
    return list(_installed)
