"""Operations of a group that move elements and leave them as they are, under PyTorch's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._C._distributed_c10d import (
    AllgatherOptions,
    AllToAllOptions,
    BarrierOptions,
    BroadcastOptions,
    GatherOptions,
    ScatterOptions,
)

from zbccl import _zbccl
from zbccl.errors import InvalidArgumentError
from zbccl.torch.calls import flights_of, single
from zbccl.torch.reductions import Flights, Reductions, in_turn
from zbccl.torch.tensors import Finish, flat, gathered_in, numel, readable, spread_to, writable
from zbccl.torch.work import Work


def _options(cls: Any, opts: Any, timeout: Any = None, root: int | None = None) -> Any:
    if type(opts) is cls:
        return opts
    made = cls()
    made.asyncOp = True
    if timeout is not None:
        made.timeout = timeout
    if root is None and isinstance(opts, int):
        root = opts
    if root is not None:
        made.rootRank = root
    return made


class Movements(Reductions):
    """Elements of any type; those that zbccl has no arithmetic for move as integers."""

    def broadcast(
        self, tensors: Any, opts: Any = None, timeout: Any = None, *, root: int | None = None
    ) -> Work:
        """The root's tensor, in place."""
        opts = _options(BroadcastOptions, opts, timeout, root)
        x = tensors if isinstance(tensors, torch.Tensor) else single(tensors, "broadcast")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            if native.rank == opts.rootRank:
                reply = native.broadcast(readable(x), opts.rootRank, None, limit, later)
                return flights_of(reply), None
            target, finish = writable(x)
            reply = native.broadcast(target, opts.rootRank, None, limit, later)
            return flights_of(reply), finish

        return self._run("broadcast", opts, x, body, (x,), (x,))

    def all_gather_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> Work:
        """Every rank's tensor, of the same size, in one tensor."""
        opts = _options(AllgatherOptions, opts)
        self._check_parts(input, output, "all_gather")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return _all_gather(native, output, input, limit, later)

        return self._run("all_gather_into_tensor", opts, input, body, (input,), (output,))

    _allgather_base = all_gather_single
    allgather_into_tensor = all_gather_single

    def all_gather_single_coalesced(
        self,
        outputs: Sequence[torch.Tensor],
        inputs: Sequence[torch.Tensor],
        opts: Any = None,
    ) -> Work:
        """Each pair as by all_gather_single."""
        opts = _options(AllgatherOptions, opts)
        for output, x in zip(outputs, inputs, strict=True):
            self._check_parts(x, output, "all_gather")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return in_turn(
                _all_gather(native, output, x, limit, later)
                for output, x in zip(outputs, inputs, strict=True)
            )

        return self._run("all_gather_into_tensor_coalesced", opts, inputs[0], body, inputs, outputs)

    allgather_into_tensor_coalesced = all_gather_single_coalesced

    def allgather(self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None) -> Work:
        """Every rank's tensor in a list; they may differ in size, as the outputs say."""
        opts = _options(AllgatherOptions, opts, timeout)
        if isinstance(inputs, torch.Tensor):
            x, parts = inputs, outputs
        else:
            x, parts = single(inputs, "all_gather"), single(outputs, "all_gather")
        self._check_list(parts, x, "all_gather: outputs")
        self._check_own(parts, x, "all_gather")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return _all_gather_list(native, parts, x, limit, later)

        return self._run("all_gather", opts, x, body, (x,), parts)

    def allgather_coalesced(
        self, output_lists: Sequence[Any], inputs: Sequence[torch.Tensor], opts: Any = None
    ) -> Work:
        """Several all-gathers: `output_lists` has, for each rank, all its tensors."""
        opts = _options(AllgatherOptions, opts)
        lists = list(zip(*output_lists, strict=True))
        for parts, x in zip(lists, inputs, strict=True):
            self._check_list(parts, x, "all_gather: outputs")
            self._check_own(parts, x, "all_gather")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return in_turn(
                _all_gather_list(native, parts, x, limit, later)
                for parts, x in zip(lists, inputs, strict=True)
            )

        return self._run(
            "all_gather_coalesced",
            opts,
            inputs[0],
            body,
            inputs,
            [x for parts in lists for x in parts],
        )

    def gather(
        self,
        outputs: Any,
        inputs: Any,
        opts: Any = None,
        timeout: Any = None,
        *,
        root: int | None = None,
    ) -> Work:
        """Every rank's tensor, of the same size, in a list on the root."""
        opts = _options(GatherOptions, opts, timeout, root)
        x = inputs if isinstance(inputs, torch.Tensor) else single(inputs, "gather")
        is_root = self._host.rank == opts.rootRank
        parts: Sequence[torch.Tensor] = []
        if is_root:
            parts = outputs if isinstance(inputs, torch.Tensor) else single(outputs, "gather")
            self._check_list(parts, x, "gather: outputs")
            for part in parts:
                if part.numel() != x.numel():
                    raise InvalidArgumentError(
                        f"gather: an output of {part.numel()} elements for an input of {x.numel()};"
                        " gather takes tensors of one size"
                    )

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            out, finish = spread_to(parts) if is_root else (None, None)
            reply = native.gather(flat(readable(x)), opts.rootRank, out, limit, later)
            return flights_of(reply), finish

        return self._run("gather", opts, x, body, (x,), parts)

    def scatter(
        self,
        outputs: Any,
        inputs: Any,
        opts: Any = None,
        timeout: Any = None,
        *,
        root: int | None = None,
    ) -> Work:
        """One tensor of the root's list, all of one size, to each rank."""
        opts = _options(ScatterOptions, opts, timeout, root)
        if isinstance(outputs, torch.Tensor):
            output, parts = outputs, inputs
        else:
            output = single(outputs, "scatter")
            parts = single(inputs, "scatter") if inputs else []
        is_root = self._host.rank == opts.rootRank
        if is_root:
            self._check_list(parts, output, "scatter: inputs")
            for part in parts:
                if part.numel() != output.numel():
                    raise InvalidArgumentError(
                        f"scatter: an input of {part.numel()} elements for an output of "
                        f"{output.numel()}; scatter takes tensors of one size"
                    )

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            target, finish = writable(output)
            source = gathered_in(parts)[0] if is_root else None
            reply = native.scatter(source, opts.rootRank, flat(target), limit, later)
            return flights_of(reply), finish

        return self._run("scatter", opts, output, body, parts if is_root else (), (output,))

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_split_sizes: Sequence[int],
        input_split_sizes: Sequence[int],
        opts: Any = None,
        timeout: Any = None,
    ) -> Work:
        """Parts of the first dimension; without sizes they are equal."""
        opts = _options(AllToAllOptions, opts, timeout)
        if output.dtype is not input.dtype:
            raise InvalidArgumentError(
                f"all_to_all: input and output have different types, {input.dtype} and "
                f"{output.dtype}"
            )
        even = not output_split_sizes and not input_split_sizes
        sent = self._split_sizes(input, input_split_sizes, "input")
        received = self._split_sizes(output, output_split_sizes, "output")

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            source = flat(readable(input))
            target, finish = writable(output)
            if even and input.numel() == output.numel():
                reply = native.all_to_all(source, flat(target), limit, later)
            else:
                reply = native.all_to_all_v(source, sent, received, flat(target), limit, later)
            return flights_of(reply), finish

        return self._run("all_to_all_single", opts, input, body, (input,), (output,))

    alltoall_base = all_to_all_single

    def alltoall(self, outputs: Any, inputs: Any, opts: Any = None, timeout: Any = None) -> Work:
        """One tensor to each rank and one from each, of any sizes that agree between the two."""
        opts = _options(AllToAllOptions, opts, timeout)
        self._check_list(inputs, inputs[0], "all_to_all: inputs")
        self._check_list(outputs, inputs[0], "all_to_all: outputs")
        sent = [numel(x) for x in inputs]
        received = [numel(x) for x in outputs]

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            source, _ = gathered_in(inputs)
            target, finish = spread_to(outputs)
            reply = native.all_to_all_v(source, sent, received, target, limit, later)
            return flights_of(reply), finish

        return self._run("all_to_all", opts, inputs[0], body, inputs, outputs)

    def barrier(self, opts: Any = None, timeout: Any = None) -> Work:
        """Returns when every rank has come, and this rank's current stream has come as far.

        While a graph is captured it meets on the stream instead.
        """
        opts = _options(BarrierOptions, opts, timeout)
        if self._device is not None:
            stream = torch.cuda.current_stream(self._device.device)
            if torch.cuda.is_current_stream_capturing():
                return self._barrier_on(stream, opts)
            stream.synchronize()

        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            return flights_of(native.barrier(limit, later)), None

        return self._run("barrier", opts, _ON_HOST, body, (), ())

    def _barrier_on(self, stream: torch.cuda.Stream, opts: Any) -> Work:
        def body(native: _zbccl.Communicator, limit: int, later: bool) -> tuple[Flights, Finish]:
            before = _zbccl.set_launch(None, 0)
            _zbccl.set_launch(torch.cuda.current_stream(stream.device).cuda_stream, before[1])
            try:
                native.barrier(limit, False)
            finally:
                _zbccl.set_launch(*before)
            return [], None

        marker = torch.empty(0, dtype=torch.uint8, device=stream.device)
        return self._run("barrier", opts, marker, body, (), ())

    def monitored_barrier(self, timeout: Any = None, wait_all_ranks: bool = False) -> None:
        """A barrier whose error names the rank that is missing."""
        opts = _options(BarrierOptions, None, timeout)
        opts.asyncOp = False
        self.barrier(opts)

    def _check_own(self, parts: Sequence[torch.Tensor], x: torch.Tensor, call: str) -> None:
        rank = self._host.rank
        if parts[rank].numel() != x.numel():
            raise InvalidArgumentError(
                f"{call}: this rank gives {x.numel()} elements, but its place in the list has "
                f"{parts[rank].numel()}"
            )

    def _split_sizes(self, x: torch.Tensor, sizes: Sequence[int], name: str) -> list[int]:
        """Elements of each rank's part."""
        ranks = self._host.size
        rows = x.size(0) if x.dim() > 0 else 1
        if not sizes:
            if rows % ranks != 0:
                raise InvalidArgumentError(
                    f"all_to_all: the first dimension of the {name} is {rows}, which {ranks} ranks "
                    "do not divide evenly: give split sizes"
                )
            sizes = [rows // ranks] * ranks
        if len(sizes) != ranks or sum(sizes) != rows:
            raise InvalidArgumentError(
                f"all_to_all: the {name} split sizes {list(sizes)} do not split a first dimension "
                f"of {rows} among {ranks} ranks"
            )
        row = numel(x) // rows if rows else 0
        return [size * row for size in sizes]


_ON_HOST = torch.empty(0)


def _all_gather(
    native: _zbccl.Communicator, output: torch.Tensor, x: torch.Tensor, limit: int, later: bool
) -> tuple[Flights, Finish]:
    target, finish = writable(output)
    flight, _ = native.all_gather(flat(readable(x)), flat(target), limit, later)
    return [] if flight is None else [flight], finish


def _all_gather_list(
    native: _zbccl.Communicator,
    parts: Sequence[torch.Tensor],
    x: torch.Tensor,
    limit: int,
    later: bool,
) -> tuple[Flights, Finish]:
    out, finish = spread_to(parts)
    sizes = [numel(part) for part in parts]
    source = flat(readable(x))
    if min(sizes) == max(sizes):
        reply = native.all_gather(source, out, limit, later)
    else:
        reply = native.all_gather_v(source, sizes, out, limit, later)
    return flights_of(reply), finish
