# What the native module offers to the package; tests/python/test_typing.py compares the two.
from collections.abc import Sequence
from typing import Any

class Tensor:
    """
    A row-major tensor in memory from zbccl's pool, which every rank on the machine reads and
    writes in place.

    Made by zbccl.empty and Communicator.empty. Exports DLPack and the buffer protocol; the memory
    returns to the pool when the tensor and the last view of it are gone.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Length of each dimension."""

    @property
    def dtype(self) -> str:
        """Name of the element type: "f32", "bf16", ..."""

    @property
    def device(self) -> str:
        """Where the memory lies: "cpu" or "cuda:N"."""

    @property
    def ndim(self) -> int:
        """Number of dimensions."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def nbytes(self) -> int:
        """Number of bytes."""

    @property
    def data_ptr(self) -> int:
        """Address of the first element."""

    def numpy(self) -> Any:
        """
        A NumPy array over the same memory. bf16, e4m3 and e5m2 need the package ml_dtypes.
        """

    def torch(self) -> Any:
        """A PyTorch tensor over the same memory."""

    def as_bytes(self) -> Tensor:
        """The same memory as a flat tensor of u8."""

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """A DLPack capsule over the same memory."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """(1, 0): host memory; (2, N): CUDA device N."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __repr__(self) -> str: ...

def empty(shape: Sequence[int], dtype: str, device: int) -> Tensor:
    """
    A tensor from the pool, on a CUDA device or, for -1, in host memory; its contents are undefined.
    """

def set_launch(stream: int | None, max_blocks: int) -> tuple[int | None, int]:
    """Sets what calls of this thread on device memory use, and gives what they used."""

class Registration:
    """Device memory that the peers can reach."""

    def __init__(self, x: object) -> None: ...
    def close(self) -> None:
        """Ends it, before the memory is freed; twice is allowed."""

    def __enter__(self) -> Registration: ...
    def __exit__(self, *args: object) -> None: ...

def library_path() -> str: ...

class Flight:
    """A running asynchronous operation."""

    def poll(self) -> bool:
        """Whether it is done."""

    def wait(self, timeout_ms: int) -> bool:
        """Waits; False once timeout_ms > 0 have passed."""

    def check(self) -> None:
        """Raises what a done operation failed with."""

class Communicator:
    """One rank's membership in a group."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def closed(self) -> bool: ...
    @property
    def device(self) -> int: ...
    @property
    def busy(self) -> bool: ...
    @property
    def async_error(self) -> int: ...
    @property
    def last_algorithm(self) -> str: ...
    def stats(self) -> dict[str, int]: ...
    def split(self, color: int, key: int, timeout_ms: int) -> Communicator | None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...
    def all_reduce(
        self, x: object, out: object | None, op: str, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def reduce(
        self, x: object, root: int, out: object | None, op: str, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def all_reduce_rms_norm(
        self,
        x: object,
        weight: object,
        residual: object | None,
        residual_out: object | None,
        out: object | None,
        codes: str,
        codes_out: object | None,
        scales_out: object | None,
        columns: bool,
        wants_out: bool,
        scale: float,
        epsilon: float,
        one_plus_weight: bool,
        timeout_ms: int,
        asynchronous: bool,
    ) -> tuple[Flight | None, Tensor | None, Tensor | None, Tensor | None]: ...
    def all_reduce_quantized(
        self, x: object, out: object | None, code: str, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def reduce_scatter(
        self, x: object, out: object | None, op: str, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def reduce_scatter_v(
        self,
        x: object,
        sizes: list[int],
        out: object | None,
        op: str,
        timeout_ms: int,
        asynchronous: bool,
    ) -> tuple[Flight | None, Tensor | None]: ...
    def all_gather(
        self, x: object, out: object | None, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def all_gather_v(
        self,
        x: object,
        sizes: list[int] | None,
        out: object | None,
        timeout_ms: int,
        asynchronous: bool,
    ) -> tuple[Flight | None, Tensor | None]: ...
    def gather(
        self, x: object, root: int, out: object | None, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def scatter(
        self, x: object | None, root: int, out: object | None, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def all_to_all(
        self, x: object, out: object | None, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def all_to_all_v(
        self,
        x: object,
        send_sizes: list[int],
        recv_sizes: list[int] | None,
        out: object | None,
        timeout_ms: int,
        asynchronous: bool,
    ) -> tuple[Flight | None, Tensor | None]: ...
    def broadcast(
        self, x: object | None, root: int, out: object | None, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def barrier(
        self, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def send(
        self, x: object, peer: int, tag: int, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...
    def recv(
        self, x: object, peer: int, tag: int, timeout_ms: int, asynchronous: bool
    ) -> tuple[Flight | None, Tensor | None]: ...

def group_start() -> None:
    """Opens a group on this thread; groups nest."""

def group_end() -> None:
    """The outermost end makes the group's calls."""

