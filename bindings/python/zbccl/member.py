"""What the operations of a communicator stand on."""

from __future__ import annotations

from typing import Any, TypeVar

from zbccl import _zbccl
from zbccl.errors import InvalidArgumentError
from zbccl.work import Work

T = TypeVar("T")
# What the native operations give: a flight if asynchronous, and the output that they allocated.
Reply = tuple[_zbccl.Flight | None, _zbccl.Tensor | None]


def kind(x: object) -> str | None:
    """The package whose kind of tensor `x` is, of those that zbccl can make results for."""
    for cls in type(x).__mro__:
        package = cls.__module__.partition(".")[0]
        if package in ("numpy", "torch", "zbccl"):
            return package
    return None


def require_known_kind(x: object, out: object | None, name: str) -> None:
    """Without `out` the result becomes the kind of tensor that `x` is."""
    if out is None and x is not None and kind(x) is None:
        raise InvalidArgumentError(
            f"{name}: zbccl makes results for NumPy arrays, PyTorch tensors and zbccl.Tensor; "
            f"pass out= with an input of type {type(x).__name__}"
        )


def of_kind(made: _zbccl.Tensor, package: str | None) -> Any:
    """A tensor of zbccl's, as the kind of tensor that `package` has."""
    match package:
        case "numpy":
            return made.numpy()
        case "torch":
            return made.torch()
        case _:
            return made


def like(made: _zbccl.Tensor | None, x: object) -> Any:
    """A tensor of zbccl's, as the kind of tensor that `x` is."""
    assert made is not None
    return of_kind(made, kind(x))


class Member:
    """One rank's place in a group."""

    _native: _zbccl.Communicator

    @property
    def rank(self) -> int:
        """This rank, from 0."""
        return self._native.rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._native.size

    def _given(self, name: str, reply: Reply, output: T) -> T | Work[T]:
        """Of an operation whose output the caller gave."""
        flight, _ = reply
        return output if flight is None else Work(flight, output, self, name)

    def _made(self, name: str, reply: Reply, x: T | None, out: T | None) -> T | Work[T]:
        """Of an operation that makes its output unless given `out`: the kind of tensor `x` is."""
        output: T = like(reply[1], x) if out is None else out
        return self._given(name, reply, output)
