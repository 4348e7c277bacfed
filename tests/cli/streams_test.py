"""Inputs that come once and in order: standard input, FIFOs, descriptors. The same weights as from files, and one clear
error for whatever does not come as it should."""

import glob
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

from support import (
    BAD_INPUT,
    INCOMPATIBLE,
    MIB,
    USAGE,
    CliTest,
    main,
    read_text,
    read_weights,
    recipe,
    synth,
    write_family,
    write_text,
)

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")


class Piped(CliTest):
    def feed(self, *command, **options):
        """A program whose output is to be read."""
        process = subprocess.Popen(command, cwd=self.dir, stdout=subprocess.PIPE, **options)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdout.close)
        return process.stdout

    def cat(self, model):
        return self.feed("cat", os.path.join(model, "model.safetensors"), stderr=subprocess.DEVNULL)

    def weights_of(self, result, out="out"):
        self.assert_ok(result)
        weights = read_weights(self.path(out))
        shutil.rmtree(self.path(out))
        return weights


class Merges(Piped):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe()
        self.expected = self.weights_of(self.merge())

    def test_standard_input(self):
        for where in ("a", "base"):
            with self.subTest(where):
                models = ["a", "b"] if where == "base" else ["-", "b"]
                self.write_recipe(models, base="-" if where == "base" else "base")
                self.assertEqual(self.weights_of(self.merge(stdin=self.cat(where))), self.expected)
        with open(self.path("base", "model.safetensors"), "rb") as file:  # < FILE
            self.assertEqual(self.weights_of(self.merge(stdin=file)), self.expected)

    def test_a_descriptor(self):
        reader = self.cat("a")
        for path in ("/dev/fd/{}", "/proc/self/fd/{}"):
            with self.subTest(path):
                reader = self.cat("a")
                self.write_recipe([path.format(reader.fileno()), "b"])
                self.assertEqual(self.weights_of(self.merge(pass_fds=[reader.fileno()])), self.expected)
        self.write_recipe(["/dev/stdin", "b"])
        self.assertEqual(self.weights_of(self.merge(stdin=self.cat("a"))), self.expected)

    def test_fifos(self):
        for name in ("a", "b"):
            os.mkfifo(self.path(name + ".fifo"))
        self.write_recipe(["a.fifo", "b.fifo"])
        writers = [
            subprocess.Popen(f"cat {name}/model.safetensors > {name}.fifo", shell=True, cwd=self.dir)
            for name in ("a", "b")
        ]
        self.assertEqual(self.weights_of(self.merge()), self.expected)
        self.assertEqual([w.wait() for w in writers], [0, 0])

    def test_programs_between(self):
        self.write_recipe(["-", "b"])
        between = ["tee copy.safetensors", "dd bs=1000 status=none"]
        if shutil.which("zstd"):
            between.append("zstd -q -c | zstd -q -d -c")
        for program in between:
            with self.subTest(program):
                stream = self.feed("sh", "-c", f"cat a/model.safetensors | {program}")
                self.assertEqual(self.weights_of(self.merge(stdin=stream)), self.expected)

    @unittest.skipUnless(shutil.which("zstd"), "zstd is not installed")
    def test_zstd_files_without_a_seek_table(self):
        write_family(self.path("sharded"), shards=3)
        self.write_recipe()
        for source in ("a", "base", "sharded/a", "sharded/base"):
            with self.subTest(source):
                for file in glob.glob(self.path(source, "*.safetensors")):
                    subprocess.run(["zstd", "-q", "--rm", file], check=True)
                fine = source if source.endswith("a") else "a"
                self.write_recipe([fine, "b"], base=source if source.endswith("base") else "base")
                self.assertEqual(self.weights_of(self.merge()), self.expected)
                self.write_recipe([fine, "b"], base=source if source.endswith("base") else "base", scope="model")
                self.weights_of(self.merge())
                plan = self.assert_ok(self.run_braid("plan", "recipe.toml", "--json")).json()
                self.assertGreater(plan["bytes_spooled"], 0)
        file = self.path("a", "model.safetensors.zst")
        with open(file, "r+b") as damaged:
            damaged.truncate(os.path.getsize(file) - 10)
        self.assert_fails(self.merge(), BAD_INPUT, "a/model.safetensors.zst", "the stream ends within it")

    def test_two_merges_joined(self):
        write_text(self.path("first.toml"), recipe(["a", "b"], more='dtype = "float32"'))
        for scope in ("tensor", "model"):
            write_text(self.path("second.toml"), recipe(["first.safetensors", "b"], scope=scope))
            self.assert_ok(self.merge(recipe_file="first.toml", out="first.safetensors"))
            expected = self.weights_of(self.merge(recipe_file="second.toml"))
            os.remove(self.path("first.safetensors"))
            write_text(self.path("second.toml"), recipe(["-", "b"], scope=scope))
            first = self.start("merge", "first.toml", "-")
            second = self.merge(recipe_file="second.toml", stdin=first.stdout)
            first.stdout.close()
            first.stderr.close()
            self.assertEqual(first.wait(), 0)
            self.assertEqual(self.weights_of(second), expected)
        # A reader that goes away; a writer that fails.
        write_text(self.path("broken.toml"), recipe(["-", "missing"]))
        first = self.start("merge", "first.toml", "-")
        self.assertEqual(self.merge(recipe_file="broken.toml", stdin=first.stdout).code, USAGE)
        first.stdout.close()
        self.addCleanup(first.stderr.close)
        self.assertIn(first.wait(timeout=60), (0, 141))
        first = self.start("merge", "broken.toml", "-")
        second = self.merge(recipe_file="second.toml", stdin=first.stdout)
        self.assert_fails(second, BAD_INPUT, "nothing comes out of it")
        first.stdout.close(), first.stderr.close(), first.wait()

    def test_a_delta_from_a_pipe(self):
        self.write_recipe()
        write_text(self.path("delta.toml"), 'output = "delta"\n' + read_text(self.path("recipe.toml")))
        self.assert_ok(self.merge(recipe_file="delta.toml", out="delta"))
        self.assert_ok(self.run_braid("apply", "base", "-", "out", stdin=self.cat("delta")))
        self.assertEqual(read_weights(self.path("out")), self.expected)
        shutil.rmtree(self.path("out"))
        self.assert_ok(self.run_braid("apply", "-", "delta", "out", stdin=self.cat("base")))
        self.assertEqual(read_weights(self.path("out")), self.expected)

    def test_stages(self):
        stages = '''
[[stages]]
name = "first"
method = "task_arithmetic"
base = "{base}"
[[stages.models]]
path = "{a}"
weight = 0.5
[[stages]]
method = "linear"
[[stages.models]]
stage = "first"
weight = 0.5
[[stages.models]]
path = "{b}"
weight = 0.5
'''
        write_text(self.path("plain.toml"), stages.format(base="base", a="a", b="b"))
        expected = self.weights_of(self.merge(recipe_file="plain.toml"))
        for name in ("base", "a", "b"):
            with self.subTest(name):
                write_text(self.path("piped.toml"), stages.format(**{**dict(base="base", a="a", b="b"), name: "-"}))
                self.assertEqual(self.weights_of(self.merge(recipe_file="piped.toml", stdin=self.cat(name))), expected)
        write_text(self.path("plain.toml"), stages.format(base="base", a="b", b="b"))
        expected = self.weights_of(self.merge(recipe_file="plain.toml"))
        write_text(self.path("piped.toml"), stages.format(base="base", a="-", b="-"))
        self.assertEqual(self.weights_of(self.merge(recipe_file="piped.toml", stdin=self.cat("b"))), expected)

    def test_stages_of_whole_models(self):
        """Computed anew in one run, or merged first in a run of its own that reads the stream before the other does."""
        whole = ('[[stages]]\nname = "first"\nmethod = "ties"\nbase = "{base}"\n'
                 'parameters = {{ density = 0.4, scope = "model" }}\n[[stages.models]]\npath = "{a}"\n[[stages]]\n')
        models = '[[stages.models]]\nstage = "first"\n[[stages.models]]\npath = "{b}"\n'
        paths = {"base": "base", "a": "a", "b": "b"}
        ties = 'ties"\nparameters = {{ density = 0.5 }}\nbase = "{base}'
        for method, file in (("linear", False), (ties, False), (ties + '"\nexclude = "*.0.*', True)):
            text = whole + f'method = "{method}"\n' + models
            write_text(self.path("plain.toml"), text.format(**paths))
            plan = self.assert_ok(self.run_braid("plan", "plain.toml")).stdout
            self.assertIn("is merged first" if file else "is computed anew", plan)
            expected = self.weights_of(self.merge(recipe_file="plain.toml"))
            for name in paths:
                with self.subTest(method=method, stream=name):
                    write_text(self.path("piped.toml"), text.format(**{**paths, name: "-"}))
                    for memory in ("1GiB", "64MiB"):
                        result = self.merge("--memory", memory, recipe_file="piped.toml", stdin=self.cat(name))
                        self.assertEqual(self.weights_of(result), expected)

    def test_side_files_come_from_a_directory(self):
        self.write_recipe(["a", "b"], base="-")
        self.assert_ok(self.merge(stdin=self.cat("base")))
        self.assertTrue(os.path.exists(self.path("out", "config.json")))
        shutil.rmtree(self.path("out"))
        self.write_recipe(["a/model.safetensors", "b/model.safetensors"], base="-")
        result = self.assert_ok(self.merge(stdin=self.cat("base")))
        self.assertIn("warning: the output has weights alone", result.stderr)
        self.assertFalse(os.path.exists(self.path("out", "config.json")))

    def test_a_single_file_out(self):
        self.write_recipe(["-", "b"])
        self.assert_ok(self.merge(out="out.safetensors", stdin=self.cat("a")))
        self.assertEqual(read_weights(self.path("out.safetensors")), self.expected)
        self.assert_ok(self.run_braid("verify", "out.safetensors"))


