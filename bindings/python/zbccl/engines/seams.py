"""Seams: the places in another package that a plug-in takes over or calls, and whether they moved.

A seam is a module, a name in it, and the parameters that it has in the versions that were read. It
is looked at when the plug-in loads, so that a version in which it has moved is noticed there, and
not by a wrong call in the middle of a model.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

_MARKS: dict[object, str] = {
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}


class Seam(NamedTuple):
    """`symbol` in `module`, with dots into classes; `parameters` as `parameters_of` writes them.

    None for `parameters`: only that it is there is looked at.
    """

    module: str
    symbol: str
    parameters: str | None = None


def parameters_of(target: Callable[..., Any]) -> str:
    """The names of a callable's parameters: "self, input_, dim=", with = for those with a default.

    Keyword-only ones follow a lone *. Of a class they are those of its construction.
    """
    parts = []
    starred = False
    for parameter in inspect.signature(target).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            starred = True
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        mark = _MARKS.get(parameter.kind, "")
        default = "" if parameter.default is inspect.Parameter.empty else "="
        parts.append(f"{mark}{parameter.name}{default}")
    return ", ".join(parts)


def drift(seam: Seam) -> str | None:
    """What is not as expected at the seam, in a sentence; None if all is. Never raises."""
    place = f"{seam.module}.{seam.symbol}"
    try:
        found: Any = importlib.import_module(seam.module)
    except Exception as error:  # An engine's module may fail in any way when it is imported.
        return f"{seam.module} cannot be imported ({type(error).__name__}: {error})"
    for name in seam.symbol.split("."):
        found = getattr(found, name, None)
        if found is None:
            return f"{place} is not there"
    if seam.parameters is None:
        return None
    try:
        now = parameters_of(found)
    except (TypeError, ValueError):
        return f"{place} is not something to call"
    if now != seam.parameters:
        return f"{place} takes ({now}), expected ({seam.parameters})"
    return None
