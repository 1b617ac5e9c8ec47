"""The last line of `make test` says what the JUnit files say; what did not run is no success."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run_tests


def totals_of(tmp_path: Path, cases: str) -> run_tests.Totals:
    path = tmp_path / "junit.xml"
    path.write_text(f"<testsuite>{cases}</testsuite>")
    return run_tests.read_junit(path, "x")


def test_all_states(tmp_path: Path) -> None:
    totals = totals_of(
        tmp_path,
        '<testcase name="a" status="run"/><testcase name="b" classname="c"/>'
        '<testcase name="d" status="fail"><failure message=""/></testcase>'
        '<testcase name="e"><error message="boom"/></testcase>'
        '<testcase name="f" status="disabled"/>'
        '<testcase name="g"><skipped message="no torch"/></testcase>'
        '<testcase name="h" status="notrun"><skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/>'
        "<system-out>t.cc:3: Skipped\nneeds two\n</system-out></testcase>",
    )
    assert totals.line() == "2 passed, 2 failed, 3 skipped"
    assert totals.failures == ["x: d", "x: e"]
    assert totals.reasons == {"no reason given": 1, "no torch": 1, "needs two": 1}


def test_program_that_was_not_built_fails(tmp_path: Path) -> None:
    totals = totals_of(
        tmp_path,
        '<testcase name="a" status="notrun"><skipped message="Unable to find executable: a"/>'
        "</testcase>",
    )
    assert (totals.failed, totals.skipped) == (1, 0)


@pytest.mark.parametrize("text", [None, "<testsuite>"])
def test_missing_or_broken_file_fails(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "junit.xml"
    if text is not None:
        path.write_text(text)
    assert run_tests.read_junit(path, "x").failed == 1


def test_cases_of_a_whole_program_count_instead_of_it(tmp_path: Path) -> None:
    cases = tmp_path / "program.xml"
    cases.write_text(
        '<testsuites><testsuite><testcase name="a" status="run"/><testcase name="b" status="run"/>'
        '<testcase name="c" status="run"><skipped message="t.cc:1&#x0A;needs AVX"/></testcase>'
        "</testsuite></testsuites>"
    )
    path = tmp_path / "junit.xml"
    path.write_text('<testsuite><testcase name="p" status="run"/><testcase name="q"/></testsuite>')
    totals = run_tests.read_junit(path, "x", {"p": cases})
    assert totals.line() == "3 passed, 0 failed, 1 skipped"
    assert totals.reasons == {"needs AVX": 1}
    # A program that died after its last case is still a failure.
    path.write_text('<testsuite><testcase name="p" status="fail"/></testsuite>')
    assert run_tests.read_junit(path, "x", {"p": cases}).line() == "2 passed, 1 failed, 1 skipped"


def test_passed_lines_are_told_from_others() -> None:
    assert run_tests.PASSED_LINE.match("  53/126 Test  #53: I/P.x/47 ....   Passed    0.00 sec")
    assert run_tests.PASSED_LINE.match("  3/126 Test   #3: A.s ....***Skipped   0.00 sec")
    assert not run_tests.PASSED_LINE.match("  2/126 Test   #2: A.f ....***Failed    0.00 sec")
    assert not run_tests.PASSED_LINE.match("[  PASSED  ] 0 tests.")


def test_sum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = tmp_path / "a.json"
    b = tmp_path / "b.json"
    a.write_text(json.dumps(vars(run_tests.Totals(passed=3, skipped=1))))
    b.write_text(json.dumps(vars(run_tests.Totals(passed=2, failed=1, failures=["x: y"]))))
    assert run_tests.main(["--sum", str(a)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "3 passed, 0 failed, 1 skipped"
    assert run_tests.main(["--sum", str(a), str(b)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "5 passed, 1 failed, 1 skipped"
    assert run_tests.main(["--sum", str(a), str(tmp_path / "none.json")]) == 1


def test_no_test_at_all_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "a.json"
    empty.write_text(json.dumps(vars(run_tests.Totals())))
    assert run_tests.main(["--sum", str(empty)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"
