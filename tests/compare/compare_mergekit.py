#!/usr/bin/env python3
"""Runs mergekit 0.1.5 and Braid on the same recipes and models and compares every element of what they write.

    tests/compare/compare_mergekit.py --braid build/release/braid [--only NAME] [--seed N] [--keep DIR]

What must hold:
- ties and task_arithmetic with dtype float32: the same bits. Two exceptions, both documented: where the merged task
  vector is zero Braid keeps the base's -0.0; where magnitudes are equal at a threshold mergekit's choice among them
  is unspecified, so that elements with such a magnitude may differ (one recipe looks at this; the other families are
  drawn so that all magnitudes differ).
- linear with dtype float32: within one unit in the last place of the terms' magnitudes together (mergekit fuses the
  multiplication and the addition).
- dtype bfloat16: within the rounding of that type, which mergekit applies at every step and Braid once.
Every output of Braid is also loaded with the reference reader and with transformers.
"""
import argparse
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from common import ROOT, braid_merge, enter_venv, read_tensors, run, write_checkpoint

enter_venv(["mergekit", "torch", "transformers", "safetensors", "yaml"])

import numpy as np
import torch
import yaml

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 80,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 160,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}
FINETUNES = 6
SHARDS = [1, 2, 3, 1, 5, 2, 4]  # of the base and of each fine-tune


@dataclass
class Case:
    name: str
    method: str
    models: list                                      # parameters of each fine-tune
    parameters: dict = field(default_factory=dict)    # of the recipe
    base_parameters: dict = None                      # when the base is one of the sources
    family: str = "f32"
    dtype: str = "float32"


def weights(*values):
    return [{"weight": value} for value in values]


def cases(rng):
    """The recipes; whatever is drawn comes from the seed."""
    def draw(low, high):
        return round(rng.uniform(low, high), 4)

    gradient = [{"filter": "self_attn", "value": [draw(0.1, 1), draw(0.1, 1), draw(0.1, 1)]},
                {"filter": "mlp.down", "value": draw(-1, 1)}, {"value": [draw(0.2, 1), draw(0.2, 1)]}]
    return [
        Case("ties", "ties", weights(draw(0.1, 1), draw(0.1, 1), draw(0.1, 1)),
             {"density": 0.2, "normalize": True}),
        Case("ties-plain-sum", "ties", weights(1.0, draw(0.1, 1)),
             {"density": 0.5, "normalize": False, "lambda": draw(0.3, 1.5)}),
        Case("ties-negative", "ties",
             [{"weight": draw(0.2, 1), "density": 0.7}, {"weight": draw(-1, -0.2), "density": 0.3},
              {"weight": draw(0.2, 1), "density": draw(0.05, 0.95)}, {"weight": draw(-1, -0.2)}],
             {"density": 0.45, "normalize": True, "lambda": draw(0.3, 1.5)}),
        Case("ties-gradients", "ties",
             [{"weight": gradient, "density": [1, 0.7, 0.1]},
              {"weight": [0, 0.3, 0.7, 1], "density": [{"filter": "q_proj", "value": 0.05}, {"value": [0.2, 0.9]}]},
              {"weight": draw(0.2, 1)}],
             {"density": 0.6, "lambda": [{"filter": "mlp", "value": 0.8}, {"value": 1.1}]}),
        Case("ties-everything", "ties", weights(*(draw(0.1, 1) for _ in range(6)))),
        Case("ties-one-model", "ties", [{"weight": 1.0, "density": 0.01}], {"normalize": True}),
        Case("ties-of-equal-magnitudes", "ties", weights(0.6, 0.4, 0.7), {"density": 0.3}, family="bf16"),
        Case("task-arithmetic", "task_arithmetic", weights(draw(0.1, 1), draw(0.1, 1), draw(0.1, 1))),
        Case("task-arithmetic-negative", "task_arithmetic",
             [{"weight": gradient}, {"weight": draw(-1, -0.2)}, {"weight": draw(0.2, 1)}, {"weight": 0.9}],
             {"normalize": True, "lambda": draw(0.3, 1.5)}),
        Case("linear", "linear", [{"weight": gradient}, {"weight": draw(1.1, 2)}, {"weight": draw(1.1, 2)}]),
        Case("linear-with-base", "linear", weights(draw(-1, 1), draw(0.2, 1), draw(0.2, 1), draw(0.2, 1), 0.3),
             {"normalize": False}, base_parameters={"weight": draw(0.1, 1)}),
        Case("task-arithmetic-bfloat16", "task_arithmetic", weights(0.5, 0.25, -0.5), {"lambda": 0.75},
             family="bf16", dtype="bfloat16"),
        Case("linear-bfloat16", "linear", weights(0.3, 0.5, 0.2), family="bf16", dtype="bfloat16"),
    ]


