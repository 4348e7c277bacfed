"""The surroundings do not matter: locale, home, current directory, standard streams, umask, limits."""

import os
import resource
import shutil
import subprocess
import unittest

from support import BRAID, IO, CliTest, main, read_weights, recipe, tree_of, write_family, write_text


def locales():
    listed = (
        subprocess.run(["locale", "-a"], capture_output=True, text=True).stdout
        if shutil.which("locale")
        else ""
    )
    wanted = ("tr_TR.utf8", "de_DE.utf8", "tr_TR.UTF-8", "de_DE.UTF-8", "C.utf8", "POSIX")
    return [name for name in listed.split() if name in wanted] + ["xx_XX.UTF-8"]


class Environment(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe(density=0.3)
        self.assert_ok(self.merge())
        self.whole = tree_of(self.path("out"))
        shutil.rmtree(self.path("out"))

    def assert_same_output(self, out="out"):
        self.assertEqual(tree_of(self.path(out)), self.whole)
        shutil.rmtree(self.path(out))

    def test_locales(self):
        for name in locales():
            with self.subTest(name):
                result = self.assert_ok(self.merge("--json", env={"LC_ALL": name, "LANG": name}))
                self.assertIsInstance(result.json()["seconds"], float)
                self.assert_same_output()

    def test_variables(self):
        environments = (
            {"HOME": ""},
            {"HOME": "/nonexistent"},
            {"TERM": "dumb"},
            {"TZ": "Asia/Kathmandu"},
            {"TMPDIR": "/nonexistent"},
        )
        for environment in environments:
            with self.subTest(environment):
                self.assert_ok(self.merge(env=environment))
                self.assert_same_output()

    def test_no_variables_at_all(self):
        result = subprocess.run(
            [BRAID, "merge", "recipe.toml", "out"], cwd=self.dir, env={}, capture_output=True
        )
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assert_same_output()

    def test_read_only_current_directory(self):
        write_text(
            self.path("absolute.toml"), recipe((self.path("a"), self.path("b")), base=self.path("base"))
        )
        self.assert_ok(
            self.run_braid("merge", self.path("absolute.toml"), self.path("out"), cwd="/proc/self")
        )
        self.assert_ok(self.run_braid("verify", self.path("out"), cwd="/proc/self"))

    def test_umask(self):
        self.assert_ok(self.merge(preexec_fn=lambda: os.umask(0o077)))
        self.assertEqual(os.stat(self.path("out", "model.safetensors")).st_mode & 0o777, 0o600)
        self.assertEqual(os.stat(self.path("out")).st_mode & 0o777, 0o700)
        shutil.rmtree(self.path("out"))
        self.assert_ok(self.merge(preexec_fn=lambda: os.umask(0o022)))
        self.assertEqual(os.stat(self.path("out", "model.safetensors")).st_mode & 0o777, 0o644)

    def test_closed_standard_streams(self):
        """Messages must not land in a file that got the number of a closed stream."""
        for closed in ("<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"):
            for option in ("", "--json"):
                with self.subTest(closed=closed, option=option):
                    command = f'"$0" merge recipe.toml out {option} {closed}'
                    result = subprocess.run(["sh", "-c", command, BRAID], cwd=self.dir, capture_output=True)
                    self.assertEqual(result.returncode, 0, result.stderr)
                    self.assert_same_output()
        failing = subprocess.run(
            ["sh", "-c", '"$0" merge none.toml out --json >&- 2>&-', BRAID], cwd=self.dir
        )
        self.assertEqual(failing.returncode, 2)

    def test_reader_that_has_gone(self):
        for verb in (["merge", "recipe.toml", "out"], ["plan", "recipe.toml"], ["inspect", "base"]):
            with self.subTest(verb[0]):
                read, write = os.pipe()
                os.close(read)
                result = self.run_braid(*verb, stdout=write)
                os.close(write)
                self.assertIn(result.code, (0, -13), str(result))
        self.assert_same_output()

    def test_full_streams(self):
        with open("/dev/full", "wb") as full:
            self.assertEqual(self.run_braid("merge", "none.toml", "out", "--json", stdout=full).code, 2)
            self.assertEqual(self.run_braid("merge", "none.toml", "out", stderr=full).code, 2)
            self.assertEqual(self.run_braid("inspect", "base", "--json", stdout=full).code, IO)

    def test_no_child_no_network(self):
        if not shutil.which("strace"):
            self.skipTest("strace is not installed")
        traced = subprocess.run(
            [
                "strace",
                "-f",
                "-qq",
                "-o",
                self.path("trace"),
                "-e",
                "trace=execve,socket,fork,vfork",
                BRAID,
                "merge",
                "recipe.toml",
                "out",
            ],
            cwd=self.dir,
            capture_output=True,
        )
        if traced.returncode != 0:
            self.skipTest("strace may not trace here")
        with open(self.path("trace")) as f:
            self.assertEqual([line for line in f if "(" in line][1:], [], "only the execve of braid itself")


class Descriptors(CliTest):
    def setUp(self):
        super().setUp()
        write_family(
            self.dir, shapes={f"model.layers.{i}.mlp.up_proj.weight": [16, 16] for i in range(60)}, shards=30
        )

    def test_few_descriptors(self):
        """3 sources of 30 shards, 12 output shards, 64 descriptors: done right, or refused with a hint."""
        for scope in ("tensor", "model"):
            with self.subTest(scope):
                self.write_recipe(scope=scope)
                self.assert_ok(self.merge("--shard-size", "3KB", out="many"))
                result = self.merge(
                    "--shard-size",
                    "3KB",
                    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
                )
                if result.code == 0:
                    self.assertEqual(read_weights(self.path("out")), read_weights(self.path("many")))
                else:
                    self.assert_fails(result, IO, "Too many open files", "ulimit -n")
                    self.assert_nothing_written()
                shutil.rmtree(self.path("out"), ignore_errors=True)
                shutil.rmtree(self.path("many"))

    def test_soft_limit_is_raised(self):
        self.write_recipe()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        self.assert_ok(self.merge(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (32, hard))))


