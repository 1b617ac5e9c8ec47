"""zbccl run: output, exit codes, failures and signals, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
import unittest
import uuid
from pathlib import Path

from command import BIN, environment, processes_with, python, shell, start, wait_until, zbccl


class Output(unittest.TestCase):
    def test_each_line_has_its_rank(self):
        done = zbccl("run", "-n", 3, *shell("echo a; echo b; echo problem >&2"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            sorted(done.stdout.splitlines()), sorted(f"[{r}] {x}" for r in range(3) for x in "ab")
        )
        self.assertEqual(sorted(done.stderr.splitlines()), [f"[{r}] problem" for r in range(3)])

    def test_order_within_a_rank_is_kept(self):
        done = zbccl(
            "run", "-n", 2, *shell("i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done")
        )
        for rank in range(2):
            mark = f"[{rank}] "
            own = [line[len(mark) :] for line in done.stdout.splitlines() if line.startswith(mark)]
            self.assertEqual(own, [str(i) for i in range(2000)])

    def test_last_line_without_end(self):
        done = zbccl("run", "-n", 2, *shell("printf unfinished"))
        self.assertEqual(sorted(done.stdout.splitlines()), ["[0] unfinished", "[1] unfinished"])
        self.assertTrue(done.stdout.endswith("\n"))

    def test_streams_before_the_line_ends(self):
        with start(
            "run", "-n", 1, *python("import time; print('In the', end=''); time.sleep(60)")
        ) as job:
            self.addCleanup(job.kill)
            begin = time.monotonic()
            self.assertEqual(job.stdout.read(len("[0] In the")), "[0] In the")
            self.assertLess(time.monotonic() - begin, 50)
            job.terminate()
            job.wait(20)

    def test_an_open_line_never_takes_another_ranks_text(self):
        script = (
            "import os, time\n"
            "for i in range(40):\n"
            "    letter = 'ab'[int(os.environ['ZBCCL_RANK'])]\n"
            "    print(letter + str(i), end=' ', flush=True)\n"
            "    time.sleep(0.01)\n"
            "print()"
        )
        done = zbccl("run", "-n", 2, *python(script))
        for line in done.stdout.splitlines():
            words = line.split()
            self.assertIn(words[0], ("[0]", "[1]"))
            letter = "a" if words[0] == "[0]" else "b"
            self.assertTrue(all(word.startswith(letter) for word in words[1:]), line)
        for letter in "ab":
            words = [word for word in done.stdout.split() if word.startswith(letter)]
            self.assertEqual(words, [f"{letter}{i}" for i in range(40)])

    def test_any_byte_and_long_lines_pass(self):
        data = bytes(b for b in os.urandom(1 << 20) if b != 10)
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            done = zbccl("run", "-n", 1, "--", "cat", file.name, text=False)
        self.assertEqual(done.stdout, b"[0] " + data + b"\n")

    def test_much_output_arrives_whole(self):
        done = zbccl("run", "-n", 4, *shell("yes 0123456789 | head -n 100000"))
        # A line that a busy machine delayed may be shown in two pieces.
        text = "".join(line[len("[0] ") :] for line in done.stdout.splitlines())
        self.assertEqual(len(text), 4 * 100000 * 10)

    def test_without_prefix(self):
        done = zbccl("run", "-n", 2, "--no-prefix", *shell("echo plain"))
        self.assertEqual(done.stdout, "plain\nplain\n")

    def test_reader_that_leaves(self):
        with start("run", "-n", 2, "--", "yes") as job:
            self.addCleanup(job.kill)
            self.assertEqual(job.stdout.readline()[-2:], "y\n")
            job.stdout.close()
            self.assertEqual(job.wait(30), 128 + signal.SIGPIPE)

    def test_rank_0_reads_what_is_piped_in(self):
        done = zbccl("run", "-n", 3, "--", "cat", stdin="for rank zero\n")
        self.assertEqual(done.stdout, "[0] for rank zero\n")


class ExitCodes(unittest.TestCase):
    def test_success(self):
        self.assertEqual(zbccl("run", "-n", 3, "--", "true").returncode, 0)

    def test_the_failing_ranks_code(self):
        done = zbccl("run", "-n", 3, *shell("[ $ZBCCL_RANK != 1 ] || exit 42"))
        self.assertEqual(done.returncode, 42)
        self.assertIn("rank 1 exited with code 42", done.stderr)

    def test_the_first_one_counts(self):
        done = zbccl("run", "-n", 3, *shell("sleep $ZBCCL_RANK; exit $((7 + ZBCCL_RANK))"))
        self.assertEqual(done.returncode, 7)

    def test_signal(self):
        done = zbccl("run", "-n", 2, *shell("[ $ZBCCL_RANK = 0 ] || kill -SEGV $$"))
        self.assertEqual(done.returncode, 128 + signal.SIGSEGV)
        self.assertIn("rank 1 was ended by signal 11", done.stderr)

    def test_missing_program(self):
        for name in ("no-such-program-anywhere", "./no-such-program", "/no/such/program"):
            done = zbccl("run", "-n", 2, "--", name)
            self.assertEqual(done.returncode, 127)
            self.assertIn(name, done.stderr)
            self.assertIn("no such program", done.stderr)

    def test_not_executable(self):
        with tempfile.NamedTemporaryFile() as file:
            done = zbccl("run", "-n", 2, "--", file.name)
            self.assertEqual(done.returncode, 126)
            self.assertIn("not an executable", done.stderr)

    def test_script_without_its_interpreter(self):
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "script"
            script.write_text("#!/no/such/interpreter\n")
            script.chmod(0o755)
            done = zbccl("run", "-n", 2, "--", script)
            self.assertEqual(done.returncode, 127)
            self.assertIn("No such file", done.stderr)

    def test_wrong_options(self):
        for arguments in (
            ["-n", 0, "--", "true"],
            ["-n", -1, "--", "true"],
            ["-n", "many", "--", "true"],
            ["-n", 99999, "--", "true"],
            ["--", "true"],
            ["-n", 2],
            ["-n", 2, "--"],
            ["-n", 2, "--grace", -1, "--", "true"],
            ["-n", 2, "--bind", "moon", "--", "true"],
            ["-n", 2, "--no-such-option", "true"],
        ):
            done = zbccl("run", *arguments)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertNotEqual(done.stderr, "", arguments)

    def test_options_of_the_program_are_its_own(self):
        for arguments in (["--", "echo", "-n", "--", "--help"], ["echo", "-n", "--", "--help"]):
            done = zbccl("run", "-n", 1, *arguments)
            self.assertEqual(done.stdout, "[0] -- --help\n", arguments)

    def test_programs_beside_the_command_are_found(self):
        name = Path(BIN).name
        done = zbccl("run", "-n", 1, "--", name, "version", PATH="/usr/bin:/bin")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("[0] zbccl", done.stdout)


class Supervision(unittest.TestCase):
    # A rank that says when it is ended, and then ends.
    REPORTING = (
        "import os, signal, sys, time\n"
        "def end(number, frame):\n"
        "    print('signal', number); sys.exit(0)\n"
        "for number in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(number, end)\n"
        "print('ready')\n"
        "if os.environ['ZBCCL_RANK'] == os.environ.get('FAILING'): sys.exit(9)\n"
        "time.sleep(100)\n"
    )

    def test_the_others_may_report_first(self):
        script = "[ $ZBCCL_RANK = 0 ] && exit 5; sleep 1; echo reported"
        done = zbccl("run", "-n", 3, *shell(script))
        self.assertEqual(done.returncode, 5)
        self.assertEqual(sorted(done.stdout.splitlines()), ["[1] reported", "[2] reported"])
        self.assertIn("5 s to report", done.stderr)

    def test_then_they_are_ended(self):
        begin = time.monotonic()
        done = zbccl("run", "-n", 3, "--grace", 1, *python(self.REPORTING), FAILING="2")
        self.assertEqual(done.returncode, 9)
        self.assertGreater(time.monotonic() - begin, 1)
        self.assertLess(time.monotonic() - begin, 60)
        for rank in range(2):
            self.assertIn(f"[{rank}] signal {int(signal.SIGTERM)}", done.stdout)

    def test_and_killed_where_they_do_not_listen(self):
        script = "[ $ZBCCL_RANK = 0 ] && exit 6; trap '' TERM; while :; do sleep 0.1; done"
        begin = time.monotonic()
        done = zbccl("run", "-n", 2, "--grace", 0.2, *shell(script))
        self.assertEqual(done.returncode, 6)
        self.assertGreater(time.monotonic() - begin, 2)

    def test_a_killed_rank(self):
        mark = f"ZBCCL_TEST_MARK_{uuid.uuid4().hex}"
        script = f"echo $$; [ $ZBCCL_RANK = 1 ] && kill -9 $$; : {mark}; sleep 100"
        done = zbccl("run", "-n", 2, "--grace", 0.2, *shell(script))
        self.assertEqual(done.returncode, 128 + signal.SIGKILL)
        self.assertEqual(processes_with(mark), [])

    def signal_reaches_all(self, number: int):
        with start("run", "-n", 3, *python(self.REPORTING)) as job:
            self.addCleanup(job.kill)
            for _ in range(3):
                self.assertIn("ready", job.stdout.readline())
            job.send_signal(number)
            out, _ = job.communicate(timeout=60)
            self.assertEqual(
                sorted(out.splitlines()), [f"[{r}] signal {int(number)}" for r in range(3)]
            )
            self.assertEqual(job.returncode, 0)  # which is what the ranks returned

    def test_sigint_goes_on(self):
        self.signal_reaches_all(signal.SIGINT)

    def test_sigterm_goes_on(self):
        self.signal_reaches_all(signal.SIGTERM)

    def test_default_action_of_sigint(self):
        with start("run", "-n", 2, *shell("echo ready; exec sleep 100")) as job:
            self.addCleanup(job.kill)
            for _ in range(2):
                self.assertIn("ready", job.stdout.readline())
            job.send_signal(signal.SIGINT)
            job.communicate(timeout=60)
            self.assertEqual(job.returncode, 128 + signal.SIGINT)

    def test_the_third_request_kills(self):
        script = "trap '' INT TERM; echo ready; while :; do sleep 0.1; done"
        with start("run", "-n", 2, *shell(script)) as job:
            self.addCleanup(job.kill)
            for _ in range(2):
                self.assertIn("ready", job.stdout.readline())
            job.send_signal(signal.SIGINT)
            time.sleep(0.5)
            self.assertIsNone(job.poll())

            # Equal signals that wait are one: the third may need more than two more.
            def asked_again() -> bool:
                job.send_signal(signal.SIGINT)
                time.sleep(0.2)
                return job.poll() is not None

            self.assertTrue(wait_until(asked_again, 60))
            self.assertEqual(job.returncode, 128 + signal.SIGKILL)


class Leftovers(unittest.TestCase):
    def setUp(self):
        self.mark = f"mark-{uuid.uuid4().hex}"

    def assert_nothing_left(self):
        self.assertTrue(
            wait_until(lambda: not processes_with(self.mark)), processes_with(self.mark)
        )

    def test_grandchildren_go_with_the_job(self):
        script = f": {self.mark}; sleep 300 & (setsid sleep 300 &) ; echo started"
        done = zbccl("run", "-n", 2, *shell(script), MARK=self.mark)
        self.assertEqual(done.returncode, 0)
        self.assertEqual(processes_with(self.mark), [])

    def test_grandchildren_of_a_failed_rank(self):
        script = "sleep 300 & [ $ZBCCL_RANK = 1 ] && exit 3; wait"
        done = zbccl("run", "-n", 2, "--grace", 0.2, *shell(script), MARK=self.mark)
        self.assertEqual(done.returncode, 3)
        self.assertEqual(processes_with(self.mark), [])

    def test_late_output_of_a_grandchild_is_shown(self):
        done = zbccl("run", "-n", 1, *shell("(sleep 0.1; echo late) & exit 0"))
        self.assertEqual(done.stdout, "[0] late\n")

    def test_killed_launcher(self):
        with start(
            "run", "-n", 3, *shell("echo ready; sleep 300; echo never"), MARK=self.mark
        ) as job:
            for _ in range(3):
                self.assertIn("ready", job.stdout.readline())
            self.assertGreaterEqual(len(processes_with(self.mark)), 4)
            job.kill()
            job.wait()
            self.assert_nothing_left()

    def test_terminated_launcher(self):
        with start(
            "run", "-n", 2, *shell("echo ready; sleep 300; echo never"), MARK=self.mark
        ) as job:
            for _ in range(2):
                self.assertIn("ready", job.stdout.readline())
            job.terminate()
            job.communicate(timeout=60)
            self.assertEqual(job.returncode, 128 + signal.SIGTERM)
            self.assertEqual(processes_with(self.mark), [])

    def test_no_zombies_while_the_caller_lives(self):
        with start("run", "-n", 4, *shell("sleep 0.1 &")) as job:
            job.communicate(timeout=60)
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        self.assertEqual(children, [])


class Environment(unittest.TestCase):
    def test_what_ranks_are_told(self):
        script = 'echo "$ZBCCL_RANK $ZBCCL_WORLD_SIZE $ZBCCL_LOCAL_RANK $ZBCCL_UNIQUE_ID"'
        done = zbccl("run", "-n", 3, *shell(script), ZBCCL_RANK="7", OTHER="kept")
        ids = set()
        for line in done.stdout.splitlines():
            mark, rank, size, local, unique_id = line.split()
            self.assertEqual((mark, size, local), (f"[{rank}]", "3", rank))
            ids.add(unique_id)
        self.assertEqual(len(ids), 1)
        self.assertRegex(ids.pop(), r"^127\.0\.0\.1:\d+/\w+$")

    def test_the_rest_of_the_environment_is_kept(self):
        done = zbccl(
            "run", "-n", 1, *shell("echo $OTHER; echo ${ZBCCL_HOST_ADDRESS-none}"), OTHER="kept"
        )
        self.assertEqual(done.stdout, "[0] kept\n[0] none\n")

    def test_descriptors_are_not_inherited(self):
        done = zbccl("run", "-n", 2, "--", "ls", "-x", "-w", 999, "/proc/self/fd")
        for line in done.stdout.splitlines():
            self.assertEqual(line.split()[1:], ["0", "1", "2", "3"])  # 3: the folder itself

    def test_signal_mask_is_the_callers(self):
        def masks(status):
            # 32 and 33 are the C library's own: it takes them over in every process with threads.
            own = 0b11 << 31
            pairs = (line.replace("[0] ", "").split(":") for line in status.splitlines())
            return {name: int(mask, 16) & ~own for name, mask in pairs}

        done = zbccl("run", "-n", 1, "--", "grep", "-E", "Sig(Blk|Ign)", "/proc/self/status")
        direct = subprocess.run(
            ["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"],
            capture_output=True,
            text=True,
            env=environment(),
        )
        self.assertEqual(masks(done.stdout), masks(direct.stdout))
        self.assertEqual(len(masks(done.stdout)), 2)

    def test_binding(self):
        one = sorted(os.sched_getaffinity(0))[0]
        done = zbccl(
            "run", "-n", 2, "--bind", "core", "--", "grep", "Cpus_allowed_list", "/proc/self/status"
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        lists = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()}
        self.assertEqual(sorted(lists), ["[0]", "[1]"])
        self.assertIn(str(one), lists["[0]"])


if __name__ == "__main__":
    unittest.main()
