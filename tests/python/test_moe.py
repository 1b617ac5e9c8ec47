"""zbccl.moe: dispatch and combine in every layout, type and quantisation, bit for bit. The ranks
are threads, except where memory that is not the library's is read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zbccl
from kinds import kind_of, need_ml_dtypes, need_torch
from moe_reference import Row, World, codes_of, combined, rows_of
from ranks import run_processes, run_threads

SIZE = 3
EXPERTS = [0, 2, 0, 1, 2, 0, 2]  # one rank holds one, one three, not in blocks
TOKENS = (5, 0, 9)
SLOTS = 4
HIDDEN = 640  # five groups of 128
LAYOUTS = ("rank_major", "expert_major", "expert_masked")
QUANTS = ("fp8", "fp8_pow2", "fp8_ue8m0", "int8")
POISON = 0xA5


def numpy_dtype(name: str) -> Any:
    return need_ml_dtypes().bfloat16 if name == "bf16" else np.dtype(name)


def as_kind(kind: str, values: np.ndarray[Any, Any]) -> Any:
    """A tensor of that kind with the values; bf16 too."""
    if kind == "numpy":
        return values.copy()
    torch = need_torch()
    if values.dtype.name == "bfloat16":
        return torch.from_numpy(values.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(values.copy())


def raw(tensor: Any) -> np.ndarray[Any, Any]:
    """The bytes of a tensor of any kind, with the bytes of an element in place of the last
    dimension's elements."""
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).view(np.uint8)
    torch = need_torch()
    return tensor.contiguous().view(torch.uint8).numpy()


def make_world(layout: str, seed: int = 1, index: Any = np.int64, **options: Any) -> World:
    generator = np.random.default_rng(seed)
    topk = [generator.integers(-1, len(EXPERTS), (n, SLOTS)).astype(index) for n in TOKENS]
    if layout == "expert_masked":
        options.setdefault("capacity", 40)
    return World(topk, EXPERTS, layout, **options)


def inputs(dtype: str) -> tuple[list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]:
    """Rows of each rank, of sizes that differ from group to group, and weights."""
    generator = np.random.default_rng(2)
    rows = [
        (generator.standard_normal((n, HIDDEN)) * 10.0 ** generator.integers(-3, 3, (n, 1))).astype(
            numpy_dtype(dtype)
        )
        for n in TOKENS
    ]
    weights = [generator.random((n, SLOTS)).astype(np.float32) for n in TOKENS]
    return rows, weights


def gathered(rows: list[Row], sources: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """The sources' rows in the order of an output, poison where none belongs."""
    width = sources[0].shape[1]
    result = np.full((len(rows), width), POISON, np.uint8)
    for i, row in enumerate(rows):
        if row.source >= 0:
            result[i] = sources[row.source][row.token]
    return result


def poisoned(tensor: Any) -> Any:
    """A tensor whose bytes are all poison."""
    raw_view = tensor.view(np.uint8) if isinstance(tensor, np.ndarray) else None
    if raw_view is not None:
        raw_view[...] = POISON
    else:
        tensor.view(need_torch().uint8).fill_(POISON)
    return tensor


@pytest.mark.parametrize("kind", ("numpy", "torch"))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ("float32", "float16", "bf16"))
def test_rows_arrive(kind: str, layout: str, dtype: str) -> None:
    """Every byte of every output; what belongs to nobody is not touched, or zero on request."""
    x, weights = inputs(dtype)
    index = np.int32 if dtype == "float16" else np.int64
    world = make_world(layout, alignment=4, index=index)
    by_rank = layout == "rank_major"
    zero = dtype == "float16"

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        experts = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS)
        assert experts.local_experts == world.experts_of(me)
        handle = experts.route(
            as_kind(kind, world.topk[me]), layout, alignment=4, capacity=world.capacity
        )
        rows = rows_of(world, me)
        shape = (len(experts.local_experts), 40) if layout == "expert_masked" else (len(rows),)
        assert handle.allocated_rows == len(rows)
        assert not handle.overflow and not handle.send_overflow
        assert kind_of(handle.expert_counts) == kind
        sent = x[me] if dtype == "bf16" else np.ascontiguousarray(x[me])
        out = poisoned(as_kind(kind, np.zeros((*shape, HIDDEN), x[me].dtype)))
        got = handle.dispatch(
            as_kind(kind, sent),
            topk_weights=as_kind(kind, weights[me]),
            out=out,
            out_src_idx=True,
            zero_padding=zero,
        )
        assert got.x is out and got.scales is None
        expected = gathered(rows, [raw(one) for one in x])
        if zero and not by_rank:
            expected[[row.source < 0 for row in rows]] = 0
        np.testing.assert_array_equal(raw(out).reshape(expected.shape), expected)
        check_tokens(got, rows, world, zero)
        check_weights(got, rows, world, me, weights, zero)
        # The same again, allocated, without anything optional.
        again = handle.dispatch(as_kind(kind, sent))
        assert kind_of(again.x) == kind and again.topk_idx is None and again.row_weights is None
        assert raw(again.x).nbytes == expected.nbytes
        for i, row in enumerate(rows):
            if row.source >= 0:
                assert (raw(again.x).reshape(expected.shape)[i] == expected[i]).all()

    run_threads(SIZE, body)


