"""What operations take as tensors, and what they refuse; zbccl.Tensor itself."""

from __future__ import annotations

import array
import gc
from typing import Any

import numpy as np
import pytest
import zbccl
from kinds import need_ml_dtypes, need_torch

NUMPY_TYPES = {
    "f32": np.float32,
    "f64": np.float64,
    "f16": np.float16,
    "i8": np.int8,
    "u8": np.uint8,
    "i16": np.int16,
    "u16": np.uint16,
    "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64,
    "u64": np.uint64,
}
TORCH_ONLY = {"bf16": "bfloat16", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
ALL_TYPES = [*NUMPY_TYPES, *TORCH_ONLY]


@pytest.mark.parametrize("name", NUMPY_TYPES)
def test_numpy_types(solo: zbccl.Communicator, name: str) -> None:
    x = np.arange(7).astype(NUMPY_TYPES[name])
    assert solo.all_reduce(x) is x
    assert x.tolist() == list(range(7))
    gathered = solo.all_gather(x)
    assert gathered.dtype == x.dtype
    assert gathered.tolist() == list(range(7))


@pytest.mark.parametrize("name", ALL_TYPES)
def test_torch_types(solo: zbccl.Communicator, name: str) -> None:
    torch = need_torch()
    dtype = getattr(torch, TORCH_ONLY.get(name) or NUMPY_TYPES[name].__name__)
    x = torch.arange(7).to(torch.float32).to(dtype)
    assert solo.all_reduce(x) is x
    assert x.to(torch.float32).tolist() == list(range(7))
    gathered = solo.all_gather(x)
    assert gathered.dtype == dtype
    assert gathered.to(torch.float32).tolist() == list(range(7))


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_ml_dtypes(solo: zbccl.Communicator, name: str) -> None:
    ml_dtypes = need_ml_dtypes()
    dtype = getattr(ml_dtypes, TORCH_ONLY[name])
    x = np.arange(7).astype(dtype)
    assert solo.all_reduce(x) is x
    gathered = solo.all_gather(x)
    assert gathered.dtype == dtype
    assert gathered.astype(np.float32).tolist() == list(range(7))


def test_other_exporters(solo: zbccl.Communicator) -> None:
    for x in (bytearray(b"abc"), array.array("d", [1, 2]), memoryview(bytearray(4)).cast("i")):
        before = bytes(x)
        assert solo.all_reduce(x) is x
        assert bytes(x) == before
    with pytest.raises(zbccl.InvalidArgumentError, match="pass out="):
        solo.all_gather(bytearray(3))
    out = bytearray(3)
    assert solo.all_gather(bytearray(b"abc"), out=out) is out
    assert out == b"abc"


class OldExporter:
    """DLPack as it was before version 1."""

    def __init__(self, tensor: zbccl.Tensor, device: tuple[int, int] = (1, 0)):
        self.tensor = tensor
        self.device = device

    def __dlpack__(self, stream: object = None) -> object:
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


def test_old_dlpack(solo: zbccl.Communicator) -> None:
    tensor = zbccl.empty(3, "i32")
    tensor.numpy()[:] = (1, 2, 3)
    out = np.zeros(3, np.int32)
    solo.all_reduce(OldExporter(tensor), out=out)
    assert out.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("device", "name"), [(13, "CUDA managed memory"), (10, "ROCm"), (8, "type 8")]
)
def test_other_devices_are_unsupported(solo: zbccl.Communicator, device: int, name: str) -> None:
    with pytest.raises(zbccl.UnsupportedError, match=f"{name}.*host memory"):
        solo.all_reduce(OldExporter(zbccl.empty(3), (device, 0)))


def test_torch_tensors_without_host_memory(solo: zbccl.Communicator) -> None:
    torch = need_torch()
    for x in (torch.empty(3, device="meta"), torch.ones(3).to_sparse()):
        with pytest.raises(zbccl.InvalidArgumentError, match="all_reduce: x cannot be shared"):
            solo.all_reduce(x)


def test_gradients_are_refused(solo: zbccl.Communicator) -> None:
    torch = need_torch()
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(zbccl.InvalidArgumentError, match=r"requires grad.*x\.detach\(\)"):
        solo.all_reduce(x)
    solo.all_reduce(x.detach())
    solo.all_reduce(torch.nn.Parameter(torch.ones(2), requires_grad=False))


