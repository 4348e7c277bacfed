"""Recipes that change which tensors, layers and tokens there are: slices, modules, vocabularies, mergekit's examples.

Every element is compared as in grid.py; besides, the configs, and what the tokenizers make of a text. New tokens of a
union have their ids in an order of mergekit's that changes from run to run, so that rows are compared by token.
"""
from dataclasses import dataclass, field

import torch

from compare import Disagreement, compare_tensors, summary
from common import read_tensors

IGNORED_IN_CONFIG = {"transformers_version", "_name_or_path"}
TEXTS = ["The theme in the thing is nothing.", "<s>in the end</s>", "<|im_start|>sing the thing<|im_end|>",
         "ζ \n\t 42"]
CHAT = [{"role": "system", "content": " Be brief.\n"}, {"role": "user", "content": "Is it?\n"},
        {"role": "assistant", "content": " It is. "}, {"role": "user", "content": "Why?"}]
CHATS = [CHAT[1:2], CHAT[:2], CHAT[1:3], CHAT[:3], CHAT, CHAT[1:]]


@dataclass
class StructureCase:
    name: str
    method: str
    make: object                                     # directory -> recipe
    options: dict = field(default_factory=dict)      # of mergekit
    tokenizer: bool = False                          # the output has one, and rows follow it
    not_compared: dict = field(default_factory=dict)  # tensor or key of config.json -> why mergekit's is not followed
    runs: object = None                              # what checks that transformers loads and runs it

    def recipe(self, directory):
        return self.make(directory)

    def check(self, suite):
        from transformers import AutoTokenizer
        recipe = self.recipe(suite.work)
        ours, (theirs, resolved) = suite.ours(recipe), suite.theirs(recipe, **self.options)
        our_tensors, their_tensors = read_tensors(ours), read_tensors(theirs)
        for name in self.not_compared:
            our_tensors.pop(name, None), their_tensors.pop(name, None)
        if self.tokenizer:
            tokenizers = [AutoTokenizer.from_pretrained(directory) for directory in (ours, theirs)]
            compare_tokenizers(*tokenizers)
            put_in_order(our_tensors, their_tensors, *(tokenizer.get_vocab() for tokenizer in tokenizers))
        counts = compare_tensors(self, our_tensors, their_tensors, resolved)
        compare_configs(ours, theirs, self.not_compared)
        (self.runs or check_runs)(ours)
        return summary(counts)


def put_in_order(ours, theirs, our_ids, their_ids):
    """Rows of tokens, from our ids to mergekit's. Those beyond the tokens are the mean of all rows, which mergekit
    takes in float32; they are compared here, and then set equal."""
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(ours):
        rows = torch.arange(ours[name].shape[0])
        for token, index in their_ids.items():
            rows[index] = our_ids[token]
        ours[name] = ours[name][rows]
        padding = slice(len(their_ids), None)
        if ours[name].shape == theirs[name].shape:
            if not torch.allclose(ours[name][padding], theirs[name][padding], rtol=1e-5, atol=1e-7):
                raise Disagreement(f"{name}: rows beyond the tokens differ by more than a float32 mean's error")
            ours[name][padding] = theirs[name][padding]


def compare_configs(ours, theirs, not_compared):
    from transformers import AutoConfig
    a, b = (AutoConfig.from_pretrained(directory).to_dict() for directory in (ours, theirs))
    for key in sorted(set(a) | set(b)):
        if key not in IGNORED_IN_CONFIG and key not in not_compared and a.get(key) != b.get(key):
            raise Disagreement(f"config.json: {key} is {a.get(key)!r}, mergekit {b.get(key)!r}")


def compare_tokenizers(ours, theirs):
    a, b = ours.get_vocab(), theirs.get_vocab()
    if set(a) != set(b):
        raise Disagreement(f"tokens: only braid has {sorted(set(a) - set(b))}, only mergekit {sorted(set(b) - set(a))}")
    if sorted(a.values()) != sorted(b.values()):
        raise Disagreement(f"token ids: {sorted(set(a.values()) ^ set(b.values()))} are in one of the two")
    if ours.special_tokens_map != theirs.special_tokens_map:
        raise Disagreement(f"special tokens: {ours.special_tokens_map}, mergekit {theirs.special_tokens_map}")
    for text in TEXTS:
        found, wanted = (t.convert_ids_to_tokens(t(text)["input_ids"]) for t in (ours, theirs))
        if found != wanted:
            raise Disagreement(f"{text!r} becomes {found}, mergekit's {wanted}")
        if ours.decode(ours(text)["input_ids"]) != theirs.decode(theirs(text)["input_ids"]):
            raise Disagreement(f"{text!r} decodes to {ours.decode(ours(text)['input_ids'])!r}")
    for chat in CHATS:
        for prompt in (False, True):
            options = {"tokenize": False, "add_generation_prompt": prompt}
            found, wanted = (t.chat_template and t.apply_chat_template(chat, **options) for t in (ours, theirs))
            if found != wanted:
                raise Disagreement(f"chat template: {found!r}, mergekit {wanted!r}")


