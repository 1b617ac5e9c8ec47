"""Sends tokens to the ranks that serve their experts and brings the answers back, with NumPy.

zbccl run -n 4 -- python examples/python/exchange_tokens.py
torchrun --nproc-per-node 4 examples/python/exchange_tokens.py
"""

from __future__ import annotations

import numpy as np
import zbccl

TOKENS, WIDTH = 1000, 256


def exchange(comm: zbccl.Communicator) -> None:
    """A different number of tokens for each pair of ranks; every expert doubles what it gets."""
    generator = np.random.default_rng(comm.rank)
    expert = np.sort(generator.integers(0, comm.size, TOKENS))  # tokens lie grouped by their rank
    sent = np.bincount(expert, minlength=comm.size).tolist()

    # The ranks tell each other how much they send. Without recv_sizes all_to_all_v does that by
    # itself, but here the way back needs them too.
    sizes = comm.empty(comm.size, "i64")
    sizes.numpy()[:] = sent
    received = comm.all_to_all(sizes).numpy().tolist()

    # Memory that the other ranks read in place: nothing is staged.
    tokens = comm.empty((TOKENS, WIDTH), "f32")
    tokens.numpy()[:] = generator.standard_normal((TOKENS, WIDTH))
    arrived = comm.all_to_all_v(tokens, sent, received)
    arrived.numpy()[:] *= 2
    answers = comm.all_to_all_v(arrived, received, sent)
    assert (answers.numpy() == 2 * tokens.numpy()).all()


def pass_note(comm: zbccl.Communicator) -> None:
    """Around the ring; in a group every rank may send first."""
    note = comm.empty(1, "i32")
    mine = comm.empty(1, "i32")
    mine.numpy()[:] = comm.rank
    left, right = (comm.rank - 1) % comm.size, (comm.rank + 1) % comm.size
    with zbccl.group():
        comm.send(mine, right)
        comm.recv(note, left)
    assert note.numpy()[0] == left


def main() -> None:
    with zbccl.init() as comm:
        exchange(comm)
        pass_note(comm)
        mine = comm.empty(comm.rank, "u8")
        everyone = comm.all_gather_v(mine)  # as many elements from each rank as it has
        assert everyone.size == comm.size * (comm.size - 1) // 2
        if comm.rank == 0:
            staged = comm.get_stats()["staged_bytes"]
            print(f"{comm.size} ranks exchanged {TOKENS} tokens each, {staged} bytes staged")


if __name__ == "__main__":
    main()