# --- families ------------------------------------------------------------------------------------------------

def shapes():
    h, inter, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    kv = h // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocab, h)
    for i in range(CONFIG["num_hidden_layers"]):
        for name, shape in [("self_attn.q_proj", (h, h)), ("self_attn.k_proj", (kv, h)),
                            ("self_attn.v_proj", (kv, h)), ("self_attn.o_proj", (h, h)),
                            ("mlp.gate_proj", (inter, h)), ("mlp.up_proj", (inter, h)), ("mlp.down_proj", (h, inter)),
                            ("input_layernorm", (h,)), ("post_attention_layernorm", (h,))]:
            yield f"model.layers.{i}.{name}.weight", shape
    yield "model.norm.weight", (h,)
    yield "lm_head.weight", (vocab, h)


def with_distinct_magnitudes(rng, base):
    """base plus a heavy-tailed change whose float32 magnitudes all differ."""
    def drawn(n):
        return (2e-3 * rng.standard_t(3, n)).astype(np.float32)

    flat = base.reshape(-1)
    model = flat + drawn(flat.size)
    while True:
        magnitude = np.abs(model - flat)
        _, first = np.unique(magnitude, return_index=True)
        repeated = np.ones(flat.size, bool)
        repeated[first] = False
        repeated |= magnitude == 0
        if not repeated.any():
            return model.reshape(base.shape)
        model[repeated] = flat[repeated] + drawn(repeated.sum())


def make_families(directory, seed):
    """Two bases with FINETUNES fine-tunes each: float32 with distinct magnitudes, and bfloat16."""
    rng = np.random.default_rng(seed)
    models = [{} for _ in range(FINETUNES + 1)]
    for name, shape in shapes():
        scale, mean = (0.05, 1) if len(shape) == 1 else (0.02, 0)
        base = (mean + scale * rng.standard_normal(shape)).astype(np.float32)
        tensors = [base] + [with_distinct_magnitudes(rng, base) for _ in range(FINETUNES)]
        if len(shape) == 2:  # negative zeros that no fine-tune has changed
            for tensor in tensors:
                tensor.reshape(-1)[7:12] = -0.0
        for model, tensor in zip(models, tensors):
            model[name] = torch.from_numpy(tensor)
    for i, model in enumerate(models):
        kind = "base" if i == 0 else f"ft{i}"
        write_checkpoint(directory / "f32" / kind, model, {**CONFIG, "torch_dtype": "float32"}, SHARDS[i])
        half = {name: tensor.to(torch.bfloat16) for name, tensor in model.items()}
        write_checkpoint(directory / "bf16" / kind, half, {**CONFIG, "torch_dtype": "bfloat16"}, SHARDS[-i])


def recipe_of(case, family):
    models = [{"model": str(family / f"ft{i + 1}"), "parameters": parameters}
              for i, parameters in enumerate(case.models)]
    recipe = {"merge_method": case.method, "dtype": case.dtype, "parameters": case.parameters}
    if case.method != "linear":
        recipe["base_model"] = str(family / "base")
    if case.base_parameters:
        models.insert(1, {"model": str(family / "base"), "parameters": case.base_parameters})
    return {**recipe, "models": models}


# --- comparing -----------------------------------------------------------------------------------------------

def bits(array):
    return array.view(np.int32)


def float32_of(tensor):
    return tensor.to(torch.float32).numpy()


@dataclass
class Outcome:
    elements: int = 0
    different: int = 0          # bits differ, allowed or not
    forbidden: int = 0          # and nothing excuses it
    largest: float = 0.0        # difference
    examples: list = field(default_factory=list)

    def add(self, name, ours, theirs, excused):
        different = bits(ours) != bits(theirs)
        both_nan = np.isnan(ours) & np.isnan(theirs)
        different &= ~both_nan
        bad = different & ~excused
        self.elements += ours.size
        self.different += int(different.sum())
        self.forbidden += int(bad.sum())
        if different.any():
            self.largest = max(self.largest, float(np.nanmax(np.abs(ours - theirs)[different])))
        for index in np.argwhere(bad)[:2]:
            at = tuple(int(i) for i in index)
            self.examples.append(f"{name}{list(at)}: braid {ours[at]!r}, mergekit {theirs[at]!r}")