def check_runs(directory):
    """transformers finds every weight where it looks for it, and the model runs on the last token there is."""
    from transformers import AutoModelForCausalLM
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    problems = {key: value for key, value in report.items() if value}
    if problems:
        raise Disagreement(f"transformers: {problems}")
    with torch.no_grad():
        logits = model(torch.tensor([[0, 1, model.config.vocab_size - 1]])).logits
    if not torch.isfinite(logits.float()).all():
        raise Disagreement("the merged model gives no numbers")


# --- slices and modules --------------------------------------------------------------------------------------

FLOAT64 = {"dtype": "float64", "out_dtype": "float32"}
FLOAT32 = {"dtype": "float32"}
BY_PART = [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]}, {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
           {"value": 0.5}]


def path(directory, name, family="runnable-f32"):
    return str(directory / family / name)


def source(directory, name, first, last, family="runnable-f32", **parameters):
    entry = {"model": path(directory, name, family), "layer_range": [first, last]}
    return {**entry, "parameters": parameters} if parameters else entry


def slices_recipe(method, slices, base=None, **more):
    """`slices`: lists of (model, first, last, parameters of the source), or mappings with such a list as `sources`."""
    def make(directory):
        made = []
        for one in slices:
            one = one if isinstance(one, dict) else {"sources": one}
            entry = {**one, "sources": [source(directory, *s[:3], **(s[3] if len(s) > 3 else {}))
                                        for s in one["sources"]]}
            if "base_model" in entry:
                entry["base_model"] = path(directory, entry["base_model"])
            made.append(entry)
        recipe = {"merge_method": method, "slices": made, **FLOAT32, **more}
        if base:
            recipe["base_model"] = path(directory, base)
        return recipe
    return make


def slice_cases(rng):
    def draw():
        return round(rng.uniform(0.1, 1), 4)

    def case(name, method, *arguments, **more):
        not_compared = more.pop("not_compared", {})
        return StructureCase(f"slices: {name}", method, slices_recipe(method, *arguments, **more),
                             not_compared=not_compared)

    scaled = {"scale": [{"filter": "o_proj", "value": 0.5}, {"filter": "down_proj", "value": [0.2, 2]}]}
    late = "mergekit drops the last slice's sources beyond the number of the first slice's"
    return [
        case("two stacks of layers", "passthrough", [[("ft1", 0, 3)], [("ft2", 1, 4)]]),
        case("sixty layers", "passthrough", [[(f"ft{i % 8 + 1}", i % 4, i % 4 + 1)] for i in range(60)]),
        case("one layer many times, scaled", "passthrough",
             [[("ft1", 0, 2)]] + [[("ft1", 1, 3, scaled)]] * 3 + [[("ft2", 3, 4)]]),
        case("a layer less", "passthrough", [[("ft1", 0, 1)], [("ft1", 2, 4)]]),
        case("one layer", "passthrough", [[("ft3", 2, 3)]]),
        case("slerp with gradients", "slerp", [[("base", 0, 4), ("ft1", 0, 4)]], "base",
             parameters={"t": BY_PART}, **FLOAT64),
        case("slerp of other layers", "slerp", [[("base", 0, 2), ("ft1", 2, 4)], [("base", 2, 4), ("ft2", 1, 3)]],
             "base", parameters={"t": [0, 1]}, **FLOAT64),
        case("gradients begin anew", "linear",
             [[("ft1", 0, 3, {"weight": [1, 2, 4]}), ("ft2", 1, 4, {"weight": 0.5})],
              [("ft1", 1, 3, {"weight": [3, 1]}), ("ft3", 0, 2, {"weight": [0.1, 0.9]})]],
             parameters={"normalize": True}, **FLOAT64),
        case("parameters of a slice", "ties",
             [{"sources": [("base", 0, 2), ("ft1", 0, 2, {"weight": draw()}), ("ft2", 2, 4, {"density": 0.9})],
               "parameters": {"density": 0.2, "weight": draw(), "lambda": 0.5}},
              {"sources": [("base", 2, 4), ("ft1", 2, 4), ("ft2", 2, 4)],
               "parameters": {"density": [{"filter": "mlp", "value": [0.5, 0.1]}]}}],
             "base", parameters={"density": 0.6, "weight": draw(), "lambda": 1.2}),
        case("a filter by the source's layer", "task_arithmetic",
             [[("base", 0, 2), ("ft1", 2, 4, {"weight": [{"filter": "layers.2", "value": 0.3}, {"value": 0.8}]})],
              [("base", 2, 4), ("ft1", 0, 2, {"weight": [{"filter": "layers.2", "value": 0.1}, {"value": 0.9}]})]],
             "base", parameters={"lambda": [{"filter": "layers.2", "value": 0.5}, {"value": 1.5}]}),
        case("a base for each slice", "task_arithmetic",
             [{"sources": [("base", 0, 2), ("ft1", 0, 2)], "base_model": "base"},
              {"sources": [("ft2", 2, 4), ("ft3", 2, 4)], "base_model": "ft2"}],
             "base", parameters={"weight": draw()}),
        case("more sources at the end", "linear",
             [[("ft1", 0, 2)], [("ft1", 2, 4), ("ft2", 2, 4)]], parameters={"weight": 0.5}, **FLOAT64,
             not_compared={"model.norm.weight": late, "lm_head.weight": late}),
        case("fewer sources at the end", "linear",
             [[("ft1", 0, 2), ("ft2", 0, 2), ("ft3", 0, 2)], [("ft1", 2, 4), ("ft2", 2, 4)]],
             parameters={"weight": [0.5, 0.7]}, **FLOAT64),
    ]


