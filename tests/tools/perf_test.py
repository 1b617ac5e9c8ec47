"""zbccl perf: right results, the JSON rows, refused arguments, and the ways to start it."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import unittest
import uuid
from pathlib import Path

from command import BIN, TIMEOUT, processes_with, python, start, wait_until, zbccl

REDUCING = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_v")
ROOTED = ("reduce", "broadcast", "gather", "scatter")
MOVING = (
    "all_gather",
    "all_gather_v",
    "broadcast",
    "all_to_all",
    "all_to_all_v",
    "gather",
    "scatter",
    "sendrecv",
)
OPS = (*REDUCING, *MOVING, "barrier")
NOT_IN_PLACE = ("all_to_all_v", "sendrecv", "barrier")
FLOATS = ("f32", "f64", "f16", "bf16", "e4m3", "e5m2")
TYPES = (*FLOATS, "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")
HEADER = ("size", "count", "type", "redop", "root")
TIMES = ("time", "algbw", "busbw", "#wrong")
MORE = ("p50", "p99", "p50", "p99", "algorithm", "bytes")


def perf(*arguments: object, **more: str):
    """Runs it; returns the finished process and the rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.json"
        done = zbccl("perf", *arguments, "--json", path, **more)
        rows = json.loads(path.read_text()) if path.exists() else None
    return done, rows


class Fused(unittest.TestCase):
    """Sums that do more; how right they are is tested elsewhere."""

    def test_they_are_measured(self):
        for op, types in (("all_reduce_rms_norm", 2), ("all_reduce_quantized", 3)):
            done, rows = perf(
                op, "--ranks", 2, "-b", 64, "-e", "1M", "-f", 128, "-n", 3, "-d", "all"
            )
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertEqual(len(rows), 3 * types)
            for row in rows:
                self.assertEqual((row["op"], row["redop"]), (op, None))
                self.assertGreater(row["out_of_place"]["time_us"], 0)

    def test_codes_of_rows(self):
        for quant in ("fp8_tensor", "fp8", "fp8_pow2"):
            done, rows = perf(
                *("all_reduce_rms_norm", "--ranks", 2, "--sizes", "8K,64K", "-n", 3),
                *("--quant", quant),
            )
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertEqual([row["quant"] for row in rows], [quant] * 2)
            self.assertIsNone(rows[0]["in_place"])
            self.assertGreater(rows[0]["out_of_place"]["time_us"], 0)

    def test_codes_of_sums_and_what_they_cost(self):
        for quant, error in ((None, 0.036), ("fp8", 0.036), ("int8", 0.009)):
            done, rows = perf(
                *("all_reduce_quantized", "--ranks", 2, "--sizes", "1K,1M", "-n", 3, "-d", "all"),
                *(("--quant", quant) if quant else ()),
            )
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            self.assertEqual({row["quant"] for row in rows}, {quant or "fp8"})
            for row in rows:
                self.assertAlmostEqual(row["error"]["rms"], error, delta=error / 4)
                self.assertGreater(row["error"]["largest"], row["error"]["rms"])
                self.assertLess(row["error"]["largest"], 10 * error)

    def test_what_they_do_not_have_is_refused(self):
        for arguments, word in (
            (("-d", "f32"), "f16"),
            (("--check",), "GPUs"),
            (("--compare", "gloo"), "has no all_reduce_rms_norm"),
            (("--quant", "int8"), "fp8_pow2"),
            (("--quant", "fp8", "--in-place"), "no in-place form with --quant fp8"),
        ):
            done, _ = perf("all_reduce_rms_norm", "--ranks", 2, *arguments)
            self.assertEqual(done.returncode, 2)
            self.assertIn(word, done.stderr)
        done, _ = perf("all_reduce", "--ranks", 2, "--quant", "none")
        self.assertEqual(done.returncode, 2)
        self.assertIn("all_reduce has no other", done.stderr)


