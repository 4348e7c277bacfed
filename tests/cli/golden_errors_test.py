"""Bad recipes, and word for word what their users are told: tests/golden/errors.

Each file is a recipe whose first line is its error: `# error: LINE:COLUMN: what is wrong; what to do`, or without the
place where the fault is not in the recipe's text. They are planned beside a family of small models: base, a, b. The
list of all methods, which grows, is written METHODS.

    python3 tests/cli/golden_errors_test.py --update      writes the first lines anew, to be looked at
"""

import os
import shutil
import sys

from support import USAGE, CliTest, main, read_text, write_family, write_text

GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "errors")
MARK = "# error: "


class GoldenErrors(CliTest):
    update = False

    def error_of(self, name):
        shutil.copy(os.path.join(GOLDEN, name), self.path(name))
        result = self.run_braid("plan", name, env={"HF_HUB_CACHE": "hub"})
        self.assert_fails(result, USAGE)
        line = next(line for line in result.stderr.splitlines() if line.startswith("braid: error: "))
        return line[len("braid: error: ") :].removeprefix(name + ":").strip().replace(self.methods, "METHODS")

    def test_every_file(self):
        write_family(self.dir)
        told = self.run_braid("methods", "--json").json()
        self.methods = ", ".join(method["name"] for method in told["methods"])
        names = sorted(os.listdir(GOLDEN))
        self.assertGreaterEqual(len(names), 60)
        in_the_text = 0
        for name in names:
            with self.subTest(name):
                text = read_text(os.path.join(GOLDEN, name))
                error = self.error_of(name)
                in_the_text += error[0].isdigit()
                if self.update:
                    write_text(os.path.join(GOLDEN, name), MARK + error + "\n" + text.split("\n", 1)[1])
                else:
                    self.assertEqual(text.split("\n", 1)[0], MARK + error)
        self.assertGreaterEqual(in_the_text, 60, "with line and column")


if __name__ == "__main__":
    GoldenErrors.update = "--update" in sys.argv
    sys.argv = [arg for arg in sys.argv if arg != "--update"]
    main()
