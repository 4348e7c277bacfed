"""Compressed output: zstd restores the shards that the plain merge writes, byte for byte, wherever they go."""

import glob
import json
import os
import signal
import subprocess
import time

from support import (
    MERGEKIT_RECIPE,
    USAGE,
    CliTest,
    main,
    read_bytes,
    read_text,
    tree_of,
    write_family,
    write_text,
)

SHAPES = {f"model.layers.{i}.weight": [400, 500] for i in range(12)}
SHAPES["lm_head.weight"] = [3000, 512]


class Compressed(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir, shapes=SHAPES)
        self.write_recipe()
        self.assert_ok(self.merge("--shard-size", "2MB", out="plain"))
        self.plain = tree_of(self.path("plain"))

    def restored(self, out):
        """The files of a directory whose shards zstd has decompressed."""
        files = glob.glob(self.path(out, "*.zst"))
        self.assertGreaterEqual(len(files), 2)
        subprocess.run(["zstd", "-dq", "--rm", *files], check=True)
        return tree_of(self.path(out))

    def test_zstd_restores_the_directory(self):
        told = self.assert_ok(self.merge("--shard-size", "2MB", "--compress", "zstd", "--json")).json()
        self.assertEqual(told["bytes_written"], sum(map(os.path.getsize, glob.glob(self.path("out", "*.zst")))))
        self.assertEqual(glob.glob(self.path("out", "*.safetensors")), [])
        index = json.loads(read_text(self.path("out", "model.safetensors.index.json")))
        self.assertTrue(all(name.endswith(".safetensors") for name in index["weight_map"].values()))
        self.assert_ok(self.run_braid("verify", "out"))
        self.assert_ok(self.run_braid("diff", "out", "plain"))
        restored = self.restored("out")
        for name in ("braid_recipe.toml", "braid.json", "README.md"):  # which say that it was compressed
            self.assertIn(name, restored)
            restored[name] = self.plain[name]
        self.assertEqual(restored, self.plain)
        self.assert_ok(self.run_braid("verify", "out"))
        self.assertIn('compress = "zstd"', read_text(self.path("out", "braid_recipe.toml")))

    def test_the_same_bytes_for_any_threads_and_memory(self):
        for mode in ("zstd", "planes"):
            trees = []
            for threads, memory in (("1", "32MiB"), ("3", "64MiB"), ("8", "1GiB")):
                self.assert_ok(
                    self.merge("--compress", mode, "--threads", threads, "--memory", memory, "--force")
                )
                trees.append(tree_of(self.path("out")))
                self.assertEqual(trees[0], trees[-1])

    def test_mergekits_recipe(self):
        write_text(self.path("recipe.yml"), MERGEKIT_RECIPE)
        self.assert_ok(self.merge("--shard-size", "2MB", "--compress", "zstd", recipe_file="recipe.yml"))
        restored = self.restored("out")
        for name, what in self.plain.items():
            if name.endswith(".safetensors"):
                self.assertEqual(restored[name], what, name)
        self.assertEqual(read_text(self.path("out", "mergekit_config.yml")), MERGEKIT_RECIPE)

    def test_force_replaces_a_compressed_checkpoint(self):
        for mode in ("zstd", "planes", "none"):
            self.assert_ok(self.merge("--compress", mode, "--force"))
        self.assertEqual(glob.glob(self.path("out", "*.zst")), [])

    def test_one_file(self):
        self.assert_ok(self.merge(out="one.safetensors.zst"))
        self.assert_ok(self.merge(out="whole"))
        subprocess.run(["zstd", "-dq", self.path("one.safetensors.zst")], check=True)
        self.assertEqual(
            read_bytes(self.path("one.safetensors")), read_bytes(self.path("whole", "model.safetensors"))
        )
        self.assert_merge_fails(
            USAGE, "call it two.safetensors.planes.zst", out="two.safetensors", options=["--compress", "planes"]
        )

    def test_a_stream(self):
        self.assert_ok(self.merge(out="whole"))
        process = self.start("merge", "recipe.toml", "-", "--compress", "zstd", "--quiet")
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, err), (0, b""))
        plain = subprocess.run(["zstd", "-dcq"], input=out, stdout=subprocess.PIPE, check=True).stdout
        self.assertEqual(plain, read_bytes(self.path("whole", "model.safetensors")))

    def test_readers_of_a_stream(self):
        for scope in ("tensor", "model"):
            self.write_recipe(scope=scope)
            process = self.start("merge", "recipe.toml", "-", "--compress", "planes")
            process.stdout.read(10)
            process.stdout.close()
            process.stdout = None
            err = process.communicate(timeout=60)[1].decode()
            self.assertEqual((process.returncode, err), (141, ""))
            process = self.start("merge", "recipe.toml", "-", "--compress", "planes")
            process.stdout.read(1)
            time.sleep(0.5)
            self.assertIsNone(process.poll())
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(timeout=20), 143)
            process.communicate()

    def test_plan(self):
        plan = self.assert_ok(self.run_braid("plan", "recipe.toml", "--compress", "planes")).stdout
        self.assertIn("compressed (planes)", plan)
        self.write_recipe(scope="model")
        told = self.assert_ok(self.run_braid("plan", "recipe.toml", "--compress", "zstd", "--json")).json()
        self.assertGreater(told["memory"]["ordering"], 1_000_000)
        self.assertGreater(told["bytes_spilled"], 0)


if __name__ == "__main__":
    main()
