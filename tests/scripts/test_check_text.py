"""The text check finds unfinished work, calls a library must not make, and overlong files."""

from __future__ import annotations

from pathlib import Path

import check_text
import pytest


def messages_for(root: Path, name: str, text: str) -> list[str]:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return check_text.check(root)


@pytest.mark.parametrize(
    "line",
    [
        'printf("x");',
        'std::fprintf(stderr, "x");',
        "  exit(1);",
        "std::abort();",
        "  ::_exit(3);",
        "std::cerr << 1;",
    ],
)
def test_call_that_the_library_must_not_make(tmp_path: Path, line: str) -> None:
    assert len(messages_for(tmp_path, "src/base/a.cc", line + "\n")) == 1


@pytest.mark.parametrize(
    "line",
    [
        'std::snprintf(text, size, "x");',
        "comm->abort();",
        "Status Communicator::abort() {",
        "static_assert(sizeof(int) == 4);",
        "// exit(1) would end the caller's process",
        "on_exit_(x);",
    ],
)
def test_call_that_it_may_make(tmp_path: Path, line: str) -> None:
    assert messages_for(tmp_path, "src/base/a.cc", line + "\n") == []


@pytest.mark.parametrize("line", ["// TODO later", "# fixme", "This is not implemented.", "# XXX"])
def test_unfinished_work(tmp_path: Path, line: str) -> None:
    assert "unfinished" in messages_for(tmp_path, "tools/a.py", line + "\n")[0]


def test_template_names_are_no_marks(tmp_path: Path) -> None:
    assert messages_for(tmp_path, "scripts/a.sh", "mktemp -d /tmp/x.XXXXXX\n") == []


def test_exception_with_a_reason(tmp_path: Path) -> None:
    line = "std::abort();  // text-check: allow, the child of a fork has nobody to report to\n"
    assert messages_for(tmp_path, "src/base/a.cc", line) == []


def test_overlong_file(tmp_path: Path) -> None:
    assert messages_for(tmp_path, "src/base/a.cc", "\n" * 600) == []
    assert "601 lines" in messages_for(tmp_path, "src/base/a.cc", "\n" * 601)[0]
