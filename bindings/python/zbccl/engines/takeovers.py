"""Parts of an engine that zbccl takes over, each on its own: chosen, checked, installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from logging import INFO, WARNING, Logger
from typing import NamedTuple

from zbccl.engines.seams import Seam, drift

_NONE = ("", "0", "off", "false", "no")
_ALL = ("1", "all", "on", "true", "yes")


class Unavailable(Exception):
    """Why something of the engine is left to the engine."""


class Kept(Unavailable):
    """The same, where it is no surprise: information, not a warning."""


class Takeover(NamedTuple):
    """A part of an engine.

    `install`, which is given whether the part was asked for by name, changes the engine, or raises
    Unavailable before it has changed anything.
    """

    name: str
    seams: tuple[Seam, ...]
    install: Callable[[bool], None]
    named: bool = False


def wanted(text: str, takeovers: Sequence[Takeover], variable: str, log: Logger) -> list[Takeover]:
    """The parts that `text`, the value of `variable`, asks for: "1", "0", or names with commas."""
    names = [name.strip().lower() for name in text.split(",")]
    if all(name in _NONE for name in names):
        return []
    if all(name in _ALL for name in names):
        return list(takeovers)
    known = [takeover.name for takeover in takeovers]
    strange = [name for name in names if name and name not in known]
    if strange:
        log.warning(
            "zbccl: %s names %s, which does not exist; expected 0, 1, or some of %s",
            variable,
            ", ".join(strange),
            ", ".join(known),
        )
    return [takeover._replace(named=True) for takeover in takeovers if takeover.name in names]


def install(takeovers: Sequence[Takeover], engine: str, log: Logger) -> list[str]:
    """Installs each part whose seams are as expected; the names of those that were.

    A part that cannot be installed is left to the engine, with one line. Never raises.
    """
    done = []
    for takeover in takeovers:
        level = WARNING
        reason = next((text for text in map(drift, takeover.seams) if text is not None), None)
        if reason is None:
            try:
                takeover.install(takeover.named)
            except Unavailable as unavailable:
                reason = str(unavailable)
                level = INFO if isinstance(unavailable, Kept) else WARNING
            except Exception as error:  # The server has to start without zbccl, too.
                reason = f"{type(error).__name__}: {error}"
        if reason is None:
            done.append(takeover.name)
        else:
            log.log(level, "zbccl: %s is left to %s: %s", takeover.name, engine, reason)
    if done:
        log.info("zbccl takes over from %s: %s", engine, ", ".join(done))
    return done
