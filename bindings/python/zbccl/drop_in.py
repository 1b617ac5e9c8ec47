"""Makes zbccl's drop-ins importable under the names of what they stand in for."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from zbccl.errors import InvalidUsageError

# Packages that find a drop-in when this folder comes first on PYTHONPATH.
SHIMS = Path(__file__).absolute().parent / "shims"
# The library with NCCL's interface, and the one that puts it in NCCL's place by LD_AUDIT. In a
# build tree they are links, and find libzbccl.so from where these lead.
NCCL = (Path(__file__).absolute().parent / "libzbccl_nccl.so").resolve()
NCCL_AUDIT = (Path(__file__).absolute().parent / "libzbccl_nccl_audit.so").resolve()
_PARTS = (
    "buffer",
    "config",
    "event",
    "utils",
    "utils.envs",
    "utils.math",
    "utils.testing",
)


def install_deep_ep() -> None:
    """Makes `import deep_ep` give zbccl.deep_ep in this process. Needs PyTorch.

    Raises InvalidUsageError where another deep_ep has been imported already: objects of the two
    would meet. Installing twice is allowed.
    """
    loaded = sys.modules.get("deep_ep")
    if loaded is not None and not _is_ours(loaded):
        raise InvalidUsageError(
            f"install_deep_ep: deep_ep is loaded already, from {getattr(loaded, '__file__', '?')}; "
            "call this before anything imports it"
        )
    sys.modules["deep_ep"] = importlib.import_module("zbccl.deep_ep")
    for part in _PARTS:
        sys.modules[f"deep_ep.{part}"] = importlib.import_module(f"zbccl.deep_ep.{part}")


def _is_ours(module: object) -> bool:
    file = getattr(module, "__file__", None)
    if getattr(module, "__name__", "") == "zbccl.deep_ep":
        return True
    shim = SHIMS / "deep_ep/__init__.py"
    return isinstance(file, str) and Path(file).exists() and Path(file).samefile(shim)
