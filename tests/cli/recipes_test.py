"""Every recipe in configs/ runs as it is, every method has one, and the two syntaxes of one merge give the same weights."""

import glob
import os
import re
import shutil

from support import CliTest, main, read_text, read_weights, synth

CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "configs")


class Recipes(CliTest):
    def test_every_method_has_a_recipe(self):
        methods = {method["name"] for method in self.assert_ok(self.run_braid("methods", "--json")).json()["methods"]}
        shown = set()
        for path in glob.glob(os.path.join(CONFIGS, "*.toml")) + glob.glob(os.path.join(CONFIGS, "*.yml")):
            shown |= set(re.findall(r"^(?:merge_)?method *[=:] *\"?(\w+)", read_text(path), re.MULTILINE))
        self.assertEqual(methods - shown, set(), "methods without a recipe in configs/")

    def test_configs(self):
        shutil.copytree(CONFIGS, self.path("configs"))
        synth(self.path("models"), "tiny", "--names", "math,code,chat")
        base = read_weights(self.path("models", "base"))
        recipes = sorted(
            os.path.relpath(p, self.dir)
            for s in ("toml", "yml")
            for p in glob.glob(self.path("configs", "*." + s))
        )
        self.assertGreaterEqual(len(recipes), 10)
        weights = {}
        for recipe in recipes:
            with self.subTest(recipe):
                result = self.assert_ok(self.merge("--json", recipe_file=recipe))
                self.assertEqual(result.json()["warnings"], [])
                self.assert_ok(self.run_braid("verify", "out"))
                weights[recipe] = read_weights(self.path("out"))
                self.assertEqual(
                    {n: w[:2] for n, w in weights[recipe].items()}, {n: w[:2] for n, w in base.items()}
                )
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