def group_cancel() -> None:
    """Leaves this thread's group, if any, without its calls."""

class UniqueId:
    """
    Address of a rendezvous and a secret. Whoever holds it can join: str() gives it in full, for a
    channel that you trust; repr() leaves the secret out.
    """

    @staticmethod
    def from_string(text: str) -> UniqueId:
        """The id whose str() is `text`."""

    def __str__(self) -> str: ...
    def __repr__(self) -> str: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __getstate__(self) -> str: ...
    def __setstate__(self, arg: str, /) -> None: ...

def get_unique_id() -> UniqueId:
    """
    Starts a rendezvous server in this process and returns its id, to be passed to the other
    ranks.
    """

class Store:
    """A key-value store that ranks can meet in."""

def local_store() -> Store: ...
def c10d_store(host: str, port: int) -> Store: ...
def init_rank(
    unique_id: UniqueId,
    rank: int,
    size: int,
    timeout_ms: int,
    init_timeout_ms: int,
    wait: int,
    device: int,
    max_blocks: int,
) -> Communicator: ...
def init_env(
    timeout_ms: int, init_timeout_ms: int, wait: int, device: int, max_blocks: int
) -> Communicator: ...
def init_store(
    store: Store,
    name: str,
    rank: int,
    size: int,
    timeout_ms: int,
    init_timeout_ms: int,
    wait: int,
    device: int,
    max_blocks: int,
) -> Communicator: ...
def init_all(
    count: int, timeout_ms: int, init_timeout_ms: int, wait: int, device: int, max_blocks: int
) -> list[Communicator]: ...
def memory_report() -> dict[str, int]: ...
def version() -> str: ...
def environment() -> str: ...
def error_string(code: int) -> str: ...

class Experts:
    """Which rank holds which expert."""

    @staticmethod
    def create(
        communicator: Communicator, num_experts: int, expert_ranks: list[int], timeout_ms: int
    ) -> Experts: ...
    @property
    def closed(self) -> bool: ...
    def local_experts(self) -> list[int]: ...
    def mask(self) -> list[int]: ...
    def set_mask(self, rank: int, masked: bool) -> None: ...
    def report(self) -> dict[str, int]: ...
    def close(self) -> None: ...
    def route(
        self,
        topk_idx: object,
        layout: int,
        alignment: int,
        capacity: int,
        recv_counts: object | None,
        recv_status: object | None,
        recv_ranges: object | None,
        with_dispatch: bool,
        timeout_ms: int,
        asynchronous: bool,
    ) -> tuple[Flight | None, Handle]: ...

class Handle:
    """Where the rows of one routing go."""

    def numbers(self) -> dict[str, int]: ...
    def table(self, name: str) -> Tensor | None: ...
    def close(self) -> None: ...
    def dispatch(
        self,
        x: object,
        x_scales: object | None,
        quant: int,
        zero_padding: bool,
        transposed: bool,
        topk_weights: object | None,
        recv_x: object,
        recv_scales: object | None,
        recv_topk_idx: object | None,
        recv_topk_weights: object | None,
        recv_row_weights: object | None,
        recv_src_idx: object | None,
        mode: int,
        timeout_ms: int,
    ) -> tuple[Flight | Exchange | None, tuple[Tensor | None, ...]]: ...
    def combine(
        self,
        y: object,
        topk_weights: object | None,
        bias_0: object | None,
        bias_1: object | None,
        out: object,
        pre_reduce: bool,
        recv_topk_weights: object | None,
        combined_topk_weights: object | None,
        mode: int,
        timeout_ms: int,
    ) -> tuple[Flight | Exchange | None, tuple[Tensor | None, ...]]: ...

class Exchange:
    """A dispatch or a combine between its two phases."""

    @property
    def received(self) -> bool: ...
    def receive(self, timeout_ms: int) -> None:
        """Blocks until the outputs are complete; once."""
