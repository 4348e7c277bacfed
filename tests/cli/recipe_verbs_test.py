"""braid methods, braid recipe check, braid recipe convert."""

import glob
import os

from support import USAGE, CliTest, main, read_text, read_weights, write_family, write_text

CONFIGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "configs")

YAML = """\
# Mine.
merge_method: task_arithmetic
base_model: base
models:
  - model: a
    parameters: {weight: 0.5, density: 0.2}
  - model: {model: {path: b}}
    parameters: {weight: [{filter: mlp, value: 0.25}, {value: 1}]}
"""


class Methods(CliTest):
    def test_list(self):
        result = self.assert_ok(self.run_braid("methods"))
        names = [line.split()[0] for line in result.stdout.splitlines() if line]
        for name in ("ties", "task_arithmetic", "linear", "average"):
            self.assertIn(name, names)

    def test_one(self):
        result = self.assert_ok(self.run_braid("methods", "ties"))
        for text in ("Yadav", "required", "density", "0 to 1", "per", "one threshold per tensor"):
            self.assertIn(text, result.stdout)

    def test_json(self):
        told = self.assert_ok(self.run_braid("methods", "--json")).json()
        self.assertEqual(told["status"], "ok")
        ties = next(m for m in told["methods"] if m["name"] == "ties")
        self.assertEqual((ties["base"], ties["least_models"], ties["most_models"]), ("required", 1, None))
        density = next(p for p in ties["parameters"] if p["name"] == "density")
        self.assertEqual(
            (density["type"], density["default"], density["min"], density["max"], density["one_value_per"]),
            ("number", 1, 0, 1, "model"),
        )
        one = self.assert_ok(self.run_braid("methods", "ties", "--json")).json()
        self.assertEqual({k: one[k] for k in ties}, ties)

    def test_unknown(self):
        self.assert_fails(self.run_braid("methods", "tise"), USAGE, "unknown method 'tise'; did you mean 'ties'?")


class Check(CliTest):
    def test_sound(self):
        write_text(self.path("r.yml"), YAML)
        result = self.assert_ok(self.run_braid("recipe", "check", "r.yml"))
        self.assertIn("r.yml: a sound recipe: task_arithmetic of 2 models, base base", result.stdout)
        self.assertEqual(result.stderr, "warning: r.yml:6:31: 'density' has no effect in task_arithmetic\n")
        told = self.assert_ok(self.run_braid("recipe", "check", "r.yml", "--json")).json()
        self.assertEqual((told["method"], told["models"]), ("task_arithmetic", ["a", "b"]))
        self.assertEqual(told["warnings"], ["r.yml:6:31: 'density' has no effect in task_arithmetic"])

    def test_bad(self):
        write_text(self.path("r.toml"), "method = 'tise'\n")
        self.assert_fails(self.run_braid("recipe", "check", "r.toml"), USAGE, "r.toml:1:10: unknown method 'tise'")
        self.assert_fails(self.run_braid("recipe", "check", "missing.toml"), USAGE, "missing.toml")
        self.assert_fails(self.run_braid("recipe"), USAGE, "see braid recipe --help")

    def test_every_config(self):
        for path in glob.glob(os.path.join(CONFIGS, "*.toml")) + glob.glob(os.path.join(CONFIGS, "*.yml")):
            with self.subTest(path):
                self.assertEqual(self.assert_ok(self.run_braid("recipe", "check", path)).stderr, "")


class Convert(CliTest):
    def test_there_and_back(self):
        write_family(self.dir)
        write_text(self.path("r.yml"), YAML)
        told = self.assert_ok(self.run_braid("recipe", "convert", "r.yml", "r.toml", "--json")).json()
        self.assertEqual(told["output"], "r.toml")
        self.assertEqual(
            read_text(self.path("r.toml")),
            '# Mine.\nmethod = "task_arithmetic"\nbase = "base"\n\n[[models]]\npath = "a"\nweight = 0.5\n\n'
            '[[models]]\npath = "b"\nweight = 1\n\n[[models.overrides]]\ntensors = "*mlp*"\nweight = 0.25\n',
        )
        self.assert_ok(self.run_braid("recipe", "convert", "r.toml", "back.yaml"))
        weights = []
        for name in ("r.yml", "r.toml", "back.yaml"):
            self.assert_ok(self.merge("--force", recipe_file=name))
            weights.append(read_weights(self.path("out")))
        self.assertEqual(weights[0], weights[1])
        self.assertEqual(weights[0], weights[2])

    def test_the_output_carries_both(self):
        write_family(self.dir)
        write_text(self.path("r.yml"), YAML)
        self.assert_ok(self.merge(recipe_file="r.yml"))
        self.assertEqual(read_text(self.path("out", "mergekit_config.yml")), YAML)
        weights = read_weights(self.path("out"))
        self.assert_ok(self.merge(recipe_file=os.path.join("out", "braid_recipe.toml"), out="again"))
        self.assertEqual(read_weights(self.path("again")), weights)
        self.assertNotEqual(weights, read_weights(self.path("base")))

    def test_replaces_only_when_told(self):
        write_text(self.path("r.yml"), YAML)
        write_text(self.path("r.toml"), "mine")
        self.assert_fails(self.run_braid("recipe", "convert", "r.yml", "r.toml"), USAGE, "r.toml: it exists already")
        self.assertEqual(read_text(self.path("r.toml")), "mine")
        self.assert_ok(self.run_braid("recipe", "convert", "r.yml", "r.toml", "--force"))
        self.assertTrue(read_text(self.path("r.toml")).startswith("# Mine.\nmethod"))
        self.assertFalse(os.path.exists(self.path("r.toml.partial")))


if __name__ == "__main__":
    main()
