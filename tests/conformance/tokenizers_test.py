#!/usr/bin/env python3
"""Merges models with different vocabularies with mergekit 0.1.5 and Braid, loads both results with transformers, and
compares tokens, ids and the rows that belong to them.

    tests/conformance/tokenizers_test.py --braid build/release/braid [--only NAME] [--seed N] [--keep DIR]

What must hold:
- the same tokens; for the vocabulary of the base or of one model also the same ids, and the same ids for a text. In a
  union mergekit numbers new tokens in the order of a hash table: there the rows are compared token by token.
- rows of tokens: the same bits (dtype float32, weights that are powers of two). Padding rows, means over all rows,
  whose sum torch takes in float32: within 1e-5 of the largest.
- the same shapes, the same vocab_size, the same chat template.
Without a base mergekit takes tokenizer files and chat template from any of the models, another one in each run; Braid
takes the first's, so that templates are not compared there.
One difference is meant: plain tokens that come into a union are added tokens in mergekit's output, found anywhere in a
text ("other" becomes "o", "the", "r"); in Braid's they are in the vocabulary only, and a text has the ids that it has
for the base.
"""
import argparse
import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

from common import ROOT, braid_merge, enter_venv, read_tensors, run, write_checkpoint

enter_venv(["mergekit", "torch", "transformers", "tokenizers", "safetensors", "yaml"])

import torch
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

WIDTH = 16
TEXTS = ["hello there, other world", "<|im_start|>user\nhello<|im_end|>", "the theory of abc", "ab <tool> abc"]
VOCABULARY_TENSORS = {"model.embed_tokens.weight", "lm_head.weight"}


# --- tokenizers ----------------------------------------------------------------------------------------------

