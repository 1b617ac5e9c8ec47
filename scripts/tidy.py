"""clang-tidy over every file of a build that is no test, with a cache.

A file is looked at again only when it, a project header that it reaches, its command line or the
set of checks has changed. Where many are, the files of a folder are looked at as one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CLANG_TIDY_MAJOR = "14"
MIN_BATCHED = 20
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


@dataclass
class Job:
    """A file to look at, with the words of its command, and the mark that it was found clean."""

    path: Path
    words: list[str]
    mark: Path

    def options(self) -> tuple[str, ...]:
        """What the command says of more than this file."""
        kept = []
        words = iter(self.words[1:])
        for word in words:
            if word in ("-o", "-MT", "-MF"):
                next(words, None)
            elif word not in ("-c", "-MD") and not word.endswith(str(self.path.name)):
                kept.append(word)
        return tuple(kept)


def batches(jobs: list[Job]) -> list[list[Job]]:
    """Files of one folder with equal options: most of the time goes into headers, which such files
    share. C files and a few jobs stay apart."""
    together: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        alone = len(jobs) < MIN_BATCHED or job.path.suffix == ".c"
        key = (str(job.path if alone else job.path.parent), *job.options())
        together.setdefault(key, []).append(job)
    return list(together.values())


class Runner:
    def __init__(self, tidy: str, root: Path, build: Path, scratch: Path) -> None:
        self.tidy = tidy
        self.root = root
        self.build = build
        self.scratch = scratch
        self.numbers = itertools.count()

    def look(self, jobs: list[Job]) -> list[str]:
        """Messages for these files, which have the same options."""
        checks = []
        path = jobs[0].path
        if len(jobs) > 1:
            path = self.scratch / f"batch{next(self.numbers)}.cc"
            path.write_text("".join(f'#include "{job.path}"\n' for job in jobs))
            checks = ["--checks=-bugprone-suspicious-include"]
        result = subprocess.run(
            [
                self.tidy,
                "--quiet",
                f"--config-file={self.root / '.clang-tidy'}",
                *checks,
                str(path),
                "--",
                *jobs[0].options(),
                f"-isystem{self.root}/scripts/tidy_include",
                "-Wno-unknown-warning-option",
            ],
            cwd=self.build,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode == 0:
            for job in jobs:
                job.mark.touch()
            return []
        if len(jobs) > 1 and "clang-diagnostic-error" in result.stdout:
            # Two files have something of the same name: apart they may be well.
            half = len(jobs) // 2
            return self.look(jobs[:half]) + self.look(jobs[half:])
        return [result.stdout.strip() or result.stderr.strip()]


def jobs_of(root: Path, build: Path, cache: Path) -> list[Job]:
    """What is to be looked at of the files in build/compile_commands.json."""
    headers = Headers(root)
    jobs: dict[Path, Job] = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        path = (Path(entry["directory"]) / entry["file"]).resolve()
        if path.suffix == ".cu":  # clang-tidy 14 does not know this CUDA's headers
            continue
        if not path.is_relative_to(root) or path.is_relative_to(build) or path in jobs:
            continue
        # GoogleTest's macros make tests slow to look at, and what they expand to is not ours.
        if path.relative_to(root).parts[0] in SKIPPED_FOLDERS or not path.exists():
            continue
        words = command_of(entry)
        mark = cache / key_of(root, path, words, headers)
        if not mark.exists():
            jobs[path] = Job(path, words, mark)
    return sorted(jobs.values(), key=lambda job: job.path)


def check(root: Path, build: Path) -> list[str]:
    """Messages for all files of build/compile_commands.json that lie in the project."""
    tidy = program()
    if tidy is None:
        return [f"clang-tidy {CLANG_TIDY_MAJOR} is missing: scripts/install_dependencies.sh lint"]
    if not (build / "compile_commands.json").exists():
        return [f"{build}/compile_commands.json is missing: make build"]
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    # The longest first, so that no processor is left with one at the end.
    work = sorted(batches(jobs_of(root, build, cache)), key=len, reverse=True)
    with tempfile.TemporaryDirectory(prefix="zbccl-tidy-") as scratch:
        runner = Runner(tidy, root, build, Path(scratch))
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            return [message for messages in pool.map(runner.look, work) for message in messages]
