"""How sources are read: --io, what plan says about it, and many files under a low limit on open ones."""

import resource
import unittest

from support import USAGE, CliTest, main, recipe, tree_of, write_family, write_text


class Reading(CliTest):
    def test_the_same_bytes_either_way(self):
        write_family(self.dir)
        self.write_recipe()
        trees = []
        for io in ("auto", "mapped", "direct"):
            self.assert_ok(self.merge("--io", io, out=io))
            trees.append(tree_of(self.path(io)))
            for name in ("README.md", "braid.json"):  # these name OUT
                trees[-1].pop(name, None)
        self.assertGreaterEqual(len(trees[0]), 2)
        self.assertEqual(trees[0], trees[1])
        self.assertEqual(trees[0], trees[2])

    def test_plan_says_how_and_why(self):
        write_family(self.dir)
        self.write_recipe()
        for io in ("mapped", "direct"):
            text = self.assert_ok(self.run_braid("plan", "recipe.toml", "--io", io)).stdout
            self.assertRegex(text, rf"(?m)^io +{io} \(--io {io}\)$")
            plan = self.assert_ok(self.run_braid("plan", "recipe.toml", "--io", io, "--json")).json()
            self.assertEqual([source["io"] for source in plan["sources"]], [io] * 3)
        text = self.assert_ok(self.run_braid("plan", "recipe.toml")).stdout
        self.assertRegex(text, r"(?m)^io +(mapped|direct) \(.+\)$")

    def test_another_word_is_refused(self):
        write_family(self.dir)
        self.write_recipe()
        result = self.merge("--io", "uring")
        self.assertEqual(result.code, USAGE, str(result))
        self.assert_nothing_written()

    def test_more_files_than_may_be_open(self):
        shapes = {f"model.layers.{i}.weight": [8, 16] for i in range(200)}
        write_family(self.dir, shapes=shapes, shards=200)
        limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))}
        for scope in ("tensor", "model"):
            write_text(self.path("recipe.toml"), recipe(scope=scope))
            self.assert_ok(self.merge("--force", out="expected"))
            expected = tree_of(self.path("expected"))
            for io in ("mapped", "direct"):
                with self.subTest(scope=scope, io=io):
                    self.assert_ok(self.merge("--io", io, "--force", **limit))
                    tree = tree_of(self.path("out"))
                    for name in expected:
                        if name.endswith(".safetensors"):
                            self.assertEqual(tree[name], expected[name])


if __name__ == "__main__":
    main()