@pytest.mark.parametrize("x", [[1.0, 2.0], 3, None, "text"])
def test_no_tensor(solo: zbccl.Communicator, x: Any) -> None:
    with pytest.raises(TypeError, match="all_reduce: x must be a tensor"):
        solo.all_reduce(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(3, bool), "dtype bool.*uint8"),
        (np.ones(3, np.complex64), "which zbccl does not know"),
        (np.ones(3, ">f4"), "big-endian"),
        (np.array([object()]), "which zbccl does not know"),
        (np.array(["text"]), "which zbccl does not know"),
        (np.zeros(3, [("a", "i4"), ("b", "f4")]), "which zbccl does not know"),
        (np.ones((3, 4)).T, "not C-contiguous"),
        (np.ones(8)[::2], "not C-contiguous"),
        (b"bytes", "read-only"),
        (np.broadcast_to(np.float32(1), (4,)), "read-only"),
    ],
    ids=str,
)
def test_refused(solo: zbccl.Communicator, x: Any, message: str) -> None:
    with pytest.raises(zbccl.InvalidArgumentError, match=f"all_reduce: x.*{message}"):
        solo.all_reduce(x)


def test_refused_torch(solo: zbccl.Communicator) -> None:
    torch = need_torch()
    for x, message in (
        (torch.ones(3, dtype=torch.bool), "dtype bool"),
        (torch.ones(3, dtype=torch.complex64), "complex of 64 bits"),
        (torch.ones(3, 4).t(), "not C-contiguous"),
        (torch.ones(3).expand(2, 3), "not C-contiguous"),
    ):
        with pytest.raises(zbccl.InvalidArgumentError, match=message):
            solo.all_reduce(x)


def test_layouts_that_are_contiguous(solo: zbccl.Communicator) -> None:
    torch = need_torch()
    for x in (torch.ones(1, 5).t(), torch.ones(0, 3).t(), torch.ones(()), np.ones((4, 1)).T):
        assert solo.all_reduce(x) is x


def test_read_only_input_with_out(solo: zbccl.Communicator) -> None:
    x = np.arange(4.0)
    x.flags.writeable = False
    out = np.zeros(4)
    assert solo.all_reduce(x, out=out) is out
    assert out.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros(4), r"out has shape \(4,\); expected \(3,\)"),
        (np.zeros((1, 3)), r"out has shape \(1, 3\); expected \(3,\)"),
        (np.zeros(3, np.float32), "out has dtype f32, but x has f64"),
        (np.zeros((3, 2))[:, 0], "out is not C-contiguous"),
        (b"12345678" * 3, "out is read-only"),
    ],
    ids=str,
)
def test_out_that_does_not_fit(solo: zbccl.Communicator, out: Any, message: str) -> None:
    with pytest.raises(zbccl.InvalidArgumentError, match=f"all_reduce: {message}"):
        solo.all_reduce(np.ones(3), out=out)


def test_options_that_do_not_fit(solo: zbccl.Communicator) -> None:
    x = np.ones(3)
    with pytest.raises(zbccl.InvalidArgumentError, match="unknown op 'mean'.*sum prod min max avg"):
        solo.all_reduce(x, "mean")
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(zbccl.InvalidArgumentError, match="timeout: expected seconds above 0"):
            solo.all_reduce(x, timeout=timeout)
    with pytest.raises(zbccl.InvalidArgumentError):
        solo.broadcast(x, root=1)
    with pytest.raises(zbccl.InvalidArgumentError):
        solo.send(x, peer=7)
    assert x.tolist() == [1, 1, 1]


# ---- zbccl.Tensor


@pytest.mark.parametrize("name", ALL_TYPES)
def test_empty_by_name_numpy_and_torch_dtype(name: str) -> None:
    aliases: list[Any] = [name, TORCH_ONLY.get(name) or NUMPY_TYPES[name].__name__]
    if name in NUMPY_TYPES:
        aliases += [NUMPY_TYPES[name], np.dtype(NUMPY_TYPES[name])]
    for dtype in aliases:
        tensor = zbccl.empty((2, 3), dtype)
        assert (tensor.dtype, tensor.shape, tensor.ndim, tensor.size) == (name, (2, 3), 2, 6)
        assert tensor.data_ptr % 128 == 0
    torch = need_torch()
    assert zbccl.empty(5, getattr(torch, aliases[1])).dtype == name


