"""Dispatch and combine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from zbccl import _zbccl
from zbccl.communicator import Communicator
from zbccl.errors import InvalidArgumentError
from zbccl.member import kind, of_kind
from zbccl.moe.names import QUANTS, Layout, Quant, choice
from zbccl.moe.results import Combined, Dispatched, Pending
from zbccl.work import Timeout, Work, milliseconds

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

T = TypeVar("T")
# An optional output: None by default, False for none, True for a new one, or the caller's tensor.
Wanted = Any

if TYPE_CHECKING:
    # What a call may bring along, for its overloads.
    class DispatchOptions(TypedDict, Generic[T], total=False):
        scales: object
        quant: Quant | None
        topk_weights: object
        transposed_scales: bool
        zero_padding: bool
        out: T | None
        out_scales: T | None
        out_topk_idx: Wanted
        out_topk_weights: Wanted
        out_row_weights: Wanted
        out_src_idx: Wanted
        timeout: Timeout

    class CombineOptions(TypedDict, Generic[T], total=False):
        topk_weights: object
        bias: object
        pre_reduce: bool
        recv_topk_weights: object
        out: T | None
        out_topk_weights: Wanted
        timeout: Timeout


_BLOCKING, _ASYNCHRONOUS, _SEND = range(3)


def _wish(given: Wanted, default: bool) -> Any:
    """As the native module takes it: None, True, or a tensor."""
    if given is None:
        given = default
    return None if given is False else given


class Exchanges:
    """What a handle is for."""

    _native: _zbccl.Handle
    _communicator: Communicator
    layout: Layout

    def _start_dispatch(
        self,
        mode: int,
        x: T,
        scales: object = None,
        quant: Quant | None = None,
        topk_weights: object = None,
        transposed_scales: bool = False,
        zero_padding: bool = False,
        out: T | None = None,
        out_scales: T | None = None,
        out_topk_idx: Wanted = None,
        out_topk_weights: Wanted = None,
        out_row_weights: Wanted = None,
        out_src_idx: Wanted = None,
        timeout: Timeout = None,
    ) -> tuple[_zbccl.Flight | _zbccl.Exchange | None, Dispatched[T]]:
        weighted = topk_weights is not None
        by_rank = self.layout == "rank_major"
        wishes = (
            True if out is None else out,
            True if out_scales is None else out_scales,
            _wish(out_topk_idx, weighted and by_rank),
            _wish(out_topk_weights, weighted and by_rank),
            _wish(out_row_weights, weighted and not by_rank),
            _wish(out_src_idx, False),
        )
        package = kind(x)
        made_scales = quant is not None and out_scales is None
        if package is None and (
            out is None or made_scales or any(wish is True for wish in wishes[2:])
        ):
            raise InvalidArgumentError(
                "dispatch: zbccl makes results for NumPy arrays, PyTorch tensors and zbccl.Tensor; "
                f"pass out= with an input of type {type(x).__name__}"
            )
        swap = transposed_scales and out_scales is None
        if swap and package == "zbccl":
            raise InvalidArgumentError(
                "dispatch: a zbccl.Tensor has no strides: transposed_scales needs x as a NumPy "
                "array or a PyTorch tensor"
            )
        code = choice("dispatch: quant", QUANTS, quant)
        if code != 0 and scales is not None:
            raise InvalidArgumentError("dispatch: rows that bring scales are not quantized again")
        started, made = self._native.dispatch(
            x,
            scales,
            code,
            zero_padding,
            transposed_scales,
            topk_weights,
            *wishes,
            mode,
            milliseconds(timeout),
        )
        results = [
            (None if wish is True else wish) if tensor is None else of_kind(tensor, package)
            for wish, tensor in zip(wishes, made, strict=True)
        ]
        if swap and results[1] is not None:
            results[1] = results[1].swapaxes(-1, -2)
        if code == 0 and scales is None:
            results[1] = None
        return started, Dispatched(*results)

    @overload
    def dispatch(
        self,
        x: T,
        *,
        async_op: Literal[False] = ...,
        **options: Unpack[DispatchOptions[T]],
    ) -> Dispatched[T]: ...
    @overload
    def dispatch(
        self,
        x: T,
        *,
        async_op: Literal[True],
        **options: Unpack[DispatchOptions[T]],
    ) -> Work[Dispatched[T]]: ...
    def dispatch(
        self,
        x: T,
        *,
        async_op: bool = False,
        scales: object = None,
        quant: Quant | None = None,
        topk_weights: object = None,
        transposed_scales: bool = False,
        zero_padding: bool = False,
        out: T | None = None,
        out_scales: T | None = None,
        out_topk_idx: Wanted = None,
        out_topk_weights: Wanted = None,
        out_row_weights: Wanted = None,
        out_src_idx: Wanted = None,
        timeout: Timeout = None,
    ) -> Dispatched[T] | Work[Dispatched[T]]:
        """Sends each row of `x` to the ranks of its experts. Collective.

        `x`: (tokens, hidden), rows of a multiple of 16 bytes that each lie in one piece. `quant`
        turns rows of f32, f16 or bf16 into codes on their way: "fp8" (e4m3 with an f32 scale for
        each group of 128), "fp8_pow2" (scales rounded up to powers of two), "fp8_ue8m0" (of these
        the exponents, four in an i32) or "int8" (one f32 scale for the row). `scales`, (tokens, n)
        of any four-byte type and any strides, are those that rows which are codes already bring
        along. Scales arrive row-major, or with `transposed_scales` as a view whose rows lie side by
        side in memory.

        `topk_weights`, (tokens, slots) f32, is given by every rank with tokens or by none. With it
        a rank_major dispatch also brings topk_idx and topk_weights, others row_weights. Each of the
        `out_*` is True to ask for that output, False not to, or the tensor that it goes to; `out`
        and `out_scales` are tensors. New outputs have exactly the size that is needed
        (`allocated_rows`) and come from the pool. `zero_padding`: rows that no token fills become
        0.

        Raises InvalidUsageError for a handle that is closed or stale.
        """
        started, output = self._start_dispatch(
            _ASYNCHRONOUS if async_op else _BLOCKING,
            x,
            scales,
            quant,
            topk_weights,
            transposed_scales,
            zero_padding,
            out,
            out_scales,
            out_topk_idx,
            out_topk_weights,
            out_row_weights,
            out_src_idx,
            timeout,
        )
        return self._finished("dispatch", started, output)

    def send_dispatch(self, x: T, **options: Unpack[DispatchOptions[T]]) -> Pending[Dispatched[T]]:
        """As dispatch, in two: begins now, and `Pending.receive` brings the outputs."""
        started, output = self._start_dispatch(_SEND, x, **options)
        return self._sent(started, output)

    # ---- combine

    def _start_combine(
        self,
        mode: int,
        y: T,
        topk_weights: object = None,
        bias: object = None,
        pre_reduce: bool = False,
        recv_topk_weights: object = None,
        out: T | None = None,
        out_topk_weights: Wanted = None,
        timeout: Timeout = None,
    ) -> tuple[_zbccl.Flight | _zbccl.Exchange | None, Combined[T]]:
        package = kind(y)
        if package is None and out is None:
            raise InvalidArgumentError(
                "combine: zbccl makes results for NumPy arrays, PyTorch tensors and zbccl.Tensor; "
                f"pass out= with an input of type {type(y).__name__}"
            )
        biases = tuple(bias) if isinstance(bias, tuple | list) else (bias,)
        if len(biases) > 2:
            raise InvalidArgumentError(f"combine: expected at most 2 biases, got {len(biases)}")
        bias_0, bias_1 = (*biases, None, None)[:2]
        wishes = (
            True if out is None else out,
            _wish(out_topk_weights, recv_topk_weights is not None),
        )
        started, made = self._native.combine(
            y,
            topk_weights,
            bias_0,
            bias_1,
            wishes[0],
            pre_reduce,
            recv_topk_weights,
            wishes[1],
            mode,
            milliseconds(timeout),
        )
        results = [
            wish if tensor is None else of_kind(tensor, package)
            for wish, tensor in zip(wishes, made, strict=False)
        ]
        return started, Combined(*results)

    @overload
    def combine(
        self,
        y: T,
        *,
        async_op: Literal[False] = ...,
        **options: Unpack[CombineOptions[T]],
    ) -> Combined[T]: ...
    @overload
    def combine(
        self,
        y: T,
        *,
        async_op: Literal[True],
        **options: Unpack[CombineOptions[T]],
    ) -> Work[Combined[T]]: ...
    def combine(
        self,
        y: T,
        *,
        async_op: bool = False,
        topk_weights: object = None,
        bias: object = None,
        pre_reduce: bool = False,
        recv_topk_weights: object = None,
        out: T | None = None,
        out_topk_weights: Wanted = None,
        timeout: Timeout = None,
    ) -> Combined[T] | Work[Combined[T]]:
        """Brings the experts' results back and adds up those of each token. Collective.

        `y`, f32, f16 or bf16, has the rows where a dispatch put their inputs; rows from the pool
        are read in place. The sum is taken in FP32 in a fixed order, starting from `bias`, (tokens,
        hidden) or two of them, and rounded once (docs/numerics.md). Expert layouts: each row is
        multiplied by its weight of `topk_weights`, (tokens, slots) f32, if given; `pre_reduce` adds
        up the rows of one token on one rank first, and is the same on every rank. rank_major: the
        rows are sums already; `recv_topk_weights`, (rows, slots) f32, are added up the same way
        into `topk_weights` of the result. `out`, (tokens, hidden), gets the result.

        Raises InvalidUsageError for a handle that is closed or stale.
        """
        started, output = self._start_combine(
            _ASYNCHRONOUS if async_op else _BLOCKING,
            y,
            topk_weights,
            bias,
            pre_reduce,
            recv_topk_weights,
            out,
            out_topk_weights,
            timeout,
        )
        return self._finished("combine", started, output)

    def send_combine(self, y: T, **options: Unpack[CombineOptions[T]]) -> Pending[Combined[T]]:
        """As combine, in two: begins now, and `Pending.receive` brings the outputs."""
        started, output = self._start_combine(_SEND, y, **options)
        return self._sent(started, output)

    def _finished(self, name: str, started: object, output: T) -> T | Work[T]:
        if isinstance(started, _zbccl.Flight):
            return Work(started, output, self._communicator, name)
        return output

    def _sent(self, started: object, output: T) -> Pending[T]:
        assert isinstance(started, _zbccl.Exchange)
        return Pending(started, output, self)
