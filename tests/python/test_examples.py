"""The programs in examples/python, as two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zbccl
from kinds import need_torch
from ranks import LIMIT

FOLDER = Path(__file__).resolve().parents[2] / "examples/python"


@pytest.mark.parametrize(
    "name", ["all_reduce", "exchange_tokens", "fused_norm", "moe_dispatch", "tensor_parallel"]
)
def test_example(name: str) -> None:
    if name in ("fused_norm", "tensor_parallel"):
        need_torch()
    unique_id = str(zbccl.get_unique_id())
    processes = []
    for rank in range(2):
        ours = {"ZBCCL_RANK": str(rank), "ZBCCL_WORLD_SIZE": "2", "ZBCCL_UNIQUE_ID": unique_id}
        processes.append(
            subprocess.Popen(
                [sys.executable, str(FOLDER / f"{name}.py")],
                env={**os.environ, **ours},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=LIMIT)[0])
        finally:
            process.kill()
        assert process.returncode == 0, outputs[-1]
    assert outputs[0].startswith("2 ranks")
    assert "0 bytes staged" in outputs[0]
    assert outputs[1] == ""
