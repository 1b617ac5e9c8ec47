"""Helpers that programs written for DeepEP import."""

from __future__ import annotations

from zbccl.deep_ep.event import EventOverlap
from zbccl.deep_ep.utils import envs, math, testing

__all__ = ["EventOverlap", "envs", "math", "testing"]
