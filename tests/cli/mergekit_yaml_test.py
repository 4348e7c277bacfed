"""braid mergekit-yaml: mergekit's command line."""

import os
import unittest

from support import USAGE, CliTest, main, read_text, read_weights, write_family, write_text

YAML = """\
merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: 0.5}
  - model: b
    parameters: {weight: 0.5, density: 0.5}
dtype: bfloat16
"""

# Every option of mergekit-yaml --help in 0.1.5 but --help, with a value where it takes one.
FLAGS = [
    "allow-crimes", "unsafe-truncate-embeddings", "cuda", "low-cpu-memory", "copy-tokenizer", "clone-tensors",
    "trust-remote-code", "lazy-unpickle", "write-model-card", "safe-serialization", "quiet", "read-to-gpu", "multi-gpu",
    "async-write",
]  # fmt: skip
VALUES = {
    "transformers-cache": "cache", "lora-merge-cache": "lora", "lora-merge-dtype": "float16", "device": "cuda:1",
    "out-shard-size": "1B", "random-seed": "7", "num-threads": "2", "write-threads": "2",
}  # fmt: skip


class MergekitYaml(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        write_text(self.path("base", "tokenizer.json"), "{}\n")
        write_text(self.path("base", "chat_template.jinja"), "x\n")
        write_text(self.path("base", "generation_config.json"), "{}\n")
        write_text(self.path("config.yml"), YAML)

    def mergekit_yaml(self, *options, config="config.yml", out="out", **more):
        return self.run_braid("mergekit-yaml", config, out, *options, **more)

    def test_the_usual_line(self):
        line = "--cuda --copy-tokenizer --allow-crimes --out-shard-size 1B --lazy-unpickle"
        result = self.assert_ok(self.mergekit_yaml(*line.split()))
        self.assertEqual(
            result.stderr, "note: without a meaning here: --allow-crimes, --cuda, --lazy-unpickle\n"
        )
        self.assertIn("output: out", result.stdout)
        self.assertTrue(os.path.exists(self.path("out", "tokenizer.json")))
        self.assert_ok(self.merge(recipe_file="config.yml", out="plain"))
        self.assertEqual(read_weights(self.path("out")), read_weights(self.path("plain")))
        self.assertEqual(read_text(self.path("out", "mergekit_config.yml")), YAML)

    def test_every_flag(self):
        everything = ["--gpu-rich", "-v", "-v"]
        everything += [f"--{flag}" for flag in FLAGS if flag != "quiet"]
        for name, value in VALUES.items():
            everything += [f"--{name}", value]
        result = self.assert_ok(self.mergekit_yaml(*everything))
        self.assertEqual(len(result.stderr.splitlines()), 1, result.stderr)
        self.assertIn("stage", result.stdout)
        negative = self.assert_ok(self.mergekit_yaml(*[f"--no-{flag}" for flag in FLAGS], "-j1", out="other"))
        self.assertEqual(negative.stderr, "note: without a meaning here: --no-safe-serialization\n")
        quiet = self.assert_ok(self.mergekit_yaml("--quiet", "--cuda", out="quiet"))
        self.assertEqual((quiet.stdout, quiet.stderr), ("", ""))
        self.assertEqual(read_weights(self.path("out")), read_weights(self.path("other")))

    def test_shard_size(self):
        for size, shards in (("100", 5), ("1K", 2), ("1k", 2), ("700", 2), ("5M", 1), ("0.000001GB", 2)):
            with self.subTest(size):
                self.assert_ok(self.mergekit_yaml("--force", f"--out-shard-size={size}"))
                weights = [f for f in os.listdir(self.path("out")) if f.endswith(".safetensors")]
                self.assertEqual(len(weights), shards)
        failed = self.mergekit_yaml("--force", "--out-shard-size", "much")
        self.assert_fails(failed, USAGE, "--out-shard-size 'much' is not a size")

    def test_no_copy_tokenizer(self):
        self.assert_ok(self.mergekit_yaml("--no-copy-tokenizer"))
        files = os.listdir(self.path("out"))
        self.assertNotIn("tokenizer.json", files)
        self.assertNotIn("chat_template.jinja", files)
        self.assertIn("generation_config.json", files)

    def test_no_model_card(self):
        self.assert_ok(self.mergekit_yaml("--no-write-model-card"))
        files = os.listdir(self.path("out"))
        self.assertNotIn("README.md", files)
        self.assertIn("mergekit_config.yml", files)

    def test_any_name_is_yaml(self):
        os.rename(self.path("config.yml"), self.path("config"))
        self.assert_ok(self.mergekit_yaml(config="config"))

    def test_transformers_cache(self):
        commit = "c" * 40
        model = self.path("cache", "models--org--tuned")
        os.makedirs(os.path.join(model, "refs"))
        os.makedirs(os.path.join(model, "snapshots"))
        write_text(os.path.join(model, "refs", "main"), commit)
        os.rename(self.path("a"), os.path.join(model, "snapshots", commit))
        write_text(self.path("config.yml"), YAML.replace("model: a", "model: org/tuned"))
        self.assert_fails(self.mergekit_yaml(), USAGE, "hf download org/tuned")
        self.assert_ok(self.mergekit_yaml("--transformers-cache", "cache"))
        card = read_text(self.path("out", "README.md"))
        self.assertIn("base_model:\n- org/tuned\nbase_model_relation: merge\n", card)

    def test_seed_is_recorded(self):
        told = self.assert_ok(self.run_braid("methods", "--json")).json()
        random = [m["name"] for m in told["methods"] if any(p["name"] == "seed" for p in m["parameters"])]
        if not random:
            raise unittest.SkipTest("no method draws")
        write_text(self.path("config.yml"), YAML.replace("ties", random[0]))
        self.assert_ok(self.mergekit_yaml("--random-seed", "7"))
        recorded = {"mergekit_config.yml": "seed: 7", "braid_recipe.toml": "seed = 7", "README.md": "seed 7"}
        for name, text in recorded.items():
            self.assertIn(text, read_text(self.path("out", name)))
        self.assert_ok(self.mergekit_yaml("--random-seed", "8", out="other"))
        self.assertNotEqual(read_weights(self.path("out")), read_weights(self.path("other")))
        for name in ("mergekit_config.yml", "braid_recipe.toml"):
            self.assert_ok(self.merge("--force", recipe_file=os.path.join("out", name), out="again"))
            self.assertEqual(read_weights(self.path("out")), read_weights(self.path("again")))
        self.assert_fails(self.mergekit_yaml("--random-seed", "-1", "--force"), USAGE, "the seed must be between 0 and")

    def test_errors_as_usual(self):
        write_text(self.path("config.yml"), YAML.replace("weight: 0.5", "wieght: 0.5"))
        self.assert_fails(self.mergekit_yaml(), USAGE, "config.yml:5:18", "did you mean 'weight'?")
        self.assert_fails(self.mergekit_yaml("--cudaa"), USAGE, "--cudaa", "braid mergekit-yaml --help")
        self.assert_nothing_written()


if __name__ == "__main__":
    main()
