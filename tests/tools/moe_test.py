"""zbccl moe: right results, the JSON rows, refused arguments, and gloo beside it."""

from __future__ import annotations

import itertools
import json
import tempfile
import unittest
from pathlib import Path

from command import BIN, zbccl

LAYOUTS = ("rank_major", "expert_major", "expert_masked")
QUANTS = ("none", "fp8", "fp8_pow2", "fp8_ue8m0", "int8")
PHASES = ["dispatch", "combine", "both"]
SMALL = ("--hidden", 720, "--experts", 7, "--topk", 3)


def moe(*arguments: object, **more: str):
    """Runs it; returns the finished process and the rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        done = zbccl("moe", *arguments, "--json", path, **more)
        rows = json.loads(path.read_text()) if path.exists() else None
    return done, rows


class MoeChecked(unittest.TestCase):
    """Every element on every rank, by the command's own check."""

    def assert_right(self, ranks: int, *arguments: object) -> list[dict]:
        done, rows = moe("--ranks", ranks, "--check", "-n", 3, "-w", 1, *arguments)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("# Out of bounds values : 0 OK", done.stdout)
        for row in rows:
            self.assertEqual((row["ranks"], row["nwrong"]), (ranks, 0), row)
        return rows

    def test_every_layout_and_quantization(self):
        for layout, quant in itertools.product(LAYOUTS, QUANTS):
            with self.subTest(layout=layout, quant=quant):
                rows = self.assert_right(
                    3, *SMALL, "--tokens", "5,0", "--layout", layout, "--quant", quant
                )
                self.assertEqual([row["phase"] for row in rows], PHASES * 2)
                self.assertEqual({row["staged_bytes"] for row in rows}, {0})

    def test_every_type(self):
        for dtype, layout in itertools.product(("bf16", "f16", "f32"), LAYOUTS):
            with self.subTest(dtype=dtype, layout=layout):
                self.assert_right(2, *SMALL, "--tokens", 9, "--dtype", dtype, "--layout", layout)

    def test_number_of_ranks(self):
        for ranks in (1, 4, 9):  # two of nine have no expert
            self.assert_right(ranks, *SMALL, "--tokens", 6)

    def test_low_latency(self):
        (row, *_) = self.assert_right(2, "--mode", "ll", "--tokens", 4, "--hidden", 512)
        self.assertEqual((row["mode"], row["experts"]), ("ll", 288))
        self.assertEqual(row["layout"], "expert_masked")

    def test_ways_to_call(self):
        aligned = ("--layout", "expert_major", "--alignment", 8)
        for ways in (
            ("--routing", "skewed"),
            ("--cached",),
            ("--two-phases", "--quant", "fp8"),
            ("--quant", "given", "--cached"),
            ("--quant", "given", *aligned),
            ("--pre-reduce", *aligned),
            ("--unregistered", *aligned),
            ("--routing", "skewed", "--layout", "expert_masked", "--no-bind"),
        ):
            with self.subTest(ways=ways):
                self.assert_right(3, *SMALL, "--tokens", 33, *ways)

    def test_in_a_job(self):
        done = zbccl("run", "-n", 2, "--", BIN, "moe", *SMALL, "--tokens", 5, "-n", 2, "--check")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(done.stdout.count("# Out of bounds values : 0 OK"), 1)


class MoeJson(unittest.TestCase):
    ROW = [
        *("mode", "phase", "dtype", "ranks", "device", "tokens", "hidden", "experts", "topk"),
        *("layout", "quant", "routing", "cached", "graph", "time_us", "p50_us", "p99_us", "bytes"),
        *("nwrong", "staged_bytes", "landing_bytes", "metadata_bytes", "held_bytes", "sms"),
        "compare",
    ]

    def test_rows_are_exactly_as_documented(self):
        done, rows = moe("--ranks", 2, *SMALL, "--tokens", "1,64", "-n", 4)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([row["tokens"] for row in rows], [1] * 3 + [64] * 3)
        for row in rows:
            self.assertEqual(list(row), self.ROW)
            self.assertEqual((row["mode"], row["device"], row["dtype"]), ("normal", "host", "bf16"))
            self.assertEqual((row["hidden"], row["experts"], row["topk"]), (720, 7, 3))
            self.assertIsNone(row["nwrong"])
            self.assertIsNone(row["compare"])
            self.assertGreater(row["time_us"], 0)
            self.assertLessEqual(row["p50_us"], row["p99_us"])
            self.assertLess(row["metadata_bytes"], 1 << 20)
            self.assertLessEqual(row["held_bytes"], 2 << 20)

    def test_bytes(self):
        # One rank: every token comes once, or once for each expert.
        for layout, copies in (("rank_major", 1), ("expert_major", 3)):
            _, rows = moe("--ranks", 1, *SMALL, "--tokens", 10, "-n", 1, "--layout", layout)
            size = 10 * copies * 720 * 2
            self.assertEqual([row["bytes"] for row in rows], [size, size, 2 * size])
        _, rows = moe("--ranks", 1, *SMALL, "--tokens", 10, "-n", 1, "--quant", "fp8")
        self.assertEqual(rows[0]["bytes"], 10 * (720 + 6 * 4))

    def test_the_table(self):
        done, _ = moe("--ranks", 2, "--tokens", 128, "--hidden", 256, "--experts", 256, "-n", 2)
        for text in ("tokens", "phase", "p50", "#wrong", "# Memory to communicate", "# DeepEP's"):
            self.assertIn(text, done.stdout)


