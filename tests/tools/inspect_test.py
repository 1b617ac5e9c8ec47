"""zbccl env, topo, doctor, version, and the command line itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

from command import BIN, TIMEOUT, environment, zbccl

REPOSITORY = Path(__file__).resolve().parents[2]


def machine_key() -> str:
    """What a tuning file of this machine names: the command says it of a file of another one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tuning.json"
        path.write_text(json.dumps({"version": 1, "machine": "m", "entries": []}))
        shown = zbccl("topo", "show", ZBCCL_TUNING_FILE=str(path)).stdout
        return re.search(r"\(m; this is (.*)\); run", shown).group(1)


class Env(unittest.TestCase):
    FIELDS = ["name", "type", "default", "range", "text", "value", "set"]

    def test_json(self):
        variables = json.loads(zbccl("env", "--json").stdout)
        for variable in variables:
            self.assertEqual(list(variable), self.FIELDS)
        names = [variable["name"] for variable in variables]
        self.assertIn("ZBCCL_TIMEOUT", names)
        self.assertEqual(len(names), len(set(names)))

    def test_table_names_each_with_its_value(self):
        done = zbccl("env", ZBCCL_TIMEOUT="7s")
        for variable in json.loads(zbccl("env", "--json").stdout):
            self.assertIn(variable["name"], done.stdout)
            self.assertIn(variable["text"], done.stdout)
        self.assertRegex(done.stdout, r"ZBCCL_TIMEOUT +7s +\(set\)")

    def test_the_secret_is_not_shown(self):
        for form in ([], ["--json"], ["--markdown"]):
            done = zbccl("env", *form, ZBCCL_UNIQUE_ID="127.0.0.1:1/5ec5e7")
            self.assertEqual(done.returncode, 0)
            self.assertNotIn("5ec5e7", done.stdout)

    def test_markdown_does_not_depend_on_the_environment(self):
        plain = zbccl("env", "--markdown").stdout
        self.assertEqual(plain, zbccl("env", "--markdown", ZBCCL_TIMEOUT="7s").stdout)
        rows = [line for line in plain.splitlines() if line.startswith("| `ZBCCL_")]
        self.assertEqual(len(rows), len(json.loads(zbccl("env", "--json").stdout)))
        for row in rows:
            self.assertEqual(len(re.findall(r"(?<!\\)\|", row)), 6, row)

    def test_the_documentation_is_up_to_date(self):
        page = (REPOSITORY / "docs" / "environment.md").read_text()
        self.assertEqual(page, zbccl("env", "--markdown").stdout)

    def test_two_forms_at_once(self):
        self.assertEqual(zbccl("env", "--json", "--markdown").returncode, 2)