def modules_recipe(method, module, base="base", **more):
    def make(directory):
        return {"merge_method": method, "base_model": path(directory, base), "modules": {"default": module(directory)},
                **FLOAT32, **more}
    return make


def module_cases():
    def models(directory):
        return {"models": [{"model": path(directory, "ft1"), "parameters": {"weight": 0.7}},
                           {"model": path(directory, "ft2")}],
                "parameters": {"weight": [0.2, 0.6], "lambda": 0.9}}

    def slices(directory):
        return {"slices": [{"sources": [source(directory, "base", 0, 2), source(directory, "ft1", 1, 3)]},
                           {"sources": [source(directory, "base", 2, 4), source(directory, "ft1", 0, 2)],
                            "parameters": {"weight": 0.2}}],
                "parameters": {"weight": [0.9, 0.4]}}

    return [
        StructureCase("modules: models", "task_arithmetic",
                      modules_recipe("task_arithmetic", models, parameters={"weight": 0.1, "lambda": 2})),
        StructureCase("modules: slices", "task_arithmetic",
                      modules_recipe("task_arithmetic", slices, parameters={"lambda": [0.5, 1.5]})),
    ]


# --- mergekit's own examples, for small models ---------------------------------------------------------------

def example_cases():
    def models_recipe(method, base, of_models, **more):
        def make(directory):
            models = [{"model": path(directory, name), **({"parameters": p} if p else {})} for name, p in of_models]
            return {"merge_method": method, "models": models, **({"base_model": path(directory, base)} if base else {}),
                    **more}
        return make

    recipes = {
        "arcee_fusion": (models_recipe, "arcee_fusion", ("base", [("base", {}), ("ft1", {})]), FLOAT64),
        "bio-merge": (models_recipe, "ties", ("base", [("ft1", {"density": 0.5, "weight": 0.5}),
                                                       ("ft2", {"density": 0.5, "weight": 0.5})]),
                      {"parameters": {"normalize": False, "int8_mask": True}, **FLOAT32}),
        "gradient-slerp": (slices_recipe, "slerp", ([[("ft1", 0, 4), ("ft2", 0, 4)]], "ft1"),
                           {"parameters": {"t": BY_PART}, **FLOAT64}),
        "linear": (models_recipe, "linear", (None, [("ft1", {"weight": 1.0}), ("ft2", {"weight": 0.3}),
                                                    ("ft3", {"weight": 0.5})]), FLOAT64),
        "orcamini-platy-44layer": (slices_recipe, "passthrough", ([[("ft1", 0, 3)], [("ft2", 2, 4)]],), {}),
        "ties": (models_recipe, "ties",
                 ("base", [("ft1", {"density": [1, 0.7, 0.1], "weight": 1.0}),
                           ("ft2", {"density": 0.5, "weight": [0, 0.3, 0.7, 1]}),
                           ("ft3", {"density": 0.33, "weight": [{"filter": "mlp", "value": 0.5}, {"value": 0}]})]),
                 {"parameters": {"normalize": True, "int8_mask": True}, **FLOAT32}),
    }
    return [StructureCase(f"example: {name}", method, make(method, *arguments, **more))
            for name, (make, method, arguments, more) in recipes.items()]
