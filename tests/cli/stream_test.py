"""OUT is `-`: one safetensors stream on standard output, the same bytes as in a directory, whoever reads it."""

import json
import os
import pty
import signal
import socket
import subprocess
import time

from support import (
    BAD_INPUT,
    BRAID,
    IO,
    MERGEKIT_RECIPE,
    USAGE,
    CliTest,
    main,
    read_bytes,
    read_text,
    write_family,
    write_text,
)

# In the order of the file; by their names the last ones come first.
UNSORTED = {f"{letter}.weight": [300, 400] for letter in "hgfedcba"}


def socket_pair():
    return tuple(end.detach() for end in socket.socketpair())


class StreamTest(CliTest):
    def setUp(self):
        super().setUp()
        os.mkdir(self.path("tmp"))
        self.env = {"TMPDIR": self.path("tmp")}

    def write_models(self, shapes=None, **options):
        write_family(self.dir, shapes=shapes)
        self.write_recipe(**options)

    def stream(self, *options, recipe_file="recipe.toml", verb="merge"):
        """What came out of stdout, and stderr; it must succeed and leave nothing behind."""
        process = self.start(verb, recipe_file, "-", *options, env=self.env)
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, err.decode())
        self.assertEqual(os.listdir(self.path("tmp")), [])
        return out, err.decode()

    def expected(self, *options):
        self.assert_ok(self.merge("--force", *options))
        return read_bytes(self.path("out", "model.safetensors"))


class Stream(StreamTest):
    def test_the_same_bytes_as_in_a_directory(self):
        self.write_models()
        self.assertEqual(self.stream()[0], self.expected())

    def test_whatever_comes_too_early_waits(self):
        for method, scope in (("ties", "tensor"), ("ties", "model"), ("linear", None)):
            with self.subTest(method=method, scope=scope):
                self.setUp()
                self.write_models(UNSORTED, method=method, base="base" if scope else None, scope=scope)
                expected = self.expected()
                for threads in ("1", "2", "5"):
                    out, err = self.stream("--threads", threads, "--memory", "48MiB", "--json", "--quiet")
                    self.assertEqual(out, expected)
                    if scope == "model":
                        self.assertGreater(json.loads(err)["bytes_spilled"], 1_000_000)

    def test_results_go_to_stderr(self):
        self.write_models()
        out, err = self.stream()
        self.assertIn("output: standard output", err)
        told = json.loads(self.stream("--json")[1])
        self.assertEqual((told["status"], told["output"], told["bytes_written"]), ("ok", "-", len(out)))
        self.assertIn(f"{len(out)} bytes, XXH3-128 {told['xxh3_128']}", err)
        self.assertEqual(self.stream("--quiet")[1], "")
        process = self.start("merge", "none.toml", "-", "--json", env=self.env)
        out, err = process.communicate()
        self.assertEqual((process.returncode, out), (USAGE, b""))
        self.assertEqual(json.loads(err.decode().splitlines()[1])["code"], "usage")

    def test_options_that_mean_nothing_here(self):
        self.write_models(UNSORTED)
        out, _ = self.stream("--force", "--shard-size", "300kB")
        self.assertEqual(out, self.expected())

    def test_mergekit_yaml(self):
        self.write_models()
        write_text(self.path("config.yml"), MERGEKIT_RECIPE)
        self.assertEqual(self.stream(recipe_file="config.yml", verb="mergekit-yaml")[0], self.expected())

    def test_apply(self):
        self.write_models(UNSORTED)
        expected = self.expected()
        text = read_text(self.path("recipe.toml"))
        write_text(self.path("delta.toml"), 'output = "delta"\n' + text)
        self.assert_ok(self.merge(recipe_file="delta.toml", out="delta"))
        process = self.start("apply", "base", "delta", "-", "--json", env=self.env)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, json.loads(err)["output"]), (0, "-"))
        self.assertEqual(out, expected)

    def test_verify_finds_no_checksums(self):
        self.write_models()
        with open(self.path("stream.safetensors"), "wb") as f:
            f.write(self.stream()[0])
        self.assert_ok(self.run_braid("inspect", "stream.safetensors"))
        self.assert_fails(self.run_braid("verify", "stream.safetensors"), BAD_INPUT, "no checksums", "as a stream")

    def test_through_other_programs(self):
        self.write_models(UNSORTED)
        command = f"set -o pipefail; '{BRAID}' merge recipe.toml - --quiet | zstd -q | zstd -dq > piped.safetensors"
        subprocess.run(["bash", "-c", command], cwd=self.dir, env={**os.environ, **self.env}, check=True)
        self.assertEqual(read_bytes(self.path("piped.safetensors")), self.expected())

    def test_into_a_file_of_the_shell(self):
        self.write_models()
        with open(self.path("stream.safetensors"), "wb") as f:
            f.write(b"before")
            f.flush()
            self.assert_ok(self.run_braid("merge", "recipe.toml", "-", stdout=f))
        self.assertEqual(read_bytes(self.path("stream.safetensors")), b"before" + self.expected())