class Recipes(Piped):
    """Every recipe in configs/, with one of its models, and with its base, from standard input."""

    def test_configs(self):
        families = {}
        for architecture in ("tiny", "small"):
            families[architecture] = self.path(architecture)
            synth(self.path(architecture), architecture, "--names", "math,code,chat")
        recipes = sorted(
            file for kind in ("toml", "yml") for file in glob.glob(os.path.join(ROOT, "configs", "*." + kind))
        )
        spooled = set()
        for path in recipes:
            name, text = os.path.basename(path), read_text(path)
            if "tokenizer" in name or "pipe" in name:
                continue  # a stream has none; and there is one already
            if os.path.lexists(self.path("models")):
                os.remove(self.path("models"))
            os.symlink(families["small" if "slices" in text else "tiny"], self.path("models"))
            write_text(self.path(name), text)
            expected = self.weights_of(self.merge("--quiet", recipe_file=name))
            for model in sorted(set(re.findall(r"models/(\w+)", re.sub("#.*", "", text)))):
                if "delta" in name and model == "base":
                    continue  # which is looked at here and there
                piped = re.sub(f'"?models/{model}\\b"?', '"-"', text)
                write_text(self.path("piped" + os.path.splitext(name)[1]), piped)
                file = "piped" + os.path.splitext(name)[1]
                plan = self.assert_ok(self.run_braid("plan", file, "--json", stdin=self.cat("models/" + model))).json()
                least = (plan["memory"]["least"] >> 20) + 1
                for options in ((), ("--memory", f"{least}MiB")):
                    with self.subTest(name, model=model, options=options):
                        told = self.assert_ok(
                            self.run_braid("plan", file, "--json", *options, stdin=self.cat("models/" + model))
                        ).json()
                        if told["bytes_spooled"] > 0:
                            spooled.add(name)
                        result = self.merge("--quiet", *options, recipe_file=file, stdin=self.cat("models/" + model))
                        self.assertEqual(self.weights_of(result), expected)
        self.assertIn("ties-model-scope.toml", spooled)
        self.assertNotIn("linear.toml", spooled)


