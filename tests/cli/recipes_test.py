"""Every recipe in configs/ runs as it is, every method has one, and both syntaxes of a merge give the same weights."""

import glob
import os
import re
import shutil
import subprocess

from support import BRAID, CliTest, main, read_text, read_weights, synth

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
CONFIGS = os.path.join(ROOT, "configs")


def layers_of(weights):
    return {int(name.split(".")[2]) for name in weights if name.startswith("model.layers.")}


def restore(compressed):
    """Puts the plain shard in its place."""
    planes = compressed.endswith(".planes.zst")
    with open(compressed.removesuffix(".planes.zst" if planes else ".zst"), "wb") as plain:
        subprocess.run([BRAID, "cat", compressed] if planes else ["zstd", "-dcq", compressed], stdout=plain, check=True)
    os.remove(compressed)


class Recipes(CliTest):
    def methods(self):
        return {method["name"] for method in self.assert_ok(self.run_braid("methods", "--json")).json()["methods"]}

    def test_every_method_is_explained(self):
        rows = re.findall(r"^\| (`[^|]*) \|", read_text(os.path.join(ROOT, "ops", "README.md")), re.MULTILINE)
        explained = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
        self.assertEqual(self.methods() - explained, set(), "methods without a row in ops/README.md")

    def test_every_method_has_a_recipe(self):
        shown = set()
        for path in glob.glob(os.path.join(CONFIGS, "*.toml")) + glob.glob(os.path.join(CONFIGS, "*.yml")):
            shown |= set(re.findall(r"^(?:merge_)?method *[=:] *\"?(\w+)", read_text(path), re.MULTILINE))
        self.assertEqual(self.methods() - shown, set(), "methods without a recipe in configs/")

    def test_configs(self):
        shutil.copytree(CONFIGS, self.path("configs"))
        families = {}  # recipes that stack layers want more of them
        for layers, architecture in ((2, "tiny"), (8, "small")):
            directory = self.path(architecture)
            synth(directory, architecture, "--names", "math,code,chat")
            families[layers] = (directory, read_weights(os.path.join(directory, "base")))
        recipes = sorted(
            os.path.relpath(p, self.dir)
            for s in ("toml", "yml")
            for p in glob.glob(self.path("configs", "*." + s))
        )
        self.assertGreaterEqual(len(recipes), 10)
        weights = {}
        for recipe in recipes:
            with self.subTest(recipe):
                with open(self.path(recipe)) as text:
                    said = text.read()
                stacked, delta = "slices" in said, 'content = "delta"' in said
                directory, base = families[8 if stacked else 2]
                if os.path.lexists(self.path("models")):
                    os.remove(self.path("models"))
                os.symlink(directory, self.path("models"))
                with open(self.path("models", "math", "model.safetensors"), "rb") as stream:  # of recipes that read one
                    result = self.assert_ok(self.merge("--json", recipe_file=recipe, stdin=stream))
                self.assertEqual(result.json()["warnings"], [])
                for compressed in glob.glob(self.path("out", "*.zst")):
                    restore(compressed)
                self.assert_ok(self.run_braid("verify", "out"))
                if delta:   # what it makes of its base
                    os.rename(self.path("out"), self.path("delta"))
                    self.assert_ok(self.run_braid("apply", "models/base", "delta", "out"))
                    shutil.copy(self.path("delta", "braid_recipe.toml"), self.path("out", "braid_recipe.toml"))
                weights[recipe] = read_weights(self.path("out"))
                # A tokenizer of 259 tokens, where the synthetic models have 512 rows.
                by_token = ("model.embed_tokens.weight", "lm_head.weight") if "tokenizer" in recipe else ()
                if "frankenmerge" in recipe:
                    self.assertEqual(layers_of(weights[recipe]), set(range(12)))
                else:
                    self.assertEqual(
                        {n: w[:2] for n, w in weights[recipe].items() if n not in by_token},
                        {n: w[:2] for n, w in base.items() if n not in by_token},
                    )
                    self.assertEqual(weights[recipe].keys(), base.keys())
                self.assertNotEqual(weights[recipe], base)
                kept = "mergekit_config.yml" if recipe.endswith("yml") else "braid_recipe.toml"
                with open(self.path("out", kept)) as copy, open(self.path(recipe)) as original:
                    self.assertEqual(copy.read(), original.read())
                shutil.rmtree(self.path("out"))
        twins = [r for r in recipes if r.endswith(".yml") and r[:-3] + "toml" in recipes]
        self.assertGreaterEqual(len(twins), 3)
        for twin in twins:
            with self.subTest(twin):
                self.assertEqual(weights[twin], weights[twin[:-3] + "toml"])


if __name__ == "__main__":
    main()
