"""Names of devices and streams, and what a communicator without a device says of CUDA tensors."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import zbccl
from kinds import need_torch
from zbccl import _zbccl
from zbccl.devices import device_ordinal


def cuda_is_there() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return bool(torch.cuda.is_available())


without_cuda = pytest.mark.skipif(cuda_is_there(), reason="a CUDA device is there")


class OnCuda:
    """Says of a tensor in host memory that it lies on a CUDA device."""

    def __init__(self, tensor: zbccl.Tensor, ordinal: int):
        self.tensor = tensor
        self.ordinal = ordinal

    def __dlpack__(self, stream: object = None) -> object:
        assert stream == -1, "the export is to order nothing"
        capsule = self.tensor.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype = ctypes.c_void_p
        pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
        tensor = pointer(capsule, b"dltensor")
        assert tensor is not None
        place = (ctypes.c_int32 * 2).from_address(tensor + 8)  # behind the data's address
        assert list(place) == [1, 0]
        place[:] = (2, self.ordinal)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.ordinal)


@pytest.mark.parametrize(
    ("device", "ordinal"), [(None, -1), ("cpu", -1), (0, 0), (3, 3), ("cuda:5", 5)]
)
def test_names_of_devices(device: object, ordinal: int) -> None:
    assert device_ordinal(device) == ordinal


def test_devices_of_torch() -> None:
    torch = need_torch()
    assert device_ordinal(torch.device("cpu")) == -1
    assert device_ordinal(torch.device("cuda", 2)) == 2


@without_cuda
def test_the_first_device_without_torch_for_cuda() -> None:
    assert device_ordinal("cuda") == 0


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", -1, True, 1.5, "rocm:0"])
def test_unknown_devices(device: object) -> None:
    with pytest.raises(zbccl.InvalidArgumentError, match="unknown device"):
        zbccl.empty(3, device=device)
    with pytest.raises(zbccl.InvalidArgumentError, match="unknown device"):
        zbccl.init(device=device)


class OfTorch:
    cuda_stream = 77


class OfCupy:
    ptr = 78


class OfCudaCore:
    def __cuda_stream__(self) -> tuple[int, int]:
        return (0, 79)


def launch_settings() -> tuple[int | None, int]:
    settings = _zbccl.set_launch(None, 0)
    _zbccl.set_launch(*settings)
    return settings


@pytest.mark.parametrize(
    ("stream", "handle"), [(0, 0), (76, 76), (OfTorch(), 77), (OfCupy(), 78), (OfCudaCore(), 79)]
)
def test_streams(stream: object, handle: int) -> None:
    with zbccl.launch(stream):
        assert launch_settings() == (handle, 0)
    assert launch_settings() == (None, 0)


@pytest.mark.parametrize("stream", ["1", 1.0, True, object()])
def test_no_streams(stream: object) -> None:
    with pytest.raises(zbccl.InvalidArgumentError, match="stream: expected"), zbccl.launch(stream):
        pass


def test_launches_nest() -> None:
    with zbccl.launch(stream=5, max_blocks=8):
        with zbccl.launch(max_blocks=4):
            assert launch_settings() == (5, 4)
        with pytest.raises(ZeroDivisionError), zbccl.launch(stream=6):
            assert launch_settings() == (6, 8)
            raise ZeroDivisionError
        assert launch_settings() == (5, 8)
    assert launch_settings() == (None, 0)
    with pytest.raises(zbccl.InvalidArgumentError, match="max_blocks"), zbccl.launch(max_blocks=-1):
        pass


def test_host_memory_ignores_launches(solo: zbccl.Communicator) -> None:
    x = zbccl.empty(3, "i32")
    x.numpy()[:] = (1, 2, 3)
    with zbccl.launch(stream=5, max_blocks=1):
        solo.all_reduce(x)
        solo.barrier()
    assert x.numpy().tolist() == [1, 2, 3]


@without_cuda
def test_a_communicator_without_a_device(solo: zbccl.Communicator) -> None:
    assert solo.device == "cpu"
    x: Any = OnCuda(zbccl.empty(3), 1)
    with pytest.raises(
        zbccl.InvalidUsageError, match=r"all_reduce: a tensor lies on CUDA device 1.*device="
    ):
        solo.all_reduce(x)
    with pytest.raises(zbccl.InvalidUsageError, match="all_gather: a tensor lies on CUDA"):
        solo.all_gather(zbccl.empty(3), out=x)
    assert solo.all_reduce(zbccl.empty(3)) is not None


@without_cuda
def test_no_device_memory() -> None:
    with pytest.raises(zbccl.Error, match="CUDA"):
        zbccl.empty(3, device="cuda:0")
    with pytest.raises(zbccl.Error, match="CUDA"):
        zbccl.init(device="cuda:0")
    with pytest.raises(zbccl.UnsupportedError, match="mem_pool"):
        zbccl.mem_pool()


def test_host_memory_is_not_registered() -> None:
    with pytest.raises(zbccl.InvalidArgumentError, match="register: x lies in host memory"):
        zbccl.register(zbccl.empty(3))


def test_tensors_say_where_they_are() -> None:
    x = zbccl.empty(3)
    assert x.device == "cpu"
    assert x.__dlpack_device__() == (1, 0)
    report = zbccl.memory_report()
    assert report["device_user_bytes"] >= 0
    assert {"device_held_bytes", "device_reserved_bytes"} <= set(report)
