"""Where the rows of one routing go."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from zbccl import _zbccl
from zbccl.communicator import Communicator
from zbccl.member import of_kind
from zbccl.moe.exchanges import Exchanges
from zbccl.moe.names import Layout


class Handle(Exchanges):
    """Where the rows of one routing go. Made by `Experts.route`.

    Serves any number of dispatches and combines, in any order, until it is closed or dropped. Its
    tables are tensors of the kind that `topk_idx` was, and None where they have no meaning in the
    layout; before an asynchronous route is done they raise InvalidUsageError.
    """

    def __init__(
        self,
        native: _zbccl.Handle,
        layout: Layout,
        package: str | None,
        communicator: Communicator,
    ):
        self._native = native
        self._communicator = communicator  # so that it is not closed under the handle
        self._package = package
        self.layout = layout

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return self._native.numbers()

    def _table(self, name: str) -> Any:
        made = self._native.table(name)
        return None if made is None else of_kind(made, self._package)

    @property
    def num_tokens(self) -> int:
        """Tokens of this rank."""
        return self._numbers["num_tokens"]

    @property
    def num_topk(self) -> int:
        """Slots of each token."""
        return self._numbers["num_topk"]

    @property
    def num_rows(self) -> int:
        """Rows that a dispatch writes here, an expert_major's padding included."""
        return self._numbers["num_rows"]

    @property
    def allocated_rows(self) -> int:
        """Rows that its outputs hold: num_rows, or what the capacity says."""
        return self._numbers["allocated_rows"]

    @property
    def needed_capacity(self) -> int:
        """The least capacity without overflow."""
        return self._numbers["needed_capacity"]

    @property
    def overflow(self) -> bool:
        """Whether rows of this rank's outputs are left out."""
        return self._numbers["overflow"] != 0

    @property
    def send_overflow(self) -> bool:
        """Whether rows of this rank's tokens are left out somewhere."""
        return self._numbers["send_overflow"] != 0

    @cached_property
    def local_experts(self) -> Any:
        """(experts,) i32: the numbers of this rank's experts."""
        return self._table("local_experts")

    @cached_property
    def expert_counts(self) -> Any:
        """(experts,) i32: rows of each local expert, without padding.

        Of a rank_major handle: how many slots name it.
        """
        return self._table("expert_counts")

    @cached_property
    def expert_offsets(self) -> Any:
        """(experts + 1,) i64: the first row of each local expert, then the end; not rank_major."""
        return self._table("expert_offsets")

    @cached_property
    def source_offsets(self) -> Any:
        """(ranks + 1,) i64: where the rows of each source rank begin, then the end; rank_major."""
        return self._table("source_offsets")

    @cached_property
    def source_counts(self) -> Any:
        """(experts, ranks) i32: rows of each local expert from each source; not rank_major."""
        return self._table("source_counts")

    @cached_property
    def source_begins(self) -> Any:
        """(experts, ranks) i64: the first of these rows; not rank_major."""
        return self._table("source_begins")

    @cached_property
    def counts(self) -> Any:
        """(ranks, num_experts) i32: slots that each rank's tokens have for each expert."""
        return self._table("counts")

    @cached_property
    def rank_counts(self) -> Any:
        """(ranks, ranks) i32: rank_major rows from each rank (first index) to each other."""
        return self._table("rank_counts")

    def close(self) -> None:
        """Gives back what the handle holds. Not collective; work that still runs goes on."""
        self._native.close()

    def __repr__(self) -> str:
        return f"<zbccl.moe.Handle {self.layout}>"
