"""A feed-forward layer of a language model, its weights split over the ranks, with PyTorch on CPU.

Every rank holds a slice of both matrices; one all-reduce joins the partial outputs in place.

zbccl run -n 2 -- python examples/python/tensor_parallel.py
torchrun --nproc-per-node 2 examples/python/tensor_parallel.py
"""

from __future__ import annotations

import torch
import zbccl

TOKENS, WIDTH, HIDDEN = 16, 256, 1024


def main() -> None:
    with zbccl.init() as comm, torch.no_grad():
        torch.manual_seed(0)  # the same weights everywhere; a rank keeps its slice
        up = torch.randn(HIDDEN, WIDTH) / WIDTH**0.5
        down = torch.randn(WIDTH, HIDDEN) / HIDDEN**0.5
        x = torch.randn(TOKENS, WIDTH)
        whole = torch.relu(x @ up.T) @ down.T

        own = slice(comm.rank * HIDDEN // comm.size, (comm.rank + 1) * HIDDEN // comm.size)
        # The layer writes its partial output straight into memory that the other ranks reach.
        partial = comm.empty((TOKENS, WIDTH), torch.float32).torch()
        torch.mm(torch.relu(x @ up[own].T), down[:, own].T, out=partial)
        comm.all_reduce(partial)

        difference = (partial - whole).abs().max().item()
        assert difference < 1e-4, difference
        if comm.rank == 0:
            staged = comm.get_stats()["staged_bytes"]
            print(f"{comm.size} ranks agree within {difference:.1e}, {staged} bytes staged")


if __name__ == "__main__":
    main()
