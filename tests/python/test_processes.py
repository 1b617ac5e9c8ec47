"""Ranks that are processes: rendezvous, zero staging, death, signals, fork, launchers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zbccl
from kinds import make, need_torch, values_of
from ranks import LIMIT, run_processes


def every_operation(comm: zbccl.Communicator, kinds: tuple[str, ...]) -> dict[str, int]:
    for kind in kinds:
        x = make(kind, np.full((4, 5), 1.0 + comm.rank, np.float32))
        comm.all_reduce(x)
        assert set(values_of(x).ravel().tolist()) == {3.0}
        y = comm.all_gather(make(kind, np.full(3, comm.rank, np.int64)))
        assert values_of(y).tolist() == [0] * 3 + [1] * 3
        z = comm.reduce_scatter(make(kind, np.arange(6, dtype=np.float64)))
        assert values_of(z).tolist() == [[0, 2, 4], [6, 8, 10]][comm.rank]
        b = comm.broadcast(make(kind, np.full(3, comm.rank)), 1)
        assert values_of(b).tolist() == [1] * 3
        if comm.rank == 0:
            comm.send(make(kind, np.arange(5)), 1)
        else:
            got = comm.recv(make(kind, np.zeros(5, np.int64)), 0)
            assert values_of(got).tolist() == [0, 1, 2, 3, 4]
        comm.barrier()
    return comm.get_stats()


@pytest.mark.parametrize("kinds", [("zbccl", "numpy"), ("torch",)], ids="-".join)
def test_every_operation(kinds: tuple[str, ...]) -> None:
    if "torch" in kinds:
        need_torch()
    results = run_processes(2, every_operation, kinds)
    assert all(stats["operations"] > 0 and stats["failures"] == 0 for stats in results.values())


def on_pool_tensors(comm: zbccl.Communicator) -> tuple[dict[str, int], str]:
    for count in (1, 1000, 1 << 20):
        x = comm.empty(count, "f32")
        x.numpy()[:] = 1
        comm.all_reduce(x)
        assert x.numpy()[-1] == comm.size
        gathered = comm.all_gather(x)
        comm.reduce_scatter(gathered)
        comm.broadcast(x, 1)
    return comm.get_stats(), comm.last_algorithm


def test_pool_tensors_are_never_staged() -> None:
    for stats, algorithm in run_processes(2, on_pool_tensors).values():
        assert stats["staged_bytes"] == 0
        assert algorithm != "none"


def until_a_peer_dies(comm: zbccl.Communicator) -> str:
    comm.barrier()
    if comm.rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        while True:
            comm.all_reduce(comm.empty(16))
    except zbccl.RemoteFailedError as error:
        assert isinstance(comm.async_error, zbccl.RemoteFailedError)
        return str(error)


def test_death_of_a_peer_names_it() -> None:
    results = run_processes(3, until_a_peer_dies, silent=(2,))
    assert sorted(results) == [0, 1]
    for message in results.values():
        assert "rank 2" in message


def run_script(text: str, *arguments: str, interrupt_at: str | None = None) -> tuple[int, str]:
    """Runs Python source in a fresh process; SIGINT is sent when it prints `interrupt_at`."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(text), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        lines = []
        assert process.stdout is not None
        if interrupt_at is not None:
            for line in process.stdout:
                lines.append(line)
                if line.strip() == interrupt_at:
                    break
            # By now the call has most likely begun; if not, Python itself raises the exception.
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=LIMIT)
        return process.returncode, "".join(lines) + rest
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "call",
    [
        "comms[0].barrier()",
        "comms[0].all_reduce(zbccl.empty(5))",
        "comms[0].recv(zbccl.empty(5), 1)",
        "comms[0].barrier(async_op=True).wait()",
        "comms[0].split(0)",
        "zbccl.init(0, 2, zbccl.get_unique_id())",
        "with zbccl.group(): comms[0].barrier(); comms[0].recv(zbccl.empty(5), 1)",
    ],
)
def test_keyboard_interrupt(call: str) -> None:
    code, output = run_script(
        f"""
        import zbccl
        comms = zbccl.init_all(2)
        try:
            print("waiting")
            {call}
        except KeyboardInterrupt:
            print("interrupted")
        """,
        interrupt_at="waiting",
    )
    assert "interrupted" in output, output
    assert code == 0, output


def test_interrupted_rank_tells_the_others() -> None:
    code, output = run_script(
        """
        import threading, zbccl
        comms = zbccl.init_all(2)
        def other():
            try:
                comms[1].recv(zbccl.empty(3), 0)
            except zbccl.AbortedError:
                print("told")
        thread = threading.Thread(target=other)
        thread.start()
        try:
            print("waiting")
            comms[0].recv(zbccl.empty(3), 1)
        except KeyboardInterrupt:
            comms[0].abort()
        thread.join()
        """,
        interrupt_at="waiting",
    )
    assert "told" in output, output
    assert code == 0, output


def test_a_handler_of_the_program_is_left_in_charge() -> None:
    code, output = run_script(
        """
        import signal, threading, time, zbccl
        seen = []
        signal.signal(signal.SIGINT, lambda *_: seen.append(1))
        comms = zbccl.init_all(2)
        def later():
            time.sleep(1)
            comms[1].barrier()
        thread = threading.Thread(target=later)
        thread.start()
        print("waiting")
        comms[0].barrier()
        thread.join()
        assert seen == [1] and comms[0].async_error is None
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        print("went on")
        """,
        interrupt_at="waiting",
    )
    assert "went on" in output, output
    assert code == 0, output


def test_end_of_the_program_closes_communicators() -> None:
    code, output = run_script(
        """
        import zbccl
        comms = zbccl.init_all(2)
        work = comms[0].barrier(async_op=True)  # rank 1 never comes
        x = zbccl.empty(5).numpy()
        print("end")
        """
    )
    assert (code, output) == (0, "end\n")


def test_forked_child_gets_an_error() -> None:
    code, output = run_script(
        """
        import os, sys, zbccl
        comm = zbccl.init_all(1)[0]
        tensor = zbccl.empty(5)
        child = os.fork()
        if child == 0:
            try:
                comm.barrier()
            except zbccl.Error as error:
                print(type(error).__name__, error, flush=True)
            sys.exit(3)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 3
        comm.all_reduce(tensor)
        comm.close()
        print("parent goes on")
        """
    )
    assert code == 0, output
    assert "fork" in output
    assert "parent goes on" in output


SCRIPT = """
import numpy as np
import zbccl
with zbccl.init() as comm:
    x = np.full(4, 1 + comm.rank)
    comm.all_reduce(x)
    print(f"rank {comm.rank} of {comm.size} has {x.tolist()}", flush=True)
"""


def test_torchrun(tmp_path: Path) -> None:
    need_torch()
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        assert f"rank {rank} of 2 has [3, 3, 3, 3]" in done.stdout


def test_environment_variables(tmp_path: Path) -> None:
    unique_id = str(zbccl.get_unique_id())
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    processes = []
    for rank in range(2):
        ours: dict[str, Any] = {
            "ZBCCL_RANK": str(rank),
            "ZBCCL_WORLD_SIZE": "2",
            "ZBCCL_UNIQUE_ID": unique_id,
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script)],
                env={**os.environ, **ours},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    for rank, process in enumerate(processes):
        output, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, output
        assert f"rank {rank} of 2 has [3, 3, 3, 3]" in output
