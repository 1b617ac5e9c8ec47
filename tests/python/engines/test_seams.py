"""Seams and take-overs: what is checked before an engine is changed."""

from __future__ import annotations

import functools
import logging
from typing import Any

import pytest
from fakes import forget, module
from zbccl.engines.seams import Seam, drift, parameters_of
from zbccl.engines.takeovers import Kept, Takeover, Unavailable, install, wanted

LOG = logging.getLogger("zbccl.tests.engines")


@pytest.fixture(autouse=True)
def _no_engine() -> Any:
    yield
    forget("made_up")


def _method(self: Any, x: int, dim: int = -1) -> None: ...


def test_parameters_are_written_with_their_kinds() -> None:
    def everything(a: int, b: int = 1, *rest: int, c: int, d: int = 2, **more: int) -> None: ...

    def after_star(a: int, *, b: int = 1) -> None: ...

    class Made:
        def __init__(self, group: int, size: int = 0) -> None: ...

    assert parameters_of(everything) == "a, b=, *rest, c, d=, **more"
    assert parameters_of(after_star) == "a, *, b="
    assert parameters_of(Made) == "group, size="
    assert parameters_of(lambda: None) == ""


def test_a_hooked_function_is_still_what_it_was() -> None:
    @functools.wraps(_method)
    def around(*args: Any, **kwargs: Any) -> None: ...

    assert parameters_of(around) == "self, x, dim="


def test_a_seam_that_is_as_expected_has_not_drifted() -> None:
    module("made_up.layers", Layer=type("Layer", (), {"call": _method}), number=3)
    assert drift(Seam("made_up.layers", "Layer.call", "self, x, dim=")) is None
    assert drift(Seam("made_up.layers", "number")) is None


@pytest.mark.parametrize(
    ("seam", "words"),
    [
        (Seam("made_up.layers", "Layer.gone", "self"), "made_up.layers.Layer.gone is not there"),
        (Seam("made_up.layers", "Gone"), "made_up.layers.Gone is not there"),
        (Seam("made_up.nowhere", "Layer"), "cannot be imported (ModuleNotFoundError"),
        (
            Seam("made_up.layers", "Layer.call", "self, x"),
            "takes (self, x, dim=), expected (self, x)",
        ),
        (Seam("made_up.layers", "number", "x"), "is not something to call"),
    ],
)
def test_drift_says_what_is_different(seam: Seam, words: str) -> None:
    module("made_up.layers", Layer=type("Layer", (), {"call": _method}), number=3)
    assert words in (drift(seam) or "")


TAKEOVERS = [
    Takeover("one", (), lambda named: None),
    Takeover("two", (), lambda named: None),
    Takeover("three", (), lambda named: None),
]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("0", []),
        ("off", []),
        ("1", ["one", "two", "three"]),
        ("ALL", ["one", "two", "three"]),
        ("two", ["two"]),
        (" three, one ", ["one", "three"]),
        ("one,", ["one"]),
    ],
)
def test_the_variable_chooses_parts(
    text: str, names: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    chosen = wanted(text, TAKEOVERS, "V", LOG)
    assert [t.name for t in chosen] == names
    assert all(t.named == (text not in ("1", "ALL")) for t in chosen)
    assert not caplog.records


def test_an_unknown_part_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert [t.name for t in wanted("two,four", TAKEOVERS, "V", LOG)] == ["two"]
    (record,) = caplog.records
    assert "V names four" in record.getMessage()
    assert "one, two, three" in record.getMessage()


def test_each_part_stands_or_falls_alone(caplog: pytest.LogCaptureFixture) -> None:
    module("made_up.layers", call=_method)
    installed = []

    def refuse(named: bool) -> None:
        raise Unavailable("there is no device")

    def keep(named: bool) -> None:
        raise Kept("there is one already")

    def fail(named: bool) -> None:
        raise KeyError("surprise")

    good = Seam("made_up.layers", "call", "self, x, dim=")
    parts = [
        Takeover("drifted", (good, Seam("made_up.layers", "gone"), Seam("made_up", "too")), fail),
        Takeover("refused", (good,), refuse),
        Takeover("failing", (good,), fail),
        Takeover("kept", (good,), keep),
        Takeover("fine", (good,), lambda named: installed.append(named), named=True),
    ]
    caplog.set_level(logging.INFO)
    assert install(parts, "Engine", LOG) == ["fine"]
    assert installed == [True]
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert lines == [
        ("WARNING", "zbccl: drifted is left to Engine: made_up.layers.gone is not there"),
        ("WARNING", "zbccl: refused is left to Engine: there is no device"),
        ("WARNING", "zbccl: failing is left to Engine: KeyError: 'surprise'"),
        ("INFO", "zbccl: kept is left to Engine: there is one already"),
        ("INFO", "zbccl takes over from Engine: fine"),
    ]