def written(rows: list[Row], world: World, zero: bool) -> list[bool]:
    """The rows whose numbers are there: expert_masked leaves the others unless they become 0."""
    return [row.source >= 0 or zero or world.layout != "expert_masked" for row in rows]


def check_tokens(got: Any, rows: list[Row], world: World, zero: bool = False) -> None:
    sure = written(rows, world, zero)
    tokens = np.array([row.token for row in rows], np.int32)
    np.testing.assert_array_equal(np.asarray(got.src_idx).reshape(-1)[sure], tokens[sure])


def check_weights(
    got: Any,
    rows: list[Row],
    world: World,
    me: int,
    weights: list[np.ndarray[Any, Any]],
    zero: bool,
) -> None:
    if world.layout != "rank_major":
        assert got.topk_idx is None and got.topk_weights is None
        sure = written(rows, world, zero)
        each = [weights[r.source][r.token, r.slot] if r.source >= 0 else 0 for r in rows]
        found = np.asarray(got.row_weights).reshape(-1)
        np.testing.assert_array_equal(found[sure], np.array(each, np.float32)[sure])
        return
    assert got.row_weights is None
    mine = world.experts_of(me)
    for i, row in enumerate(rows):
        for slot, expert in enumerate(world.topk[row.source][row.token]):
            local = mine.index(expert) if expert in mine else -1
            assert int(got.topk_idx[i, slot]) == local
            wanted = weights[row.source][row.token, slot] if local >= 0 else 0
            assert np.float32(got.topk_weights[i, slot]) == wanted
    assert np.asarray(got.topk_idx).dtype == world.topk[0].dtype


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("quant", QUANTS)
def test_quantised_rows(layout: str, quant: str) -> None:
    """Codes and scales, row-major and transposed, from every type."""
    need_ml_dtypes()
    world = make_world(layout)

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        handle = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS).route(
            world.topk[me], layout, capacity=world.capacity
        )
        rows = rows_of(world, me)
        used = [row.source >= 0 for row in rows]
        for dtype in ("float32", "float16", "bf16"):
            x, _ = inputs(dtype)
            coded = [codes_of(one.astype(np.float32), quant) for one in x]
            codes = gathered(rows, [code.view(np.uint8) for code, _ in coded])
            scales = gathered(rows, [scale.view(np.uint8) for _, scale in coded])
            for transposed in (False, True):
                got = handle.dispatch(x[me], quant=quant, transposed_scales=transposed)
                assert got.x.shape[-1] == HIDDEN and got.scales is not None
                count = {"int8": 1, "fp8_ue8m0": 2}.get(quant, 5)
                assert got.scales.shape == (*got.x.shape[:-1], count)
                if transposed and count > 1 and got.scales.shape[-2] > 1:
                    assert got.scales.strides[-2] == 4
                assert (raw(got.x).reshape(codes.shape)[used] == codes[used]).all()
                assert (raw(got.scales).reshape(scales.shape)[used] == scales[used]).all()

    run_threads(SIZE, body)


