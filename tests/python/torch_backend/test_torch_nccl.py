"""PyTorch's own back end for NCCL, with zbccl's library in NCCL's place: DDP learns the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zbccl
from torch_ranks import torch
from zbccl.drop_in import NCCL

GPUS = torch.cuda.device_count() if torch.cuda.is_available() else 0
pytestmark = [
    pytest.mark.skipif(GPUS < 2, reason="needs 2 CUDA devices"),
    pytest.mark.skipif(not NCCL.exists(), reason="built with ZBCCL_BUILD_NCCL=OFF"),
]
HERE = Path(__file__).parent


def start(backend: str, rank: int, store: Path, preload: str) -> subprocess.Popen[str]:
    folders = [str(Path(zbccl.__file__).parent.parent), str(HERE.parent), str(HERE)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    if preload:
        environment["LD_PRELOAD"] = preload
    return subprocess.Popen(
        [sys.executable, str(HERE / "ddp_losses.py"), backend, str(rank), str(store)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ddp(tmp_path: Path) -> None:
    ways = {"nccl": ("nccl", ""), "preloaded": ("nccl", str(NCCL)), "zbccl": ("zbccl", "")}
    # All at once: what takes time is to import PyTorch.
    running = {
        (name, rank): start(backend, rank, tmp_path / name, preload)
        for name, (backend, preload) in ways.items()
        for rank in range(2)
    }
    answers: dict[tuple[str, int], Any] = {}
    try:
        for key, process in running.items():
            output, errors = process.communicate(timeout=100)
            assert process.returncode == 0, f"{key}: {errors[-4000:]}"
            answers[key] = json.loads(output.splitlines()[-1])
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    for rank in range(2):
        losses, total, names, libraries = answers["preloaded", rank]
        assert total == [1, 3, 5]
        assert names == ["rank 0", "rank 1"]
        # PyTorch had no other NCCL.
        assert [name for name in libraries if not name.startswith("libzbccl_nccl")] == []
        assert libraries
        assert losses[-1] < losses[0]
        for other in ("nccl", "zbccl"):
            assert losses == pytest.approx(answers[other, rank][0], rel=1e-5), other
