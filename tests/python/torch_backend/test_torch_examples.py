"""The programs examples/torch_ddp.py and examples/tp_mlp.py, as two ranks on the processor."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from torch_ranks import run_group_processes

FOLDER = Path(__file__).resolve().parents[3] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def both(rank: int) -> None:
    losses, milliseconds = load("torch_ddp").train(rank, 20, "cpu")
    assert losses[-1] < losses[0]
    assert milliseconds > 0
    results = load("tp_mlp").run(rank, 4, 32, 3)
    assert "zbccl" in results
    for error, microseconds in results.values():
        assert error < 1e-5
        assert microseconds > 0


def test_examples() -> None:
    run_group_processes(2, both)
