"""Makes the back end "zbccl" known to torch.distributed, without loading it.

PyTorch calls `register` when it is imported, by the entry point group torch.backends. Nothing here
loads zbccl's library: that happens with the first group.
"""

from __future__ import annotations

from typing import Any

_NAME = "zbccl"


def _create(opts: Any, backend_options: Any = None) -> Any:
    from zbccl.torch.process_group import create

    return create(opts, backend_options)


def register() -> bool:
    """Registers the back end; False where another package has taken the name."""
    import torch.distributed as dist

    if not dist.is_available():
        return True
    known = dist.Backend._plugins.get(_NAME.upper())
    if known is not None:
        return bool(known.creator_fn is _create)
    dist.Backend.register_backend(_NAME, _create, extended_api=True, devices=["cpu", "cuda"])
    return True
