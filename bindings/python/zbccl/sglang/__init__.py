"""zbccl in SGLang: the plug-in that SGLang loads in every process (entry point sglang.srt.plugins).

It adds the flag --enable-zbccl, and does nothing else unless the flag or ZBCCL_SGLANG asks for it.
docs/sglang.md is the page of this package.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any

VARIABLE = "ZBCCL_SGLANG"
_installed: list[str] | None = None


def register() -> None:
    """Adds the flag, and takes over what ZBCCL_SGLANG names. Never raises."""
    _offer_flag()
    if os.environ.get(VARIABLE, "") not in ("", "0"):
        take_over()


def take_over() -> list[str]:
    """Takes over what ZBCCL_SGLANG names in this process, once; the parts that were taken."""
    global _installed
    if _installed is None:
        log = _log()
        from zbccl.engines.takeovers import install, wanted
        from zbccl.sglang.takeovers import TAKEOVERS

        text = os.environ.get(VARIABLE, "")
        _installed = install(wanted(text, TAKEOVERS, VARIABLE, log), "SGLang", log)
    return list(_installed)


class EnableZbccl(argparse.Action):
    """Passes the choice on to the server's processes, whose arguments SGLang fixes itself."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, True)
        os.environ.setdefault(VARIABLE, "1")
        if take_over():
            # SGLang has applied its plug-ins' hooks by now.
            importlib.import_module("zbccl.sglang.hooks").apply()


def _offer_flag() -> None:
    from zbccl.engines.seams import drift
    from zbccl.sglang.takeovers import FLAG_SEAMS

    reason = next((text for text in map(drift, FLAG_SEAMS) if text is not None), None)
    if reason is not None:
        _log().warning("zbccl: --enable-zbccl is not offered (set %s=1): %s", VARIABLE, reason)
        return
    from zbccl.engines.takeovers import Unavailable
    from zbccl.sglang.hooks import Hook
    from zbccl.sglang.hooks import register as register_hooks

    # Where it was applied before, SGLang's arguments have been read.
    with contextlib.suppress(Unavailable):
        register_hooks([Hook("sglang.srt.server_args.ServerArgs.add_cli_args", _add_flag, "AFTER")])


def _add_flag(result: Any, parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--enable-zbccl",
        action=EnableZbccl,
        nargs=0,
        default=False,
        help="Communicate through zbccl where the ranks of a group can join; else as without it.",
    )


def _log() -> logging.Logger:
    # Among SGLang's own lines.
    return logging.getLogger("sglang.srt.zbccl")
