"""Reductions of a group, under PyTorch's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._distributed_c10d import (
    AllreduceCoalescedOptions,
    AllreduceOptions,
    ReduceOptions,
    ReduceScatterOptions,
)
from torch.distributed import ReduceOp

from zbccl import _zbccl
from zbccl.errors import InvalidArgumentError
from zbccl.torch.calls import Calls, flights_of, single
from zbccl.torch.operators import Operator, operator_of
from zbccl.torch.tensors import (
    Finish,
    flat,
    gathered_in,
    numel,
    readable,
    scratch,
    writable,
)
from zbccl.torch.work import Work

# Elements of every rank that a bitwise reduction holds at a time.
_PIECE = 1 << 18
Flights = list[_zbccl.Flight]


def options(cls: Any, opts: Any, op: Any, timeout: Any) -> Any:
    """Options of that class from what a caller gave: themselves, or operator and timeout."""
    if type(opts) is cls:
        return opts
    if opts is None or isinstance(opts, (ReduceOp, type(ReduceOp.SUM))):
        made = cls()
        made.asyncOp = True
        made.reduceOp = ReduceOp.SUM if opts is None and op is None else (op or opts)
        if timeout is not None:
            made.timeout = timeout
        return made
    return opts


class Reductions(Calls):
    """Element by element, in the order of the ranks (docs/numerics.md)."""

    def allreduce(
        self, tensors: Any, opts: Any = None, timeout: Any = None, *, op: Any = None
    ) -> Work:
        """In place, of one tensor."""
        if type(opts) is not AllreduceOptions:
            opts = options(AllreduceOptions, opts, op, timeout)
        x = tensors if isinstance(tensors, torch.Tensor) else single(tensors, "all_reduce")
        operator = operator_of(opts.reduceOp, x.dtype, "all_reduce")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return _all_reduce(native, x, operator, limit, later)

        return self._run("all_reduce", opts, x, body, (x,), (x,))

    def allreduce_coalesced(self, tensors: Sequence[torch.Tensor], opts: Any = None) -> Work:
        """Each tensor as by allreduce."""
        opts = AllreduceCoalescedOptions() if opts is None else opts
        operators = [operator_of(opts.reduceOp, x.dtype, "all_reduce") for x in tensors]

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return in_turn(
                _all_reduce(native, x, operator, limit, later)
                for x, operator in zip(tensors, operators, strict=True)
            )

        return self._run("all_reduce_coalesced", opts, tensors[0], body, tensors, tensors)

    def reduce(
        self,
        tensors: Any,
        opts: Any = None,
        op: Any = None,
        timeout: Any = None,
        *,
        root: int | None = None,
    ) -> Work:
        """The root's tensor becomes the result; the others' are only read."""
        root_given = opts if isinstance(opts, int) else root
        if root_given is not None:
            opts = options(ReduceOptions, None, op, timeout)
            opts.rootRank = root_given
        opts = ReduceOptions() if opts is None else opts
        x = tensors if isinstance(tensors, torch.Tensor) else single(tensors, "reduce")
        operator = operator_of(opts.reduceOp, x.dtype, "reduce")
        is_root = self._host.rank == opts.rootRank

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            if operator.bits is not None:
                return _fold_all(native, x, operator, limit, x if is_root else None)
            if not is_root:
                source = _scaled(readable(x), operator)
                reply = native.reduce(source, opts.rootRank, None, operator.name, limit, later)
                return flights_of(reply), None
            target, finish = writable(x, keep=True)
            source = _scaled(target, operator)
            out = None if source is target else target
            reply = native.reduce(source, opts.rootRank, out, operator.name, limit, later)
            return flights_of(reply), finish

        return self._run("reduce", opts, x, body, (x,), (x,))

    def reduce_scatter_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> Work:
        """Of a tensor that holds a part of the same size for each rank."""
        opts = ReduceScatterOptions() if opts is None else opts
        operator = operator_of(opts.reduceOp, input.dtype, "reduce_scatter")
        self._check_parts(output, input, "reduce_scatter")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return _reduce_scatter(native, output, input, operator, limit, later)

        return self._run("reduce_scatter_tensor", opts, input, body, (input,), (output,))

    _reduce_scatter_base = reduce_scatter_single
    reduce_scatter_tensor = reduce_scatter_single

    def reduce_scatter_single_coalesced(
        self,
        outputs: Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        opts: Any = None,
    ) -> Work:
        """Each pair as by reduce_scatter_single."""
        opts = ReduceScatterOptions() if opts is None else opts
        operators = [operator_of(opts.reduceOp, x.dtype, "reduce_scatter") for x in inputs]
        for output, x in zip(outputs, inputs, strict=True):
            self._check_parts(output, x, "reduce_scatter")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return in_turn(
                _reduce_scatter(native, output, x, operator, limit, later)
                for output, x, operator in zip(outputs, inputs, operators, strict=True)
            )

        return self._run("reduce_scatter_tensor_coalesced", opts, inputs[0], body, inputs, outputs)

    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced

    def reduce_scatter(
        self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None, *, op: Any = None
    ) -> Work:
        """Of a list of one tensor for each rank, which may differ in size."""
        opts = options(ReduceScatterOptions, opts, op, timeout)
        if isinstance(outputs, torch.Tensor):
            output, parts = outputs, inputs
        else:
            output = single(outputs, "reduce_scatter")
            parts = single(inputs, "reduce_scatter")
        operator = operator_of(opts.reduceOp, output.dtype, "reduce_scatter")
        self._check_list(parts, output, "reduce_scatter: inputs")
        sizes = [numel(x) for x in parts]
        if sizes[self._host.rank] != numel(output):
            raise InvalidArgumentError(
                f"reduce_scatter: the output has {output.numel()} elements, but this rank's input "
                f"has {parts[self._host.rank].numel()}"
            )

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            if operator.bits is not None:
                replies = (
                    _fold_all(native, x, operator, limit, output if r == native.rank else None)
                    for r, x in enumerate(parts)
                )
                return in_turn(replies)
            source, view = gathered_in(parts, copy=operator.factor is not None)
            if operator.factor is not None:
                view.copy_(_scaled(view, operator))
            target, finish = writable(output)
            reply = native.reduce_scatter_v(
                source, sizes, flat(target), operator.name, limit, later
            )
            return flights_of(reply), finish

        return self._run("reduce_scatter", opts, output, body, parts, (output,))

    def _check_parts(self, part: torch.Tensor, whole: torch.Tensor, call: str) -> None:
        size = self._host.size
        if part.dtype is not whole.dtype:
            raise InvalidArgumentError(
                f"{call}: input and output have different types, {part.dtype} and {whole.dtype}"
            )
        if part.numel() * size != whole.numel():
            raise InvalidArgumentError(
                f"{call}: a tensor of {whole.numel()} elements does not hold {size} parts of "
                f"{part.numel()}: one of the tensors has to have world size times the size of the "
                "other"
            )

    def _check_list(self, parts: Sequence[torch.Tensor], like: torch.Tensor, what: str) -> None:
        if len(parts) != self._host.size:
            raise InvalidArgumentError(
                f"{what}: expected a list of {self._host.size} tensors, one for each rank, got "
                f"{len(parts)}"
            )
        for x in parts:
            if x.dtype is not like.dtype or x.device != like.device:
                raise InvalidArgumentError(
                    f"{what}: tensors of {x.dtype} on {x.device} and {like.dtype} on "
                    f"{like.device} cannot be mixed"
                )


def in_turn(replies: Any) -> tuple[Flights, Finish]:
    """Several operations as one."""
    flights: Flights = []
    endings = []
    for more, finish in replies:
        flights += more
        if finish is not None:
            endings.append(finish)
    if not endings:
        return flights, None

    def finish_all() -> None:
        for ending in endings:
            ending()

    return flights, finish_all


def _scaled(x: torch.Tensor, operator: Operator) -> torch.Tensor:
    """`x` times the operator's factor: itself where there is none."""
    factor = operator.factor
    if factor is None:
        return x
    if isinstance(factor, torch.Tensor):
        factor = factor.detach().reshape(())
        # One in host memory goes along with a kernel.
        if factor.is_cuda and factor.device != x.device:
            factor = factor.to(x.device)
    return torch.mul(x, factor).to(x.dtype)


