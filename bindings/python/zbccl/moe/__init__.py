"""Expert parallelism: tokens go to the ranks of their experts, and the results come back.

    experts = zbccl.moe.Experts(comm, num_experts=64)
    handle = experts.route(topk_idx)                     # one exchange of counts
    sent = handle.dispatch(x, topk_weights=topk_weights)
    y = run_experts(sent.x, sent.topk_idx, sent.topk_weights)
    out = handle.combine(y).x

Each row goes straight from where it lies to where it belongs, and every bit of the results follows
from the inputs alone. The C interface below it is zbccl/moe.h; docs/moe-python.md is the page of
this module.
"""

from __future__ import annotations

from zbccl.moe.experts import Experts
from zbccl.moe.handle import Handle
from zbccl.moe.results import Combined, Dispatched, Pending

__all__ = ["Combined", "Dispatched", "Experts", "Handle", "Pending"]
