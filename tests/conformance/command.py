"""`braid mergekit-yaml` beside `mergekit-yaml`: the same command line, as people have it in their scripts."""
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import vocabulary
from common import read_tensors, run, weight_files
from compare import Disagreement
from structure import check_runs, compare_configs, compare_tokenizers, put_in_order

USUAL = "--cuda --copy-tokenizer --allow-crimes --out-shard-size 1B --lazy-unpickle"


@dataclass
class CommandCase:
    """Exact in both: float32, and a method that agrees bit for bit."""
    name: str
    recipe: dict          # names of models of the vocabulary family in it stand for their directories
    line: str = USUAL
    method: str = "task_arithmetic"

    def check(self, suite):
        recipe = suite.write(vocabulary.placed(suite.work, self.recipe))
        ours, theirs = suite.work / "braid", suite.work / "mergekit"
        for output in (ours, theirs):
            shutil.rmtree(output, ignore_errors=True)
        line = self.line.split()
        run([suite.braid, "mergekit-yaml", recipe, ours, *line])
        if not torch.cuda.is_available():
            line = [word for word in line if word != "--cuda"]
        run([Path(sys.executable).parent / "mergekit-yaml", recipe, theirs, *line])
        our_tensors, their_tensors = read_tensors(ours), read_tensors(theirs)
        if "--no-copy-tokenizer" not in line:
            from transformers import AutoTokenizer
            tokenizers = [AutoTokenizer.from_pretrained(directory) for directory in (ours, theirs)]
            compare_tokenizers(*tokenizers)
            put_in_order(our_tensors, their_tensors, *(tokenizer.get_vocab() for tokenizer in tokenizers))
        if set(our_tensors) != set(their_tensors):
            raise Disagreement(f"tensors: {sorted(set(our_tensors) ^ set(their_tensors))} are in one of the two")
        for name, wanted in their_tensors.items():
            found = our_tensors[name]
            if found.dtype != wanted.dtype or not torch.equal(found.view(torch.int32), wanted.view(torch.int32)):
                raise Disagreement(f"{name} differs")
        compare_configs(ours, theirs, {})
        files = [{path.name for path in directory.iterdir()} - {path.name for path in weight_files(directory)}
                 for directory in (ours, theirs)]
        if files[1] - files[0]:
            raise Disagreement(f"only mergekit writes {sorted(files[1] - files[0])}")
        if "mergekit_config.yml" in files[1] and (ours / "mergekit_config.yml").read_text() != recipe.read_text():
            raise Disagreement("mergekit_config.yml is not the recipe")
        check_runs(ours)
        return f"{len(their_tensors)} tensors in {len(weight_files(ours))} files, mergekit {len(weight_files(theirs))}"


def command_cases():
    def recipe(models, **more):
        listed = [{"model": name, "parameters": {"weight": weight}} for name, weight in models.items()]
        return {"merge_method": "task_arithmetic", "base_model": "root", "models": listed, "dtype": "float32", **more}

    two = {"chat": 0.5, "other": 0.25}
    slices = {"slices": [{"sources": [{"model": "twin", "layer_range": [0, 3]}]},
                         {"sources": [{"model": "twin", "layer_range": [1, 4]}]}], "dtype": "float32"}
    return [
        CommandCase("command: the usual line", recipe({"twin": 0.5})),
        CommandCase("command: a union in small shards", recipe(two, tokenizer_source="union"),
                    "--allow-crimes --out-shard-size 60K --copy-tokenizer"),
        CommandCase("command: a stack of layers", {"merge_method": "passthrough", **slices}, USUAL, "passthrough"),
        CommandCase("command: no tokenizer, no card", recipe({"twin": 0.5}),
                    "--no-copy-tokenizer --no-write-model-card --low-cpu-memory"),
    ]
