"""FP8 rows and measures of difference."""

from __future__ import annotations

import torch

GROUP = 128
LARGEST = 448.0  # of e4m3


def calc_diff(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - 2 xy / (x^2 + y^2), in f64 and of both plus 1: 0 where `x` and `y` are equal."""
    x, y = x.double() + 1, y.double() + 1
    both = float((x * x + y * y).sum())
    return 1 - 2 * float((x * y).sum()) / both if both else 0.0


def hash_tensor(t: torch.Tensor) -> int:
    """Depends on every bit, not on the order of the elements taken four bytes at a time."""
    return int(t.contiguous().view(torch.int32).sum())


def align_up(x: int, y: int) -> int:
    """The least multiple of `y` that is not below `x`."""
    return -(-x // y) * y


def per_token_cast_to_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 rows of `x` (rows, width), and an f32 scale for each group of 128."""
    rows, width = x.shape
    groups = align_up(width, GROUP) // GROUP
    padded = torch.zeros((rows, groups * GROUP), dtype=torch.float32, device=x.device)
    padded[:, :width] = x
    padded = padded.view(rows, groups, GROUP)
    most = padded.abs().amax(dim=2).clamp(min=1e-4)
    codes = (padded * (LARGEST / most.unsqueeze(2))).to(torch.float8_e4m3fn)
    return codes.view(rows, groups * GROUP)[:, :width].contiguous(), most / LARGEST


def per_token_cast_back(x_fp8: torch.Tensor, x_scales: torch.Tensor) -> torch.Tensor:
    """bf16 rows of e4m3 ones and their scales, f32 or exponents packed in i32."""
    if x_fp8.numel() == 0:
        return x_fp8.to(torch.bfloat16)
    if x_scales.dtype == torch.int32:
        exponents = x_scales.reshape(-1).view(torch.uint8).to(torch.int32)
        x_scales = (exponents << 23).view(torch.float32)
    rows, width = x_fp8.shape
    scales = x_scales.float().reshape(rows, -1).repeat_interleave(GROUP, dim=1)[:, :width]
    return (x_fp8.float() * scales).to(torch.bfloat16)


def inplace_unique(x: torch.Tensor, num_slots: int) -> None:
    """Leaves each value from 0 to num_slots - 1 once in each row of `x`, -1 behind them."""
    rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    named = torch.zeros((x.shape[0], num_slots + 1), dtype=torch.bool, device=x.device)
    named[rows, torch.where(x < 0, num_slots, x).long()] = True
    values = torch.where(named[:, :num_slots], torch.arange(num_slots, device=x.device), -1)
    found = values.sort(dim=1, descending=True).values[:, : x.shape[1]]
    x.fill_(-1)
    x[:, : found.shape[1]] = found.to(x.dtype)


def create_grouped_scores(
    scores: torch.Tensor, group_idx: torch.Tensor, num_groups: int
) -> torch.Tensor:
    """`scores` (tokens, experts) with those outside of the groups in `group_idx` set to 0."""
    tokens, experts = scores.shape
    chosen = torch.zeros((tokens, num_groups), dtype=torch.bool, device=scores.device)
    chosen.scatter_(1, group_idx, True)
    grouped = scores.view(tokens, num_groups, -1) * chosen.unsqueeze(2)
    return grouped.view(tokens, experts)