@unittest.skipUnless(os.getuid() == 0, "only for root can the number of a user's threads be known")
class Threads(CliTest):
    """As a user who may have so many threads: done, or refused with one error and nothing left, but never a crash."""

    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o777)
        write_family(self.dir)
        self.write_recipe()
        self.braid = shutil.copy(BRAID, self.path("braid"))   # where it was built others may have no access
        try:
            usable = self.limited(100, "--version").code == 0
        except (PermissionError, subprocess.SubprocessError):
            usable = False
        if not usable:
            self.skipTest("this user may not run braid as another one")

    def limited(self, threads, *arguments):
        def become_somebody():
            resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
            os.setgid(65534)
            os.setuid(65534)

        return self.run_braid(*arguments, executable=self.braid, preexec_fn=become_somebody, timeout=60)

    def assert_done_or_refused(self, *arguments):
        refused = 0
        for threads in range(1, 60):
            result = self.limited(threads, *arguments)
            if result.code == 0:
                break
            refused += 1
            self.assert_fails(result, IO, "could not start a thread")
            if arguments[0] == "merge":
                self.assert_nothing_written()
        self.assertEqual(result.code, 0, str(result))
        print(f"  {' '.join(arguments)}: {refused} threads are too few", flush=True)
        self.assertGreater(refused, 0)

    def test_few_threads(self):
        some = ("--threads", "3")
        self.assert_done_or_refused("merge", "recipe.toml", "out", *some)
        self.assert_done_or_refused("verify", "out")
        self.assert_done_or_refused("diff", "out", "out")
        self.assert_done_or_refused("inspect", "out", "--stats")
        shutil.rmtree(self.path("out"))
        self.assert_done_or_refused("merge", "recipe.toml", "out", "--io", "direct", *some)
        shutil.rmtree(self.path("out"))
        self.assert_done_or_refused("merge", "recipe.toml", "out", "--compress", "planes", *some)
        os.rename(self.path("out"), self.path("compressed"))
        self.write_recipe(("compressed", "b"))
        self.assert_done_or_refused("merge", "recipe.toml", "out", *some)
        file = os.path.join("compressed", "model.safetensors.planes.zst")
        self.assert_done_or_refused("cat", file, "--threads", "2")


if __name__ == "__main__":
    main()
