"""merge --cache and plan --cache: what is read, which warnings come, and that several merges may share a directory."""

import json
import os
import random
import time

from support import SEED, CliTest, main, recipe, tree_of, write_family, write_text

SHAPES = {
    "model.embed_tokens.weight": [3000, 256],
    "model.layers.0.mlp.up_proj.weight": [512, 256],
    "model.layers.0.input_layernorm.weight": [256],
}
ELEMENTS = 3000 * 256 + 512 * 256 + 256
ONE_READ = 3 * 2 * ELEMENTS
MEMORY = ("--memory", "6MiB")  # the embedding does not stay in memory


class Cache(CliTest):
    def setUp(self):
        super().setUp()
        write_family(self.dir, shapes=SHAPES)
        self.age()

    def age(self):
        """Files of this very moment are not trusted."""
        an_hour_ago = time.time() - 3600
        for root, _, files in os.walk(self.dir):
            for name in files:
                os.utime(os.path.join(root, name), (an_hour_ago, an_hour_ago))

    def write(self, density, weight=0.5, scope="tensor", more="", file="recipe.toml"):
        text = recipe(density=density, scope=scope).replace("weight = 0.5", f"weight = {weight}")
        write_text(self.path(file), text.replace("[parameters]", "[parameters]\n" + more))

    def read(self, *options, out="out", recipe_file="recipe.toml"):
        result = self.merge("--json", "--force", *MEMORY, *options, recipe_file=recipe_file, out=out)
        return self.assert_ok(result).json()["bytes_read"]

    def weights_of(self, out):
        tree = tree_of(self.path(out))
        return {name: tree[name] for name in tree if name.endswith((".safetensors", "braid.json"))}

    def read_both(self):
        """Bytes read without and with the cache; the plan and the output are the same."""
        plain = self.read()
        expected = self.weights_of("out")
        planned = self.assert_ok(self.run_braid("plan", "recipe.toml", *MEMORY, "--cache", "kept/here", "--json"))
        cached = self.read("--cache", "kept/here")
        self.assertEqual(self.weights_of("out"), expected)
        self.assertEqual(planned.json()["bytes_read"], cached)
        return plain, cached

    def test_other_weights_need_exactly_one_read(self):
        for scope in ("tensor", "model"):
            for more in ("", "rescale = true"):
                with self.subTest(scope=scope, more=more):
                    density = 0.2 if more else 0.3
                    self.write(density, 0.5, scope, more)
                    plain, first = self.read_both()
                    self.assertEqual(plain, first)
                    self.assertGreater(plain, 1.5 * ONE_READ)
                    self.write(density, 0.8, scope, more + "\nlambda = 0.7")
                    plain, again = self.read_both()
                    self.assertGreater(plain, again)
                    self.assertEqual(again, ONE_READ)

    def test_other_densities_need_one_read_less(self):
        self.write(0.2, scope="model", more="rescale = true")
        plain, first = self.read_both()
        self.assertEqual((plain, first), (3 * ONE_READ, 3 * ONE_READ))
        self.write(0.6, scope="model", more="rescale = true")
        self.assertEqual(self.read_both(), (3 * ONE_READ, 2 * ONE_READ))

    def test_changed_and_damaged_files(self):
        self.write(0.2, scope="model")
        self.read("--cache", "kept")
        self.assertEqual(self.read("--cache", "kept"), ONE_READ)
        moment = time.time() - 60
        os.utime(self.path("a", "model.safetensors"), (moment, moment))
        self.assertGreater(self.read("--cache", "kept"), ONE_READ)
        self.assertEqual(self.read("--cache", "kept"), ONE_READ)
        for name in os.listdir(self.path("kept")):
            with open(self.path("kept", name), "r+b") as f:
                f.seek(-1, os.SEEK_END)
                byte = f.read(1)[0]
                f.seek(-1, os.SEEK_END)
                f.write(bytes([byte ^ 1]))
        result = self.assert_ok(self.merge("--force", *MEMORY, "--cache", "kept"))
        self.assertEqual(result.stderr.count("warning: statistics cache"), 2, str(result))
        self.assertEqual(self.read("--cache", "kept"), ONE_READ)

    def test_a_directory_that_cannot_be_made(self):
        self.write(0.2)
        write_text(self.path("file"), "")
        result = self.assert_ok(self.merge("--cache", "file/kept"))
        self.assertIn("warning: statistics", result.stderr)
        self.assertIn("file/kept", result.stderr)

    def test_merges_at_once(self):
        rng = random.Random(SEED)
        densities = [0.1, 0.2, 0.3, 0.4]
        for d in densities:
            self.write(d, scope="model", file=f"{d}.toml")
        for _ in range(3):
            running = [
                self.start("merge", f"{d}.toml", f"out{i}", "--cache", "kept", "--json", "--force", *MEMORY)
                for i, d in enumerate(rng.choices(densities, k=4))
            ]
            for process in running:
                out, err = process.communicate(timeout=120)
                self.assertEqual(process.returncode, 0, err)
                self.assertEqual(json.loads(out)["warnings"], [])
        for d in densities:
            self.read(recipe_file=f"{d}.toml", out="plain")
            expected = self.weights_of("plain")
            self.read("--cache", "kept", recipe_file=f"{d}.toml", out="plain")
            self.assertEqual(self.read("--cache", "kept", recipe_file=f"{d}.toml", out="plain"), ONE_READ)
            self.assertEqual(self.weights_of("plain"), expected)
        self.assertEqual([n for n in os.listdir(self.path("kept")) if not n.endswith(".stats")], [])


if __name__ == "__main__":
    main()
