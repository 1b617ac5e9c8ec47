"""`python -m zbccl shims`: the folder to put on PYTHONPATH, so that programs find the drop-ins."""

from __future__ import annotations

import argparse

from zbccl.drop_in import SHIMS


def main() -> None:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(prog="python -m zbccl", description=__doc__)
    parser.add_argument("what", choices=["shims"], help="shims: print that folder")
    parser.parse_args()
    print(SHIMS)


if __name__ == "__main__":
    main()
