"""What PyTorch's reduction operators are here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import ReduceOp

from zbccl.errors import InvalidArgumentError
from zbccl.torch.tensors import NATIVE

_Kind = type(ReduceOp.SUM)


def _number(op: Any) -> int:
    return hash(op.op)


# PyTorch hashes an operator to its kind, which is five times faster to ask for than `op.op`.
_kind: Callable[[Any], int] = (
    hash
    if all(hash(ReduceOp(kind)) == hash(kind) for kind in (ReduceOp.SUM, ReduceOp.BXOR))
    else _number
)
_PLAIN = {
    hash(ReduceOp.SUM): "sum",
    hash(ReduceOp.AVG): "avg",
    hash(ReduceOp.PRODUCT): "prod",
    hash(ReduceOp.MIN): "min",
    hash(ReduceOp.MAX): "max",
}
_BITS: dict[int, Callable[..., Any]] = {
    hash(ReduceOp.BAND): torch.bitwise_and,
    hash(ReduceOp.BOR): torch.bitwise_or,
    hash(ReduceOp.BXOR): torch.bitwise_xor,
}
_PREMUL_SUM = hash(ReduceOp.PREMUL_SUM)
# Of truth values, which are bytes of 0 and 1. NCCL's back end has the same table.
_OF_BOOL = {
    hash(ReduceOp.SUM): "max",
    hash(ReduceOp.MAX): "max",
    hash(ReduceOp.BOR): "max",
    hash(ReduceOp.PRODUCT): "min",
    hash(ReduceOp.MIN): "min",
    hash(ReduceOp.BAND): "min",
}


@dataclass(frozen=True)
class Operator:
    """How elements of one type are reduced."""

    name: str  # zbccl's operator; "" where `bits` is given
    factor: Any = None  # what inputs are multiplied by first: a number or a tensor of one
    bits: Callable[..., Any] | None = None  # of integers: folds two tensors, with out=


_NAMED = {name: Operator(name) for name in ("sum", "avg", "prod", "min", "max")}


def _factor(op: Any, call: str) -> Any:
    factor = op.factor if hasattr(op, "factor") else op.__getstate__()[1]
    if isinstance(factor, torch.Tensor) and factor.numel() != 1:
        raise InvalidArgumentError(
            f"{call}: the factor of PREMUL_SUM has {factor.numel()} elements; give a number or a "
            "tensor of one"
        )
    return factor


def operator_of(op: Any, dtype: torch.dtype, call: str) -> Operator:
    """How `op` reduces elements of `dtype`; InvalidArgumentError where it cannot."""
    kind = _kind(op)
    name = _PLAIN.get(kind)
    if name is not None and dtype in NATIVE:
        return _NAMED[name]
    if dtype is torch.bool:
        if kind in _OF_BOOL:
            return _NAMED[_OF_BOOL[kind]]
        if kind in _BITS:
            return Operator("", bits=_BITS[kind])
    elif dtype.is_complex:
        if name in ("sum", "avg"):
            return _NAMED[name]
        if kind == _PREMUL_SUM:
            return Operator("sum", factor=_factor(op, call))
    elif kind == _PREMUL_SUM and dtype.is_floating_point and dtype in NATIVE:
        return Operator("sum", factor=_factor(op, call))
    elif kind in _BITS and not dtype.is_floating_point and dtype in NATIVE:
        return Operator("", bits=_BITS[kind])
    raise InvalidArgumentError(
        f"{call}: ReduceOp.{_name(op)} of {dtype} is not defined. zbccl reduces floats of 64, 32, "
        "16 and 8 bits (e4m3fn, e5m2) and integers by SUM, AVG, PRODUCT, MIN and MAX, integers by "
        "BAND, BOR and BXOR, floats by PREMUL_SUM, complex numbers by SUM and AVG, and bool by all "
        "but AVG"
    )


def _name(op: Any) -> str:
    kind = op.op if isinstance(op, ReduceOp) else op
    return str(getattr(kind, "name", kind))
