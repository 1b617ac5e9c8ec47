"""Operations that are made together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zbccl import _zbccl


@contextmanager
def group() -> Iterator[None]:
    """Operations that this thread calls in the block are made together at its end.

    Sends and receives then all progress at once, so that a ring of blocking sends cannot deadlock,
    and one thread may call for several communicators. Collectives of one communicator keep their
    order. The calls return their outputs at once, which hold the results after the block; tensors
    must not be touched in between. A `Work` of an asynchronous call can be waited for after the
    block.

        with zbccl.group():
            comm.send(x, (comm.rank + 1) % comm.size)
            comm.recv(y, (comm.rank - 1) % comm.size)

    The end of the block waits until every blocking call is done and raises the first error. A call
    that was refused when it was made makes the end refuse the whole group with InvalidUsageError,
    even if its exception was caught. An exception that leaves the block cancels the group: none of
    its calls is made, and their works end with AbortedError. Groups nest; the outermost end makes
    the calls, and an exception cancels all of them. Operations only: communicators are made and
    closed outside, and sizes that are to be exchanged first must be given. Ctrl-C at the end aborts
    the group's communicators. Follows ncclGroupStart and ncclGroupEnd.
    """
    _zbccl.group_start()
    try:
        yield
    except BaseException:
        _zbccl.group_cancel()
        raise
    _zbccl.group_end()