@pytest.mark.parametrize("kind", ("numpy", "torch"))
def test_rows_with_their_own_scales(kind: str) -> None:
    """fp8 rows and scales of any strides; also rows that lie apart, in and out."""
    need_ml_dtypes()
    x, _ = inputs("float32")
    coded = [codes_of(one, "fp8") for one in x]
    for layout in LAYOUTS:
        world = make_world(layout)

        def body(comm: zbccl.Communicator, layout: str = layout, world: World = world) -> None:
            me = comm.rank
            codes, scales = coded[me]
            handle = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS).route(
                world.topk[me], layout, capacity=world.capacity
            )
            rows = rows_of(world, me)
            used = [row.source >= 0 for row in rows]
            apart = as_kind(kind, np.zeros((len(codes), HIDDEN + 16), np.uint8))[:, :HIDDEN]
            apart[:] = as_kind(kind, codes)
            columns = as_kind(kind, np.ascontiguousarray(scales.T)).T
            shape = rows_shape(layout, world, me, len(rows))
            wide = as_kind(kind, np.zeros((*shape, HIDDEN + 32), np.uint8))
            out = wide[..., :HIDDEN]
            got = handle.dispatch(apart, scales=columns, out=out)
            expected = gathered(rows, [code for code, _ in coded])
            assert (raw(out).reshape(expected.shape)[used] == expected[used]).all()
            assert (np.asarray(wide)[..., HIDDEN:] == 0).all()
            expected = gathered(rows, [scale.view(np.uint8) for _, scale in coded])
            assert (raw(got.scales).reshape(expected.shape)[used] == expected[used]).all()

        run_threads(SIZE, body)


def rows_shape(layout: str, world: World, rank: int, rows: int) -> tuple[int, ...]:
    if layout != "expert_masked":
        return (rows,)
    assert world.capacity is not None
    return (len(world.experts_of(rank)), world.capacity)


@pytest.mark.parametrize("kind", ("numpy", "torch"))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ("float32", "float16", "bf16"))
def test_combine(kind: str, layout: str, dtype: str) -> None:
    """Weights, none to two biases, and rows of one rank added up first."""
    world = make_world(layout, seed=3, alignment=2)
    target = numpy_dtype(dtype)
    generator = np.random.default_rng(4)
    counts = [len(rows_of(world, r)) for r in range(SIZE)]
    outputs = [generator.standard_normal((n, HIDDEN)).astype(target) for n in counts]
    biases = [
        tuple(generator.standard_normal((n, HIDDEN)).astype(target) for _ in range(2))
        for n in TOKENS
    ]
    _, weights = inputs("float32")
    by_rank = layout == "rank_major"

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        handle = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS).route(
            world.topk[me], layout, alignment=2, capacity=world.capacity
        )
        floats = [one.astype(np.float32) for one in outputs]
        y = outputs[me].reshape(*rows_shape(layout, world, me, counts[me]), HIDDEN)
        for bias in range(3):
            for weighted in (False,) if by_rank else (False, True):
                for pre_reduce in (False,) if by_rank else (False, True):
                    got = handle.combine(
                        as_kind(kind, y),
                        topk_weights=as_kind(kind, weights[me]) if weighted else None,
                        bias=tuple(as_kind(kind, one) for one in biases[me][:bias]),
                        pre_reduce=pre_reduce,
                    )
                    expected = combined(
                        world,
                        me,
                        floats,
                        target,
                        weights=weights[me] if weighted else None,
                        biases=tuple(one.astype(np.float32) for one in biases[me][:bias]),
                        pre_reduce=pre_reduce,
                    ).astype(target)
                    assert kind_of(got.x) == kind and got.topk_weights is None
                    np.testing.assert_array_equal(raw(got.x), expected.view(np.uint8))

    run_threads(SIZE, body)


def test_weights_come_back() -> None:
    world = make_world("rank_major")
    _, weights = inputs("float32")

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        handle = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS).route(world.topk[me])
        x = np.ones((TOKENS[me], 8), np.float32)
        got = handle.dispatch(x, topk_weights=weights[me])
        back = handle.combine(got.x, recv_topk_weights=got.topk_weights)
        assert back.topk_weights is not None
        expected = np.where(world.topk[me] >= 0, weights[me], 0)
        np.testing.assert_array_equal(back.topk_weights, expected)
        ranks = [{world.rank_of(int(e)) for e in row} - {-1} for row in world.topk[me]]
        np.testing.assert_array_equal(back.x[:, 0], [len(found) for found in ranks])

    run_threads(SIZE, body)


