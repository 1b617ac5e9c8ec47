"""clang-tidy over every file of a build that is no test, with a cache.

A file is looked at again only when it, a project header that it reaches, its command line or the
set of checks has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

CLANG_TIDY_MAJOR = "14"
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]', re.M)
SKIPPED_FOLDERS = (".venv", "tests")
# Options of other compilers, and what would make a warning of the compiler an error twice.
DROPPED = ("-Werror", "-fno-sanitize-recover=all")


def program() -> str | None:
    for name in (f"clang-tidy-{CLANG_TIDY_MAJOR}", "clang-tidy"):
        path = shutil.which(name)
        if path:
            return path
    return None


class Headers:
    """The project's headers that a file reaches, by the include folders of its command."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.includes: dict[Path, list[str]] = {}

    def direct(self, path: Path) -> list[str]:
        if path not in self.includes:
            self.includes[path] = INCLUDE.findall(path.read_text(errors="replace"))
        return self.includes[path]

    def reached(self, path: Path, folders: list[Path]) -> list[Path]:
        found: set[Path] = set()
        waiting = [path]
        while waiting:
            current = waiting.pop()
            if current in found:
                continue
            found.add(current)
            for name in self.direct(current):
                for folder in (current.parent, *folders):
                    candidate = folder / name
                    if candidate.is_file():
                        waiting.append(candidate.resolve())
                        break
        return sorted(found)


def command_of(entry: dict[str, str]) -> list[str]:
    words = shlex.split(entry["command"])
    if words and Path(words[0]).name == "ccache":
        words = words[1:]
    return [word for word in words if word not in DROPPED]


def project_folders(root: Path, words: list[str]) -> list[Path]:
    folders = []
    for i, word in enumerate(words):
        value = word[2:] if word.startswith("-I") else ""
        if word == "-isystem" and i + 1 < len(words):
            value = words[i + 1]
        if value and Path(value).resolve().is_relative_to(root):
            folders.append(Path(value).resolve())
    return folders


def key_of(root: Path, path: Path, words: list[str], headers: Headers) -> str:
    digest = hashlib.sha256()
    digest.update((root / ".clang-tidy").read_bytes())
    digest.update(" ".join(words).replace(str(root), "").encode())
    for file in headers.reached(path, project_folders(root, words)):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "zbccl-tidy"


def check(root: Path, build: Path) -> list[str]:
    """Messages for all files of build/compile_commands.json that lie in the project."""
    tidy = program()
    if tidy is None:
        return [f"clang-tidy {CLANG_TIDY_MAJOR} is missing: scripts/install_dependencies.sh lint"]
    database = build / "compile_commands.json"
    if not database.exists():
        return [f"{database} is missing: make build"]
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    headers = Headers(root)
    jobs: dict[Path, tuple[Path, list[str]]] = {}
    for entry in json.loads(database.read_text()):
        path = (Path(entry["directory"]) / entry["file"]).resolve()
        if not path.is_relative_to(root) or path.is_relative_to(build) or path in jobs:
            continue
        # GoogleTest's macros make tests slow to look at, and what they expand to is not ours.
        if path.relative_to(root).parts[0] in SKIPPED_FOLDERS or not path.exists():
            continue
        words = command_of(entry)
        mark = cache / key_of(root, path, words, headers)
        if not mark.exists():
            jobs[path] = (mark, words)

    done = 0

    def look(path: Path) -> str:
        nonlocal done
        mark, words = jobs[path]
        options = [
            *words[1:],
            f"-isystem{root}/scripts/tidy_include",
            "-Wno-unknown-warning-option",
        ]
        result = subprocess.run(
            [tidy, "--quiet", str(path), "--", *options],
            cwd=build,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        done += 1
        if done % 20 == 0:
            print(f"[lint] clang-tidy: {done} of {len(jobs)} files", flush=True)
        if result.returncode == 0:
            mark.touch()
            return ""
        return result.stdout.strip() or result.stderr.strip()

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [message for message in pool.map(look, sorted(jobs)) if message]
