"""Which files the checks look at: what git tracks or would track, or a plain walk without git."""

from __future__ import annotations

import subprocess
from pathlib import Path

CXX_SUFFIXES = {".c", ".cc", ".cpp", ".h", ".hpp", ".cu", ".cuh"}
SKIPPED_FOLDERS = {".git", ".venv", ".ccache", "dist", "__pycache__"}


def all_files(root: Path) -> list[Path]:
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "-co", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0:
        names = listed.stdout.decode(errors="replace").split("\0")
        paths = [root / name for name in names if name]
        return sorted(path for path in paths if path.is_file() and not path.is_symlink())
    paths = []
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        hidden = any(part in SKIPPED_FOLDERS or part.startswith("build") for part in parts[:-1])
        if not hidden and path.is_file() and not path.is_symlink():
            paths.append(path)
    return sorted(paths)


def with_suffix(paths: list[Path], suffixes: set[str]) -> list[Path]:
    return [path for path in paths if path.suffix in suffixes]