def excused_everywhere(case, name, base, models, ours, theirs):
    """Where a difference of a bit-exact method is documented."""
    excused = (bits(ours) == bits(base)) & (base == 0) & (theirs == 0)  # Braid keeps the base's -0.0
    if case.family == "bf16" and case.method == "ties":
        density = case.parameters["density"]
        for model in models:
            magnitude = np.abs(model - base)
            ranked = np.sort(magnitude.reshape(-1))[::-1]
            excused |= magnitude == ranked[max(1, int(density * ranked.size)) - 1]
    return excused


def within_rounding(case, base, models, ours, theirs):
    """Where a difference is no more than the type's roundings account for."""
    reach = max(abs(w) for m in case.models for w in numbers(m["weight"]))
    lam = max([1.0] + [abs(v) for v in numbers(case.parameters.get("lambda", 1.0))])
    parts = [np.abs(m if case.method == "linear" else m - base) for m in models]
    # A unit in the last place is at most 2^-7 of a bfloat16 value and 2^-23 of a float32 one. In bfloat16 mergekit
    # rounds a task vector, its product with the weight, their sum, and its product with lambda, by half a unit each.
    unit, roundings = (2.0 ** -7, 2) if case.dtype == "bfloat16" else (2.0 ** -23, 1)
    size = np.abs(ours) + roundings * reach * lam * sum(parts)
    return np.abs(ours.astype(np.float64) - theirs) <= unit * size


def numbers(value):
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    return numbers(value["value"]) if isinstance(value, dict) else [value]


def compare(case, family, ours_dir, theirs_dir):
    ours, theirs = read_tensors(ours_dir), read_tensors(theirs_dir)
    assert set(ours) == set(theirs), f"different tensors: {sorted(set(ours) ^ set(theirs))}"
    base = read_tensors(family / "base")
    models = [read_tensors(family / f"ft{i + 1}") for i in range(len(case.models))]
    if case.base_parameters:
        models.append(base)
    exact = case.method != "linear" and case.dtype == "float32"
    outcome = Outcome()
    for name in theirs:
        a, b = ours[name], theirs[name]
        assert a.dtype == b.dtype and a.shape == b.shape, f"{name}: {a.dtype} {a.shape} and {b.dtype} {b.shape}"
        a, b, base_lanes = float32_of(a), float32_of(b), float32_of(base[name])
        lanes = [float32_of(model[name]) for model in models]
        excused = (excused_everywhere(case, name, base_lanes, lanes, a, b) if exact
                   else within_rounding(case, base_lanes, lanes, a, b))
        outcome.add(name, a, b, excused)
    return outcome


def check_loads(directory):
    """transformers loads the merge, finds every weight where it looks for it, and the model runs."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging
    logging.disable_progress_bar()
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    problems = {key: value for key, value in report.items() if value}
    assert not problems, f"transformers: {problems}"
    assert torch.isfinite(model(torch.tensor([[1, 5, 9]])).logits).all()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braid", type=Path, default=ROOT / "build/release/braid")
    parser.add_argument("--only", default="", help="only recipes whose name contains this")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--keep", type=Path, help="leave models, recipes and outputs here")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)

    work = (arguments.keep or Path(tempfile.mkdtemp(prefix="braid-compare-"))).resolve()
    mergekit = Path(sys.executable).parent / "mergekit-yaml"
    failures = 0
    try:
        make_families(work, arguments.seed)
        for case in cases(random.Random(arguments.seed)):
            if arguments.only not in case.name:
                continue
            family = work / case.family
            recipe = work / f"{case.name}.yml"
            recipe.write_text(yaml.safe_dump(recipe_of(case, family), sort_keys=False))
            ours, theirs = work / f"{case.name}.braid", work / f"{case.name}.mergekit"
            try:
                run([mergekit, recipe, theirs, "--no-copy-tokenizer", "--no-write-model-card", "--quiet"])
                braid_merge(arguments.braid, recipe, ours)
                outcome = compare(case, family, ours, theirs)
                assert outcome.forbidden == 0, "; ".join(outcome.examples[:4])
                check_loads(ours)
                verdict = "ok"
            except (AssertionError, RuntimeError) as error:
                failures += 1
                outcome = None
                verdict = f"FAILED: {error}"
            if outcome is None:
                print(f"{case.name:28} {verdict}", flush=True)
            else:
                print(f"{case.name:28} {verdict}: {outcome.elements} elements, {outcome.different} differ "
                      f"where they may, at most by {outcome.largest:.3g}", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(work)
    print(f"{failures} recipes failed" if failures else "every recipe agrees")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
