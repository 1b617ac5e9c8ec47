"""What the tests of zbccl.deep_ep route."""

from __future__ import annotations

from typing import Any

import zbccl
from kinds import need_torch

torch = need_torch()
from zbccl import deep_ep  # noqa: E402

HIDDEN = 512
TOKENS = 24
SLOTS = 3


def random_topk(comm: Any, experts: int, seed: int, tokens: int = TOKENS) -> Any:
    """Different experts in each token's slots, and some -1."""
    generator = torch.Generator().manual_seed(100 * seed + comm.rank)
    scores = torch.rand((tokens, experts), generator=generator)
    topk = scores.topk(SLOTS, dim=1).indices
    topk[torch.rand(topk.shape, generator=generator) < 0.1] = -1
    return topk.to(deep_ep.topk_idx_t)


def gathered(comm: zbccl.Communicator, tensor: Any) -> Any:
    """(ranks, ...): every rank's tensor."""
    return comm.all_gather(tensor.contiguous()).view(comm.size, *tensor.shape)
