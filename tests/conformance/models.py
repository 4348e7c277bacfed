"""The checkpoints that both programs merge: llama by their tensors' names, of any shape, made from a seed.

A family is a directory with base/, ft1/ ... ft8/. mergekit finds a llama's tensors by name and does not look at their
shapes, so that a layer may have one-element tensors, single rows and columns, vectors and three axes.

    plain    every fine-tune changes every element; magnitudes of a task vector nearly all differ
    odd      the same shapes with what goes wrong: equal models, zero task vectors, zero tensors, opposite and parallel
             ones, the smallest and largest numbers, -0.0, a handful of magnitudes shared by all elements
    masks    zero base, so that a merge of one fine-tune is its sparsified task vector; for random methods
    runnable shapes as the config says, so that transformers can load and run a merge
"""
import numpy as np
import torch

from common import write_checkpoint

FINETUNES = 8
SHARDS = [1, 2, 3, 1, 5, 2, 4, 1, 2]  # of the base and of each fine-tune
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 48, "intermediate_size": 80,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 160,
    "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256,
    "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2,
}
LAYER = ["input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "post_attention_layernorm", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"]
# In the order of LAYER. The last is longer than a reduction block of 65,536 elements.
STRANGE_SHAPES = [
    [(1,), (40, 40), (1, 40), (40, 1), (1, 1), (2,), (2, 3, 7), (17, 31), (64, 33)],
    [(300,), (5,), (33, 8), (8, 33), (16, 16), (31,), (12, 12), (24, 9), (7, 129)],
    [(7,), (16, 64), (3, 5), (5, 3), (2, 2), (64,), (40, 25), (25, 40), (300, 257)],
]


def tensor_name(layer, part):
    return f"model.layers.{layer}.{part}.weight"


def strange_shapes():
    yield "model.embed_tokens.weight", (96, 40)
    for layer, shapes in enumerate(STRANGE_SHAPES):
        for part, shape in zip(LAYER, shapes):
            yield tensor_name(layer, part), shape
    yield "model.norm.weight", (40,)
    yield "lm_head.weight", (96, 40)


def runnable_shapes(config=CONFIG):
    h, inter, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = h // config["num_attention_heads"] * config["num_key_value_heads"]
    of = {"input_layernorm": (h,), "self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h),
          "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, h), "post_attention_layernorm": (h,),
          "mlp.up_proj": (inter, h), "mlp.gate_proj": (inter, h), "mlp.down_proj": (h, inter)}
    yield "model.embed_tokens.weight", (vocab, h)
    for layer in range(config["num_hidden_layers"]):
        for part in LAYER:
            yield tensor_name(layer, part), of[part]
    yield "model.norm.weight", (h,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, h)


# --- values --------------------------------------------------------------------------------------------------

def drawn_base(rng, name, shape):
    mean, scale = (1, 0.05) if "norm" in name else (0, 0.02)
    return (mean + scale * rng.standard_normal(shape)).astype(np.float32)


def drawn_change(rng, shape):
    """Heavy-tailed, as a fine-tune's."""
    return (2e-3 * rng.standard_t(3, shape)).astype(np.float32)


def drawn_family(rng, shapes, finetunes=FINETUNES):
    """name -> [base, ft1, ...] as float32 arrays."""
    family = {}
    for name, shape in shapes:
        base = drawn_base(rng, name, shape)
        family[name] = [base] + [base + drawn_change(rng, shape) for _ in range(finetunes)]
    return family


def made_odd(rng, family):
    """Puts the difficult cases into the tensors of a family of strange shapes."""
    def tensors(layer, part):
        return family[tensor_name(layer, part)]

    def each(layer, part, make):  # make(base, tensor) -> tensor, for every model
        models = tensors(layer, part)
        base = models[0].copy()
        models[:] = [make(base, tensor).astype(np.float32) for tensor in models]

    models = tensors(0, "self_attn.q_proj")
    models[1:] = [models[0].copy() for _ in models[1:]]                       # nobody changed anything
    tensors(0, "mlp.up_proj")[1] = tensors(0, "mlp.up_proj")[0].copy()        # one did not
    each(0, "mlp.gate_proj", lambda base, x: x - base)                        # a zero base
    each(0, "mlp.down_proj", lambda base, x: np.zeros_like(x))                # nothing at all
    tensors(1, "input_layernorm")[2] = tensors(1, "input_layernorm")[1].copy()  # two models are equal
    models = tensors(1, "self_attn.k_proj")
    models[0] = np.round(models[0] * 2 ** 12) / np.float32(2 ** 12)           # task vectors that cancel exactly
    models[1] = models[0] + np.round(drawn_change(rng, models[0].shape) * 2 ** 12) / np.float32(2 ** 12)
    models[2] = models[0] - (models[1] - models[0])
    tensors(1, "self_attn.v_proj")[2] = -tensors(1, "self_attn.v_proj")[1]    # opposite models
    each(1, "mlp.up_proj", lambda base, x: np.full_like(x, 0.25 + np.float32(x.flat[0] - base.flat[0])))
    each(1, "mlp.gate_proj", lambda base, x: x * np.float32(1e-30))
    each(1, "mlp.down_proj", lambda base, x: x * np.float32(1e30))
    each(2, "mlp.gate_proj", lambda base, x: x * np.float32(1e-38))           # subnormal
    models = tensors(2, "self_attn.k_proj")
    models[1:] = [models[0] * np.float32(1 + i) for i in range(1, len(models))]  # parallel
    grid = np.float32(2.0 ** -8)
    each(2, "mlp.up_proj", lambda base, x: np.round(base / grid) * grid +
         np.clip(np.round((x - base) / grid), -2, 2) * grid)                  # few magnitudes
    for x in tensors(2, "self_attn.q_proj"):
        x[:4, 3:9] = -0.0                                                     # in all models alike
    tensors(2, "self_attn.q_proj")[2][:2, 3:9] = 0.001
    return family


def write_model(directory, tensors, dtype, config, shards=1, files=None):
    """`tensors`: float32 arrays by name; `files`: texts by name, beside the weights."""
    name = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[dtype]
    lanes = {tensor: torch.from_numpy(np.ascontiguousarray(values)).to(DTYPES[dtype])
             for tensor, values in tensors.items()}
    write_checkpoint(directory, lanes, {**config, "torch_dtype": name}, shards)
    for file, text in (files or {}).items():
        (directory / file).write_text(text)


def write_family(directory, family, dtype, config=CONFIG):
    for i in range(len(next(iter(family.values())))):
        write_model(directory / ("base" if i == 0 else f"ft{i}"), {name: models[i] for name, models in family.items()},
                    dtype, config, SHARDS[i])


def make_families(directory, seed):
    """Writes every family below `directory`."""
    rng = np.random.default_rng(seed)
    strange = {**CONFIG, "num_hidden_layers": len(STRANGE_SHAPES)}
    plain = drawn_family(rng, list(strange_shapes()))
    for dtype in DTYPES:
        write_family(directory / f"plain-{dtype}", plain, dtype, strange)
    odd = made_odd(rng, {name: [x.copy() for x in models] for name, models in plain.items()})
    write_family(directory / "odd-f32", odd, "f32", strange)
    write_family(directory / "odd-bf16", odd, "bf16", strange)
    masks = {name: [np.zeros(shape, np.float32)] + [drawn_change(rng, shape) for _ in range(3)]
             for name, shape in runnable_shapes()}
    write_family(directory / "masks-f32", masks, "f32")
    runnable = drawn_family(rng, list(runnable_shapes()))
    for dtype in ("f32", "bf16"):
        write_family(directory / f"runnable-{dtype}", runnable, dtype)