def _all_reduce(
    native: _zbccl.Communicator, x: torch.Tensor, operator: Operator, limit: int, later: bool
) -> tuple[Flights, Finish]:
    if operator.bits is not None:
        return _fold_all(native, x, operator, limit, x)
    target, finish = writable(x, keep=True)
    if operator.factor is not None:
        target.copy_(_scaled(target, operator))
    flight, _ = native.all_reduce(target, None, operator.name, limit, later)
    return [] if flight is None else [flight], finish


def _reduce_scatter(
    native: _zbccl.Communicator,
    output: torch.Tensor,
    x: torch.Tensor,
    operator: Operator,
    limit: int,
    later: bool,
) -> tuple[Flights, Finish]:
    source = flat(readable(x))
    if operator.bits is not None:
        parts = source.view(native.size, -1)
        return in_turn(
            _fold_all(native, part, operator, limit, output if r == native.rank else None)
            for r, part in enumerate(parts)
        )
    target, finish = writable(output)
    reply = native.reduce_scatter(
        _scaled(source, operator), flat(target), operator.name, limit, later
    )
    return flights_of(reply), finish


def _fold_all(
    native: _zbccl.Communicator,
    x: torch.Tensor,
    operator: Operator,
    limit: int,
    output: torch.Tensor | None,
) -> tuple[Flights, Finish]:
    """A reduction that zbccl's kernels lack: every rank's elements are fetched and folded here.

    Complete on return, on host memory; `output` has the size of `x`, and None gets nothing.
    """
    assert operator.bits is not None
    source = flat(readable(x))
    target, finish = writable(output) if output is not None else (None, None)
    places = None if target is None else flat(target)
    made, view = scratch(native.size * min(_PIECE, source.numel()), source)
    for first in range(0, source.numel(), _PIECE):
        piece = source[first : first + _PIECE]
        count = piece.numel()
        if count * native.size != view.numel():
            made, view = scratch(native.size * count, source)
        native.all_gather(piece, made, limit, False)
        if places is None:
            continue
        rows = view.view(native.size, count)
        for row in rows[1:]:
            operator.bits(rows[0], row, out=rows[0])
        places[first : first + count].copy_(rows[0])
    if source.numel() == 0:
        native.barrier(limit, False)
    return [], finish
