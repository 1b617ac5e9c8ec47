"""`python -m zbccl WHAT` prints where the drop-ins lie, for programs that are not to be touched."""

from __future__ import annotations

import argparse

from zbccl.drop_in import NCCL, NCCL_AUDIT, SHIMS

PLACES = {"shims": SHIMS, "nccl": NCCL, "nccl-audit": NCCL_AUDIT}


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(prog="python -m zbccl", description=__doc__)
    parser.add_argument(
        "what",
        choices=sorted(PLACES),
        help="shims: the folder for PYTHONPATH; nccl: the library with NCCL's interface, for "
        "VLLM_NCCL_SO_PATH, SGLANG_NCCL_SO_PATH or LD_PRELOAD; nccl-audit: the one for LD_AUDIT",
    )
    print(PLACES[parser.parse_args().what])


if __name__ == "__main__":
    main()
