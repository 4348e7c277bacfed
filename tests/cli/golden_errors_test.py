"""Bad recipes, and word for word what their users are told: tests/golden/errors.

Each file is a recipe whose first line is its error: `# error: LINE:COLUMN: what is wrong; what to do`. They are
planned beside small models: base, a, b of two layers; wide, with more tokens; tokens, with a tokenizer; words, with one
in a form that is not read; stacks, an encoder of three layers and a decoder of two; flat, without layers; deep, with
4,000; gap, with the first and a very late one. The list of all methods, which grows, is written METHODS.

    python3 tests/cli/golden_errors_test.py --update      writes the first lines anew, to be looked at
"""

import json
import os
import shutil
import sys

from support import (
    INCOMPATIBLE,
    TINY_SHAPES,
    USAGE,
    CliTest,
    main,
    random_tensors,
    read_text,
    write_family,
    write_model,
    write_text,
)

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "errors")
MARK = "# error: "


STACKS = {"shared.weight": [32, 8], **{f"encoder.block.{i}.w": [8] for i in range(3)},
          **{f"decoder.block.{i}.w": [8] for i in range(2)}}
OTHERS = {
    "wide": {**TINY_SHAPES, "model.embed_tokens.weight": [40, 8]},
    "tokens": TINY_SHAPES,
    "words": TINY_SHAPES,
    "stacks": STACKS,
    "flat": {"embed_tokens.weight": [32, 8], "norm.weight": [8]},
    "gap": {"model.layers.0.w": [8], "model.layers.999999999.w": [8]},
    "deep": {f"model.layers.{i}.w": [1] for i in range(4000)},
}


class GoldenErrors(CliTest):
    update = False

    def write_models(self):
        write_family(self.dir)
        for i, (name, shapes) in enumerate(OTHERS.items()):
            write_model(self.path(name), random_tensors(100 + i, shapes), config={"model_type": "none"})
        words = {f"word{i}": i for i in range(32)}
        tokenizer = {"model": {"type": "BPE", "vocab": words, "merges": []}, "added_tokens": []}
        write_text(self.path("tokens", "tokenizer.json"), json.dumps(tokenizer))
        write_text(self.path("words", "vocab.txt"), "\n".join(words))

    def error_of(self, name):
        shutil.copy(os.path.join(GOLDEN, name), self.path(name))
        result = self.run_braid("plan", name, env={"HF_HUB_CACHE": "hub"})
        self.assertIn(result.code, (USAGE, INCOMPATIBLE), str(result))
        self.assert_fails(result, result.code)
        line = next(line for line in result.stderr.splitlines() if line.startswith("braid: error: "))
        return line[len("braid: error: ") :].removeprefix(name + ":").strip().replace(self.methods, "METHODS")

    def test_every_file(self):
        self.write_models()
        told = self.run_braid("methods", "--json").json()
        self.methods = ", ".join(method["name"] for method in told["methods"])
        names = sorted(os.listdir(GOLDEN))
        self.assertGreaterEqual(len(names), 60)
        for name in names:
            with self.subTest(name):
                text = read_text(os.path.join(GOLDEN, name))
                error = self.error_of(name)
                self.assertRegex(error, r"^\d+:\d+: ")
                if self.update:
                    write_text(os.path.join(GOLDEN, name), MARK + error + "\n" + text.split("\n", 1)[1])
                else:
                    self.assertEqual(text.split("\n", 1)[0], MARK + error)


if __name__ == "__main__":
    GoldenErrors.update = "--update" in sys.argv
    sys.argv = [arg for arg in sys.argv if arg != "--update"]
    main()
