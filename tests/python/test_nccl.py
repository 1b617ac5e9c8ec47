"""The library with NCCL's interface, opened as vLLM and SGLang do: by its path, with ctypes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zbccl

LIMIT = 120

PROGRAM = """
import ctypes, os, sys
library = ctypes.CDLL(sys.argv[1])

class UniqueId(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]

library.ncclGetErrorString.restype = ctypes.c_char_p
library.ncclGetLastError.restype = ctypes.c_char_p
library.ncclGetLastError.argtypes = [ctypes.c_void_p]
library.ncclCommInitRank.argtypes = [
    ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, UniqueId, ctypes.c_int]
library.ncclAllReduce.argtypes = [
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
    ctypes.c_void_p, ctypes.c_void_p]
library.ncclCommDestroy.argtypes = [ctypes.c_void_p]

def check(result):
    if result != 0:
        raise SystemExit(library.ncclGetLastError(None).decode())

version = ctypes.c_int()
check(library.ncclGetVersion(ctypes.byref(version)))
unique = UniqueId()
if sys.argv[2] == "0":
    check(library.ncclGetUniqueId(ctypes.byref(unique)))
    print(bytes(unique).hex(), flush=True)
else:
    ctypes.memmove(ctypes.byref(unique), bytes.fromhex(sys.stdin.readline()), 128)
comm = ctypes.c_void_p()
check(library.ncclCommInitRank(ctypes.byref(comm), 2, unique, int(sys.argv[2])))
values = (ctypes.c_float * 5)(*[1.5 + int(sys.argv[2])] * 5)
check(library.ncclAllReduce(values, values, 5, 7, 0, comm, None))
check(library.ncclCommDestroy(comm))
print(version.value, list(values))
"""


def environment() -> dict[str, str]:
    package = str(Path(zbccl.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": package}


def place_of(what: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "zbccl", what],
        env=environment(), capture_output=True, text=True, timeout=LIMIT, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_opened_by_its_path() -> None:
    library = place_of("nccl")
    if not Path(library).exists():
        pytest.skip("built with ZBCCL_BUILD_NCCL=OFF")
    assert Path(place_of("nccl-audit")).exists()
    command = [sys.executable, "-c", PROGRAM, library]
    with subprocess.Popen([*command, "0"], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        unique = first.stdout.readline()
        second = subprocess.run(
            [*command, "1"],
            input=unique, capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        rest, _ = first.communicate(timeout=LIMIT)
    want = "22809 [4.0, 4.0, 4.0, 4.0, 4.0]\n"
    assert (rest, second.stdout) == (want, want), second.stderr