class Checked(unittest.TestCase):
    """Every element on every rank, by the command's own check."""

    def assert_right(self, op: str, ranks: int, *arguments: object) -> list[dict]:
        done, rows = perf(op, "--ranks", ranks, "--check", "-n", 3, "-w", 1, *arguments)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("# Out of bounds values : 0 OK", done.stdout)
        for row in rows:
            self.assertEqual((row["op"], row["ranks"]), (op.replace("-", "_"), ranks))
            for place in ("out_of_place", "in_place"):
                if row[place] is not None:
                    self.assertEqual(row[place]["nwrong"], 0, row)
        return rows

    def test_every_operation_on_one_to_five_ranks(self):
        for op in OPS:
            for ranks in (1, 2, 3, 5):
                with self.subTest(op=op, ranks=ranks):
                    rows = self.assert_right(
                        op, ranks, "-b", 64, "-e", "1M", "-f", 32, "-d", "bf16,f32"
                    )
                    self.assertEqual(len(rows), 1 if op == "barrier" else 2 * 3)

    def test_every_type_and_operator(self):
        for op in REDUCING:
            rows = self.assert_right(op, 3, "-b", "9001", "-e", "9001", "-d", "all", "-o", "all")
            self.assertEqual(len(rows), len(TYPES) * 5)
            self.assertEqual({row["dtype"] for row in rows}, set(TYPES))
            self.assertEqual({row["redop"] for row in rows}, {"sum", "prod", "min", "max", "avg"})

    def test_every_type_is_moved(self):
        for op in MOVING:
            rows = self.assert_right(op, 3, "-b", "7777", "-e", "7777", "-d", "all")
            self.assertEqual({row["dtype"] for row in rows}, set(TYPES))
            self.assertEqual({row["redop"] for row in rows}, {None})

    def test_every_root(self):
        for op in ROOTED:
            for root in range(3):
                with self.subTest(op=op, root=root):
                    self.assert_right(op, 3, "-b", "4K", "-e", "4K", "--root", root)

    def test_fresh_data(self):
        for op in OPS:
            with self.subTest(op=op):
                rows = self.assert_right(op, 3, "-b", 1000, "-e", "100K", "-f", 100, "--fresh")
                self.assertEqual({row["fresh"] for row in rows}, {True})

    def test_unregistered_memory(self):
        for op in OPS[:-1]:
            with self.subTest(op=op):
                self.assert_right(op, 3, "-b", "1K", "-e", "1M", "-f", 1024, "--unregistered")

    def test_registered_memory_is_not_staged(self):
        for op in OPS:
            with self.subTest(op=op):
                for row in self.assert_right(op, 2, "-b", "1K", "-e", "1M", "-f", 32):
                    self.assertEqual(row["staged_bytes"], 0, row)

    def test_left_to_the_scheduler(self):
        self.assert_right("all_reduce", 2, "-b", "64K", "-e", "64K", "--no-bind")

    def test_more_ranks_than_cores(self):
        self.assert_right("all_reduce", 12, "-b", "64K", "-e", "64K", "-d", "bf16,e5m2")

    def test_hyphens_and_sizes_of_zero(self):
        rows = self.assert_right("all-reduce", 2, "-b", 0, "-e", 0)
        self.assertEqual([row["size"] for row in rows], [0])
        self.assert_right("reduce-scatter", 3, "-b", 1, "-e", 16, "-d", "u8")