class Plans(Piped):
    def setUp(self):
        super().setUp()
        write_family(self.dir)

    def test_what_is_spooled(self):
        self.write_recipe(["-", "b"])
        self.assertRegex(self.assert_ok(self.run_braid("plan", "recipe.toml", stdin=self.cat("a"))).stdout,
                         r"spools +nothing of -")
        self.write_recipe(["-", "b"], scope="model")
        result = self.assert_ok(self.run_braid("plan", "recipe.toml", stdin=self.cat("a")))
        self.assertRegex(result.stdout, r"spools .* of -, read again: 4 tensors \(model.embed_tokens.weight, ")
        self.assertRegex(result.stdout, r"spools .* of -, out of order: 1 tensor \(model.layers.0.mlp.up_proj.weight\)")
        self.assertIn(f"in {tempfile.gettempdir()} (TMPDIR)", result.stdout)


class Failures(Piped):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe(["-", "b"])
        with open(self.path("a", "model.safetensors"), "rb") as file:
            self.whole = file.read()

    def fails_with(self, data, code, *fragments):
        for options in ((), ("--json",)):
            process = self.start("merge", "recipe.toml", "out", *options, stdin=subprocess.PIPE)
            out, err = process.communicate(data, timeout=60)
            self.assertEqual(process.returncode, code, err)
            for fragment in fragments:
                self.assertIn(fragment, err.decode())
            self.assert_nothing_written()

    def test_truncated_streams(self):
        self.fails_with(b"", BAD_INPUT, "standard input", "nothing comes out of it")
        self.fails_with(self.whole[:100], BAD_INPUT, "it ends within its header")
        self.fails_with(self.whole[:-3], BAD_INPUT, "standard input", "tensor 'model.norm.weight'",
                        "3 of the tensor's 16 bytes are missing")
        for cut in range(8, len(self.whole), 97):
            self.fails_with(self.whole[:cut], BAD_INPUT, "standard input")

    def test_more_than_there_should_be(self):
        self.fails_with(self.whole + b"\0", BAD_INPUT, "it goes on after its last tensor")

    def test_something_else(self):
        self.fails_with(b"<html>not found</html>", BAD_INPUT, "web page")
        self.fails_with(b"{}", BAD_INPUT, "standard input")

    def test_a_writer_that_fails(self):
        stream = self.feed("sh", "-c", "head -c 500 a/model.safetensors; exit 1")
        result = self.merge(stdin=stream)
        self.assert_fails(result, BAD_INPUT, "the program that writes it")
        self.assert_nothing_written()

    def test_nothing_to_read(self):
        self.assert_fails(self.merge(), BAD_INPUT, "nothing comes out of it")  # /dev/null
        controller, terminal = pty.openpty()
        result = self.merge(stdin=terminal)
        os.close(controller), os.close(terminal)
        self.assert_fails(result, USAGE, "this is a terminal", "recipe.toml:8:8")
        self.write_recipe(["/dev/fd/77", "b"])
        self.assert_fails(self.merge(), USAGE, "no such file")

    def test_one_stream_for_two(self):
        self.write_recipe(["-", "/dev/stdin"])
        self.assert_fails(self.merge(stdin=self.cat("a")), USAGE, "being read already")

    def test_a_tokenizer_from_a_stream(self):
        self.write_recipe(["-", "b"], more='tokenizer = "union"')
        self.assert_fails(self.merge(stdin=self.cat("a")), INCOMPATIBLE, "tokenizer")

    def test_a_fifo_in_a_checkpoint_is_not_opened(self):
        os.remove(self.path("b", "model.safetensors"))
        os.mkfifo(self.path("b", "model.safetensors"))
        self.write_recipe(["a", "b"])
        self.assert_fails(self.merge(), BAD_INPUT, "not a regular file")

    def test_interrupts(self):
        for data in (b"", self.whole[:20], self.whole[:-5]):
            for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
                with self.subTest(sent=len(data), signal=number):
                    process = self.start("merge", "recipe.toml", "out", stdin=subprocess.PIPE)
                    process.stdin.write(data)
                    process.stdin.flush()
                    time.sleep(0.3)
                    self.assertIsNone(process.poll())
                    process.send_signal(number)
                    deadline = time.monotonic() + 5
                    while process.poll() is None and time.monotonic() < deadline:
                        time.sleep(0.01)
                    self.assertEqual(process.poll(), code)
                    process.communicate()
                    self.assert_nothing_written()


class Memory(Piped):
    def test_the_promise_holds_for_streams(self):
        synth(self.dir, "small", "--names", "a,b")
        for scope, budget in (("tensor", 12), ("model", 24), ("tensor", 100)):
            with self.subTest(scope, budget=budget):
                write_text(self.path("recipe.toml"), recipe(["-", "b"], scope=scope))
                result, peaks = self.run_measured(
                    "merge", "recipe.toml", "out", "--quiet", "--memory", f"{budget}MiB", stdin=self.cat("a")
                )
                self.assert_ok(result)
                self.assertLess(peaks["VmHWM"], (budget + 64) * MIB)
                shutil.rmtree(self.path("out"))


if __name__ == "__main__":
    main()
