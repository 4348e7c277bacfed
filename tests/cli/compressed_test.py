"""Compressed checkpoints as users meet them: written by a merge or by other programs, restored by zstd -d and
braid cat, merged again. Needs the command zstd."""

import json
import os
import shutil
import struct
import subprocess
import unittest

from support import BAD_INPUT, BRAID, MIB, CliTest, main, read_bytes, recipe, synth, tree_of, write_text

CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "configs")
SUFFIX = {"zstd": ".zst", "planes": ".planes.zst"}


def write(path, data):
    with open(path, "wb") as f:
        f.write(data)


def zstd(data, *options):
    return subprocess.run(["zstd", "-q", "-c", *options], input=data, stdout=subprocess.PIPE, check=True).stdout


def seekable(data, frame_bytes):
    """A file in the zstd seekable format whose frames know nothing of tensors, as other programs write them."""
    frames, table = [], b""
    for at in range(0, len(data), frame_bytes):
        frames.append(zstd(data[at : at + frame_bytes], "-1"))
        table += struct.pack("<II", len(frames[-1]), len(data[at : at + frame_bytes]))
    table += struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    return b"".join(frames) + struct.pack("<II", 0x184D2A5E, len(table)) + table


class Compressed(CliTest):
    def compressing_recipe(self, file, how, models=("ft1", "ft2"), base="base"):
        write_text(self.path(file), recipe(models, base) + f'[output]\ncompress = "{how}"\n')

    def shards(self, directory, suffix=""):
        return sorted(f for f in os.listdir(self.path(directory)) if f.endswith(".safetensors" + suffix))

    def cat(self, *arguments, **options):
        return subprocess.run([BRAID, "cat", *arguments], cwd=self.dir, capture_output=True, **options)

    def test_shards_come_back_and_merge_like_plain_ones(self):
        synth(self.dir, "small", "--finetunes", "2")
        write_text(self.path("plain.toml"), recipe(("ft1", "ft2")))
        self.assert_ok(self.merge("--shard-size", "30MB", recipe_file="plain.toml", out="plain"))
        names = self.shards("plain")
        self.assertGreater(len(names), 1)
        for how, suffix in SUFFIX.items():
            self.compressing_recipe(f"{how}.toml", how)
            self.assert_ok(self.merge("--shard-size", "30MB", recipe_file=f"{how}.toml", out=how))
            self.assertEqual(self.shards(how, suffix), [name + suffix for name in names])
            self.assertEqual(self.shards(how), [])
            index = "model.safetensors.index.json"
            plain_index = read_bytes(self.path("plain", index))
            self.assertEqual(read_bytes(self.path(how, index)), plain_index, "it has the plain names")
            self.assert_ok(self.run_braid("verify", how))
            self.assert_ok(self.run_braid("diff", "plain", how))
            self.assertIn("compressed", self.assert_ok(self.run_braid("inspect", how)).stdout)
            size, plain = (
                sum(os.path.getsize(self.path(d, f)) for f in self.shards(d, s))
                for d, s in ((how, suffix), ("plain", ""))
            )
            self.assertLess(size, {"zstd": 0.8, "planes": 0.67}[how] * plain)
            for name in names:
                result = self.cat(f"{how}/{name}{suffix}")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertTrue(result.stdout == read_bytes(self.path("plain", name)), name)
                with open(self.path(how, name + suffix), "rb") as f:
                    self.assertTrue(self.cat("-", stdin=f).stdout == result.stdout)

        # zstd -d makes the directory what every other program can load.
        for name in names:
            subprocess.run(["zstd", "-q", "-d", "--rm", self.path("zstd", name + ".zst")], check=True)
            self.assertTrue(read_bytes(self.path("zstd", name)) == read_bytes(self.path("plain", name)))
        self.assert_ok(self.run_braid("verify", "zstd"))
        # What zstd -d makes of byte planes no program takes for weights.
        planes = self.path("planes", names[0] + ".planes.zst")
        text = subprocess.run(["zstd", "-qdc", planes], capture_output=True).stdout
        self.assertTrue(text.startswith(b"braid planes 1"))
        self.assertGreater(struct.unpack("<Q", text[:8])[0], 100_000_000)

    def test_every_way_to_merge_them_gives_the_same_bytes(self):
        synth(self.dir, "small", "--finetunes", "2")
        write_text(self.path("recipe.toml"), recipe(("ft1", "ft2")))
        # One fine-tune in byte planes, and as what they are put together to; the other stays plain.
        write_text(self.path("one.toml"), recipe(("ft1",), None, "linear") + '[output]\ncompress = "planes"\n')
        self.assert_ok(self.merge(recipe_file="one.toml", out="ft1-planes"))
        planes, plain = self.path("ft1-planes", "model.safetensors.planes.zst"), self.path("ft1", "model.safetensors")
        write(plain, self.cat(planes).stdout)
        self.assert_ok(self.merge(out="out"))
        expected = tree_of(self.path("out"))
        shutil.rmtree(self.path("out"))
        os.remove(plain)
        shutil.copy(planes, self.path("ft1"))
        # The base compressed by another program.
        plain = self.path("base", "model.safetensors")
        write(plain + ".zst", seekable(read_bytes(plain), 1_000_003))
        os.remove(plain)
        for memory in (20, 64, 512):
            for options in (("--threads", "1"), ("--threads", "4", "--io", "direct"), ("--io", "mapped")):
                result, peaks = self.run_measured("merge", "recipe.toml", "out", "--memory", f"{memory}MiB", *options)
                self.assert_ok(result)
                self.assertEqual(tree_of(self.path("out")), expected)
                self.assertLessEqual(peaks["VmHWM"], (memory + 64) * MIB)
                shutil.rmtree(self.path("out"))

    def test_every_recipe_takes_them(self):
        shutil.copytree(CONFIGS, self.path("configs"))
        for architecture in ("tiny", "small"):   # recipes that stack layers want more of them
            synth(self.path(architecture), architecture, "--names", "math,code,chat")
            shutil.copytree(self.path(architecture), self.path(architecture + "-compressed"))
            for model in ("base", "math", "code", "chat"):
                path = self.path(architecture + "-compressed", model, "model.safetensors")
                write(path + ".zst", seekable(read_bytes(path), 3_000_001))
                os.remove(path)
        for file in sorted(os.listdir(self.path("configs"))):
            text = read_bytes(self.path("configs", file)).decode()
            if not file.endswith((".toml", ".yml")) or '"-"' in text:
                continue
            trees = []
            for kind in ("", "-compressed"):
                models = self.path("models")
                if os.path.lexists(models):
                    os.remove(models)
                os.symlink(self.path(("small" if "slices" in text else "tiny") + kind), models)
                self.assert_ok(self.merge("--memory", "64MiB", recipe_file=f"configs/{file}"))
                trees.append(tree_of(self.path("out")))
                shutil.rmtree(self.path("out"))
            self.assertEqual(trees[0], trees[1], file)

    def test_a_compressed_file_is_a_model_too(self):
        synth(self.dir, "tiny", "--finetunes", "2")
        plain = self.path("ft1", "model.safetensors")
        write(self.path("one.safetensors.zst"), seekable(read_bytes(plain), 5000))
        self.assert_ok(self.run_braid("diff", "ft1", "one.safetensors.zst"))
        self.assertTrue(self.cat("one.safetensors.zst").stdout == read_bytes(plain))
        os.rename(plain, plain + ".hidden")
        shutil.copy(self.path("one.safetensors.zst"), plain + ".zst")
        self.assert_ok(self.run_braid("diff", "ft1", "one.safetensors.zst"))
        shutil.copy(plain + ".hidden", plain)
        result = self.assert_ok(self.run_braid("inspect", "ft1"))
        told = result.stdout + result.stderr
        self.assertIn("model.safetensors.zst is not used: model.safetensors is there too", told)

    def test_cat_gives_the_same_bytes_and_hash_for_any_threads_and_whatever_takes_them(self):
        synth(self.dir, "small", "--finetunes", "0")
        write_text(self.path("recipe.toml"), recipe(("base",), None, "passthrough"))
        for how in ("none", "zstd", "planes"):
            self.assert_ok(self.merge("--compress", how, out=how))
        plain = read_bytes(self.path("none", "model.safetensors"))
        planes = os.path.join("planes", "model.safetensors.planes.zst")
        hashes = set()
        for file in (planes, "zstd/model.safetensors.zst", "none/model.safetensors"):
            for threads in ("1", "2", "7"):
                result = self.cat(file, "--threads", threads, "--json")
                self.assertTrue(result.stdout == plain, (file, threads))
                told = json.loads(result.stderr)
                self.assertEqual((told["status"], told["bytes_written"], told["file"]), ("ok", len(plain), file))
                hashes.add(told["xxh3_128"])
        self.assertEqual(len(hashes), 1)
        # Written directly, at its place among what others write; and where only the system knows the place.
        for mode in ("wb", "ab"):
            with open(self.path("joined"), mode) as f:
                f.write(b"before")
                f.flush()
                for _ in range(2):
                    subprocess.run([BRAID, "cat", planes], cwd=self.dir, stdout=f, check=True)
                    subprocess.run(["echo", "-n", "after"], stdout=f, check=True)
        self.assertTrue(read_bytes(self.path("joined")) == 2 * (b"before" + 2 * (plain + b"after")))
        result, peaks = self.run_measured("cat", planes, "--threads", "4", stdout=subprocess.DEVNULL)
        self.assert_ok(result)
        self.assertLessEqual(peaks["VmHWM"], 96 * MIB)

    def test_what_arrives_can_be_compared_with_what_left(self):
        synth(self.dir, "tiny", "--finetunes", "1")
        write_text(self.path("recipe.toml"), recipe(("ft1",)))
        command = f'"{BRAID}" merge recipe.toml - --json | tee one | zstd -q > two.safetensors.zst'
        left = json.loads(subprocess.run(["bash", "-c", command], cwd=self.dir, capture_output=True, check=True).stderr)
        for arrived in ("one", "two.safetensors.zst"):
            told = json.loads(self.cat(arrived, "--json").stderr)
            self.assertEqual([told[key] for key in ("bytes_written", "xxh3_128")],
                             [left[key] for key in ("bytes_written", "xxh3_128")], arrived)
        other = bytearray(read_bytes(self.path("one")))
        other[-1] ^= 1
        write(self.path("one"), other)
        self.assertNotEqual(json.loads(self.cat("one", "--json").stderr)["xxh3_128"], left["xxh3_128"])
        failed = self.cat("none.safetensors", "--json")
        self.assertEqual((failed.stdout, json.loads(failed.stderr.splitlines()[1])["status"]), (b"", "error"))

    def test_damage_is_named(self):
        synth(self.dir, "tiny", "--finetunes", "1")
        plain = self.path("ft1", "model.safetensors")
        good = seekable(read_bytes(plain), 5000)
        os.remove(plain)
        write_text(self.path("recipe.toml"), recipe(("ft1",)))
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 4
        write(plain + ".zst", bad)
        self.assert_merge_fails(BAD_INPUT, "ft1/model.safetensors.zst", "tensor '", "frame ")
        result = self.cat("ft1/model.safetensors.zst")
        self.assertEqual(result.returncode, BAD_INPUT)
        self.assertIn(b"frame ", result.stderr)
        write(plain + ".zst", good[: len(good) // 2])
        self.assertEqual(self.cat("ft1/model.safetensors.zst").returncode, BAD_INPUT)
        self.assertEqual(self.merge().code, BAD_INPUT)
        self.assert_nothing_written()

    def test_a_reader_that_goes_away_is_no_fault(self):
        synth(self.dir, "small", "--finetunes", "1")
        command = f'"{BRAID}" cat ft1/model.safetensors | head -c 1000 | wc -c'
        result = subprocess.run(["bash", "-c", command], cwd=self.dir, capture_output=True, check=True)
        self.assertEqual(result.stdout.strip(), b"1000")
        self.assertEqual(result.stderr, b"")


if __name__ == "__main__":
    main()