# ---- what a handle knows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tables(layout: str) -> None:
    world = make_world(layout, alignment=8)

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        counted = np.full(len(world.experts_of(me)), -1, np.int32)
        status = np.full(3, -1, np.int64)
        handle = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS).route(
            world.topk[me],
            layout,
            alignment=8,
            capacity=world.capacity,
            recv_counts=counted,
            recv_status=status,
        )
        rows = rows_of(world, me)
        assert (handle.num_tokens, handle.num_topk) == world.topk[me].shape
        assert handle.local_experts.tolist() == world.experts_of(me)
        slots = np.array([[(t == e).sum() for e in range(len(EXPERTS))] for t in world.topk])
        np.testing.assert_array_equal(handle.counts, slots)
        each = slots[:, world.experts_of(me)].sum(axis=0)
        np.testing.assert_array_equal(handle.expert_counts, each)
        np.testing.assert_array_equal(counted, each)
        assert status.tolist() == [handle.num_rows, handle.needed_capacity, 0]
        per_rank = [[len({t for t, _, _ in world.slots(s, r)}) for r in range(3)] for s in range(3)]
        np.testing.assert_array_equal(handle.rank_counts, per_rank)
        if layout == "rank_major":
            assert handle.expert_offsets is None and handle.source_counts is None
            ends = np.cumsum([0, *(per_rank[s][me] for s in range(3))])
            np.testing.assert_array_equal(handle.source_offsets, ends)
            return
        assert handle.source_offsets is None
        room = [-(-n // 8) * 8 for n in each] if layout == "expert_major" else [40] * len(each)
        np.testing.assert_array_equal(handle.expert_offsets, np.cumsum([0, *room]))
        for local in range(len(each)):
            for source in range(3):
                found = [i for i, r in enumerate(rows) if (r.expert, r.source) == (local, source)]
                assert handle.source_counts[local, source] == len(found)
                if found:
                    assert handle.source_begins[local, source] == found[0]

    run_threads(SIZE, body)


def test_one_rank_and_no_tokens(solo: zbccl.Communicator) -> None:
    experts = zbccl.moe.Experts(solo, 2)
    handle = experts.route(np.zeros((0, 2), np.int32), "expert_major", alignment=4)
    got = handle.dispatch(np.zeros((0, 16), np.float32))
    assert got.x.shape == (0, 16)
    assert handle.combine(got.x).x.shape == (0, 16)
    handle = experts.route(np.array([[1, 1], [-1, 0]], np.int32), "expert_major")
    x = np.arange(32, dtype=np.float32).reshape(2, 16)
    got = handle.dispatch(x)
    assert (got.x == x[[1, 0, 0]]).all()
    assert (handle.combine(got.x).x == x * [[2], [1]]).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ("one expert", "nobody", "many slots", "few tokens"))
def test_extreme_routing(layout: str, case: str) -> None:
    generator = np.random.default_rng(5)
    slots = 32 if case == "many slots" else 2
    shapes = [(1 if case == "few tokens" else n, slots) for n in (6, 7, 8)]
    fixed = {"one expert": 3, "nobody": -1}.get(case)
    topk = [
        generator.integers(0, 7, shape) if fixed is None else np.full(shape, fixed)
        for shape in shapes
    ]
    capacity = 300 if layout == "expert_masked" else None
    world = World(topk, EXPERTS, layout, capacity=capacity)
    x = [generator.integers(-8, 8, (n, 16)).astype(np.float32) for n, _ in shapes]

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        experts = zbccl.moe.Experts(comm, 7, EXPERTS)
        handle = experts.route(topk[me], layout, capacity=capacity)
        rows = rows_of(world, me)
        got = handle.dispatch(x[me]).x
        used = [row.source >= 0 for row in rows]
        expected = gathered(rows, [raw(one) for one in x])
        assert (raw(got).reshape(expected.shape)[used] == expected[used]).all()
        named = [[int(e) for e in token if e >= 0] for token in topk[me]]
        if layout == "rank_major":
            named = [list({EXPERTS[e] for e in token}) for token in named]
        times = np.array([len(token) for token in named])[:, None]
        np.testing.assert_array_equal(handle.combine(got).x, x[me] * times)

    run_threads(SIZE, body)


def test_outputs_with_room_to_spare(solo: zbccl.Communicator) -> None:
    """The others, which are made here, have as many rows as the output given."""
    handle = zbccl.moe.Experts(solo, 1).route(np.zeros((2, 1), np.int64))
    x = np.arange(16, dtype=np.float32).reshape(2, 8)
    weights = np.ones((2, 1), np.float32)
    out = np.full((5, 8), -1, np.int8)
    got = handle.dispatch(x, quant="int8", topk_weights=weights, out=out)
    assert got.scales is not None and got.scales.shape == (5, 1)
    assert got.topk_idx is not None and got.topk_idx.shape == (5, 1)
    np.testing.assert_array_equal(out[:2], codes_of(x, "int8")[0])
    assert (out[2:] == -1).all()
    with pytest.raises(
        zbccl.InvalidArgumentError, match=r"recv_scales has shape \(3, 1\); expected \(5, 1\)"
    ):
        handle.dispatch(x, quant="int8", out=out, out_scales=np.zeros((3, 1), np.float32))


def test_a_tensor_of_the_library(solo: zbccl.Communicator) -> None:
    x = solo.empty((4, 8), "bf16")
    x.as_bytes().numpy()[:] = np.arange(64, dtype=np.uint8)
    handle = zbccl.moe.Experts(solo, 3).route(np.array([[0], [2], [-1], [0]]))
    got = handle.dispatch(x, quant="fp8")
    assert isinstance(got.x, zbccl.Tensor) and got.x.dtype == "e4m3" and got.x.shape == (3, 8)
    assert got.scales is not None and got.scales.shape == (3, 1)
    with pytest.raises(zbccl.InvalidArgumentError, match="no strides"):
        handle.dispatch(x, quant="fp8", transposed_scales=True)


# ---- capacity, masks, phases


@pytest.mark.parametrize("layout", LAYOUTS)
def test_overflow(layout: str) -> None:
    """Rows beyond the capacity are left out, reported, and skipped on the way back."""
    capacity = 3
    world = make_world(layout, capacity=capacity)
    full = make_world(layout, capacity=40)
    x, _ = inputs("float32")

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        handle = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS).route(
            world.topk[me], layout, capacity=capacity
        )
        rows = rows_of(world, me)
        assert handle.allocated_rows == len(rows)
        assert handle.overflow
        if layout != "expert_masked":
            needed = sum(row.source >= 0 for row in rows_of(full, me))
            assert handle.needed_capacity == needed
        got = handle.dispatch(x[me], out_src_idx=True)
        check_tokens(got, rows, world)
        back = handle.combine(np.ones(got.x.shape, np.float32)).x
        ones = [np.ones((len(rows_of(world, r)), HIDDEN), np.float32) for r in range(SIZE)]
        np.testing.assert_array_equal(back, combined(world, me, ones, np.float32))

    run_threads(SIZE, body)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masked_ranks(layout: str) -> None:
    world = make_world(layout)
    world.blocked = {frozenset((0, 2))}  # rank 2 masks rank 0, which need not know
    x, _ = inputs("float32")

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        experts = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS)
        if me == 2:
            experts.set_mask(0)
        assert experts.mask == [me == 2, False, False]
        handle = experts.route(world.topk[me], layout, capacity=world.capacity)
        rows = rows_of(world, me)
        got = handle.dispatch(x[me], out_src_idx=True)
        check_tokens(got, rows, world)
        if me == 2:
            experts.set_mask(0, False)
        again = experts.route(world.topk[me], layout, capacity=world.capacity)
        assert again.counts.sum() == sum(int((t >= 0).sum()) for t in world.topk)
        with pytest.raises(zbccl.InvalidArgumentError):
            experts.set_mask(me)

    run_threads(SIZE, body)


