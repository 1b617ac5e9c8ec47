"""Engines' MoE all-to-all back ends that are written for deep_ep, on zbccl's drop-in."""

from __future__ import annotations

import importlib.util
import sys

from zbccl.drop_in import SHIMS, install_deep_ep
from zbccl.engines.takeovers import Kept, Unavailable
from zbccl.errors import InvalidUsageError


def take_deep_ep(named: bool) -> None:
    """Makes `import deep_ep` give zbccl.deep_ep: where there is no other, or it is asked for.

    Also in processes that this one spawns, which may import it before their plug-ins are loaded.
    """
    if not named and "deep_ep" not in sys.modules:
        found = importlib.util.find_spec("deep_ep")
        if found is not None and not str(found.origin).startswith(str(SHIMS)):
            raise Kept("a deep_ep is installed; name deep_ep to have zbccl's in its place")
    try:
        install_deep_ep()
    except InvalidUsageError as error:
        raise (Unavailable if named else Kept)(str(error)) from None
    if str(SHIMS) not in sys.path:
        sys.path.insert(0, str(SHIMS))
