#!/usr/bin/env python3
"""Checks that includes follow the layers of docs/architecture.md. Standard library only.

A file in src/LAYER may include headers of its own layer and of the layers above it in LAYERS.
What stands outside src/ uses the public headers (zbccl/...); the command may also use topology and
plan, which it links as libraries of their own. Tests and benchmarks may include anything.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sources import CXX_SUFFIXES, all_files, with_suffix

# kernels stand above transport and collectives, which copy and reduce with them; a kernel knows
# neither peers nor operations.
LAYERS = (
    "base",
    "observe",
    "topology",
    "bootstrap",
    "memory",
    "kernels",
    "plan",
    "transport",
    "collectives",
    "moe",
    "experts",
    "kv",
    "overlap",
    "comm",
    "backends",
    "capi",
)
# Folders outside src/ and the layers each may use besides the public headers.
OUTSIDE: dict[str, tuple[str, ...]] = {
    "include": (),
    "tools": ("topology", "plan"),
    "bindings": (),
    "examples": (),
    "shim": (),
}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]')


def allowed_layers(path: Path) -> tuple[str, ...] | None:
    """Layers that the file may include; None: any."""
    parts = path.parts
    if parts[0] == "src" and len(parts) > 2:
        if parts[1] not in LAYERS:
            return ()
        return LAYERS[: LAYERS.index(parts[1]) + 1]
    return OUTSIDE.get(parts[0])


def layer_of(include: str, path: Path, root: Path) -> str | None:
    """The layer of src/ that an include names; None for other headers."""
    first = include.split("/", 1)[0]
    if include.startswith("../"):
        target = (root / path.parent / include).resolve()
        try:
            parts = target.relative_to((root / "src").resolve()).parts
        except ValueError:
            return None
        return parts[0] if parts and parts[0] in LAYERS else None
    # A folder of an example may bear the name of a layer; the nearer header wins.
    if "/" not in include or (root / path.parent / include).is_file():
        return None
    return first if first in LAYERS and path.parts[0] != first else None


def check_file(root: Path, path: Path) -> list[str]:
    """Messages for one file; `path` is relative to `root`."""
    if path.parts[0] == "src" and len(path.parts) > 2 and path.parts[1] not in LAYERS:
        return [f"{path}:1: {path.parts[1]} is no layer; add it to LAYERS in its place"]
    allowed = allowed_layers(path)
    if allowed is None:
        return []
    messages = []
    text = (root / path).read_text(errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        layer = layer_of(match.group(1), path, root)
        if layer is not None and layer not in allowed:
            where = "/".join(path.parts[:2]) if path.parts[0] == "src" else path.parts[0]
            messages.append(
                f"{path}:{number}: {where} must not include {match.group(1)}: "
                f"it may use {', '.join(allowed) or 'the public headers only'}"
            )
    return messages


def check(root: Path) -> list[str]:
    messages = []
    for path in with_suffix(all_files(root), CXX_SUFFIXES):
        messages += check_file(root, path.relative_to(root))
    return messages


def main() -> int:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    messages = check(root)
    for message in messages:
        print(message)
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
