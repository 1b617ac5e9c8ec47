"""The object that engines make: DeepEP's Buffer, without the buffers."""

from __future__ import annotations

from typing import Any

import torch

from zbccl.deep_ep.config import Config
from zbccl.deep_ep.event import EventHandle, EventOverlap
from zbccl.deep_ep.group import join
from zbccl.deep_ep.low_latency import LowLatencyMode
from zbccl.deep_ep.normal import NormalMode
from zbccl.deep_ep.tensors import bare, check_shape
from zbccl.errors import InvalidArgumentError, InvalidUsageError


class Runtime:
    """What DeepEP's native object says of itself, for ranks of one machine."""

    def is_available(self) -> bool:
        """True: the communicator stands."""
        return True

    def get_num_rdma_ranks(self) -> int:
        """1: the machine."""
        return 1

    def get_rdma_rank(self) -> int:
        """0: the machine."""
        return 0


class Buffer(NormalMode, LowLatencyMode):
    """Dispatch and combine between the ranks of a group. Collective, as everything that moves rows.

    `group` is a torch.distributed group of any backend (or a zbccl.Communicator, which stays its
    owner's), or else `comm` an mpi4py communicator; all ranks are on one machine. Sizes of buffers,
    queue pairs and links are accepted, and need nothing: rows go straight from tensor to tensor.
    One thread at a time uses it.
    """

    def __init__(
        self,
        group: Any,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        explicitly_destroy: bool = False,
        enable_shrink: bool = False,
        comm: Any = None,
        use_fabric: bool = False,
    ) -> None:
        communicator, self._owns_communicator = join(group, comm)
        super().__init__(communicator)
        self.group = group
        self.num_nvl_bytes = num_nvl_bytes
        self.num_rdma_bytes = num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.explicitly_destroy = explicitly_destroy
        self.enable_shrink = enable_shrink
        self.runtime = Runtime()

    def destroy(self) -> None:
        """Ends the buffer; needs explicitly_destroy=True. Otherwise it ends when it is dropped."""
        if not self.explicitly_destroy:
            raise InvalidUsageError("destroy: the Buffer was not made with explicitly_destroy=True")
        for experts in self._experts_by_number.values():
            experts.close()
        if self._owns_communicator:
            self._communicator.close()

    # ---- what DeepEP says of the machine

    @staticmethod
    def is_sm90_compiled() -> bool:
        """True: rows of FP8 are served."""
        return True

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """The most thread blocks of a call in normal mode on a GPU; even."""
        if new_num_sms % 2:
            raise InvalidArgumentError(f"set_num_sms: expected an even number, got {new_num_sms}")
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """An event after everything before it: on host memory that has ended already."""
        return EventOverlap(EventHandle())

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        """0: no buffer is needed."""
        return 0

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        """A Config, whose values mean nothing here; for any number of ranks."""
        return Config(Buffer.num_sms)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """A Config, whose values mean nothing here; for any number of ranks."""
        return Config(Buffer.num_sms)

    def get_comm_stream(self) -> Any:
        """The stream that calls go to: PyTorch's current one, of the GPU if there is one."""
        on_gpu = self._communicator.device.startswith("cuda")
        return torch.cuda.current_stream() if on_gpu else torch.cpu.current_stream()

    def get_local_buffer_tensor(
        self,
        dtype: torch.dtype,
        size: torch.Size | None = None,
        offset: int = 0,
        use_rdma_buffer: bool = False,
    ) -> torch.Tensor:
        """A view of the buffer, which has 0 bytes."""
        wanted = 0 if size is None else torch.Size(size).numel()
        if wanted or offset:
            raise InvalidArgumentError(
                f"get_local_buffer_tensor: the buffer has 0 bytes; {wanted} elements at offset "
                f"{offset} were asked for"
            )
        return torch.empty(0 if size is None else size, dtype=dtype, device="cpu")

    # ---- ranks taken out

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Takes a rank out (`mask=True`) or back in, for this rank; in both modes.

        No row goes between the two from the next dispatch on. All ranks go on making the same
        calls: a rank whose process ends fails the communicator.
        """
        self._need_shrink("low_latency_update_mask_buffer")
        if not 0 <= rank_to_mask < self.group_size or (mask and rank_to_mask == self.rank):
            raise InvalidArgumentError(
                f"low_latency_update_mask_buffer: expected another rank of {self.group_size}, got "
                f"{rank_to_mask}"
            )
        self._mask(rank_to_mask, mask)

    def low_latency_query_mask_buffer(self, mask_status: torch.Tensor) -> None:
        """Writes 1 for each masked rank, else 0, to `mask_status`, (ranks,) i32."""
        self._need_shrink("low_latency_query_mask_buffer")
        status = bare(mask_status, "mask_status")
        check_shape(status, (self.group_size,), "mask_status")
        status.zero_()
        for rank in self._masked:
            status[rank] = 1

    def low_latency_clean_mask_buffer(self) -> None:
        """Takes all ranks back in."""
        self._need_shrink("low_latency_clean_mask_buffer")
        for rank in sorted(self._masked):
            self.low_latency_update_mask_buffer(rank, False)

    def _need_shrink(self, name: str) -> None:
        if not self.enable_shrink:
            raise InvalidUsageError(f"{name}: the Buffer was not made with enable_shrink=True")
