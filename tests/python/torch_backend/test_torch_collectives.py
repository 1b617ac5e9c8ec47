"""The methods of a group, on threads: every element of every result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch_ranks import dist, run_group_threads, torch

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
MOVED = [*FLOATS, *INTEGERS, torch.bool, torch.complex64, torch.complex128, torch.float8_e5m2]
MOVED += [torch.float8_e4m3fnuz, torch.uint16]
SIZES = [0, 1, 3, 1000]
ReduceOp = dist.ReduceOp
c10d = torch._C._distributed_c10d


def values(rank: int, shape: Any, dtype: Any, seed: int = 0) -> Any:
    """Random numbers of that rank; small, so that narrow types hold their sums exactly."""
    generator = torch.Generator().manual_seed(1000 * seed + rank)
    numbers = torch.randint(0, 7, (*shape, 2), generator=generator)
    if dtype.is_complex:
        return torch.view_as_complex(numbers.to(torch.float64)).to(dtype)
    if dtype is torch.bool:
        return numbers[..., 0] > 3
    return numbers[..., 0].to(torch.float32).to(dtype)


def same(x: Any, y: Any) -> bool:
    return x.dtype == y.dtype and x.shape == y.shape and raw(x) == raw(y)


def raw(x: Any) -> bytes:
    x = x.contiguous()
    x = torch.view_as_real(x) if x.is_complex() else x
    return bytes(x.view(-1).view(torch.uint8).numpy()) if x.numel() else b""


def poison(shape: Any, dtype: Any) -> Any:
    x = torch.empty(shape, dtype=dtype)
    bytes_of = torch.view_as_real(x) if x.is_complex() else x
    if x.numel():
        bytes_of.view(-1).view(torch.uint8).fill_(0x2A if dtype is not torch.bool else 1)
    return x


def spread(x: Any) -> Any:
    """The same values in memory with gaps."""
    wide = torch.empty((*x.shape, 2), dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def options(kind: Any, later: bool, **values: Any) -> Any:
    made = kind()
    made.asyncOp = later
    for name, value in values.items():
        setattr(made, name, value)
    return made


def reference(parts: list[Any], op: Any) -> Any:
    dtype = parts[0].dtype
    wide = torch.float32 if dtype.is_floating_point and dtype.itemsize < 4 else dtype
    total = parts[0].to(wide, copy=True)
    for x in parts[1:]:
        x = x.to(wide)
        if op in (ReduceOp.SUM, ReduceOp.AVG):
            total = total | x if dtype is torch.bool else total + x
        elif op == ReduceOp.PRODUCT:
            total = total & x if dtype is torch.bool else total * x
        elif op == ReduceOp.MIN:
            total = torch.minimum(total, x)
        elif op == ReduceOp.MAX:
            total = torch.maximum(total, x)
        elif op == ReduceOp.BAND:
            total = total & x
        elif op == ReduceOp.BOR:
            total = total | x
        else:
            total = total ^ x
    if op == ReduceOp.AVG:
        real = torch.view_as_real(total) if dtype.is_complex else total
        real /= len(parts)
    return total.to(dtype)


def cases() -> list[tuple[Any, Any]]:
    plain = [ReduceOp.SUM, ReduceOp.PRODUCT, ReduceOp.MIN, ReduceOp.MAX]
    bits = [ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR]
    made = [(dtype, op) for dtype in FLOATS for op in [*plain, ReduceOp.AVG]]
    made += [(dtype, op) for dtype in INTEGERS for op in [*plain, *bits]]
    made += [(torch.bool, op) for op in [*plain, *bits]]
    made += [(torch.complex64, ReduceOp.SUM), (torch.complex128, ReduceOp.AVG)]
    return made


def reductions(group: Any) -> None:
    rank, size = group.rank(), group.size()
    kinds = [c10d.AllreduceOptions, c10d.ReduceOptions, c10d.ReduceScatterOptions]
    for number, (dtype, op) in enumerate(cases()):
        count = SIZES[number % len(SIZES)]
        later = number % 2 == 0
        form: Callable[[Any], Any] = spread if number % 3 == 0 else lambda x: x
        parts = [values(r, (count, 3), dtype, number) for r in range(size)]
        total = reference(parts, op)

        x = form(parts[rank].clone())
        group.allreduce([x], options(kinds[0], later, reduceOp=op)).wait()
        assert same(x, total), (dtype, op, count)

        root = number % size
        x = form(parts[rank].clone())
        group.reduce([x], options(kinds[1], later, reduceOp=op, rootRank=root)).wait()
        assert same(x, total if rank == root else parts[rank]), (dtype, op, count)

        pieces = [values(r, (size * count, 2), dtype, number) for r in range(size)]
        expected = reference(pieces, op)[rank * count : (rank + 1) * count]
        out = form(poison((count, 2), dtype))
        how = options(kinds[2], later, reduceOp=op)
        group._reduce_scatter_base(out, form(pieces[rank]), how).wait()
        assert same(out, expected), (dtype, op, count)

        # A list of tensors of unlike sizes: r + 1 rows for rank r.
        rows = [count * (r + 1) for r in range(size)]
        lists = [
            [values(r, (n, 2), dtype, number + 7 * p) for p, n in enumerate(rows)]
            for r in range(size)
        ]
        out = form(poison((rows[rank], 2), dtype))
        group.reduce_scatter([out], [[form(x) for x in lists[rank]]], how).wait()
        assert same(out, reference([lists[r][rank] for r in range(size)], op)), (dtype, op)


def movements(group: Any) -> None:
    rank, size = group.rank(), group.size()
    for number, dtype in enumerate(MOVED):
        for count in SIZES:
            seed = 100 * number + count
            later = (number + count) % 2 == 0
            form: Callable[[Any], Any] = spread if number % 3 == 1 else lambda x: x
            root = number % size
            parts = [values(r, (count, 2), dtype, seed) for r in range(size)]

            x = form(parts[rank].clone() if rank == root else poison((count, 2), dtype))
            group.broadcast([x], options(c10d.BroadcastOptions, later, rootRank=root)).wait()
            assert same(x, parts[root]), (dtype, count)

            how = options(c10d.AllgatherOptions, later)
            out = form(poison((size * count, 2), dtype))
            group._allgather_base(out, form(parts[rank]), how).wait()
            assert same(out, torch.cat(parts)), (dtype, count)

            outs = [form(poison((count, 2), dtype)) for _ in range(size)]
            group.allgather([outs], [form(parts[rank])], how).wait()
            assert all(same(x, y) for x, y in zip(outs, parts, strict=True)), (dtype, count)

            # In one piece of memory, and of unlike sizes.
            uneven = [values(r, (count + r, 2), dtype, seed) for r in range(size)]
            outs = list(poison((sum(map(len, uneven)), 2), dtype).split([len(x) for x in uneven]))
            group.allgather([outs], [uneven[rank]], how).wait()
            assert all(same(x, y) for x, y in zip(outs, uneven, strict=True)), (dtype, count)

            outs = [form(poison((count, 2), dtype)) for _ in range(size if rank == root else 0)]
            how = options(c10d.GatherOptions, later, rootRank=root)
            group.gather([outs] if outs else [], [form(parts[rank])], how).wait()
            assert all(same(x, y) for x, y in zip(outs, parts, strict=False)), (dtype, count)

            out = form(poison((count, 2), dtype))
            given = [[form(x) for x in parts]] if rank == root else []
            how = options(c10d.ScatterOptions, later, rootRank=root)
            group.scatter([out], given, how).wait()
            assert same(out, parts[rank]), (dtype, count)

            lists = [
                [values(9 * r + p, (count + r, 3), dtype, seed) for p in range(size)]
                for r in range(size)
            ]
            how = options(c10d.AllToAllOptions, later)
            expected = [lists[r][rank] for r in range(size)]
            outs = [form(poison(x.shape, dtype)) for x in expected]
            group.alltoall(outs, [form(x) for x in lists[rank]], how).wait()
            assert all(same(x, y) for x, y in zip(outs, expected, strict=True)), (dtype, count)

            out = form(poison(torch.cat(expected).shape, dtype))
            sent = [len(x) for x in lists[rank]]
            received = [len(x) for x in expected]
            source = form(torch.cat(lists[rank]))
            group.alltoall_base(out, source, received, sent, how).wait()
            assert same(out, torch.cat(expected)), (dtype, count)

            blocks = [values(r, (size * count, 2), dtype, seed) for r in range(size)]
            out = form(poison((size * count, 2), dtype))
            group.alltoall_base(out, form(blocks[rank]), [], [], how).wait()
            mine = [x[rank * count : (rank + 1) * count] for x in blocks]
            assert same(out, torch.cat(mine)), (dtype, count)


def several_at_once(group: Any) -> None:
    rank, size = group.rank(), group.size()
    shapes = [(3,), (0,), (4, 5), (1000,)]
    for later in (False, True):
        xs = [values(rank, shape, torch.float32, i) for i, shape in enumerate(shapes)]
        how = options(c10d.AllreduceCoalescedOptions, later)
        group.allreduce_coalesced(xs, how).wait()
        for i, shape in enumerate(shapes):
            parts = [values(r, shape, torch.float32, i) for r in range(size)]
            assert same(xs[i], reference(parts, ReduceOp.SUM))

        how = options(c10d.AllgatherOptions, later)
        ins = [values(rank, shape, torch.int64, i) for i, shape in enumerate(shapes)]
        outs = [poison((size * shape[0], *shape[1:]), torch.int64) for shape in shapes]
        for name in ("all_gather_single_coalesced", "allgather_into_tensor_coalesced"):
            getattr(group, name)(outs, ins, how).wait()
            for i, shape in enumerate(shapes):
                parts = [values(r, shape, torch.int64, i) for r in range(size)]
                assert same(outs[i], torch.cat(parts))
                outs[i].fill_(-1)
        lists = [[poison(shape, torch.int64) for shape in shapes] for _ in range(size)]
        group.allgather_coalesced(lists, ins, how).wait()
        for r in range(size):
            for i, shape in enumerate(shapes):
                assert same(lists[r][i], values(r, shape, torch.int64, i))

        how = options(c10d.ReduceScatterOptions, later)
        wide = [(size * shape[0], *shape[1:]) for shape in shapes]
        ins = [values(rank, shape, torch.float32, i) for i, shape in enumerate(wide)]
        for name in ("reduce_scatter_single_coalesced", "reduce_scatter_tensor_coalesced"):
            outs = [poison(shape, torch.float32) for shape in shapes]
            getattr(group, name)(outs, ins, how).wait()
            for i, shape in enumerate(wide):
                total = reference(
                    [values(r, shape, torch.float32, i) for r in range(size)], ReduceOp.SUM
                )
                assert same(outs[i], total[rank * shapes[i][0] : (rank + 1) * shapes[i][0]])


def multiplied_sums(group: Any) -> None:
    rank, size = group.rank(), group.size()
    for later in (False, True):
        for factor in (0.5, torch.tensor([2.0])):
            op = (
                ReduceOp.PREMUL_SUM(factor)
                if callable(ReduceOp.PREMUL_SUM)
                else (dist._make_nccl_premul_sum(factor))
            )
            parts = [values(r, (size * 5,), torch.float32) * factor for r in range(size)]
            total = reference(parts, ReduceOp.SUM)
            x = values(rank, (size * 5,), torch.float32)
            given = x.clone()
            group.allreduce([x], options(c10d.AllreduceOptions, later, reduceOp=op)).wait()
            assert same(x, total)
            x = given.clone()
            how = options(c10d.ReduceOptions, later, reduceOp=op, rootRank=size - 1)
            group.reduce([x], how).wait()
            assert same(x, total if rank == size - 1 else given)
            out = poison((5,), torch.float32)
            how = options(c10d.ReduceScatterOptions, later, reduceOp=op)
            group.reduce_scatter_single(out, given, how).wait()
            assert same(out, total[rank * 5 : rank * 5 + 5])
            group.reduce_scatter([out.fill_(-1)], [list(given.split(5))], how).wait()
            assert same(out, total[rank * 5 : rank * 5 + 5])
            assert same(given, values(rank, (size * 5,), torch.float32))


def mistakes(group: Any) -> None:
    x = torch.ones(4)
    with pytest.raises(ValueError, match="BAND of torch.float32"):
        group.allreduce([x], options(c10d.AllreduceOptions, False, reduceOp=ReduceOp.BAND))
    with pytest.raises(ValueError, match="AVG of torch.bool"):
        how = options(c10d.AllreduceOptions, False, reduceOp=ReduceOp.AVG)
        group.allreduce([x.bool()], how)
    with pytest.raises(ValueError, match="MAX of torch.complex64"):
        how = options(c10d.AllreduceOptions, False, reduceOp=ReduceOp.MAX)
        group.allreduce([x.to(torch.complex64)], how)
    with pytest.raises(ValueError, match="world size times"):
        group._allgather_base(torch.empty(4 * group.size() + 1), x)
    with pytest.raises(ValueError, match="different types"):
        group._allgather_base(torch.empty(4 * group.size(), dtype=torch.int32), x)
    with pytest.raises(ValueError, match="split sizes"):
        group.alltoall_base(x, x, [3] * group.size(), [])
    with pytest.raises(ValueError, match="to_dense"):
        group.allreduce([x.to_sparse()], options(c10d.AllreduceOptions, False))
    with pytest.raises(RuntimeError, match="one element"):
        group.allreduce([x, x], options(c10d.AllreduceOptions, False))
    with pytest.raises(ValueError, match="one for each rank"):
        group.allgather([[x]] if group.size() > 1 else [[]], [x])
    with pytest.raises(NotImplementedError, match="named rank"):
        group.recv_anysource([x], 0)
    with pytest.raises(ValueError):
        group.broadcast([x], options(c10d.BroadcastOptions, False, rootRank=99))
    # None of that reached the others.
    group.allreduce([x], options(c10d.AllreduceOptions, False)).wait()
    assert x[0] == group.size()


def gradients(group: Any) -> None:
    """Leaves that require grad are written in place, as by PyTorch's back ends."""
    x = torch.full((5,), float(group.rank()), requires_grad=True)
    group.broadcast([x], options(c10d.BroadcastOptions, True, rootRank=group.size() - 1)).wait()
    assert torch.equal(x.detach(), torch.full((5,), float(group.size() - 1)))
    y = torch.ones(3, 4, requires_grad=True).t()
    group.allreduce([y.detach()], options(c10d.AllreduceOptions, False)).wait()
    assert torch.equal(y.detach(), torch.full((4, 3), float(group.size())))


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "body", [reductions, movements, several_at_once, multiplied_sums, mistakes, gradients]
)
def test_group(body: Callable[[Any], None], size: int) -> None:
    run_group_threads(size, body)


def test_methods_are_overridden() -> None:
    """None of the base class's methods that need a back end in C++ shows through."""
    from zbccl.torch import ProcessGroup

    kept = {"BackendType", "rank", "size", "boxed", "unbox", "bound_device_id"}
    kept |= {"use_pg_for_symm_mem_rendezvous"} | set(dir(dist.ProcessGroup.BackendType))
    private = {"_allgather_base", "_reduce_scatter_base", "_start_coalescing", "_end_coalescing"}
    private |= {"_device_types", "_get_backend", "_set_group_name", "_get_backend_name"}
    names = {name for name in dir(dist.ProcessGroup) if name[0] != "_"} - kept | private
    classes = ProcessGroup.__mro__
    ours = classes[: classes.index(dist.ProcessGroup)]
    theirs = names & set(vars(dist.ProcessGroup))
    assert {name for name in theirs if not any(name in vars(each) for each in ours)} == set()
