from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import zbccl


def pytest_configure() -> None:
    # A shell starts background jobs with SIGINT ignored, which the tests' children would inherit.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may themselves run under a launcher."""
    prefixes = ("ZBCCL_RANK", "ZBCCL_WORLD", "ZBCCL_UNIQUE", "SLURM_", "OMPI_", "PMI_", "PMIX_")
    torchrun = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in list(os.environ):
        if name.startswith(prefixes) or name in torchrun:
            monkeypatch.delenv(name)


@pytest.fixture
def solo() -> Iterator[zbccl.Communicator]:
    """A communicator of one rank."""
    with zbccl.init() as comm:
        yield comm
