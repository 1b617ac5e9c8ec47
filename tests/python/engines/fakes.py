"""Modules made up in memory, under the names of those of an engine."""

from __future__ import annotations

import sys
import types
from typing import Any


def module(name: str, **contents: Any) -> types.ModuleType:
    """A module with these contents, and the packages above it where they are missing."""
    made = sys.modules.get(name)
    if made is None:
        made = types.ModuleType(name)
        made.__path__ = []
        sys.modules[name] = made
        above, _, last = name.rpartition(".")
        if above:
            setattr(module(above), last, made)
    for key, value in contents.items():
        setattr(made, key, value)
    return made


def forget(*packages: str) -> None:
    """Takes packages and all that is in them out of sys.modules."""
    for name in list(sys.modules):
        if name.split(".")[0] in packages or name.startswith(
            tuple(f"{package}." for package in packages)
        ):
            del sys.modules[name]
