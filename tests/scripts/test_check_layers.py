"""The layer check finds what breaks the order and accepts what keeps it."""

from __future__ import annotations

from pathlib import Path

import check_layers
import pytest


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("name", "include", "good"),
    [
        ("src/memory/pool.cc", "base/status.h", True),
        ("src/memory/pool.cc", "memory/pool.h", True),
        ("src/memory/pool.cc", "comm/communicator.h", False),
        ("src/plan/plan.h", "collectives/all_reduce.h", False),
        ("src/collectives/all_reduce.cc", "kernels/reduce.h", True),
        ("src/kernels/reduce.cc", "collectives/all_reduce.h", False),
        ("src/transport/buffer.cc", "kernels/reduce.h", True),
        ("src/capi/capi.cc", "comm/communicator.h", True),
        ("src/base/log.cc", "capi/handles.h", False),
        ("src/base/log.cc", "../capi/handles.h", False),
        ("tools/perf.cc", "zbccl/zbccl.hpp", True),
        ("tools/topo.cc", "topology/model.h", True),
        ("tools/explain.cc", "plan/explain.h", True),
        ("tools/perf.cc", "comm/communicator.h", False),
        ("examples/hello.cc", "zbccl/zbccl.h", True),
        ("examples/hello.cc", "topology/model.h", False),
        ("bindings/python/module.cc", "base/status.h", False),
        ("tests/unit/pool_test.cc", "memory/pool.h", True),
        ("src/memory/pool.cc", "vector", True),
    ],
)
def test_one_include(tmp_path: Path, name: str, include: str, good: bool) -> None:
    write(tmp_path, name, f'#include "{include}"\n')
    messages = check_layers.check(tmp_path)
    assert (messages == []) == good, messages
    if not good:
        assert messages[0].startswith(f"{name}:1: ")


def test_angle_brackets_and_spaces_are_seen(tmp_path: Path) -> None:
    write(tmp_path, "src/base/a.h", "#pragma once\n #  include <memory/pool.h>\n")
    assert len(check_layers.check(tmp_path)) == 1


def test_folder_that_is_no_layer(tmp_path: Path) -> None:
    write(tmp_path, "src/misc/a.h", "#pragma once\n")
    assert "misc is no layer" in check_layers.check(tmp_path)[0]


def test_own_header_of_an_example_that_is_named_like_a_layer(tmp_path: Path) -> None:
    write(tmp_path, "examples/kv/kv/cache.h", "#pragma once\n")
    write(tmp_path, "examples/kv/main.cc", '#include "kv/cache.h"\n')
    assert check_layers.check(tmp_path) == []


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "src/base/a.h", '#include "capi/b.h"\n')
    monkeypatch.setattr("sys.argv", ["check_layers.py", str(tmp_path)])
    assert check_layers.main() == 1


def test_this_repository() -> None:
    assert check_layers.check(Path(__file__).resolve().parents[2]) == []
