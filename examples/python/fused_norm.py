"""What stands between two matrix multiplications of a tensor-parallel model, in one call: the sum
of the partial results, the residual, RMSNorm, and FP8 codes for the next multiplication.

zbccl run -n 2 -- python examples/python/fused_norm.py
torchrun --nproc-per-node 2 examples/python/fused_norm.py
"""

from __future__ import annotations

import torch
import zbccl

TOKENS, HIDDEN = 16, 1024


def main() -> None:
    with zbccl.init() as comm, torch.no_grad():
        torch.manual_seed(0)
        weight = torch.rand(HIDDEN).bfloat16()
        residual = torch.randn(TOKENS, HIDDEN).bfloat16()
        torch.manual_seed(comm.rank + 1)
        partial = comm.empty((TOKENS, HIDDEN), torch.bfloat16).torch()
        partial.copy_(torch.randn(TOKENS, HIDDEN))

        # In steps.
        total = comm.all_reduce(partial.clone())
        hidden = total + residual
        squares = hidden.float().pow(2).mean(-1, keepdim=True)
        normalised = hidden.float() * torch.rsqrt(squares + 1e-6) * weight.float()

        # At once; everything that the ranks write to lies in memory that all of them reach.
        h = comm.empty((TOKENS, HIDDEN), torch.bfloat16).torch()
        h.copy_(residual)
        result = comm.all_reduce_rms_norm(partial, weight, residual=h, codes="group")
        assert torch.equal(result.residual, hidden)
        values = result.codes.float().view(TOKENS, -1, 128) * result.scales[..., None]
        difference = (result.out.float() - normalised).abs().max().item()
        quantised = (values.view(TOKENS, HIDDEN) - normalised).abs().max().item()
        assert difference < 0.02 and quantised < 0.25, (difference, quantised)
        if comm.rank == 0:
            staged = comm.get_stats()["staged_bytes"]
            print(
                f"{comm.size} ranks: within {difference:.1e} of the steps, FP8 codes within "
                f"{quantised:.1e}, {staged} bytes staged"
            )


if __name__ == "__main__":
    main()
