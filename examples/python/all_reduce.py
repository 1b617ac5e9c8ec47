"""Sums a vector over all ranks, with NumPy.

zbccl run -n 4 -- python examples/python/all_reduce.py
torchrun --nproc-per-node 4 examples/python/all_reduce.py
"""

from __future__ import annotations

import time

import zbccl


def main() -> None:
    with zbccl.init() as comm:
        # Memory that the other ranks read and write in place: nothing is staged.
        x = comm.empty(1 << 20, "f32")
        values = x.numpy()
        values[:] = comm.rank + 1

        comm.all_reduce(x)
        expected = comm.size * (comm.size + 1) / 2
        assert (values == expected).all()

        # Work that overlaps with the next sum.
        work = comm.all_reduce(x, "max", async_op=True)
        other = sum(range(1000))
        work.wait()
        assert other == 499500

        comm.barrier()
        start = time.perf_counter()
        for _ in range(20):
            comm.all_reduce(x, "avg")
        milliseconds = (time.perf_counter() - start) / 20 * 1e3
        if comm.rank == 0:
            stats = comm.get_stats()
            print(
                f"{comm.size} ranks, {x.nbytes >> 20} MiB: {milliseconds:.2f} ms "
                f"({comm.last_algorithm}), {stats['staged_bytes']} bytes staged"
            )


if __name__ == "__main__":
    main()
