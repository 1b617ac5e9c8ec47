"""The communicator of a buffer."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from zbccl._zbccl import get_unique_id
from zbccl.communicator import Communicator
from zbccl.errors import InvalidArgumentError
from zbccl.rendezvous import init


def join(group: Any, comm: Any) -> tuple[Communicator, bool]:
    """The communicator of a torch.distributed group, or of an mpi4py communicator; collective.

    Rank 0 passes a zbccl id to the others by the group's own means, so the secret in it is as
    private as these. A zbccl.Communicator in the place of the group is used as it is, and stays its
    owner's: then the second value is False.
    """
    if isinstance(group, Communicator):
        return group, False
    if group is not None:
        rank, size = group.rank(), group.size()
        ids = [str(get_unique_id()) if rank == 0 else None]
        dist.broadcast_object_list(ids, src=dist.get_global_rank(group, 0), group=group)
        unique_id = ids[0]
    elif comm is not None:
        rank, size = comm.Get_rank(), comm.Get_size()
        unique_id = comm.bcast(str(get_unique_id()) if rank == 0 else None, root=0)
    else:
        raise InvalidArgumentError(
            "Buffer: give a torch.distributed group, or an mpi4py communicator as comm"
        )
    return init(rank, size, unique_id), True
