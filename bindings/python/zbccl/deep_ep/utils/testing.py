"""Timing calls: on a GPU by its own clock where one is used, else by the processor's."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from zbccl.errors import InvalidArgumentError


def bench(
    fn: Callable[[], Any],
    num_warmups: int = 50,
    num_tests: int = 50,
    post_fn: Callable[[], Any] | None = None,
) -> tuple[float, float, float]:
    """Seconds that a call takes: average, least and most of `num_tests`."""
    for _ in range(num_warmups):
        fn()
    timed = _timed_on_gpu if torch.cuda.is_initialized() else _timed
    times = timed(fn, num_tests, post_fn or (lambda: None))
    return sum(times) / len(times), min(times), max(times)


def _timed(fn: Callable[[], Any], count: int, after: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
        after()
    return times


def _timed_on_gpu(fn: Callable[[], Any], count: int, after: Callable[[], Any]) -> list[float]:
    """Between events on the current stream; the first call is left out."""
    pairs = []
    torch.cuda.synchronize()
    for _ in range(count + 1):
        pairs.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        pairs[-1][0].record()
        fn()
        pairs[-1][1].record()
        after()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1e3 for begin, end in pairs[1:]]


def bench_kineto(
    fn: Callable[[], Any],
    kernel_names: str | Sequence[str],
    num_tests: int = 30,
    suppress_kineto_output: bool = False,
    trace_path: str | None = None,
    barrier_comm_profiling: bool = False,
    num_kernels_per_period: int = 1,
) -> Any:
    """Average seconds of the events in PyTorch's profile whose names contain `kernel_names`: of
    kernels where there are any, else of the marks that calls on the CPU make.

    One number for a name, a tuple for several; with `num_kernels_per_period` > 1 each is a list of
    the averages of every n-th event, from the first, the second, ... on.
    """
    names = (kernel_names,) if isinstance(kernel_names, str) else tuple(kernel_names)
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_initialized():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    quiet = contextlib.redirect_stdout(io.StringIO())
    with (
        quiet if suppress_kineto_output else contextlib.nullcontext(),
        torch.profiler.profile(activities=activities) as profile,
    ):
        for _ in range(num_tests):
            if barrier_comm_profiling:
                dist.barrier()
            fn()
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    if trace_path is not None:
        profile.export_chrome_trace(trace_path)
    durations = []
    for name in names:
        named = [event for event in profile.events() if name in event.name]
        kernels = [event for event in named if event.device_type != torch.autograd.DeviceType.CPU]
        events = kernels or named
        if not events or len(events) % num_kernels_per_period:
            raise InvalidArgumentError(
                f"bench_kineto: {len(events)} events are named *{name}*; expected a multiple of "
                f"{num_kernels_per_period}"
            )
        events.sort(key=lambda event: event.time_range.start)
        periods = [events[i::num_kernels_per_period] for i in range(num_kernels_per_period)]
        averages = [
            sum(event.time_range.elapsed_us() for event in period) / len(period) / 1e6
            for period in periods
        ]
        durations.append(averages if num_kernels_per_period > 1 else averages[0])
    return durations[0] if isinstance(kernel_names, str) else tuple(durations)
