"""The package as such: names, errors, environment, types."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import zbccl
from zbccl import _zbccl, errors

FOLDER = Path(zbccl.__file__).parent


def test_public_names_are_documented() -> None:
    assert sorted(zbccl.__all__) == sorted(set(zbccl.__all__))
    for name in zbccl.__all__:
        value = getattr(zbccl, name)
        assert value.__doc__, name
    moe = [getattr(zbccl.moe, name) for name in zbccl.moe.__all__]
    for cls in (
        *zbccl.Communicator.__mro__[:-1],
        *zbccl.moe.Handle.__mro__[:-1],
        *moe,
        zbccl.Work,
        zbccl.Tensor,
    ):
        for name, member in vars(cls).items():
            plain = name.startswith("_") or member is None  # a default
            assert plain or member.__doc__, f"{cls.__name__}.{name}"


def test_version() -> None:
    assert zbccl.__version__.count(".") == 2
    assert all(part.isdigit() for part in zbccl.__version__.split("."))


def test_one_class_for_each_code() -> None:
    texts = set()
    for code in zbccl.Code:
        if code == zbccl.Code.SUCCESS:
            continue
        cls = errors.error_type(code)
        assert cls.code == code
        assert issubclass(cls, zbccl.Error)
        assert getattr(zbccl, cls.__name__) is cls
        texts.add(_zbccl.error_string(code))
    assert len(texts) == len(zbccl.Code) - 1
    assert errors.error_type(9999) is zbccl.Error
    assert issubclass(zbccl.InvalidArgumentError, ValueError)
    assert issubclass(zbccl.TimeoutError, TimeoutError)


def test_message_opens_with_the_code() -> None:
    with pytest.raises(zbccl.Error, match="^invalid argument: ") as caught:
        zbccl.init_all(0)
    assert caught.value.code is zbccl.Code.INVALID_ARGUMENT


def test_env() -> None:
    variables = {variable["name"]: variable for variable in zbccl.env()}
    assert "ZBCCL_DEBUG" in variables
    assert all(name.startswith("ZBCCL_") for name in variables)
    for variable in variables.values():
        assert {"type", "default", "text", "value", "set"} <= set(variable)


def test_import_needs_neither_numpy_nor_torch() -> None:
    code = """
import sys
sys.modules["numpy"] = sys.modules["torch"] = None
import zbccl
with zbccl.init() as comm:
    x = comm.empty((2, 2), "i32")
    memoryview(x).cast("B")[:] = bytes(16)
    comm.all_reduce(x)
    y = bytearray(b"abc")
    comm.all_reduce(y)
    print(comm.all_gather(x))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "zbccl.Tensor(shape=(2, 2), dtype='i32')\n", done.stderr


# ---- types


def names_in_stub() -> dict[str, set[str]]:
    """Top-level names of the stub, each with its members."""
    tree = ast.parse((FOLDER / "_zbccl.pyi").read_text())
    found: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {
                member.name for member in node.body if isinstance(member, ast.FunctionDef)
            }
        elif isinstance(node, ast.FunctionDef):
            found[node.name] = set()
    return found


def test_stub_matches_the_module() -> None:
    stub = names_in_stub()
    assert set(stub) == {name for name in vars(_zbccl) if not name.startswith("_")}
    for name, members in stub.items():
        value = getattr(_zbccl, name)
        if isinstance(value, type):
            public = {member for member in vars(value) if not member.startswith("_")}
            assert {member for member in members if not member.startswith("_")} == public, name


def test_package_is_typed() -> None:
    assert (FOLDER / "py.typed").exists()
    assert (FOLDER / "_zbccl.pyi").exists()


USER = """
import zbccl
from typing import assert_type

class Array: ...

def use(comm: zbccl.Communicator, x: Array) -> None:
    assert_type(comm.all_reduce(x), Array)
    assert_type(comm.all_reduce(x, "max", async_op=True), zbccl.Work[Array])
    assert_type(comm.all_gather(x, async_op=True).wait(), Array)
    assert_type(comm.all_gather(comm.empty((2, 3), "bf16")), zbccl.Tensor)
    assert_type(comm.gather(x, root=1), Array | None)
    assert_type(comm.gather(x, async_op=True), zbccl.Work[Array | None])
    assert_type(comm.scatter(None, out=x), Array)
    assert_type(comm.all_to_all_v(x, [1, 2], async_op=True), zbccl.Work[Array])
    with zbccl.group():
        assert_type(comm.reduce(x, "sum", 1), Array)
    comm.barrier(timeout=3.5)
    assert_type(comm.split(0), zbccl.Communicator | None)
    assert_type(comm.get_stats(), dict[str, int])
    handle = zbccl.moe.Experts(comm, 4).route(x)
    assert_type(handle.dispatch(x, quant="fp8"), zbccl.moe.Dispatched[Array])
    assert_type(handle.combine(x, async_op=True).wait().x, Array)
    assert_type(handle.send_combine(x).receive(), zbccl.moe.Combined[Array])
    comm.all_reduce(x, async_op="yes")  # expected to be refused
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_strict_types(tmp_path: Path) -> None:
    program = tmp_path / "user.py"
    program.write_text(USER)
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = True\nmypy_path = {FOLDER.parent}\nno_incremental = True\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--output=json", "--cache-dir", str(tmp_path), program.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last = USER.count("\n", 0, USER.index('comm.all_reduce(x, async_op="yes")')) + 1
    assert [(m["file"], m["line"]) for m in messages if m["severity"] == "error"] == [
        (program.name, last)
    ], done.stdout + done.stderr
