"""Models whose vocabularies differ, and the recipes that bring them together."""
import json

import numpy as np

import models
from structure import FLOAT32, FLOAT64, StructureCase

FAMILY = "vocabulary-f32"
SPECIALS = ["<unk>", "<s>", "</s>"]
CHATS = ["<|im_start|>", "<|im_end|>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g")]
OTHER_MERGES = [("i", "n"), ("o", "n"), ("in", "g"), ("t", "h"), ("s", "on"), ("son", "g")]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"

CHAT_TEMPLATES = ["alpaca", "chatml", "exaone", "llama3", "mistral"]   # all that mergekit ships


def byte_characters():
    """The printable characters that byte-level tokenizers write the 256 bytes as."""
    spare = 0x100
    for byte in range(256):
        if 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xFF and byte != 0xAD:
            yield chr(byte)
        else:
            yield chr(spare)
            spare += 1


def tokens_of(merges, added=(), merges_first=False):
    merged, single = ["".join(pair) for pair in merges], list(byte_characters())
    return SPECIALS + (merged + single if merges_first else single + merged) + list(added)


def tokenizer_files(merges, added=(), merges_first=False, template=None):
    """file name -> text"""
    tokens = tokens_of(merges, added, merges_first)
    special = [{"id": tokens.index(token), "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                "normalized": False, "special": True} for token in [*SPECIALS, *added]]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {token: i for i, token in enumerate(tokens) if token not in added},
             "merges": [list(pair) for pair in merges]}
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
                 "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level, "model": model}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>",
              "eos_token": "</s>", "model_max_length": 256, "clean_up_tokenization_spaces": False}
    if template:
        config["chat_template"] = template
    return {"tokenizer.json": json.dumps(tokenizer, ensure_ascii=False), "tokenizer_config.json": json.dumps(config)}


# name -> (merges, added tokens, whether the merged tokens come first, rows of the embedding, tied, chat template)
VOCABULARIES = {
    "root": (MERGES, [], False, None, False, None),
    "chat": (MERGES, CHATS, False, None, False, TEMPLATE),
    "other": (OTHER_MERGES, [], True, None, False, None),
    "padded": (MERGES, [], False, 288, False, None),
    "tied": (MERGES, [], False, None, True, None),
    "tied2": (MERGES, [], False, None, True, None),
    "twin": (MERGES, [], False, None, False, TEMPLATE),
}


def make_family(directory, seed):
    rng = np.random.default_rng([seed, 1])
    body = models.drawn_family(rng, [(name, shape) for name, shape in models.runnable_shapes()
                                     if "embed" not in name and "head" not in name], len(VOCABULARIES))
    rows_of = {}  # a token's row differs little between models, as in fine-tunes
    for i, (name, (merges, added, first, rows, tied, template)) in enumerate(VOCABULARIES.items()):
        tokens = tokens_of(merges, added, first)
        config = {**models.CONFIG, "vocab_size": rows or len(tokens), "tie_word_embeddings": tied}
        tensors = {tensor: values[i] for tensor, values in body.items()}
        for tensor in ["model.embed_tokens.weight"] + ["lm_head.weight"] * (not tied):
            values = np.empty((config["vocab_size"], config["hidden_size"]), np.float32)
            for row, token in enumerate([*tokens, *[f"padding {r}" for r in range(len(tokens), len(values))]]):
                shared = rows_of.setdefault((tensor, token), models.drawn_base(rng, tensor, values[row].shape))
                values[row] = shared + models.drawn_change(rng, values[row].shape)
            tensors[tensor] = values
        models.write_model(directory / FAMILY / name, tensors, "f32", config, shards=i % 3 + 1,
                           files=tokenizer_files(merges, added, first, template))


def placed(directory, value):
    """The names of models as directories, wherever they stand."""
    if isinstance(value, dict):
        return {key: placed(directory, v) for key, v in value.items()}
    if isinstance(value, list):
        return [placed(directory, v) for v in value]
    return str(directory / FAMILY / value) if isinstance(value, str) and value in VOCABULARIES else value


def vocabulary_cases():
    def recipe(method, listed, base, more):
        def make(directory):
            of_models = [{"model": name, "parameters": {"weight": weight}} for name, weight in listed.items()]
            made = {"merge_method": method, "models": of_models, **(FLOAT64 if method == "linear" else FLOAT32),
                    **({"base_model": base} if base else {}), **more}
            return placed(directory, made)
        return make

    def case(name, method, listed, base="root", options=None, not_compared=None, **more):
        return StructureCase(f"tokens: {name}", method, recipe(method, listed, base, more), options or {},
                             tokenizer=True, not_compared=not_compared or {})

    two, three = {"chat": 0.6, "other": 0.4}, {"chat": 0.6, "other": 0.4, "padded": 0.3}
    cases = []
    for method in ("task_arithmetic", "linear"):
        listed = {"root": 0.5, **two} if method == "linear" else two
        cases += [
            case(f"of the base, {method}", method, listed, tokenizer_source="base"),
            case(f"of a model, {method}", method, listed, tokenizer_source="chat"),
            case(f"of a model with other ids, {method}", method, listed, tokenizer_source="other"),
            case(f"union, {method}", method, listed, tokenizer_source="union"),
            case(f"union of three, {method}", method, {**listed, "padded": 0.3}, tokenizer={"source": "union"}),
        ]
    tokens = {"<|im_start|>": {"source": "chat"}, "ing": {"source": "other", "force": True},
              "song": {"source": {"kind": "zero"}},
              "<|im_end|>": {"source": {"kind": "model_token", "model": "root", "token": "</s>"}},
              "<new>": {"source": {"kind": "model_token", "model": "other", "token_id": 7}, "force": True}}
    tied_config = {"tie_word_embeddings": "mergekit leaves it true beside a head of its own"}
    cases += [
        case("a source for each token", "task_arithmetic", two, tokenizer={"source": "union", "tokens": tokens}),
        case("padded rows", "task_arithmetic", two, tokenizer={"source": "union", "pad_to_multiple_of": 64}),
        case("padded already", "task_arithmetic", three, tokenizer={"source": "base", "pad_to_multiple_of": 32}),
        case("ties of a union", "ties", two, tokenizer_source="union", parameters={"density": 0.4}),
        case("no base", "linear", {"chat": 0.7, "other": 0.3}, base=None, tokenizer_source="chat"),
        case("a template", "task_arithmetic", two, tokenizer_source="union", chat_template=TEMPLATE),
        *(case(name, "task_arithmetic", two, tokenizer_source="union", chat_template=name) for name in CHAT_TEMPLATES),
        case("the usual template", "task_arithmetic", {"chat": 0.5, "twin": 0.5}, tokenizer_source="base",
             chat_template="auto"),
        case("copied", "task_arithmetic", {"twin": 0.5}, options={"copy_tokenizer": True}),
        case("one tied, one not", "task_arithmetic", {"tied": 0.5}, options={"copy_tokenizer": True}),
        case("all tied", "linear", {"tied": 0.5, "tied2": 0.5}, base=None, options={"copy_tokenizer": True}),
        case("the base tied, a model not", "task_arithmetic", {"twin": 0.5}, base="tied",
             options={"copy_tokenizer": True}, not_compared=tied_config),
    ]
    return cases
