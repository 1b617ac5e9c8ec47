"""`import deep_ep` where this folder's parent is on PYTHONPATH: gives zbccl.deep_ep."""

from __future__ import annotations

from zbccl.drop_in import install_deep_ep

install_deep_ep()
