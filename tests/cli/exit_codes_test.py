"""Every documented exit code, its message, its JSON, and that a failing run leaves nothing behind."""

import json
import os
import resource
import shutil
import struct
import subprocess
import unittest

from support import (
    BAD_INPUT,
    INCOMPATIBLE,
    IO,
    MEMORY,
    MIB,
    TINY_SHAPES,
    USAGE,
    CliTest,
    header_of,
    main,
    random_tensors,
    recipe,
    write_family,
    write_model,
    write_safetensors,
    write_text,
)


class Success(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe()

    def test_summary_on_stdout(self):
        result = self.assert_ok(self.merge())
        self.assertIn("output: out", result.stdout)
        self.assertEqual(result.stderr, "")

    def test_json(self):
        result = self.assert_ok(self.merge("--json"))
        self.assertEqual(len(result.stdout.splitlines()), 1)
        told = result.json()
        self.assertEqual((told["status"], told["output"]), ("ok", "out"))
        written = os.path.getsize(self.path("out", "model.safetensors"))
        self.assertEqual(told["bytes_written"], written)
        self.assertGreaterEqual(told["bytes_read"], 3 * sum(len(d) for _, _, d in random_tensors(1).values()))
        self.assertGreater(told["seconds"], 0)
        self.assertGreater(told["peak_rss_bytes"], MIB)

    def test_quiet(self):
        result = self.assert_ok(self.merge("--quiet"))
        self.assertEqual((result.stdout, result.stderr), ("", ""))

    def test_help_starts_with_an_example(self):
        for verb in ("merge", "plan", "inspect", "diff", "verify", "synth"):
            with self.subTest(verb):
                result = self.assert_ok(self.run_braid(verb, "--help"))
                self.assertIn(f"braid {verb} ", result.stdout.split("Usage:")[0])
        self.assertIn("braid merge ", self.assert_ok(self.run_braid("--help")).stdout.split("Usage:")[0])

    def test_a_negative_answer_is_1(self):
        self.assert_ok(self.merge())
        self.assert_ok(self.run_braid("verify", "out"))
        self.assertEqual(self.run_braid("diff", "out", "base").code, 1)
        with open(self.path("out", "model.safetensors"), "r+b") as f:
            f.seek(-1, os.SEEK_END)
            last = f.read(1)
            f.seek(-1, os.SEEK_END)
            f.write(bytes([last[0] ^ 1]))
        result = self.run_braid("verify", "out")
        self.assertEqual(result.code, 1, str(result))


class Usage(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe()

    def test_command_line(self):
        for arguments in (
            [],
            ["mrege", "recipe.toml", "out"],
            ["merge"],
            ["merge", "recipe.toml"],
            ["merge", "recipe.toml", "out", "--memroy", "1GiB"],
            ["merge", "recipe.toml", "out", "more"],
            ["merge", "recipe.toml", "out", "--threads", "0"],
            ["merge", "recipe.toml", "out", "--threads", "two"],
        ):
            with self.subTest(arguments):
                self.assert_fails(self.run_braid(*arguments), USAGE, "--help")
                told = self.run_braid(*arguments, "--json").json()
                self.assertEqual((told["status"], told["code"]), ("error", "usage"))
        self.assert_nothing_written()

    def test_sizes(self):
        for option in ("--memory", "--shard-size"):
            for size in ("much", "0", "1XB", "-1GB", "nan", "inf", "1e300", "1 GB GB"):
                with self.subTest(f"{option}={size}"):
                    self.assert_merge_fails(
                        USAGE, f"{option} '{size}' is not a size", options=[f"{option}={size}"]
                    )

    def test_no_recipe(self):
        self.assert_merge_fails(USAGE, "none.toml", "No such file", recipe_file="none.toml")

    def test_recipe_errors_have_line_and_column(self):
        cases = [
            ('method = "ties"\nbase = "base"\ndensty = 1\n', "recipe.toml:3:1", "densty"),
            ('method = "tise"\nbase = "base"\n', "recipe.toml:1:10", "'ties'"),
            ('method = "ties"\nbase = [\n', "recipe.toml:", ""),
            (recipe(density=1.5), "recipe.toml:5:11", "density"),
            (recipe(models=("a", "a")), "recipe.toml:11:8", "'a'"),
        ]
        for text, where, what in cases:
            with self.subTest(text):
                write_text(self.path("recipe.toml"), text)
                told = self.assert_merge_fails(USAGE, where, what)
                self.assertEqual(told["path"], "recipe.toml")

    def test_yaml_errors_have_line_and_column(self):
        write_text(self.path("recipe.yml"), "merge_method: ties\nbase_model: base\nmodles: []\n")
        self.assert_merge_fails(USAGE, "recipe.yml:3:1", "unknown key 'modles'", recipe_file="recipe.yml")

    def test_source_that_is_not_there(self):
        self.write_recipe(models=("a", "./nowhere"))
        self.assert_merge_fails(USAGE, "nowhere")

    def test_model_that_is_not_in_the_cache(self):
        self.write_recipe(models=("a", "some-org/some-name"))
        self.assert_merge_fails(
            USAGE, "hf download some-org/some-name", env={"HF_HUB_CACHE": self.path("cache")}
        )

    def test_output_that_exists(self):
        os.mkdir(self.path("out"))
        write_text(self.path("out", "mine.txt"), "mine")
        self.assert_merge_fails(USAGE, "out", "--force", keeps_out=True)
        self.assertEqual(os.listdir(self.path("out")), ["mine.txt"])

    def test_output_that_is_a_file(self):
        write_text(self.path("out"), "mine")
        self.assert_merge_fails(USAGE, "not a directory", keeps_out=True, options=["--force"])
        self.assertTrue(os.path.isfile(self.path("out")))

    def test_output_that_is_a_link_to_nothing(self):
        os.symlink("nowhere", self.path("out"))
        self.assert_merge_fails(USAGE, "link", keeps_out=True)
        self.assertEqual(os.readlink(self.path("out")), "nowhere")


class BadInput(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe()

    def test_truncated_shard(self):
        path = self.path("a", "model.safetensors")
        os.truncate(path, os.path.getsize(path) - 1)
        told = self.assert_merge_fails(BAD_INPUT, "a/model.safetensors")
        self.assertEqual(told["path"], "a/model.safetensors")

    def test_lying_headers(self):
        tensors = random_tensors(1)
        name = next(iter(tensors))

        def lie(**change):
            header = header_of(tensors)
            header[name].update(change)
            return json.dumps(header).encode()

        plain = json.dumps(header_of(tensors)).encode()
        data = b"".join(d for _, _, d in tensors.values())
        cases = {
            "longer than the file": struct.pack("<Q", 1 << 40) + plain + data,
            "all ones": b"\xff" * 8 + plain + data,
            "empty": b"",
            "no JSON": struct.pack("<Q", 8) + b"notjson!" + data,
            "overlap": struct.pack("<Q", len(lie(data_offsets=[2, 514]))) + lie(data_offsets=[2, 514]) + data,
            "shape against bytes": struct.pack("<Q", len(lie(shape=[33, 8]))) + lie(shape=[33, 8]) + data,
            "overflow": struct.pack("<Q", len(lie(shape=[1 << 40, 1 << 40])))
            + lie(shape=[1 << 40, 1 << 40])
            + data,
            "trailing bytes": struct.pack("<Q", len(plain)) + plain + data + b"x",
        }
        for what, content in cases.items():
            with self.subTest(what):
                with open(self.path("a", "model.safetensors"), "wb") as f:
                    f.write(content)
                self.assert_merge_fails(BAD_INPUT, "a/model.safetensors")

    def test_control_characters_are_escaped(self):
        shapes = {**TINY_SHAPES, "evil\x1b]0;x\x07\nname": [4]}
        tensors = random_tensors(1, shapes)
        header = header_of(tensors)
        header["evil\x1b]0;x\x07\nname"]["shape"] = [5]
        write_safetensors(self.path("a", "model.safetensors"), tensors, header)
        told = self.assert_merge_fails(BAD_INPUT, r"\x1b]0;x\x07\x0aname")
        self.assertEqual(told["tensor"], "evil\x1b]0;x\x07\nname")

    def test_control_characters_in_results(self):
        directory = "mo\x1bdel"
        write_model(self.path(directory), random_tensors(9, {"te\x1bnsor": [4]}))
        self.write_recipe(models=("a", directory))
        for result in (
            self.run_braid("inspect", directory),
            self.run_braid("plan", "recipe.toml"),
            self.merge(),
            self.run_braid("diff", "base", directory),
            self.run_braid("verify", directory),
        ):
            self.assertNotIn("\x1b", result.stdout + result.stderr)

    def sharded(self):
        shutil.rmtree(self.path("a"))
        write_model(self.path("a"), random_tensors(2), shards=3)
        with open(self.path("a", "model.safetensors.index.json")) as f:
            return json.load(f)

    def write_index(self, index):
        write_text(self.path("a", "model.safetensors.index.json"), json.dumps(index))

    def test_missing_shard(self):
        self.sharded()
        os.remove(self.path("a", "model-00002-of-00003.safetensors"))
        self.assert_merge_fails(BAD_INPUT, "model-00002-of-00003.safetensors")

    def test_index_that_disagrees(self):
        index = self.sharded()
        name = next(iter(index["weight_map"]))
        index["weight_map"][name] = "model-00003-of-00003.safetensors"
        self.write_index(index)
        told = self.assert_merge_fails(BAD_INPUT, name)
        self.assertEqual(told["tensor"], name)

    def test_index_that_leaves_the_directory(self):
        write_safetensors(self.path("secret.safetensors"), random_tensors(3))
        for target in (
            "../secret.safetensors",
            self.path("secret.safetensors"),
            "x/../../secret.safetensors",
            "",
        ):
            with self.subTest(target):
                shutil.rmtree(self.path("a"))
                write_model(self.path("a"), random_tensors(2))
                index = self.sharded()
                index["weight_map"][next(iter(index["weight_map"]))] = target
                self.write_index(index)
                self.assert_merge_fails(BAD_INPUT, "model.safetensors.index.json")

    def test_shard_that_is_a_fifo(self):
        os.remove(self.path("a", "model.safetensors"))
        os.mkfifo(self.path("a", "model.safetensors"))
        self.assert_merge_fails(BAD_INPUT, "not a regular file")


class Io(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir, shapes={"model.norm.weight": [64], "lm_head.weight": [4096, 256]})  # 2 MiB
        self.write_recipe()

    def test_file_size_limit(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))

        self.assert_merge_fails(IO, "out.partial", "ulimit -f", preexec_fn=limit)

    def test_disk_full(self):
        os.mkdir(self.path("disk"))
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", self.path("disk")], capture_output=True
        )
        if mounted.returncode != 0:
            self.skipTest("this user may not mount a tmpfs")
        self.addCleanup(subprocess.run, ["umount", self.path("disk")])
        self.assert_merge_fails(IO, "free", out="disk/out")
        self.assert_merge_fails(IO, "free", out="disk/new/out.safetensors")

    def test_no_permission(self):
        if os.geteuid() == 0:
            result = self.merge(out="/proc/out")  # where root, too, can make no directory
            self.assertIn(result.code, (USAGE, IO), str(result))
            self.assertIn("/proc/out", result.stderr)
            return
        os.mkdir(self.path("closed"), 0o500)
        self.assert_merge_fails(IO, "closed", out="closed/out")

    def test_full_stdout(self):
        with open("/dev/full", "wb") as full:
            result = self.run_braid("plan", "recipe.toml", "--json", stdout=full)
        self.assert_fails(result, IO, "standard output")


class Memory(CliTest):
    def test_the_named_minimum_works(self):
        write_family(self.dir, shapes={"model.norm.weight": [64], "lm_head.weight": [4096, 256]})
        for scope in ("tensor", "model"):
            for threads in ("1", "8"):
                with self.subTest(scope=scope, threads=threads):
                    self.write_recipe(scope=scope)
                    told = self.assert_merge_fails(
                        MEMORY, "does not fit in 1 MiB", options=["--memory", "1MiB", "--threads", threads]
                    )
                    least = int(told["message"].split("works is ")[1].split("MiB")[0])
                    self.assert_merge_fails(
                        MEMORY,
                        f"works is {least}MiB",
                        options=["--memory", f"{least - 1}MiB", "--threads", threads],
                    )
                    self.assert_ok(self.merge("--memory", f"{least}MiB", "--threads", threads))
                    shutil.rmtree(self.path("out"))


class Incompatible(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe()

    def replace(self, tensors, **options):
        shutil.rmtree(self.path("a"))
        write_model(self.path("a"), tensors, **options)

    def test_shapes(self):
        self.replace(random_tensors(2, {**TINY_SHAPES, "model.norm.weight": [16]}))
        told = self.assert_merge_fails(INCOMPATIBLE, "model.norm.weight", "[16]", "[8]")
        self.assertEqual(told["tensor"], "model.norm.weight")

    def test_missing_tensor(self):
        self.replace(random_tensors(2, {n: s for n, s in TINY_SHAPES.items() if n != "model.norm.weight"}))
        told = self.assert_merge_fails(INCOMPATIBLE, "model.norm.weight")
        self.assertEqual(told["tensor"], "model.norm.weight")

    def test_adapter(self):
        shutil.rmtree(self.path("a"))
        os.mkdir(self.path("a"))
        write_text(self.path("a", "adapter_config.json"), '{"base_model_name_or_path": "org/base"}')
        write_safetensors(
            self.path("a", "adapter_model.safetensors"), random_tensors(2, {"x.lora_A.weight": [2, 4]})
        )
        self.assert_merge_fails(INCOMPATIBLE, "adapter", "org/base")

    def test_quantised(self):
        self.replace(
            random_tensors(2), config={"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}
        )
        self.assert_merge_fails(INCOMPATIBLE, "quantised", "gptq")
        self.replace(random_tensors(2, dtype="F8_E4M3"))
        self.assert_merge_fails(INCOMPATIBLE, "quantised", "F8_E4M3")

    def test_only_pickles(self):
        os.remove(self.path("a", "model.safetensors"))
        write_text(self.path("a", "pytorch_model.bin"), "cos\nsystem\n")
        self.assert_merge_fails(INCOMPATIBLE, "pytorch_model.bin", "save_pretrained")


if __name__ == "__main__":
    main()