@pytest.mark.parametrize("dtype", [bool, float, int, "bool", "complex64", np.bool_, None, 7, ">f4"])
def test_empty_refuses_dtypes(dtype: Any) -> None:
    with pytest.raises(zbccl.InvalidArgumentError, match="unknown dtype"):
        zbccl.empty(3, dtype)


@pytest.mark.parametrize("shape", [-1, (2, -3), (1 << 40, 1 << 40)])
def test_empty_refuses_shapes(shape: Any) -> None:
    with pytest.raises(zbccl.InvalidArgumentError, match="shape"):
        zbccl.empty(shape)


@pytest.mark.parametrize("name", NUMPY_TYPES)
def test_views_share_memory(name: str) -> None:
    tensor = zbccl.empty((2, 3), name)
    first = tensor.numpy()
    first[...] = 1
    assert first.dtype == NUMPY_TYPES[name]
    assert first.shape == (2, 3)
    for view in (np.asarray(tensor), np.asarray(memoryview(tensor)), np.from_dlpack(tensor)):
        assert np.shares_memory(view, first)
        assert view.tolist() == first.tolist()
    torch_view = need_torch().from_dlpack(tensor)
    torch_view.fill_(2)
    assert first.tolist() == [[2, 2, 2], [2, 2, 2]]
    assert torch_view.data_ptr() == tensor.data_ptr


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_views_of_types_without_a_buffer(name: str) -> None:
    tensor = zbccl.empty((2, 2), name)
    with pytest.raises(BufferError, match=f"no code for {name}"):
        memoryview(tensor)
    view = need_torch().from_dlpack(tensor)
    assert str(view.dtype) == f"torch.{TORCH_ONLY[name]}"
    view.fill_(1.5)
    ml_dtypes = need_ml_dtypes()
    assert tensor.numpy().dtype == getattr(ml_dtypes, TORCH_ONLY[name])
    assert tensor.numpy().astype(np.float32).tolist() == [[1.5, 1.5], [1.5, 1.5]]
    assert len(bytes(tensor.as_bytes())) == tensor.nbytes


def test_views_of_scalars_and_empty_tensors() -> None:
    assert zbccl.empty((), "i64").numpy().shape == ()
    assert zbccl.empty((0, 4), "i64").numpy().shape == (0, 4)
    assert need_torch().from_dlpack(zbccl.empty((0, 4))).shape == (0, 4)


def test_dlpack_arguments() -> None:
    tensor = zbccl.empty(3)
    assert "dltensor_versioned" in repr(tensor.__dlpack__(max_version=(1, 1)))
    assert "dltensor_versioned" not in repr(tensor.__dlpack__())
    assert tensor.__dlpack_device__() == (1, 0)
    for arguments in ({"stream": 1}, {"dl_device": (2, 0)}, {"copy": True}):
        with pytest.raises(BufferError):
            tensor.__dlpack__(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["numpy", "torch", "memoryview", "capsule"])
def test_memory_lives_until_the_last_view(kind: str) -> None:
    gc.collect()
    before = zbccl.memory_report()["user_bytes"]
    tensor = zbccl.empty(1 << 16, "u8")
    view: Any
    if kind == "numpy":
        view = tensor.numpy()[5:]
    elif kind == "torch":
        view = need_torch().from_dlpack(tensor)[5:]
    elif kind == "memoryview":
        view = memoryview(tensor)
    else:
        view = tensor.__dlpack__()
    del tensor
    gc.collect()
    assert zbccl.memory_report()["user_bytes"] >= before + (1 << 16)
    if kind in ("numpy", "torch"):
        view[:] = 3
        assert view[7] == 3
    del view
    gc.collect()
    assert zbccl.memory_report()["user_bytes"] == before


def test_repr() -> None:
    assert repr(zbccl.empty((2, 3), "bf16")) == "zbccl.Tensor(shape=(2, 3), dtype='bf16')"
