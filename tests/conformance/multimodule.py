"""Models of several modules: an encoder and a decoder (T5), a vision tower beside a language model (Mistral3).

The modules of a recipe are merged apart: other models, other slices, other parameters for each. mergekit's other models
of several modules cannot be loaded by it with transformers 5, or name their modules as these do.
"""
import numpy as np
import torch

import models
from structure import BY_PART, FLOAT32, FLOAT64, StructureCase, source

FINETUNES = 3
T5 = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 72, "d_model": 32, "d_kv": 8,
    "d_ff": 48, "num_layers": 4, "num_decoder_layers": 3, "num_heads": 4, "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 8, "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0,
    "eos_token_id": 1,
}
MISTRAL3 = {
    "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 5,
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
    "vision_feature_layer": -1, "tie_word_embeddings": False,
    "text_config": {"model_type": "mistral", "vocab_size": 72, "hidden_size": 32, "intermediate_size": 48,
                    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
                    "rms_norm_eps": 1e-5, "max_position_embeddings": 256, "tie_word_embeddings": False},
    "vision_config": {"model_type": "pixtral", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
                      "num_attention_heads": 3, "head_dim": 8, "image_size": 16, "patch_size": 4},
}


def t5_shapes():
    h, ff, vocab = T5["d_model"], T5["d_ff"], T5["vocab_size"]
    yield "shared.weight", (vocab, h)
    for stack, layers, attentions in (("encoder", T5["num_layers"], ["SelfAttention"]),
                                      ("decoder", T5["num_decoder_layers"], ["SelfAttention", "EncDecAttention"])):
        for layer in range(layers):
            block = f"{stack}.block.{layer}.layer."
            for part, attention in enumerate(attentions):
                yield f"{block}{part}.layer_norm.weight", (h,)
                for matrix in "qkvo":
                    yield f"{block}{part}.{attention}.{matrix}.weight", (h, h)
            if layer == 0:
                yield f"{block}0.SelfAttention.relative_attention_bias.weight", (8, T5["num_heads"])
            dense = f"{block}{len(attentions)}."
            yield f"{dense}layer_norm.weight", (h,)
            yield f"{dense}DenseReluDense.wi_0.weight", (ff, h)
            yield f"{dense}DenseReluDense.wi_1.weight", (ff, h)
            yield f"{dense}DenseReluDense.wo.weight", (h, ff)
        yield f"{stack}.final_layer_norm.weight", (h,)
    yield "lm_head.weight", (vocab, h)


def mistral3_shapes():
    text, vision = MISTRAL3["text_config"], MISTRAL3["vision_config"]
    for name, shape in models.runnable_shapes({**text, "tie_word_embeddings": False}):
        yield "language_model." + name, shape
    h, inter, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    yield "multi_modal_projector.linear_1.weight", (text["hidden_size"], h)
    yield "multi_modal_projector.linear_2.weight", (text["hidden_size"], text["hidden_size"])
    yield "multi_modal_projector.norm.weight", (h,)
    yield "multi_modal_projector.patch_merger.merging_layer.weight", (h, h * MISTRAL3["spatial_merge_size"] ** 2)
    yield "vision_tower.ln_pre.weight", (h,)
    yield "vision_tower.patch_conv.weight", (h, 3, patch, patch)
    for layer in range(vision["num_hidden_layers"]):
        block = f"vision_tower.transformer.layers.{layer}."
        for matrix in "qkvo":
            yield f"{block}attention.{matrix}_proj.weight", (h, h)
        yield f"{block}attention_norm.weight", (h,)
        yield f"{block}ffn_norm.weight", (h,)
        yield f"{block}feed_forward.gate_proj.weight", (inter, h)
        yield f"{block}feed_forward.up_proj.weight", (inter, h)
        yield f"{block}feed_forward.down_proj.weight", (h, inter)


def make_families(directory, seed):
    rng = np.random.default_rng([seed, 2])
    for name, shapes, config in (("t5", t5_shapes, T5), ("mistral3", mistral3_shapes, MISTRAL3)):
        family = models.drawn_family(rng, list(shapes()), FINETUNES)
        for dtype in ("f32", "bf16"):
            models.write_family(directory / f"{name}-{dtype}", family, dtype, config)