class MoeArguments(unittest.TestCase):
    """Refused before a rank starts, with a message that says what is wrong."""

    def refused(self, *arguments: object) -> str:
        done = zbccl("moe", *arguments)
        self.assertEqual(done.returncode, 2, (arguments, done.stdout, done.stderr))
        self.assertEqual(done.stdout, "", arguments)
        return done.stderr

    def test_what_is_refused(self):
        for text, *arguments in (
            ("expected host or cuda", "--device", "tpu"),
            ("gloo is for --device host", "--device", "cuda", "--compare", "gloo"),
            ("expected normal or ll", "--mode", "fast"),
            ("expected rank_major or expert_major", "--layout", "flat"),
            ("expected bf16 or f16 or f32", "--dtype", "i8"),
            ("expected none or fp8", "--quant", "int4"),
            ("--graph is for --device cuda", "--graph"),
            ("--compare gloo with --quant given", "--quant", "given", "--compare", "gloo"),
            ("expected a multiple of 16", "--quant", "given", "--hidden", 8),
            ("expected uniform or skewed", "--routing", "all"),
            ("expected none or gloo", "--compare", "nccl"),
            ("a multiple of 16 bytes", "--hidden", 7),
            ("different experts", "--experts", 3, "--topk", 4),
            ("for --layout expert_major", "--alignment", 4),
            ("for the layouts by expert", "--pre-reduce"),
            ("GiB", "--tokens", 1 << 24),
            ("--json", "--json", "/no/such/folder/rows.json"),
            ("--topk", "--topk", 33),
            ("--tokens", "--tokens", -1),
        ):
            with self.subTest(arguments=arguments):
                self.assertIn(text, self.refused(*arguments))

    def test_another_number_of_ranks_than_the_job(self):
        done = zbccl("run", "-n", 2, "--", BIN, "moe", *SMALL, "--ranks", 3)
        self.assertEqual(done.returncode, 2)
        self.assertIn("this job has 2 ranks", done.stderr)


class MoeCompare(unittest.TestCase):
    def setUp(self):
        module = Path(BIN).resolve().parent.parent / "lib" / "zbccl_compare_gloo.so"
        if not module.exists():
            self.skipTest("this build has no gloo")

    def test_gloo_gives_the_same(self):
        for layout, dtype in itertools.product(LAYOUTS, ("bf16", "f32")):
            with self.subTest(layout=layout, dtype=dtype):
                done, rows = moe(
                    *("--ranks", 3, *SMALL, "--tokens", 6, "--layout", layout, "--dtype", dtype),
                    *("-n", 4, "-w", 1, "--check", "--compare", "gloo"),
                )
                self.assertEqual((done.returncode, done.stderr), (0, ""))
                for row in rows:
                    self.assertEqual(list(row["compare"]), ["name", "time_us", "p50_us", "p99_us"])
                    self.assertEqual(row["compare"]["name"], "gloo")
                    self.assertGreater(row["compare"]["p50_us"], 0)

    def test_a_kept_handle(self):
        done, rows = moe(
            *("--ranks", 2, *SMALL, "--tokens", 6, "--cached", "-n", 4, "-w", 1),
            *("--check", "--compare", "gloo"),
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertTrue(all(row["compare"] and row["cached"] for row in rows))

    def test_a_type_that_it_has_not(self):
        done = zbccl("moe", "--dtype", "f16", "--compare", "gloo")
        self.assertEqual(done.returncode, 2)
        self.assertIn("expected bf16 or f32", done.stderr)


if __name__ == "__main__":
    unittest.main()