def test_send_and_receive() -> None:
    """Two dispatches and a combine under way at once; outputs survive their tensors' names."""
    world = make_world("expert_masked")
    x, weights = inputs("float32")

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        experts = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS)
        routing = experts.route(world.topk[me], "expert_masked", capacity=40, async_op=True)
        first = routing.output.send_dispatch(x[me].copy())
        routing.wait()
        handle = routing.result
        second = handle.send_dispatch(2 * x[me])
        assert not first.received
        one, two = first.receive(), second.receive()
        assert first.received and one is first.output
        with pytest.raises(zbccl.InvalidUsageError, match="received already"):
            first.receive()
        used = [row.source >= 0 for row in rows_of(world, me)]
        np.testing.assert_array_equal(
            two.x.reshape(-1, HIDDEN)[used], 2 * one.x.reshape(-1, HIDDEN)[used]
        )
        one.x.reshape(-1, HIDDEN)[~np.array(used)] = np.nan  # never read
        sent = handle.send_combine(one.x, topk_weights=weights[me])
        work = handle.combine(one.x, topk_weights=weights[me], async_op=True)
        back = sent.receive().x
        assert (raw(work.wait().x) == raw(back)).all()
        total = np.where(world.topk[me] >= 0, weights[me], 0).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(back, x[me] * total, rtol=1e-5, atol=1e-5)
        handle.send_dispatch(x[me])  # never received: kept until the end

    run_threads(SIZE, body)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_routes_with_the_dispatch(layout: str) -> None:
    x, _ = inputs("float32")
    world = make_world(layout)

    def body(comm: zbccl.Communicator) -> None:
        me = comm.rank
        experts = zbccl.moe.Experts(comm, len(EXPERTS), EXPERTS)
        wishes: dict[str, Any] = {"out_src_idx": True, "zero_padding": True, "quant": "fp8"}
        plain = experts.route(world.topk[me], layout, capacity=60)
        want = plain.dispatch(x[me], **wishes)
        counts = np.full(len(experts.local_experts), -1, np.int32)
        handle = experts.route(
            world.topk[me].copy(), layout, capacity=60, recv_counts=counts, with_dispatch=True
        )
        assert (counts == -1).all()
        with pytest.raises(zbccl.InvalidUsageError, match="the Dispatch that it goes with"):
            _ = handle.num_rows
        for _ in range(2):
            got = handle.dispatch(x[me], **wishes)
            np.testing.assert_array_equal(raw(got.x), raw(want.x))
            np.testing.assert_array_equal(got.scales, want.scales)
            np.testing.assert_array_equal(got.src_idx, want.src_idx)
        np.testing.assert_array_equal(counts, plain.expert_counts)
        assert handle.num_rows == plain.num_rows and handle.overflow == plain.overflow
        work = experts.route(
            world.topk[me].copy(), layout, capacity=60, with_dispatch=True, async_op=True
        )
        sent = work.output.send_dispatch(x[me], **wishes)
        np.testing.assert_array_equal(raw(sent.receive().x), raw(want.x))

    run_threads(SIZE, body)


