#!/usr/bin/env python3
"""Runs mergekit 0.1.5 and Braid on the same recipes and models and compares every element of what they write.

    tests/conformance/mergekit_test.py --braid build/release/braid [--only TEXT] [--seed N] [--keep DIR] [--list]

grid.py has the recipes, rules.py says per method when two results agree, README.md lists every exception with its
reason. A method of mergekit that Braid does not have fails all of its cases: nothing is passed over.
"""
import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import ROOT, braid_merge, enter_venv

enter_venv(["mergekit", "torch", "transformers", "safetensors", "yaml"])

import yaml

import command
import grid
import models
import multimodule
import peer
import randomness
import structure
import vocabulary
from compare import Disagreement


def is_missing(method, error):
    return f"unknown method '{method}'" in error or f"the method '{method}' is not supported" in error


class Suite:
    def __init__(self, braid, work):
        self.braid, self.work = braid, work
        self.failed, self.missing, self.run = [], Counter(), 0

    def check(self, case):
        """Both merges and their comparison, and a line about it."""
        self.run += 1
        try:
            verdict = f"ok: {case.check(self)}"
        except Exception as error:
            if is_missing(case.method, str(error)):
                self.missing[case.method] += 1
                verdict = f"MISSING: braid has no method {case.method}"
            else:
                self.failed.append(case.name)
                kind = "" if isinstance(error, Disagreement) else f"{type(error).__name__}: "
                verdict = f"FAILED: {kind}{error}"
        print(f"{case.name:52} {verdict}", flush=True)

    def ours(self, recipe):
        """The directory of what Braid makes of a recipe."""
        output = self.work / "braid"
        shutil.rmtree(output, ignore_errors=True)
        braid_merge(self.braid, self.write(recipe), output)
        return output

    def theirs(self, recipe, **options):
        """The directory of what mergekit makes of a recipe, and from what."""
        output = self.work / "mergekit"
        return output, peer.merge(self.write(recipe), output, **options)

    def write(self, recipe):
        path = self.work / "recipe.yml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return path


def every_case(seed):
    rng = random.Random(seed)
    return [*grid.numeric_cases(rng), *randomness.random_cases(rng), *structure.slice_cases(rng),
            *structure.module_cases(), *multimodule.module_cases(rng), *structure.example_cases(),
            *vocabulary.vocabulary_cases(), *command.command_cases()]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braid", type=Path, default=ROOT / "build/release/braid")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--keep", type=Path, help="leave models, the last recipe and its outputs here")
    parser.add_argument("--list", action="store_true", help="list the cases and stop")
    arguments = parser.parse_args()

    cases = [case for case in every_case(arguments.seed) if arguments.only in case.name]
    if arguments.list:
        print("\n".join(case.name for case in cases))
        return 0
    print(f"seed {arguments.seed} (--seed repeats it, --only takes one case)", flush=True)
    if not arguments.only and {case.method for case in cases} != peer.METHODS:
        print(f"these methods have no cases, or are unknown to mergekit: "
              f"{sorted({case.method for case in cases} ^ peer.METHODS)}")
        return 1

    peer.quiet()
    work = (arguments.keep or Path(tempfile.mkdtemp(prefix="braid-conformance-"))).resolve()
    suite, start = Suite(arguments.braid.resolve(), work), time.monotonic()
    try:
        models.make_families(work, arguments.seed)
        vocabulary.make_family(work, arguments.seed)
        multimodule.make_families(work, arguments.seed)
        for case in cases:
            suite.check(case)
    finally:
        if not arguments.keep:
            shutil.rmtree(work)
    for method, count in suite.missing.items():
        print(f"missing: {method} ({count} cases)")
    for name in suite.failed:
        print(f"failed: {name}")
    print(f"{suite.run} cases in {time.monotonic() - start:.0f} s: {len(suite.failed)} failed, "
          f"{sum(suite.missing.values())} of {len(suite.missing)} missing methods")
    return 1 if suite.failed or suite.missing else 0


if __name__ == "__main__":
    sys.exit(main())
