"""braid apply: a merge in two steps, what it says of itself, and what it refuses."""

import os

from support import (
    INCOMPATIBLE,
    USAGE,
    CliTest,
    main,
    read_text,
    read_weights,
    recipe,
    synth,
    tree_of,
    write_family,
    write_model,
    random_tensors,
    write_text,
)


class Apply(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir)
        self.write_recipe()
        write_text(self.path("delta.toml"), 'output = "delta"\n' + recipe())

    def apply(self, *options, base="base", delta="delta", out="applied"):
        return self.run_braid("apply", base, delta, out, *options)

    def write_delta(self, *options):
        return self.assert_ok(self.merge(*options, recipe_file="delta.toml", out="delta"))

    def test_gives_the_merge(self):
        self.assert_ok(self.merge())
        self.write_delta()
        self.assertIn("merged", self.assert_ok(self.apply("--memory", "32MiB", "--threads", "1")).stdout)
        expected, found = tree_of(self.path("out")), tree_of(self.path("applied"))
        self.assertEqual(expected.keys(), found.keys())
        for name in expected:
            if name not in ("README.md", "braid.json", "braid_recipe.toml", "mergekit_config.yml"):
                self.assertEqual(expected[name], found[name], name)
        self.assertNotIn("[output]", read_text(self.path("applied", "braid_recipe.toml")))
        for directory in ("delta", "applied"):
            self.assert_ok(self.run_braid("verify", directory))
        self.assert_ok(self.run_braid("diff", "out", "applied"))
        told = self.assert_ok(self.apply("--force", "--json")).json()
        self.assertEqual((told["status"], told["output"]), ("ok", "applied"))

    def test_of_synthetic_models_in_little_memory(self):
        synth(self.path("models"), "small", "--names", "math,code")
        text = recipe(("models/math", "models/code"), "models/base")
        write_text(self.path("recipe.toml"), text)
        write_text(self.path("delta.toml"), 'output = "delta"\n' + text)
        memory = ("--memory", "48MiB", "--shard-size", "20MB")
        self.assert_ok(self.merge(*memory))
        self.write_delta(*memory)
        self.assert_ok(self.apply(*memory, base="models/base"))
        self.assertEqual(read_weights(self.path("applied")), read_weights(self.path("out")))
        self.assertFalse(os.path.exists(self.path("delta", "config.json")))

    def test_through_pipes_and_compressed(self):
        self.assert_ok(self.merge())
        self.write_delta("--compress", "planes")
        self.assertTrue(os.path.exists(self.path("delta", "model.safetensors.planes.zst")))
        self.assert_ok(self.apply())
        self.assertEqual(read_weights(self.path("applied")), read_weights(self.path("out")))
        with open(self.path("stream.safetensors"), "wb") as stream:
            process = self.start("apply", "base", "delta", "-", "--quiet", stdout=stream)
            self.assertEqual(process.wait(60), 0)
        self.assertEqual(read_weights(self.path("stream.safetensors")), read_weights(self.path("out")))

    def test_ranks_write_the_same_delta(self):
        self.write_delta()
        for rank in ("0", "1"):
            self.assert_ok(self.merge("--rank", rank, "--of", "2", recipe_file="delta.toml", out="ranked"))
        found, expected = tree_of(self.path("ranked")), tree_of(self.path("delta"))
        for name in ("model.safetensors", "braid.json", "braid_recipe.toml"):
            self.assertEqual(found[name], expected[name], name)

    def test_a_delta_is_read_as_what_it_is(self):
        self.write_delta()
        self.assertIn("braid.content = delta", self.assert_ok(self.run_braid("inspect", "delta", "--stats")).stdout)
        self.assertIn("no checkpoint but a delta", read_text(self.path("delta", "README.md")))
        self.assertIn("delta", self.assert_ok(self.run_braid("plan", "delta.toml", "--json")).json()["content"])
        self.write_recipe(models=("a", "delta"))
        self.assert_merge_fails(INCOMPATIBLE, "recipe.toml:", "is a delta", "braid apply BASE DELTA OUT")

    def test_what_it_refuses(self):
        self.write_delta()
        self.assert_fails(self.apply(base="missing"), USAGE, "missing")
        self.assert_fails(self.apply(delta="a"), INCOMPATIBLE, "a: ", "no delta")
        write_model(self.path("other"), random_tensors(9, {"model.embed_tokens.weight": [3, 8]}))
        self.assert_fails(self.apply(base="other"), INCOMPATIBLE, "other: ", "made from another base")
        self.assertFalse(os.path.lexists(self.path("applied")))
        self.assertIn("BASE DELTA OUT", self.assert_ok(self.run_braid("apply", "--help")).stdout)


if __name__ == "__main__":
    main()