class Explain(unittest.TestCase):
    FIELDS = [
        "op",
        "device",
        "bytes",
        "ranks",
        "dtype",
        "algorithm",
        "how",
        "why",
        "compared_bytes",
        "blocks",
        "threads",
        "overlap",
        "limits",
        "candidates",
        "thresholds_from",
        "times_from",
    ]

    def explained(self, *arguments, **more):
        more.setdefault("ZBCCL_TUNING_FILE", "none")
        done = zbccl("explain", *arguments, "--json", **more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_json(self):
        told = self.explained("all_reduce", "--device", "cuda", "--ranks", 8, "--bytes", "1M")
        self.assertEqual(list(told), self.FIELDS)
        self.assertEqual(told["algorithm"], "two_shot")
        self.assertEqual(told["why"].count("one_shot_max (64 KiB)"), 1)
        chosen, *others = told["candidates"]
        self.assertTrue(chosen["chosen"])
        self.assertGreater(chosen["predicted_us"], 1)
        self.assertIn("pull_push", [one["algorithm"] for one in others])
        host = self.explained("all_reduce", "--ranks", 8, "--bytes", "1M", "--wait", "sleep")
        self.assertEqual(list(host), self.FIELDS)
        self.assertEqual(host["algorithm"], "two_shot")
        self.assertIsNone(host["blocks"])

    def test_text(self):
        done = zbccl("explain", "broadcast", "--device", "cuda", "--bytes", "64M", "--ranks", 4)
        for text in (
            "chain",
            "because",
            "chain_min (32 MiB)",
            "predicted",
            "thresholds:",
            "times:",
        ):
            self.assertIn(text, done.stdout)

    def test_agrees_with_what_is_measured(self):
        for size, ranks in (("1K", 2), ("64K", 2), ("4K", 3), ("256K", 3)):
            told = self.explained(
                "all_reduce", "--bytes", size, "--ranks", ranks, "-d", "f32", "--wait", "sleep"
            )
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "rows.json"
                done = zbccl(
                    *("perf", "all_reduce", "--ranks", ranks, "--sizes", size, "-d", "f32"),
                    *("-n", 5, "--json", path),
                    ZBCCL_HOST_WAIT="sleep",
                    ZBCCL_TUNING_FILE="none",
                )
                self.assertEqual(done.returncode, 0, done.stderr)
                row = json.loads(path.read_text())[0]
            self.assertEqual(row["algorithm"], told["algorithm"], (size, ranks))

    def test_follows_the_environment(self):
        cuda = ("all_reduce", "--device", "cuda", "--bytes", "1M", "--ranks", 4)
        told = self.explained(*cuda, ZBCCL_ALGORITHM="pull_push")
        self.assertEqual(told["algorithm"], "pull_push")
        told = self.explained(*cuda, ZBCCL_DEVICE_TUNING="one_shot_max=1048576")
        self.assertEqual(told["algorithm"], "one_shot")
        self.assertIn("ZBCCL_DEVICE_TUNING", told["thresholds_from"])
        told = self.explained(*cuda, ZBCCL_DEVICE_LANDING="2M")
        self.assertEqual(told["algorithm"], "chunked")
        told = self.explained("all_reduce", "--bytes", "64K", ZBCCL_ONE_SHOT_MAX="64K")
        self.assertEqual(told["algorithm"], "one_shot")

    def test_reads_the_tuning_file(self):
        table = {
            "version": 1,
            "machine": machine_key(),
            "entries": [
                {"ranks": 2, "wait": "spin", "one_shot_max": 8192, "stream_min": 1},
            ],
            "device": {
                "gpu": "NVIDIA H200",
                "entries": [
                    {
                        "ranks": 2,
                        "values": {"one_shot_max": 4096},
                        "costs": [
                            {
                                "operation": "all_reduce",
                                "algorithm": "one_shot",
                                "fixed_us": 77,
                                "us_per_mib": 0,
                            }
                        ],
                    }
                ],
            },
        }
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tuning.json"
            path.write_text(json.dumps(table))
            host = ("all_reduce", "--ranks", 2, "--wait", "spin", "--bytes", "8K")
            told = self.explained(*host, ZBCCL_TUNING_FILE=str(path))
            self.assertEqual(told["algorithm"], "one_shot")
            self.assertIn(str(path), told["thresholds_from"])
            cuda = ("all_reduce", "--device", "cuda", "--ranks", 4)
            told = self.explained(*cuda, "--bytes", "4K", ZBCCL_TUNING_FILE=str(path))
            self.assertEqual(told["candidates"][0]["predicted_us"], 77)
            told = self.explained(*cuda, "--bytes", "8K", ZBCCL_TUNING_FILE=str(path))
            self.assertEqual(told["algorithm"], "two_shot")
            path.write_text(json.dumps(table | {"machine": "another"}))
            told = self.explained(*cuda, "--bytes", "8K", ZBCCL_TUNING_FILE=str(path))
            self.assertEqual(told["algorithm"], "one_shot")
            self.assertIn("another machine", told["thresholds_from"])

    def test_arguments(self):
        for arguments in (
            [],
            ["send"],
            ["all_reduce", "--ranks", 1],
            ["all_reduce", "--ranks", 17, "--device", "cuda"],
            ["all_reduce", "--device", "gpu"],
            ["all_reduce", "--bytes", "much"],
            ["all_reduce", "-d", "complex"],
            ["all_reduce_rms_norm", "-d", "f32"],
            ["all_reduce", "--max-blocks", 8],
            ["all_reduce", "--wait", "spin", "--device", "cuda"],
        ):
            done = zbccl("explain", *arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertNotEqual(done.stderr, "", arguments)
        done = zbccl("explain", "all_reduce", "--device", "cuda", ZBCCL_DEVICE_TUNING="one_shot=1")
        self.assertEqual(done.returncode, 2)
        self.assertIn("ZBCCL_DEVICE_TUNING", done.stderr)


class Topo(unittest.TestCase):
    def test_json(self):
        machine = json.loads(zbccl("topo", "show", "--json").stdout)
        self.assertEqual(
            list(machine), ["packages", "numa_nodes", "caches", "cores", "cpus", "ranks", "shared"]
        )
        self.assertEqual(set(machine["cpus"]), os.sched_getaffinity(0) & set(machine["cpus"]))
        self.assertEqual(len(machine["ranks"]), len(machine["cores"]))

    def test_follows_the_affinity(self):
        one = sorted(os.sched_getaffinity(0))[0]
        done = subprocess.run(
            [BIN, "topo", "show", "--json"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment(),
            preexec_fn=lambda: os.sched_setaffinity(0, {one}),
        )
        machine = json.loads(done.stdout)
        self.assertEqual(machine["cpus"], [one])
        self.assertEqual(len(machine["cores"]), 1)

    def test_text(self):
        done = zbccl("topo", "show", "-n", 4)
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ("package 0", "NUMA node", "core", "rank 3", "shared:"):
            self.assertIn(word, done.stdout)

    def test_what_ranks_share_on_a_described_machine(self):
        # hwloc takes a description of another machine from its own variable.
        description = "package:2 numa:1 l3:1 l2:2 core:1 pu:1"
        done = zbccl(
            "topo", "show", "-n", 4, "--json", HWLOC_SYNTHETIC=description, HWLOC_THISSYSTEM="0"
        )
        machine = json.loads(done.stdout)
        reach = os.sched_getaffinity(0)
        self.assertEqual(len(machine["cores"]), len({0, 1, 2, 3} & reach))
        self.assertEqual([rank["rank"] for rank in machine["ranks"]], [0, 1, 2, 3])

    def test_calibrate_writes_what_show_tells(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache" / "tuning.json"
            quick = ("topo", "calibrate", "-n", "2,3", "--seconds", 0.001)
            done = zbccl(*quick, ZBCCL_TUNING_FILE=str(path))
            self.assertEqual(done.returncode, 0, done.stderr)
            for text in ("data: fresh", "2 ranks", "3 ranks", "meeting:", "held out:", str(path)):
                self.assertIn(text, done.stdout)
            table = json.loads(path.read_text())
            self.assertEqual(list(table), ["version", "machine", "entries"])
            self.assertEqual([entry["ranks"] for entry in table["entries"]], [2, 3])
            for entry in table["entries"]:
                self.assertEqual(
                    list(entry), ["ranks", "wait", "one_shot_max", "stream_min", "cost"]
                )
                self.assertIn(entry["wait"], ("spin", "sleep"))
            shown = zbccl("topo", "show", ZBCCL_TUNING_FILE=str(path)).stdout
            self.assertIn("from 3 ranks", shown)

            done = zbccl(*quick, "--dry-run", "--steady", "--json", Path(folder) / "all.json")
            self.assertIn("data: unchanging", done.stdout)
            self.assertIn("nothing was written", done.stdout)
            measured = json.loads((Path(folder) / "all.json").read_text())
            self.assertEqual([one["ranks"] for one in measured], [2, 3])

    def test_calibrate_arguments(self):
        for arguments in (["-n", 1], ["-n", 65], ["-n", "x"], ["--seconds", 0], ["more"]):
            self.assertEqual(zbccl("topo", "calibrate", *arguments).returncode, 2, arguments)
        done = zbccl("topo", "calibrate", "-n", 2, "--seconds", 0.001, "--output", "/proc/no/such")
        self.assertEqual(done.returncode, 2)
        self.assertIn("--output", done.stderr)

    def test_calibrate_keeps_what_is_known_of_gpus(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tuning.json"
            device = {
                "gpu": "a GPU",
                "entries": [{"ranks": 2, "values": {"one_shot_max": 7}, "costs": []}],
            }
            table = {"version": 1, "machine": machine_key(), "entries": [], "device": device}
            path.write_text(json.dumps(table))
            quick = ("topo", "calibrate", "-n", 2, "--seconds", 0.001, "--output", path)
            done = zbccl(*quick)
            self.assertEqual(done.returncode, 0, done.stderr)
            written = json.loads(path.read_text())
            self.assertEqual(written["device"], device)
            self.assertEqual(len(written["entries"]), 1)
            self.assertIn("a GPU, from 2 ranks: one_shot_max=7", done.stdout)

    def test_calibrate_without_gpus(self):
        # Nothing is written, and the reason is told.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "new" / "tuning.json"
            done = zbccl(
                *("topo", "calibrate", "--device", "cuda", "--output", path),
                CUDA_VISIBLE_DEVICES="",
            )
            self.assertEqual(done.returncode, 2)
            self.assertIn("cuda", done.stderr)
            self.assertFalse(path.parent.exists())
        done = zbccl("topo", "calibrate", "--device", "cuda", "--steady")
        self.assertEqual(done.returncode, 2)
        self.assertEqual(zbccl("topo", "calibrate", "--device", "tpu").returncode, 2)

    def test_arguments(self):
        for arguments in ([], ["show", "-n", 0], ["show", "-n", "x"], ["show", "more"], ["draw"]):
            self.assertEqual(zbccl("topo", *arguments).returncode, 2, arguments)


class Doctor(unittest.TestCase):
    def test_examines_everything(self):
        done = zbccl("doctor")
        for subject in (
            "library",
            "hwloc",
            "gloo",
            "CUDA driver",
            "memfd",
            "Unix sockets",
            "ptrace_scope",
            "cross-memory attach",
            "pidfd",
            "nofile",
            "memlock",
            "cores",
            "SIMD",
            "NUMA",
            "transparent huge pages",
            "all_reduce of 2 ranks, registered memory",
            "all_reduce of 2 ranks, plain memory",
        ):
            self.assertRegex(done.stdout, rf"(?m)^(ok  |warn|FAIL)  {subject}: .+")
        self.assertEqual(done.returncode, 1 if "\nFAIL" in "\n" + done.stdout else 0)
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("The host device works.", done.stdout)

    def test_tells_of_a_small_limit(self):
        done = subprocess.run(
            ["sh", "-c", f"ulimit -n 200; exec {BIN} doctor"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment(),
        )
        self.assertRegex(done.stdout, r"(?m)^warn  nofile: 200 open files.*ulimit -n")

    def test_a_failing_job_is_a_failure(self):
        done = zbccl("doctor", TMPDIR="/no/such/folder")
        self.assertEqual(done.returncode, 1)
        self.assertRegex(done.stdout, r"(?m)^FAIL  all_reduce of 2 ranks.*TMPDIR")
        self.assertIn("mend what is marked FAIL", done.stdout)


class CommandLine(unittest.TestCase):
    def test_version(self):
        self.assertRegex(zbccl("version").stdout, r"^zbccl (\d+\.\d+\.\d+) \(library \1\)\n$")

    def test_help_names_every_subcommand(self):
        done = zbccl("--help")
        self.assertEqual(done.returncode, 0)
        for name in ("perf", "moe", "run", "explain", "doctor", "env", "topo", "version"):
            self.assertRegex(done.stdout, rf"(?m)^  {name} ")
            self.assertEqual(zbccl(name, "--help").returncode, 0)

    def test_what_does_not_exist(self):
        for arguments in ([], ["kv"], ["Perf"], ["--frobnicate"], ["version", "extra"]):
            done = zbccl(*arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertEqual(done.stdout, "", arguments)
            self.assertNotEqual(done.stderr, "", arguments)

    def test_closed_standard_descriptors(self):
        done = subprocess.run(
            ["sh", "-c", f"exec {BIN} run -n 2 -- sh -c 'echo out; echo err >&2' <&- 2>&-"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment(),
        )
        self.assertEqual(sorted(done.stdout.splitlines()), ["[0] out", "[1] out"])


if __name__ == "__main__":
    unittest.main()