def check_runs(directory):
    """transformers finds every weight where it looks for it, and the model runs."""
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
    config = AutoConfig.from_pretrained(directory)
    loader = AutoModelForSeq2SeqLM if config.model_type == "t5" else AutoModelForImageTextToText
    model, report = loader.from_pretrained(directory, output_loading_info=True)
    assert not any(report.values()), f"transformers: {report}"
    tokens = torch.tensor([[1, 2, 71]])
    more = {"decoder_input_ids": tokens} if config.model_type == "t5" else {}
    with torch.no_grad():
        assert torch.isfinite(model(input_ids=tokens, **more).logits.float()).all(), "the merged model gives no numbers"


def module_cases(rng):
    """`parts`: module -> its models, as (name, parameters), or its slices, as lists of (name, first, last, parameters)
    or mappings with such a list as `sources`; beside either, the module's parameters."""
    def draw():
        return round(rng.uniform(0.1, 1), 4)

    def recipe(family, method, parts, base, more):
        def placed(directory, name):
            return str(directory / family / name)

        def one_slice(directory, wanted):
            entry = dict(wanted) if isinstance(wanted, dict) else {"sources": wanted}
            entry["sources"] = [source(directory, *s[:3], family=family, **(s[3] if len(s) > 3 else {}))
                                for s in entry["sources"]]
            if "base_model" in entry:
                entry["base_model"] = placed(directory, entry["base_model"])
            return entry

        def module(directory, part):
            made = {key: value for key, value in part.items() if key == "parameters"}
            if "slices" in part:
                return {**made, "slices": [one_slice(directory, wanted) for wanted in part["slices"]]}
            return {**made, "models": [{"model": placed(directory, name), **({"parameters": p} if p else {})}
                                       for name, p in part["models"]]}

        def make(directory):
            made = {"merge_method": method, **FLOAT32, **more}
            if base:
                made["base_model"] = placed(directory, base)
            if "models" in parts:   # for all modules
                return {**made, **module(directory, parts)}
            return {**made, "modules": {name: module(directory, part) for name, part in parts.items()}}
        return make

    def case(family, name, method, parts, base="base", **more):
        not_compared = more.pop("not_compared", {})
        kind = family.split("-")[0]
        return StructureCase(f"modules: {kind}, {name}", method, recipe(family, method, parts, base, more),
                             not_compared=not_compared, runs=check_runs)

    two = [("ft1", {}), ("ft2", {})]
    by_attention = [{"filter": "SelfAttention", "value": [0.8, 0.3]}, {"value": 0.6}]
    return [
        case("t5-f32", "models for all modules", "ties", {"models": two},
             parameters={"weight": [draw(), draw()], "density": [0.9, 0.2]}),
        case("t5-f32", "models for each", "ties",
             {"encoder": {"models": two, "parameters": {"density": 0.4}},
              "decoder": {"models": [("ft3", {"weight": draw()}), ("ft1", {"density": 0.7})]},
              "shared": {"models": [("ft2", {"weight": [draw(), draw()]})]}},
             parameters={"weight": draw(), "density": by_attention}),
        case("t5-f32", "slices in the decoder", "linear",
             {"encoder": {"models": [("ft1", {"weight": [1, 2, 4]}), ("ft2", {"weight": 0.5})]},
              "decoder": {"slices": [[("ft1", 0, 2, {"weight": 1}), ("ft2", 0, 2, {"weight": [0.2, 0.7]})],
                                     [("ft3", 1, 3, {"weight": [3, 1]}), ("ft1", 1, 3, {"weight": 1})]]},
              "shared": {"models": [("ft3", {"weight": 1}), ("ft2", {"weight": draw()})]}}, None, **FLOAT64),
        case("t5-f32", "stacks of both", "passthrough",
             {"encoder": {"slices": [[("ft1", 0, 3)], [("ft2", 1, 4, {"scale": draw()})], [("ft3", 2, 3)]]},
              "decoder": {"slices": [[("ft2", 0, 2)], [("ft2", 1, 2)]]},
              "shared": {"models": [("ft1", {})]}}, None),
        case("t5-f32", "slerp in slices", "slerp",
             {"encoder": {"slices": [[("base", 0, 2), ("ft1", 0, 2)], [("base", 1, 4), ("ft2", 1, 4)]],
                          "parameters": {"t": [{"filter": "SelfAttention", "value": [0, 1]}, {"value": 0.3}]}},
              "decoder": {"slices": [[("base", 0, 3), ("ft1", 0, 3)]]},
              "shared": {"models": [("base", {}), ("ft1", {})], "parameters": {"t": 0.25}}},
             parameters={"t": [0.2, 0.9]}, **FLOAT64),
        case("t5-f32", "one base for all, one for a slice", "task_arithmetic",
             {"encoder": {"slices": [[("base", 0, 2), ("ft1", 0, 2)],
                                     {"sources": [("ft3", 2, 4), ("ft1", 2, 4)], "base_model": "ft3"}]},
              "decoder": {"models": two}, "shared": {"models": [("ft3", {})]}},
             parameters={"weight": draw(), "lambda": [0.5, 1.5]}),
        case("t5-bf16", "another type", "breadcrumbs_ties",
             {"encoder": {"models": two}, "decoder": {"models": [("ft3", {"weight": draw()})]},
              "shared": {"models": two, "parameters": {"density": 0.3}}}, out_dtype="bfloat16",
             parameters={"weight": draw(), "density": 0.8, "gamma": 0.05}),
        case("mistral3-f32", "models for all modules", "model_stock", {"models": two}, **FLOAT64),
        case("mistral3-f32", "weights by module", "task_arithmetic",
             {"text_decoder": {"models": two, "parameters": {"weight": [draw(), draw()]}},
              "multi_modal_projector": {"models": [("ft3", {})]},
              "vision_tower": {"models": two, "parameters": {"weight": [0, draw()], "lambda": 0.7}}},
             parameters={"weight": draw()}),
        case("mistral3-f32", "layers of text and vision", "passthrough",
             {"text_decoder": {"slices": [[("ft1", 0, 3)], [("ft2", 1, 4)]]},
              "multi_modal_projector": {"models": [("ft2", {})]},
              "vision_tower": {"slices": [[("ft3", 0, 1)], [("ft3", 2, 3, {"scale": 0.5})]]}}, None),
        case("mistral3-f32", "nuslerp of the text", "nuslerp",
             {"text_decoder": {"slices": [[("ft1", 0, 2), ("ft2", 2, 4)], [("ft2", 2, 4), ("ft3", 0, 2)]]},
              "multi_modal_projector": {"models": [("ft1", {}), ("ft2", {})]},
              "vision_tower": {"models": [("ft1", {"weight": 1}), ("ft3", {"weight": [0, 2]})]}}, None,
             parameters={"weight": [{"filter": "mlp", "value": 0.3}, {"value": draw()}]}, **FLOAT64),
        case("mistral3-f32", "karcher of the vision tower", "karcher",
             {"text_decoder": {"models": [("ft1", {}), ("ft2", {})]},
              "multi_modal_projector": {"models": [("ft1", {}), ("ft2", {}), ("ft3", {})]},
              "vision_tower": {"slices": [[("ft1", 0, 2), ("ft2", 1, 3), ("ft3", 0, 2)]]}}, None, **FLOAT64),
        case("mistral3-bf16", "half precision", "ties",
             {"text_decoder": {"models": two}, "multi_modal_projector": {"models": two},
              "vision_tower": {"slices": [[("base", 0, 2), ("ft1", 1, 3)]]}}, out_dtype="float16",
             parameters={"weight": draw(), "density": [{"filter": "attention", "value": [0.9, 0.1]}, {"value": 0.5}]}),
        case("mistral3-f32", "by part", "slerp",
             {"text_decoder": {"slices": [[("base", 0, 4), ("ft1", 0, 4)]], "parameters": {"t": BY_PART}},
              "multi_modal_projector": {"models": [("base", {}), ("ft1", {})]},
              "vision_tower": {"models": [("base", {}), ("ft2", {})]}}, parameters={"t": 0.4}, **FLOAT64),
    ]
