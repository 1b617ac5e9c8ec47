"""One layer of experts: tokens go to the ranks that hold their experts, and the results come back.

zbccl run -n 4 -- python examples/python/moe_dispatch.py
torchrun --nproc-per-node 4 examples/python/moe_dispatch.py
python examples/python/moe_dispatch.py
"""

from __future__ import annotations

import numpy as np
import zbccl

TOKENS, HIDDEN, EXPERTS, SLOTS = 64, 256, 8, 2


def expert(number: int, rows: np.ndarray) -> np.ndarray:
    """What expert `number` makes of its tokens: here a multiple, so that the sum can be checked."""
    return rows * np.float32(number + 1)


def main() -> None:
    with zbccl.init() as comm:
        generator = np.random.default_rng(comm.rank)
        # Every rank has its own number of tokens; in the pool the others read them in place.
        tokens = TOKENS + comm.rank
        x = comm.empty((tokens, HIDDEN), "f32").numpy()
        x[:] = generator.integers(-4, 4, x.shape)
        scores = generator.random((tokens, EXPERTS))
        topk_idx = np.ascontiguousarray(np.argsort(-scores, axis=1)[:, :SLOTS])
        topk_weights = np.full((tokens, SLOTS), 1 / SLOTS, np.float32)

        experts = zbccl.moe.Experts(comm, EXPERTS)
        # The one exchange of counts. The rows of each expert begin at a multiple of 16, as the
        # matrix products of a grouped GEMM want them.
        handle = experts.route(topk_idx, "expert_major", alignment=16)
        arrived = handle.dispatch(x, zero_padding=True).x

        results = comm.empty(arrived.shape, "f32").numpy()  # read in place as well
        for number, first, end in zip(
            handle.local_experts, handle.expert_offsets, handle.expert_offsets[1:], strict=False
        ):
            results[first:end] = expert(number, arrived[first:end])
        y = handle.combine(results, topk_weights=topk_weights).x

        expected = x * (topk_idx + 1).mean(axis=1, keepdims=True).astype(np.float32)
        assert (y == expected).all()
        # The same tokens once more, as bytes with a scale for each row: no other exchange.
        codes = handle.dispatch(x, quant="int8", zero_padding=True)
        assert codes.scales is not None
        assert np.abs(codes.x * codes.scales - arrived).max() < 0.02
        if comm.rank == 0:
            staged = experts.report()["staged_bytes"]
            print(f"{comm.size} ranks, {EXPERTS} experts: sums are right, {staged} bytes staged")


if __name__ == "__main__":
    main()