class Refusals(StreamTest):
    def fails(self, code, *fragments, **options):
        self.assert_fails(self.run_braid("merge", "recipe.toml", "-", env=self.env, **options), code, *fragments)
        self.assertEqual(os.listdir(self.path("tmp")), [])

    def test_a_terminal(self):
        self.write_models()
        main_end, terminal = pty.openpty()
        self.fails(USAGE, "standard output", "terminal", stdout=terminal)
        os.close(terminal)
        os.close(main_end)

    def test_an_input(self):
        self.write_models()
        weights = self.path("a", "model.safetensors")
        before = read_bytes(weights)
        with open(weights, "ab") as f:
            self.fails(USAGE, "is the input", stdout=f)
        self.assertEqual(read_bytes(weights), before)

    def test_a_full_disk(self):
        self.write_models(UNSORTED)
        with open("/dev/full", "wb") as f:
            self.fails(IO, "standard output", "No space left", stdout=f)

    def test_no_place_for_what_comes_early(self):
        self.write_models(UNSORTED, scope="model")
        result = self.run_braid("merge", "recipe.toml", "-", env={"TMPDIR": self.path("nowhere")})
        self.assert_fails(result, USAGE, "nowhere", "TMPDIR")
        self.assertEqual(result.stdout, "", "no part of a header")

    def test_a_reader_that_goes_away(self):
        self.write_models(UNSORTED)
        for wanted in (0, 1, 1000, 100_000):
            with self.subTest(wanted):
                process = self.start("merge", "recipe.toml", "-", env=self.env)
                self.assertEqual(len(process.stdout.read(wanted)), wanted)
                process.stdout.close()
                process.stdout = None
                err = process.communicate(timeout=60)[1].decode()
                self.assertEqual((process.returncode, err), (141, ""))
                self.assertEqual(os.listdir(self.path("tmp")), [])

    def test_a_reader_that_does_not_read(self):
        # More than pipes and sockets hold.
        self.write_models({f"{letter}.weight": [1000, 1000] for letter in "hgfedcba"})
        for kind, make in (("pipe", os.pipe), ("socket", socket_pair)):
            for options in ((), ("--compress", "zstd")):
                with self.subTest(kind, options=options):
                    ours, theirs = make()
                    self.addCleanup(os.close, ours)
                    process = self.start("merge", "recipe.toml", "-", *options, env=self.env, stdout=theirs)
                    os.close(theirs)
                    self.assertEqual(len(os.read(ours, 1)), 1)
                    time.sleep(0.3)
                    self.assertIsNone(process.poll())
                    process.send_signal(signal.SIGTERM)   # one is enough
                    self.assertEqual(process.wait(timeout=20), 143)
                    process.communicate()
                    self.assertEqual(os.listdir(self.path("tmp")), [])

    def test_a_socket(self):
        self.write_models(UNSORTED)
        ours, theirs = socket_pair()
        process = self.start("merge", "recipe.toml", "-", "--quiet", env=self.env, stdout=theirs)
        os.close(theirs)
        with open(ours, "rb") as end:
            got = end.read()
        process.communicate(timeout=20)
        self.assertEqual(process.returncode, 0)
        self.assertEqual(got, self.expected())
        ours, theirs = socket_pair()
        process = self.start("merge", "recipe.toml", "-", env=self.env, stdout=theirs)
        os.close(theirs)
        os.read(ours, 1)
        os.close(ours)
        err = process.communicate(timeout=60)[1].decode()
        self.assertEqual((process.returncode, err), (141, ""))


if __name__ == "__main__":
    main()
