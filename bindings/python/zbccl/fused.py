"""Reductions that do the next step of a model at once, or send fewer bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, overload

from zbccl.dtypes import dtype_name
from zbccl.member import Member, like, require_known_kind
from zbccl.work import Timeout, Work, milliseconds

if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

T = TypeVar("T")

if TYPE_CHECKING:
    # What all_reduce_rms_norm may bring along, for its overloads.
    class RmsNormOptions(TypedDict, Generic[T], total=False):
        residual: T | None
        eps: float
        one_plus_weight: bool
        codes: str | None
        scale: float
        scale_columns: bool
        want_out: bool
        out: T | None
        residual_out: T | None
        codes_out: object | None
        scales_out: object | None
        timeout: Timeout


class RmsNorm(NamedTuple):
    """What all_reduce_rms_norm gives; None for what was not asked for."""

    out: Any
    residual: Any
    codes: Any
    scales: Any


class Fused(Member):
    """The same bits on every rank, in every run, on processors and GPUs (docs/fused.md)."""

    @overload
    def all_reduce_rms_norm(
        self,
        x: T,
        weight: T,
        *,
        async_op: Literal[False] = ...,
        **options: Unpack[RmsNormOptions[T]],
    ) -> RmsNorm: ...
    @overload
    def all_reduce_rms_norm(
        self, x: T, weight: T, *, async_op: Literal[True], **options: Unpack[RmsNormOptions[T]]
    ) -> Work[RmsNorm]: ...
    def all_reduce_rms_norm(
        self,
        x: T,
        weight: T,
        *,
        residual: T | None = None,
        eps: float = 1e-6,
        one_plus_weight: bool = False,
        codes: str | None = None,
        scale: float = 1.0,
        scale_columns: bool = False,
        want_out: bool = True,
        out: T | None = None,
        residual_out: T | None = None,
        codes_out: object | None = None,
        scales_out: object | None = None,
        async_op: bool = False,
        timeout: Timeout = None,
    ) -> RmsNorm | Work[RmsNorm]:
        """Sums `x` over the ranks, adds `residual`, and normalises each row: RMSNorm.

        `x` is bf16 or f16 of shape (..., hidden), `weight` of shape (hidden,); `residual` and
        `weight` hold the same values on every rank. Gives RmsNorm(out, residual, codes, scales):

        - `residual`: the sum plus `residual`. Without `residual_out` it is written over
          `residual`; without both it is not computed. `residual_out` may be `x`.
        - `out`: the normalised rows, times `weight`, or times 1 + `weight` with `one_plus_weight`.
          Allocated unless given (it may be `x`), and None with want_out=False.
        - `codes`: the same rows in e4m3. "tensor": divided by `scale`; "group": with an f32 scale
          for each 128 elements, from their largest; "power_of_two": the same, raised to a power of
          two; "ue8m0": these as bytes (u8).
        - `scales`: of the groups, (tokens, hidden // 128), or (hidden // 128, tokens) with
          scale_columns. A `scales_out` of the caller's may have longer rows.

        Arguments that differ between ranks raise InvalidUsageError on every rank.
        """
        if want_out:
            require_known_kind(x, out, "all_reduce_rms_norm")
        if residual_out is None:
            residual_out = residual
        flight, made_out, made_codes, made_scales = self._native.all_reduce_rms_norm(
            x,
            weight,
            residual,
            residual_out,
            out,
            codes or "none",
            codes_out,
            scales_out,
            scale_columns,
            want_out,
            scale,
            eps,
            one_plus_weight,
            milliseconds(timeout),
            async_op,
        )
        result: RmsNorm = RmsNorm(
            out if made_out is None else like(made_out, x),
            residual_out,
            codes_out if made_codes is None else like(made_codes, x),
            scales_out if made_scales is None else like(made_scales, x),
        )
        return self._given("all_reduce_rms_norm", (flight, None), result)

    @overload
    def all_reduce_quantized(
        self,
        x: T,
        code: object = ...,
        *,
        async_op: Literal[False] = ...,
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> T: ...
    @overload
    def all_reduce_quantized(
        self,
        x: T,
        code: object = ...,
        *,
        async_op: Literal[True],
        out: T | None = ...,
        timeout: Timeout = ...,
    ) -> Work[T]: ...
    def all_reduce_quantized(
        self,
        x: T,
        code: object = "e4m3",
        *,
        async_op: bool = False,
        out: T | None = None,
        timeout: Timeout = None,
    ) -> T | Work[T]:
        """Sums `x` over the ranks by 8-bit codes: less to move than all_reduce, and less exact.

        `x` is f32, f16 or bf16; `code` is "e4m3" or "i8" (or a dtype that means one of them), with
        an f32 scale for each 128 neighbouring elements. Without `out` it works in place and
        returns `x`; with `out`, `x` is only read. docs/numerics.md says how large the error is.
        """
        reply = self._native.all_reduce_quantized(
            x, out, dtype_name(code), milliseconds(timeout), async_op
        )
        return self._given("all_reduce_quantized", reply, x if out is None else out)
