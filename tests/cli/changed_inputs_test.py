"""Inputs that shrink, change or are replaced while they are read: exit 4 with the file's name, no crash."""

import os
import random
import shutil
import signal
import time

from support import (
    CHANGED,
    MIB,
    SEED,
    CliTest,
    main,
    random_tensors,
    read_weights,
    write_family,
    write_safetensors,
)

SHAPES = {f"model.layers.{i}.mlp.up_proj.weight": [1024, 1024] for i in range(12)}  # 24 MiB in bfloat16


class ChangedInputs(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir, shapes=SHAPES)
        more = [f"b{i}" for i in range(4)]
        for name in more:
            os.symlink("b", self.path(name))
        self.write_recipe(models=["a", "b", *more])
        self.file = self.path("a", "model.safetensors")
        self.assert_ok(self.merge("--quiet", out="whole"))
        self.whole = read_weights(self.path("whole"))
        self.rng = random.Random(SEED)

    def content(self):
        with open(self.file, "rb") as f:
            return f.read()

    def start_and_stop(self, extra):
        """A merge that has begun to write, stopped there for a moment."""
        process = self.start(
            "merge", "recipe.toml", "out", "--threads", "1", "--memory", "24MiB", "--quiet", "--json"
        )
        while not os.path.exists(self.path("out.partial")):
            self.assertIsNone(process.poll(), "the merge ended before it began to write")
            time.sleep(0.0005)
        time.sleep(extra)
        process.send_signal(signal.SIGSTOP)
        return process

    def go_on(self, process):
        process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.decode(), err.decode()

    def assert_changed(self, code, out, err):
        self.assertEqual(code, CHANGED, err)
        self.assertIn("model.safetensors", err)
        self.assertIn('"code":"input_changed"', out)
        self.assert_nothing_written()

    def each_time(self, change, check):
        content = self.content()
        size = len(content)
        for extra in (0, 0.005, 0.01, 0.02, 0.04):
            with self.subTest(extra):
                process = self.start_and_stop(extra)
                change(size)
                check(*self.go_on(process))
                shutil.rmtree(self.path("out"), ignore_errors=True)
                with open(self.file, "wb") as f:
                    f.write(content)

    def test_shrinks(self):
        for left in (0, 1000, 6 * MIB + 1):
            self.each_time(lambda size: os.truncate(self.file, left), self.assert_changed)

    def test_shrinks_bit_by_bit_while_it_is_read(self):
        content = self.content()
        for _ in range(4):
            process = self.start(
                "merge", "recipe.toml", "out", "--threads", "2", "--memory", "24MiB", "--quiet"
            )
            while not os.path.exists(self.path("out.partial")) and process.poll() is None:
                time.sleep(0.0005)
            size = len(content)
            while process.poll() is None and size > 4096:
                size -= self.rng.randrange(1, MIB)
                os.truncate(self.file, max(size, 0))
            _, err = process.communicate()
            self.assertEqual(process.returncode, CHANGED, err)
            self.assertIn(b"model.safetensors", err)
            self.assert_nothing_written()
            with open(self.file, "wb") as f:
                f.write(content)

    def test_is_written_to(self):
        def change(size):
            with open(self.file, "r+b") as f:
                f.seek(size - 2)
                f.write(b"\x01\x02")

        self.each_time(change, self.assert_changed)

    def test_grows(self):
        def change(size):
            with open(self.file, "ab") as f:
                f.write(b"more")

        self.each_time(change, self.assert_changed)

    def test_is_replaced(self):
        """A file that was already open is read to its end under its old inode: what was planned is merged."""

        def change(size):
            write_safetensors(self.path("new"), random_tensors(99, SHAPES))
            os.replace(self.path("new"), self.file)

        def check(code, out, err):
            if code == 0:
                self.assertEqual(read_weights(self.path("out")), self.whole)
            else:
                self.assert_changed(code, out, err)

        self.each_time(change, check)

    def test_is_removed(self):
        def check(code, out, err):
            if code == 0:
                self.assertEqual(read_weights(self.path("out")), self.whole)
            else:
                self.assertIn(code, (2, CHANGED), err)
                self.assertIn("model.safetensors", err)
                self.assert_nothing_written()

        self.each_time(lambda size: os.remove(self.file), check)


if __name__ == "__main__":
    main()
