"""Signals, kills and rivals: OUT is complete or not there, whatever happens and whenever."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
import unittest

from support import (
    BRAID,
    IO,
    SEED,
    CliTest,
    main,
    read_weights,
    recipe,
    synth,
    tree_of,
    write_family,
    write_text,
)

MODELS = 8


class Interrupts(CliTest):
    """A merge long enough to be hit in the middle: a small family, its fine-tune under many names."""

    @classmethod
    def setUpClass(cls):
        import tempfile

        cls.family = tempfile.mkdtemp(prefix="braid-cli-family-")
        cls.addClassCleanup(shutil.rmtree, cls.family, ignore_errors=True)
        synth(os.path.join(cls.family, "models"), "small", "--finetunes", "1", "--seed", str(SEED))
        for i in range(MODELS):
            os.symlink("ft1", os.path.join(cls.family, "models", f"m{i}"))
        write_text(
            os.path.join(cls.family, "recipe.toml"),
            recipe([f"models/m{i}" for i in range(MODELS)], base="models/base", density=0.3),
        )
        cls.rng = random.Random(SEED)
        arguments = [
            BRAID,
            "merge",
            "recipe.toml",
            "whole",
            "--threads",
            "1",
            "--shard-size",
            "16MB",
            "--quiet",
        ]
        start = time.monotonic()
        subprocess.run(arguments, cwd=cls.family, check=True)
        cls.seconds = time.monotonic() - start
        cls.whole = read_weights(os.path.join(cls.family, "whole"))

    def setUp(self):
        super().setUp()
        for name in ("models", "recipe.toml"):
            os.symlink(os.path.join(self.family, name), self.path(name))

    def start_merge(self):
        return self.start("merge", "recipe.toml", "out", "--threads", "1", "--shard-size", "16MB")

    def some_moment(self):
        time.sleep(self.rng.uniform(0, 1.05 * self.seconds))

    def assert_whole(self):
        self.assert_ok(self.run_braid("verify", "out"))
        self.assertEqual(read_weights(self.path("out")), self.whole)

    def interrupt(self, number, code):
        process = self.start_merge()
        self.some_moment()
        process.send_signal(number)
        start = time.monotonic()
        _, err = process.communicate(timeout=60)
        self.assertLess(time.monotonic() - start, 5)
        if process.returncode == 0:  # it had already done everything
            self.assert_whole()
            shutil.rmtree(self.path("out"))
            return "finished"
        if process.returncode == -number:  # before the handler was there
            self.assertFalse(os.path.exists(self.path("out")))
            return "early"
        self.assertEqual(process.returncode, code, err)
        self.assertIn(b"interrupted", err)
        self.assert_nothing_written()
        return "stopped"

    def test_interrupts(self):
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)):
            with self.subTest(number.name):
                seen = [self.interrupt(number, code) for _ in range(5)]
                self.assertFalse(os.path.exists(self.path("out.partial")), seen)
        process = self.start_merge()  # and once surely in the middle
        while not os.path.exists(self.path("out.partial")):
            self.assertIsNone(process.poll())
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=5)
        self.assertEqual(process.returncode, 143)
        self.assert_nothing_written()

    def test_kills(self):
        killed_midway = 0
        for _ in range(20):
            process = self.start_merge()
            self.some_moment()
            process.kill()
            process.communicate()
            if os.path.exists(self.path("out")):
                self.assert_whole()
                shutil.rmtree(self.path("out"))
            killed_midway += os.path.exists(self.path("out.partial"))
        if killed_midway == 0:
            self.fail("no kill hit the middle of a merge: this test proves nothing")
        if not os.path.exists(self.path("out.partial")):
            os.mkdir(self.path("out.partial"))
        result = self.assert_ok(self.merge("--threads", "1", "--shard-size", "16MB"))
        self.assertIn("removed what an interrupted merge had left", result.stderr)
        self.assertFalse(os.path.exists(self.path("out.partial")))
        self.assert_whole()

    def test_two_at_once(self):
        first = self.start_merge()
        # A shard is made under the lock; the directory is there a moment before it is locked.
        while not (os.path.isdir(self.path("out.partial")) and os.listdir(self.path("out.partial"))):
            self.assertIsNone(first.poll())
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        try:
            second = self.merge("--json")
            self.assert_fails(second, IO, "another merge is writing here", "out.partial")
            self.assertEqual(second.json()["code"], "io")
        finally:
            first.send_signal(signal.SIGCONT)
        _, err = first.communicate()
        self.assertEqual(first.returncode, 0, err)
        self.assert_whole()

    def test_a_second_signal_ends_it_at_once(self):
        process = self.start_merge()
        while not os.path.exists(self.path("out.partial")):
            time.sleep(0.002)
        process.send_signal(signal.SIGSTOP)
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=5)
        self.assertIn(process.returncode, (130, 143))
        self.assertFalse(os.path.exists(self.path("out")))


@unittest.skipUnless(shutil.which("strace"), "strace is not installed")
class KillsAtSystemCalls(CliTest):
    """The process dies at the nth call that changes a file, for the first ns and a sample of the others."""

    def strace(self, *options, command):
        return subprocess.run(
            ["strace", "-f", "-qq", "-o", self.path("trace"), *options, BRAID, *command],
            cwd=self.dir,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe()
        self.command = ["merge", "recipe.toml", "out", "--shard-size", "600", "--quiet", "--threads", "2"]
        tried = self.strace("-e", "trace=renameat2", command=self.command)
        if tried.returncode != 0:
            self.skipTest("strace may not trace here")
        self.whole = tree_of(self.path("out"))
        shutil.rmtree(self.path("out"))

    def calls_in_a_run(self, calls, command):
        self.strace("-e", f"trace={calls}", command=command)
        with open(self.path("trace")) as f:
            return sum(1 for line in f if re.match(r"\d+ +(%s)\(" % calls.replace(",", "|"), line))

    def kill_everywhere(self, calls, command, prepare, check):
        prepare()
        total = self.calls_in_a_run(calls, command)
        self.assertGreater(total, 0, calls)
        for n in sorted({*range(1, min(total, 6) + 1), *range(1, total + 1, 4), total}):
            with self.subTest(f"{calls} {n} of {total}"):
                prepare()
                self.strace(
                    "-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={n}", command=command
                )
                check()

    def remove_output(self):
        for path in ("out", "out.partial"):
            shutil.rmtree(self.path(path), ignore_errors=True)

    def assert_the_next_run_succeeds(self):
        if os.path.exists(self.path("out")):
            self.assertEqual(tree_of(self.path("out")), self.whole)
            shutil.rmtree(self.path("out"))
        left = os.path.exists(self.path("out.partial"))
        result = self.assert_ok(self.merge("--shard-size", "600", "--threads", "2"))
        self.assertEqual("removed what an interrupted" in result.stderr, left)
        self.assertEqual(tree_of(self.path("out")), self.whole)
        self.assertFalse(os.path.exists(self.path("out.partial")))

    def test_new_output(self):
        for calls in ("pwrite64", "fsync,fdatasync", "renameat2", "mkdir", "fallocate,ftruncate"):
            self.kill_everywhere(calls, self.command, self.remove_output, self.assert_the_next_run_succeeds)

    def test_cleaning_up_after_a_killed_run(self):
        def leave_a_dead_run():
            self.remove_output()
            os.mkdir(self.path("out.partial"))
            for i in range(3):
                write_text(self.path("out.partial", f"model-0000{i}-of-00003.safetensors"), "half")

        self.kill_everywhere(
            "unlink,rmdir", self.command, leave_a_dead_run, self.assert_the_next_run_succeeds
        )

    def test_replacing(self):
        """With --force the old checkpoint or the new one is at OUT, never neither and never half of one."""
        self.write_recipe(density=0.9, file="other.toml")
        self.assert_ok(self.merge(recipe_file="other.toml", out="old"))
        old = tree_of(self.path("old"))

        def put_the_old_one():
            self.remove_output()
            shutil.copytree(self.path("old"), self.path("out"))

        for calls in ("renameat2", "unlink,rmdir", "fsync,fdatasync"):
            self.kill_everywhere(
                calls,
                [*self.command, "--force"],
                put_the_old_one,
                lambda: self.assertIn(tree_of(self.path("out")), (old, self.whole)),
            )


if __name__ == "__main__":
    main()
