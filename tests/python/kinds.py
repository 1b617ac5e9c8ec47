"""The kinds of tensors that operations take, behind one way to make and read them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zbccl

KINDS = ("zbccl", "numpy", "torch")


def need_torch() -> Any:
    return pytest.importorskip("torch", reason="PyTorch is not installed")


def need_ml_dtypes() -> Any:
    return pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")


def make(kind: str, values: np.ndarray[Any, Any]) -> Any:
    """A tensor of that kind with a copy of the values."""
    if kind == "numpy":
        return values.copy()
    if kind == "torch":
        return need_torch().from_numpy(values.copy())
    tensor = zbccl.empty(values.shape, values.dtype)
    tensor.numpy()[...] = values
    return tensor


def values_of(tensor: Any) -> np.ndarray[Any, Any]:
    if isinstance(tensor, np.ndarray):
        return tensor
    return np.asarray(tensor.numpy())


def kind_of(tensor: Any) -> str:
    return type(tensor).__module__.partition(".")[0]
