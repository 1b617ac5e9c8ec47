"""Reads and writes safetensors files, bf16 and f32, with nothing but torch.

The format: 8 bytes little-endian header length, a JSON header {name: {dtype, shape, data_offsets}},
the tensors' bytes. `__metadata__` holds strings only.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch

_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes the tensors one after the other, in the order of the dictionary."""
    header: dict[str, object] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in tensors.values():
            file.write(
                bytes(tensor.cpu().clone(memory_format=torch.contiguous_format).untyped_storage())
            )


def load(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata)."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    body = bytearray(data[8 + length :])
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(body, dtype=torch.uint8)[begin:end].clone()
        tensors[name] = flat.view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors, metadata
