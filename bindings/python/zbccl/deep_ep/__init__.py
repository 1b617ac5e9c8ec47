"""The module `deep_ep` of DeepEP 1.2.1, served by zbccl on PyTorch's CPU tensors.

    import zbccl
    zbccl.install_deep_ep()      # or PYTHONPATH=$(python -m zbccl shims)
    from deep_ep import Buffer

docs/deep_ep.md says what is the same and what is not.
"""

from __future__ import annotations

import torch

from zbccl.deep_ep import utils
from zbccl.deep_ep.buffer import Buffer
from zbccl.deep_ep.config import Config
from zbccl.deep_ep.event import EventHandle, EventOverlap

topk_idx_t = torch.int64

__all__ = ["Buffer", "Config", "EventHandle", "EventOverlap", "topk_idx_t", "utils"]