def test_cached_routing_and_reports() -> None:
    def body(comm: zbccl.Communicator) -> dict[str, int]:
        experts = zbccl.moe.Experts(comm, 4)
        generator = np.random.default_rng(comm.rank)
        x = comm.empty((16, 64), "f32").numpy()
        x[:] = generator.standard_normal(x.shape)
        handle = experts.route(generator.integers(0, 4, (16, 2)), "expert_major")
        first = handle.dispatch(x)
        for _ in range(3):
            assert (handle.dispatch(x).x == first.x).all()
        out = comm.empty((16, 64), "f32").numpy()
        assert handle.combine(first.x, out=out).x is out
        assert np.allclose(out, 2 * x)
        report = experts.report()
        assert report["staged_bytes"] == 0 and report["handles"] == 1
        assert (report["routes"], report["dispatches"], report["combines"]) == (1, 4, 1)
        return report

    run_threads(2, body)


def _foreign(comm: zbccl.Communicator) -> None:
    """Ordinary memory, between processes."""
    generator = np.random.default_rng(comm.rank)
    x = generator.integers(-8, 8, (32, 256)).astype(np.float32)
    topk = generator.integers(-1, 6, (32, 3))
    handle = zbccl.moe.Experts(comm, 6).route(topk, "expert_major")
    got = handle.dispatch(x)
    back = handle.combine(got.x.copy()).x
    np.testing.assert_array_equal(back, x * (topk >= 0).sum(axis=1, keepdims=True))


def test_processes() -> None:
    run_processes(2, _foreign)