def byte_level(tokens, merges, added):
    """Every byte, then the results of merges, as GPT-2 has them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(alphabet + ["".join(pair) for pair in merges] + tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    return tokenizer


def word_piece(words, added):
    vocabulary = {token: i for i, token in enumerate(["[UNK]"] + words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens(added)
    return tokenizer


def unigram(pieces, added):
    scores = [("<unk>", 0.0)] + [(piece, -float(i + 1)) for i, piece in enumerate(pieces)]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_tokens(added)
    return tokenizer


def special(*contents):
    return [AddedToken(content, special=True, normalized=False) for content in contents]


def families():
    """Per family the tokenizers of base, a and b. a is a fine-tune with tokens of its own; b has another vocabulary."""
    common = [("t", "h"), ("th", "e"), ("l", "l"), ("h", "e"), ("o", "r")]
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [chr(c) for c in range(ord("A"), ord("Z") + 1)]
    digits = [str(d) for d in range(10)] + list(",.<>|_/-")
    parts = ["##" + letter for letter in letters[:26]]
    chat = special("<|endoftext|>", "<|im_start|>", "<|im_end|>") + [AddedToken("<tool>", lstrip=True)]
    other = [("a", "b"), ("ab", "c"), ("t", "h"), ("e", "r")]
    return {
        "bpe": [byte_level([], common, special("<|endoftext|>")),
                byte_level([], common, chat),
                byte_level(["Ġother"], other, special("<|im_start|>", "<pad>", "<|endoftext|>"))],
        "wordpiece": [word_piece(letters + parts + ["hello", "there"], special("[PAD]")),
                      word_piece(letters + parts + ["hello", "there"], special("[PAD]", "<|im_start|>", "<|im_end|>")),
                      word_piece(letters[::-1] + parts + ["theory", "##ld"], special("<|im_start|>"))],
        "unigram": [unigram(["▁"] + letters + digits + ["▁the", "he"], special("<s>")),
                    unigram(["▁"] + letters + digits + ["▁the", "he"], special("<s>", "<|im_start|>")),
                    unigram(["▁"] + letters[::-1] + digits + ["▁ab", "ll"], special("<|im_start|>", "<x>"))],
    }


def write_model(directory, tokenizer, rng, rows=None, tied=False, template=None):
    rows = rows or tokenizer.get_vocab_size()
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH,
              "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
              "vocab_size": rows, "tie_word_embeddings": tied, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
              "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32"}
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (rows, WIDTH), "model.norm.weight": (WIDTH,),
              layer + "input_layernorm.weight": (WIDTH,), layer + "post_attention_layernorm.weight": (WIDTH,),
              **{f"{layer}self_attn.{x}_proj.weight": (WIDTH, WIDTH) for x in "qkvo"},
              **{f"{layer}mlp.{x}_proj.weight": (24, WIDTH) for x in ("gate", "up")},
              layer + "mlp.down_proj.weight": (WIDTH, 24)}
    if not tied:
        shapes["lm_head.weight"] = (rows, WIDTH)
    write_checkpoint(directory, {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}, config)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    if template:
        fast.chat_template = template
    fast.save_pretrained(directory)


def make_models(work, seed):
    rng = torch.Generator().manual_seed(seed)
    for family, tokenizers in families().items():
        for name, tokenizer in zip(["base", "a", "b"], tokenizers):
            template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
            write_model(work / family / name, tokenizer, rng, template=None if name == "base" else template)
            write_model(work / family / f"{name}-tied", tokenizer, rng, tied=True)
        for name, tokenizer in zip(["base", "a", "b"], tokenizers):
            rows = (tokenizer.get_vocab_size() // 16 + 2) * 16
            write_model(work / family / f"{name}-padded", tokenizer, rng, rows=rows)


# --- cases ---------------------------------------------------------------------------------------------------

def cases():
    """Name -> (family, suffix of the models, with a base, keys of the recipe, rows are compared by id)."""
    of_b = {"source": {"kind": "model_token", "model": "b", "token": "<|im_start|>"}, "force": True}
    template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    return {
        "base": ("bpe", "", True, {"tokenizer_source": "base"}, True),
        "base-padded": ("bpe", "-padded", True, {"tokenizer_source": "base"}, True),
        "base-tied": ("bpe", "-tied", True, {"tokenizer_source": "base"}, True),
        "model-a": ("bpe", "", True, {"tokenizer_source": "a"}, True),
        "model-b": ("bpe", "", True, {"tokenizer": {"source": "b", "pad_to_multiple_of": 64}}, True),
        "union": ("bpe", "", True, {"tokenizer_source": "union"}, False),
        "union-tied": ("bpe", "-tied", True, {"tokenizer_source": "union"}, False),
        "union-padded": ("bpe", "-padded", True, {"tokenizer": {"source": "union", "pad_to_multiple_of": 32}}, False),
        "union-without-base": ("bpe", "", False, {"tokenizer": {"source": "union"}}, False),
        "wordpiece-base": ("wordpiece", "", True, {"tokenizer_source": "base"}, True),
        "wordpiece-union": ("wordpiece", "", True, {"tokenizer_source": "union"}, False),
        "unigram-model": ("unigram", "", True, {"tokenizer_source": "b"}, True),
        "unigram-union": ("unigram", "", True, {"tokenizer_source": "union"}, False),
        "tokens": ("bpe", "", True, {"tokenizer": {"source": "union", "tokens": {
            "<|im_end|>": {"source": "a"}, "<|endoftext|>": of_b, "<pad>": {"source": {"kind": "zero"}, "force": True},
            "<never>": {"source": {"kind": "model_token", "model": "base", "token_id": 7}}}}}, False),
        "template-auto": ("bpe", "", True, {"tokenizer_source": "base", "chat_template": "auto"}, True),
        "template-alone": ("unigram", "-tied", None, {"chat_template": template}, True),
    }


def recipe_of(family, suffix, with_base, keys, work):
    """None for with_base: models of one vocabulary."""
    def located(value):
        if isinstance(value, dict):
            return {k: located(v) for k, v in value.items()}
        return str(work / family / f"{value}{suffix}") if value in ("base", "a", "b") else value

    def source_of(value):   # "base" is a keyword there
        if value in ("a", "b"):
            return located(value)
        if not isinstance(value, dict):
            return value
        return {**value, **{k: located(v) for k, v in value.items() if k == "tokens"},
                **({"source": source_of(value["source"])} if "source" in value else {})}

    keys = {k: source_of(v) if k.startswith("tokenizer") else v for k, v in keys.items()}
    names = ["base", "a", "b"] if with_base is not None else ["base", "base-copy"]
    entries = [{"model": str(work / family / f"{name}{suffix}"), "parameters": {"weight": weight}}
               for name, weight in zip(names, [0.5, 2.0, 0.25])]
    recipe = {"merge_method": "linear", "dtype": "float32", "parameters": {"normalize": False}, **keys}
    if with_base:
        recipe.update(merge_method="task_arithmetic", base_model=entries[0]["model"], models=entries[1:])
    else:
        recipe["models"] = entries
    return recipe


# --- comparing -----------------------------------------------------------------------------------------------

def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.int32), b.contiguous().view(torch.int32))


def compare(ours, theirs, by_id, with_base):
    """What is the same is asserted; returns a sentence."""
    our_config, their_config = (json.loads((d / "config.json").read_text()) for d in (ours, theirs))
    assert our_config["vocab_size"] == their_config["vocab_size"], "vocab_size"
    our_tokenizer, their_tokenizer = AutoTokenizer.from_pretrained(ours), AutoTokenizer.from_pretrained(theirs)
    our_ids, their_ids = our_tokenizer.get_vocab(), their_tokenizer.get_vocab()
    assert set(our_ids) == set(their_ids), f"tokens: {set(our_ids) ^ set(their_ids)}"
    if with_base is not False:
        assert our_tokenizer.chat_template == their_tokenizer.chat_template, "chat template"
    if by_id:
        assert our_ids == their_ids, "ids"
        for text in TEXTS:
            assert our_tokenizer(text)["input_ids"] == their_tokenizer(text)["input_ids"], text
    for token, added in {t.content: t for t in their_tokenizer.added_tokens_decoder.values() if t.special}.items():
        assert our_tokenizer(token, add_special_tokens=False)["input_ids"] == [our_ids[token]], f"{token} in a text"
        mine = our_tokenizer.added_tokens_decoder[our_ids[token]]
        assert (mine.special, mine.lstrip, mine.rstrip) == (added.special, added.lstrip, added.rstrip), token
    our_tensors, their_tensors = read_tensors(ours), read_tensors(theirs)
    assert set(our_tensors) == set(their_tensors), f"tensors: {set(our_tensors) ^ set(their_tensors)}"
    tokens = sorted(our_ids)
    elements = 0
    for name, mine in our_tensors.items():
        other = their_tensors[name]
        assert mine.shape == other.shape, f"{name}: {tuple(mine.shape)}, {tuple(other.shape)}"
        elements += mine.numel()
        if name not in VOCABULARY_TENSORS:
            assert same_bits(mine, other), name
            continue
        assert mine.shape[0] == our_config["vocab_size"]
        rows, others = mine[[our_ids[t] for t in tokens]], other[[their_ids[t] for t in tokens]]
        wrong = [t for t, x, y in zip(tokens, rows, others) if not same_bits(x, y)]
        assert not wrong, f"{name}: rows of {wrong[:5]}"
        padding, theirs_padding = mine[len(tokens):], other[len(tokens):]
        assert torch.allclose(padding, theirs_padding, rtol=0, atol=1e-5 * float(other.abs().max())), f"{name}: padding"
    model, report = AutoModelForCausalLM.from_pretrained(ours, output_loading_info=True)
    assert not any(report.values()), f"transformers: {report}"
    assert torch.isfinite(model(torch.tensor([our_tokenizer(TEXTS[0])["input_ids"]])).logits).all()
    return f"{len(tokens)} tokens, {elements} elements"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--braid", type=Path, default=ROOT / "build/release/braid")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--keep", type=Path, help="leave models, recipes and outputs here")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    from transformers.utils import logging
    logging.disable_progress_bar()

    work = (arguments.keep or Path(tempfile.mkdtemp(prefix="braid-tokenizers-"))).resolve()
    mergekit = Path(sys.executable).parent / "mergekit-yaml"
    failures = 0
    try:
        make_models(work, arguments.seed)
        for family in families():
            shutil.copytree(work / family / "base-tied", work / family / "base-copy-tied")
        for name, (family, suffix, with_base, keys, by_id) in cases().items():
            if arguments.only not in name:
                continue
            recipe = work / f"{name}.yml"
            recipe.write_text(yaml.safe_dump(recipe_of(family, suffix, with_base, keys, work), sort_keys=False))
            ours, theirs = work / f"{name}.braid", work / f"{name}.mergekit"
            try:
                run([mergekit, recipe, theirs, "--no-write-model-card", "--quiet"])
                braid_merge(arguments.braid, recipe, ours)
                print(f"{name:20} ok: {compare(ours, theirs, by_id, with_base)}", flush=True)
            except (AssertionError, RuntimeError) as error:
                failures += 1
                print(f"{name:20} FAILED: {error}", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(work)
    print(f"{failures} cases failed" if failures else "every case agrees")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
