"""The fused operations: what their arguments mean, with every kind of tensor. Their arithmetic is
tested bit by bit in C++."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zbccl
from kinds import KINDS, kind_of, make, need_ml_dtypes, need_torch, values_of
from ranks import run_threads

TOKENS, HIDDEN, RANKS = 6, 256, 3

kinds = pytest.mark.parametrize("kind", KINDS)


def numbers(shape: tuple[int, ...], seed: int, dtype: str = "float16") -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def norm(total: np.ndarray[Any, Any], weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    rows = total.astype(np.float64)
    return rows / np.sqrt((rows**2).mean(-1, keepdims=True) + 1e-6) * weight.astype(np.float64)


@kinds
def test_rms_norm(kind: str) -> None:
    parts = [numbers((TOKENS, HIDDEN), r) for r in range(RANKS)]
    weight, residual = numbers((HIDDEN,), 10), numbers((TOKENS, HIDDEN), 11)
    # Rounded as the separate operations are.
    total = (sum(p.astype(np.float32) for p in parts)).astype(np.float16)
    total = (total.astype(np.float32) + residual).astype(np.float16)

    def body(comm: zbccl.Communicator) -> None:
        x, h = make(kind, parts[comm.rank]), make(kind, residual)
        result = comm.all_reduce_rms_norm(x, make(kind, weight), residual=h)
        assert result.residual is h and result.codes is None and result.scales is None
        assert kind_of(result.out) == kind
        np.testing.assert_array_equal(values_of(h), total)
        np.testing.assert_allclose(values_of(result.out), norm(total, weight), rtol=2e-3, atol=1e-6)
        # Into tensors of the caller's, as a work.
        again = make(kind, np.zeros_like(residual))
        other = make(kind, np.zeros_like(residual))
        work = comm.all_reduce_rms_norm(
            make(kind, parts[comm.rank]),
            make(kind, weight - np.float16(1)),
            residual=make(kind, residual),
            residual_out=other,
            out=again,
            one_plus_weight=True,
            async_op=True,
        )
        assert work.wait().out is again and work.result.residual is other
        np.testing.assert_array_equal(values_of(other), total)
        np.testing.assert_allclose(values_of(again), norm(total, weight), rtol=5e-3, atol=5e-3)

    run_threads(RANKS, body)


@pytest.mark.parametrize("codes", ["tensor", "group", "power_of_two", "ue8m0"])
@pytest.mark.parametrize("columns", [False, True])
def test_codes(codes: str, columns: bool) -> None:
    torch = need_torch()
    parts = [numbers((TOKENS, HIDDEN), r) for r in range(RANKS)]
    weight = numbers((HIDDEN,), 10)
    total = (sum(p.astype(np.float32) for p in parts)).astype(np.float16)
    groups = HIDDEN // 128

    def body(comm: zbccl.Communicator) -> None:
        x = torch.from_numpy(parts[comm.rank])
        result = comm.all_reduce_rms_norm(
            x,
            torch.from_numpy(weight),
            codes=codes,
            scale=0.02,
            scale_columns=columns,
            want_out=False,
        )
        assert result.out is None and result.residual is None
        assert result.codes.dtype == torch.float8_e4m3fn and result.codes.shape == x.shape
        values = result.codes.float().reshape(TOKENS, groups, 128)
        if codes == "tensor":
            assert result.scales is None
            values = values * 0.02
        else:
            scales = result.scales
            assert scales.shape == ((groups, TOKENS) if columns else (TOKENS, groups))
            scales = scales.T if columns else scales
            if codes == "ue8m0":
                assert scales.dtype == torch.uint8
                scales = torch.exp2(scales.float() - 127)
            if codes == "power_of_two":
                assert torch.equal(torch.log2(scales), torch.log2(scales).round())
            values = values * scales[..., None]
        expected = norm(total, weight).reshape(TOKENS, groups, 128)
        np.testing.assert_allclose(values.numpy(), expected, rtol=0.07, atol=0.01)

    run_threads(RANKS, body)


def test_scales_with_longer_rows() -> None:
    need_ml_dtypes()

    def body(comm: zbccl.Communicator) -> None:
        x, weight = numbers((TOKENS, HIDDEN), comm.rank), numbers((HIDDEN,), 10)
        plain = comm.all_reduce_rms_norm(x, weight, codes="group", scale_columns=True)
        padded = np.full((HIDDEN // 128, TOKENS + 2), -1, np.float32)
        comm.all_reduce_rms_norm(x, weight, codes="group", scale_columns=True, scales_out=padded)
        np.testing.assert_array_equal(padded[:, :TOKENS], plain.scales)
        assert (padded[:, TOKENS:] == -1).all()

    run_threads(2, body)


def test_what_does_not_fit_is_refused() -> None:
    def body(comm: zbccl.Communicator) -> None:
        x, weight = numbers((TOKENS, HIDDEN), 0), numbers((HIDDEN,), 1)

        def refused(match: str, *given: Any, **options: Any) -> None:
            with pytest.raises(zbccl.InvalidArgumentError, match=match):
                comm.all_reduce_rms_norm(*given, **options)

        refused("weight is f16 of shape", x, weight[1:])
        refused("residual is f32", x, weight, residual=x.astype(np.float32))
        refused("bf16 and f16", x.astype(np.float32), weight.astype(np.float32))
        refused("known are tensor", x, weight, codes="int4")
        refused("hidden is 252", x[:, :252].copy(), weight[:252].copy())
        refused("no output", x, weight, want_out=False)
        scales = np.zeros((TOKENS, 1), np.float32)
        refused("scales_out is f32", x, weight, codes="group", scales_out=scales, want_out=False,
                codes_out=zbccl.empty(x.shape, "e4m3"))  # fmt: skip
        with pytest.raises(zbccl.InvalidArgumentError, match="e4m3 or i8"):
            comm.all_reduce_quantized(x, "u8")

    run_threads(1, body)


@kinds
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("code", "error"), [("e4m3", 0.3), ("i8", 0.05), ("float8_e4m3fn", 0.3)])
def test_quantized(kind: str, dtype: str, code: str, error: float) -> None:
    parts = [numbers((5, 77), r, dtype) for r in range(RANKS)]
    total = sum(p.astype(np.float64) for p in parts)

    def body(comm: zbccl.Communicator) -> bytes:
        x = make(kind, parts[comm.rank])
        out = make(kind, np.zeros_like(parts[0]))
        assert comm.all_reduce_quantized(x, code, out=out) is out
        assert values_of(x).tolist() == parts[comm.rank].tolist()
        assert np.abs(values_of(out) - total).max() < error * total.std()
        assert comm.all_reduce_quantized(x, code) is x
        assert comm.all_reduce_quantized(x, code, async_op=True).wait() is x
        return values_of(out).tobytes()

    assert len(set(run_threads(RANKS, body))) == 1


def test_mismatch() -> None:
    def body(comm: zbccl.Communicator) -> None:
        x = numbers((TOKENS, HIDDEN), 0)
        with pytest.raises(zbccl.InvalidUsageError, match="as i8"):
            comm.all_reduce_quantized(x, "i8" if comm.rank == 1 else "e4m3")
        with pytest.raises(zbccl.InvalidUsageError, match="epsilon 0.5"):
            comm.all_reduce_rms_norm(x, x[0], eps=0.5 if comm.rank == 1 else 1e-6)

    run_threads(2, body)