class Json(unittest.TestCase):
    ROW = [
        "op",
        "device",
        "ranks",
        "dtype",
        "redop",
        "size",
        "fresh",
        "algorithm",
        "out_of_place",
        "in_place",
        "staged_bytes",
        "landing_bytes",
        "held_bytes",
        "init_ms",
        "compare",
    ]
    MEASUREMENT = ["time_us", "p50_us", "p99_us", "algbw", "busbw", "nwrong"]

    def test_rows_are_exactly_as_documented(self):
        done, rows = perf(
            "all_reduce",
            "--ranks",
            3,
            "-b",
            "1K",
            "-e",
            "4K",
            "-d",
            "bf16,f32",
            "-o",
            "sum,max",
            "-n",
            4,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(len(rows), 2 * 2 * 3)
        for row in rows:
            self.assertEqual(list(row), self.ROW)
            self.assertEqual((row["op"], row["device"], row["ranks"]), ("all_reduce", "host", 3))
            self.assertIsInstance(row["algorithm"], str)
            self.assertIsNone(row["compare"])
            for name in ("size", "staged_bytes", "landing_bytes", "held_bytes"):
                self.assertIsInstance(row[name], int)
            for place in ("out_of_place", "in_place"):
                self.assertEqual(list(row[place]), self.MEASUREMENT)
                self.assertIsNone(row[place]["nwrong"])  # without --check
                self.assertGreater(row[place]["time_us"], 0)
                self.assertLessEqual(row[place]["p50_us"], row[place]["p99_us"])
                self.assertAlmostEqual(
                    row[place]["algbw"], row["size"] / row[place]["time_us"] / 1e3, places=6
                )
                self.assertAlmostEqual(row[place]["busbw"], row[place]["algbw"] * 4 / 3, places=6)

    def test_factors_and_sizes(self):
        # 250 elements; equal shares are 83, the forms with a size for each rank take all.
        shares = ("all_gather", "reduce_scatter", "all_to_all", "gather", "scatter")
        sized = ("all_gather_v", "reduce_scatter_v", "all_to_all_v")
        whole = ("reduce", "broadcast", "sendrecv")
        for op in (*shares, *sized, *whole):
            factor = 1 if op in whole else 2 / 3
            _, rows = perf(op, "--ranks", 3, "-b", 1000, "-e", 1000, "-d", "f32", "-n", 2)
            (row,) = rows
            self.assertEqual(row["size"], 996 if op in shares else 1000)
            self.assertAlmostEqual(
                row["out_of_place"]["busbw"], row["out_of_place"]["algbw"] * factor, places=6
            )

    def test_what_does_not_apply_is_null(self):
        _, (row,) = perf("barrier", "--ranks", 2, "-n", 5, "--check")
        self.assertEqual(
            (row["dtype"], row["redop"], row["size"], row["in_place"]), (None, None, 0, None)
        )
        self.assertEqual((row["out_of_place"]["algbw"], row["out_of_place"]["busbw"]), (None, None))
        _, (row,) = perf("sendrecv", "--ranks", 2, "-b", 64, "-e", 64, "-n", 5)
        self.assertIsNone(row["in_place"])
        _, (row,) = perf("all_reduce", "--ranks", 2, "-b", 64, "-e", 64, "-n", 5, "--in-place")
        self.assertIsNone(row["out_of_place"])
        self.assertIsNotNone(row["in_place"])
        _, (row,) = perf("all_reduce", "--ranks", 2, "-b", 64, "-e", 64, "-n", 5, "--out-of-place")
        self.assertIsNone(row["in_place"])

    def test_iterations_by_time(self):
        done, rows = perf("all_reduce", "--ranks", 2, "-b", 64, "-e", 64)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("iterations by time", done.stdout)
        self.assertEqual(len(rows), 1)

    def test_the_table_has_the_columns(self):
        done, _ = perf(
            "all_reduce", "--ranks", 2, "-b", "1K", "-e", "1K", "-d", "f32", "-n", 5, "--check"
        )
        header = next(line for line in done.stdout.splitlines() if "#wrong" in line)
        self.assertEqual(header.lstrip("#").split(), [*HEADER, *TIMES, *TIMES, *MORE])
        row = next(line for line in done.stdout.splitlines() if not line.startswith("#")).split()
        self.assertEqual(row[:5], ["1024", "256", "f32", "sum", "-1"])
        self.assertEqual((row[8], row[12], len(row)), ("0", "0", 19))
        for text in (
            "# Out of bounds values : 0 OK",
            "# Avg bus bandwidth",
            "# Staged",
            "# Landing",
            "# Held",
        ):
            self.assertIn(text, done.stdout)


class Arguments(unittest.TestCase):
    """Refused before a rank starts, with a message that says what is wrong."""

    def refused(self, *arguments: object) -> str:
        done = zbccl("perf", *arguments)
        self.assertEqual(done.returncode, 2, (arguments, done.stdout, done.stderr))
        self.assertEqual(done.stdout, "", arguments)
        self.assertNotIn("rank 0", done.stderr, arguments)
        return done.stderr

    def test_operation(self):
        for op in ("all_to_all_of_them", "", "all_reduce,broadcast"):
            self.assertIn("expected all_reduce", self.refused(op))
        self.refused()

    def test_sizes(self):
        self.assertIn("larger than -e", self.refused("all_reduce", "-b", "2M", "-e", "1M"))
        self.assertIn("never grows", self.refused("all_reduce", "-b", 0, "-e", "1M"))
        for size in (
            "",
            "many",
            "-4",
            "1X",
            "4KK",
            "1.5M",
            "99999999999G",
            "0x10",
            "18446744073709551617",
        ):
            self.assertIn("expected a size", self.refused("all_reduce", "-b", size))
        self.assertIn("GiB", self.refused("all_reduce", "-e", "1T", "--ranks", 2))
        for factor in (1, 0, -2):
            self.assertIn("-f", self.refused("all_reduce", "-f", factor))

    def test_numbers(self):
        for option in ("--ranks", "-n"):
            for value in (0, -1, "x", 10**12):
                self.refused("all_reduce", option, value)
        for value in (-1, "x", 10**12):
            self.refused("all_reduce", "-w", value)
        self.assertIn("--root", self.refused("broadcast", "--ranks", 2, "--root", 2))
        self.assertIn("--root", self.refused("broadcast", "--ranks", 2, "--root", -1))

    def test_names(self):
        self.assertIn("bf16", self.refused("all_reduce", "-d", "float"))
        self.assertIn("bf16", self.refused("all_reduce", "-d", "f32,half"))
        self.assertIn("sum", self.refused("all_reduce", "-o", "xor"))
        self.assertIn("host", self.refused("all_reduce", "--device", "tpu"))
        self.assertIn("gloo", self.refused("all_reduce", "--compare", "mpi"))
        for seconds in (0, -1, "x"):
            self.refused("all_reduce", "--seconds", seconds)
        self.refused("all_reduce", "--no-such-option")
        self.refused("all_reduce", "broadcast")

    def test_what_does_not_fit_together(self):
        for op in NOT_IN_PLACE:
            self.assertIn("in-place", self.refused(op, "--in-place"))

    def test_json_path(self):
        for path in ("/no/such/folder/rows.json", "/", "/proc/rows.json/x"):
            self.assertIn("--json", self.refused("all_reduce", "--json", path))


class Joining(unittest.TestCase):
    def test_under_zbccl_run(self):
        arguments = ["all_reduce", "-b", "1K", "-e", "1K", "-n", 5, "--check"]
        done = zbccl("run", "-n", 3, "--", BIN, "perf", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = done.stdout.splitlines()
        self.assertTrue(all(line.startswith("[0] ") for line in lines), done.stdout)
        self.assertIn("ranks 3", lines[0])

    def test_another_number_of_ranks_than_the_job_has(self):
        done = zbccl("run", "-n", 2, "--", BIN, "perf", "barrier", "--ranks", 3)
        self.assertEqual(done.returncode, 2)
        self.assertIn("this job has 2 ranks", done.stderr)

    def test_processes_are_its_own(self):
        script = (
            "import subprocess, sys\n"
            f"sys.exit(subprocess.call([{BIN!r}, 'perf', 'barrier', '-n', '5']))"
        )
        done = zbccl("run", "-n", 2, *python(script))
        self.assertEqual(done.returncode, 0, done.stderr)

    def test_failure_of_a_rank(self):
        mark = f"mark-{uuid.uuid4().hex}"
        job = start(
            "perf",
            "all_reduce",
            "--ranks",
            3,
            "-b",
            "64K",
            "-e",
            "64K",
            "-n",
            10_000_000,
            MARK=mark,
        )
        with job:
            self.addCleanup(job.kill)

            def ranks() -> list[int]:
                return [pid for pid in processes_with(mark) if b"ZBCCL_RANK=1" in environ_of(pid)]

            self.assertTrue(wait_until(ranks))
            self.assertTrue(job.stdout.readline().startswith("#"))  # they have met
            os.kill(ranks()[0], signal.SIGKILL)
            _, errors = job.communicate(timeout=TIMEOUT)
            self.assertEqual(job.returncode, 128 + signal.SIGKILL, errors)
            self.assertIn("rank 1 was ended by signal 9", errors)
            self.assertIn("zbccl perf: rank 0: ", errors)  # the survivors' own words
            self.assertIn("zbccl perf: rank 2: ", errors)
            self.assertEqual(processes_with(mark), [])


def environ_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


class Compare(unittest.TestCase):
    def setUp(self):
        module = Path(BIN).resolve().parent.parent / "lib" / "zbccl_compare_gloo.so"
        self.built = module.exists()

    def test_built_without(self):
        if self.built:
            self.skipTest("this build has gloo")
        done = zbccl("perf", "all_reduce", "--compare", "gloo")
        self.assertEqual(done.returncode, 2)
        self.assertIn("built without gloo", done.stderr)
        self.assertIn("libgloo-dev", done.stderr)

    def test_every_operation(self):
        if not self.built:
            self.skipTest("this build has no gloo")
        for op in OPS:
            with self.subTest(op=op):
                done, rows = perf(
                    op,
                    "--ranks",
                    2,
                    "-b",
                    "4K",
                    "-e",
                    "4K",
                    "-d",
                    "f32,f16,i32",
                    "-n",
                    8,
                    "--check",
                    "--compare",
                    "gloo",
                )
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(done.stderr, "")
                for row in rows:
                    self.assertEqual(list(row["compare"]), ["name", "time_us", "p50_us", "p99_us"])
                    self.assertEqual(row["compare"]["name"], "gloo")
                    self.assertGreater(row["compare"]["time_us"], 0)

    def test_with_copying(self):
        done, (row,) = perf(
            *("all_reduce", "--ranks", 2, "-b", "1M", "-e", "1M", "-n", 5, "--check"),
            *("--compare", "copy"),
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(row["compare"]["name"], "copy")
        self.assertGreater(row["compare"]["time_us"], 0)
        _, (row,) = perf("barrier", "--ranks", 2, "-n", 5, "--compare", "copy")
        self.assertIsNone(row["compare"])

    def test_types_that_gloo_has_not(self):
        if not self.built:
            self.skipTest("this build has no gloo")
        _, rows = perf(
            "all_reduce",
            "--ranks",
            2,
            "-b",
            "4K",
            "-e",
            "4K",
            "-d",
            "bf16,f32",
            "-n",
            8,
            "--compare",
            "gloo",
        )
        self.assertEqual([row["compare"] is None for row in rows], [True, False])


if __name__ == "__main__":
    unittest.main()
