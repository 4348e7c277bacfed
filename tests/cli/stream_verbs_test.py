"""Streams as inspect, diff and verify read them: the same answers as of a file, and an error for what does not come as it
should."""

import glob
import os
import shutil
import subprocess
import unittest

from streams_test import Piped
from support import (
    BAD_INPUT,
    BRAID,
    USAGE,
    main,
    random_tensors,
    read_bytes,
    write_family,
    write_safetensors,
)


class Verbs(Piped):
    """inspect, diff and verify: the same answers of a stream as of a file."""

    def setUp(self):
        super().setUp()
        write_family(self.dir)

    def stream(self, *commands):
        return self.feed("sh", "-c", " | ".join(commands), stderr=subprocess.DEVNULL)

    def statistics(self, *arguments, **options):
        found = self.assert_ok(self.run_braid("inspect", *arguments, "--stats", "--json", **options)).json()
        return [{key: value for key, value in tensor.items() if key != "file"} for tensor in found["tensors"]]

    def test_inspect(self):
        result = self.assert_ok(self.run_braid("inspect", "-", stdin=self.cat("a")))
        self.assertIn("model.layers.0.mlp.up_proj.weight", result.stdout)
        expected = self.statistics("a")
        self.assertTrue(all("stats" in tensor for tensor in expected))
        self.assertEqual(self.statistics("-", stdin=self.cat("a")), expected)
        os.mkfifo(self.path("fifo"))
        writer = subprocess.Popen("cat a/model.safetensors > fifo", shell=True, cwd=self.dir)
        self.assertEqual(self.statistics("fifo"), expected)
        self.assertEqual(writer.wait(), 0)

    def test_a_merge_that_is_inspected(self):
        self.write_recipe()
        self.assert_ok(self.merge())
        self.assertEqual(self.statistics("-", stdin=self.stream(f"{BRAID} merge recipe.toml - --quiet")),
                         self.statistics("out"))

    def test_diff(self):
        expected = self.run_braid("diff", "base", "a", "--json")
        self.assertEqual(expected.code, 1)
        of_files = expected.json()
        for arguments, model in ((("base", "-"), "a"), (("-", "a"), "base")):
            found = self.run_braid("diff", *arguments, "--json", stdin=self.cat(model))
            self.assertEqual(found.code, 1, str(found))
            self.assertEqual(found.json()["tensors"], of_files["tensors"])
        self.assert_ok(self.run_braid("diff", "-", "a", stdin=self.cat("a")))
        writer = self.cat("base")
        found = self.run_braid("diff", f"/dev/fd/{writer.fileno()}", "-", "--json", stdin=self.cat("a"),
                               pass_fds=[writer.fileno()])
        self.assertEqual(found.json()["tensors"], of_files["tensors"])

    def test_tensors_in_another_order(self):
        write_safetensors(self.path("turned.safetensors"), dict(reversed(random_tensors(2).items())))  # those of a
        self.assert_ok(self.run_braid("diff", "a", "-", stdin=self.stream("cat turned.safetensors")))
        self.assert_ok(self.run_braid("diff", "-", "a", stdin=self.stream("cat turned.safetensors")))
        other = self.cat("a")
        turned = self.stream("cat turned.safetensors")
        result = self.run_braid("diff", f"/dev/fd/{other.fileno()}", "-", stdin=turned, pass_fds=[other.fileno()])
        self.assert_fails(result, USAGE, "two streams are compared in one order", "save one of them to a file")

    def test_verify(self):
        self.write_recipe()
        self.assert_ok(self.merge(out="out.safetensors"))
        of_file = self.assert_ok(self.run_braid("verify", "out.safetensors", "--json")).json()
        found = self.assert_ok(self.run_braid("verify", "-", "--json", stdin=self.stream("cat out.safetensors"))).json()
        for key in ("verified", "fingerprint", "tensors", "tensors_checked", "bytes_checked", "faults"):
            self.assertEqual(found[key], of_file[key])
        whole = read_bytes(self.path("out.safetensors"))
        data = len(whole) - of_file["bytes_checked"]

        def faults(damaged):
            with open(self.path("damaged"), "wb") as file:
                file.write(damaged)
            result = self.run_braid("verify", "-", "--json", stdin=self.stream("cat damaged"))
            self.assertEqual(result.code, 1, str(result))
            return [(fault.get("tensor", ""), fault["reason"]) for fault in result.json()["faults"]]

        def flipped(at):
            return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

        ((tensor, reason),) = faults(flipped(len(whole) - 1))
        self.assertEqual(tensor, "model.norm.weight")
        self.assertIn("its bytes are not those the merge wrote", reason)
        ((tensor, reason),) = faults(whole[:-3])
        self.assertEqual(tensor, "model.norm.weight")
        self.assertIn("3 of the tensor's 16 bytes are missing", reason)
        ((tensor, reason),) = faults(whole[: data + 5])
        self.assertIn("the stream ends here", reason)
        ((tensor, reason),) = faults(whole + b"x")
        self.assertIn("it goes on after its last tensor", reason)
        (name, reason), *rest = faults(flipped(whole.index(b"up_proj")))
        self.assertIn("its header is not the one the merge wrote", str([(name, reason), *rest]))

    def test_verify_without_checksums(self):
        self.write_recipe()
        result = self.run_braid("verify", "-", stdin=self.stream(f"{BRAID} merge recipe.toml - --quiet"))
        self.assert_fails(result, BAD_INPUT, "it carries no checksums", "compare the hash that the merge said")

    def test_compressed_streams(self):
        self.write_recipe()
        self.assert_ok(self.merge(out="out.safetensors"))
        for codec in ("zstd", "planes"):
            with self.subTest(codec):
                packed = f"packed.{codec}"
                self.assert_ok(self.merge("--compress", codec, out=packed))
                files = " ".join(sorted(glob.glob(self.path(packed, "*.zst"))))
                self.assertEqual(len(files.split()), 1)
                self.assertEqual(self.statistics("-", stdin=self.stream(f"cat {files}")),
                                 self.statistics("out.safetensors"))
                self.assert_ok(self.run_braid("diff", "out.safetensors", "-", stdin=self.stream(f"cat {files}")))

    @unittest.skipUnless(shutil.which("zstd"), "needs the program zstd")
    def test_zstd_files_without_a_seek_table(self):
        self.write_recipe()
        self.assert_ok(self.merge(out="out.safetensors"))
        self.assert_ok(self.merge("--shard-size", "1KB"))
        expected, manifest = self.statistics("out"), self.assert_ok(self.run_braid("verify", "out", "--json")).json()
        for shard in glob.glob(self.path("out", "*.safetensors")):
            subprocess.run(["zstd", "-q", "--rm", shard], check=True)
        subprocess.run(["zstd", "-q", "out.safetensors"], cwd=self.dir, check=True)
        self.assertEqual(self.statistics("out"), expected)
        found = self.assert_ok(self.run_braid("verify", "out", "--json")).json()
        self.assertGreater(found["files"], 1)
        self.assertEqual(found["bytes_checked"], manifest["bytes_checked"])
        self.assert_ok(self.run_braid("verify", "out.safetensors.zst"))
        self.assert_ok(self.run_braid("diff", "out", "out.safetensors"))
        self.assert_ok(self.run_braid("diff", "out.safetensors", "out"))

    def test_truncated_streams(self):
        whole = read_bytes(self.path("a", "model.safetensors"))
        for verb in (["inspect", "-", "--stats"], ["diff", "-", "a"], ["diff", "a", "-"]):
            for end in (100, len(whole) // 2, len(whole) - 1):
                with self.subTest(verb, end=end):
                    result = self.run_braid(*verb, stdin=self.stream(f"head -c {end} a/model.safetensors"))
                    self.assert_fails(result, BAD_INPUT, "standard input")
            result = self.run_braid(*verb, stdin=self.stream("(cat a/model.safetensors; echo)"))
            self.assert_fails(result, BAD_INPUT, "it goes on after its last tensor")


if __name__ == "__main__":
    main()
