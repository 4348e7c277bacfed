"""The checkpoints that rows merge: made once under a directory, reused, and removed for room when no longer needed."""
import json
import shutil
import struct

from benchmark.process import Failed, run_measured
from benchmark.skipped import Skipped

SPARE_BYTES = 1 << 30       # of disk, left alone
MARK = "made-by-bench"      # a file in each family, so that nothing else is ever removed
TORCH_NAMES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def weight_files(directory):
    return sorted(directory.glob("*.safetensors"))


def total_size(paths):
    return sum(path.stat().st_size for path in paths)


class Families:
    def __init__(self, directory, braid, say):
        self.directory, self.braid, self.say = directory, braid, say

    def obtain(self, family, still_needed):
        """The models' directories, the base first. Families that are not in `still_needed` may be removed."""
        path = self.directory / family.name
        models = [path / "base"] + [path / f"ft{i + 1}" for i in range(family.finetunes)]
        if all((model / "config.json").exists() for model in models):
            return models
        if path.exists() and not (path / MARK).exists():
            raise Failed(f"{path} is not a family of the bench's; remove it or choose another --dir")
        shutil.rmtree(path, ignore_errors=True)
        self.need_space(family.bytes_per_model * (family.finetunes + 1), still_needed)
        self.say(f"  making {path}")
        path.mkdir()
        (path / MARK).touch()
        run_measured([self.braid, "synth", family.arch, path, "--finetunes", family.finetunes, "--dtype", family.dtype])
        return models

    def need_space(self, size, still_needed):
        """Raises Skipped when the disk has no room, even after removing what no later row needs."""
        kept = {family.name for family in still_needed}
        for made in self.directory.glob(f"*/{MARK}"):
            if self._free() >= size + SPARE_BYTES:
                return
            if made.parent.name not in kept:
                self.say(f"  removing {made.parent} for room")
                shutil.rmtree(made.parent)
        if self._free() < size + SPARE_BYTES:
            raise Skipped(f"{(size + SPARE_BYTES) / 1e9:.0f} GB of disk; {self._free() / 1e9:.0f} GB are free")

    def _free(self):
        return shutil.disk_usage(self.directory).free


# --- sparse checkpoints --------------------------------------------------------------------------------------

def tensor_names(count):
    """As a mixture of experts has them, with nearly all of the tensors in the experts."""
    suffixes = ["w1.weight", "w2.weight", "w3.weight"]
    experts, layer, made = 256, 0, 0
    while True:
        for expert in range(experts):
            for suffix in suffixes:
                if made == count:
                    return
                yield f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{suffix}"
                made += 1
        layer += 1


def make_sparse(directory, tensors, shards):
    """A checkpoint whose headers are real and whose data are holes; made unless it is there."""
    if (directory / "config.json").exists():
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    shape, size = [1024, 1024], 2 * 1024 * 1024
    names, weight_map = list(tensor_names(tensors)), {}
    for s in range(shards):
        file_name = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        mine = names[s * tensors // shards:(s + 1) * tensors // shards]
        header = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [i * size, (i + 1) * size]}
                  for i, name in enumerate(mine)}
        text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
        text += b" " * (-len(text) % 8)
        with open(directory / file_name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + len(mine) * size)
        weight_map.update(dict.fromkeys(mine, file_name))
    (directory / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": tensors * size}, "weight_map": weight_map}))
    (directory / "config.json").write_text(
        json.dumps({"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "torch_dtype": "bfloat16"}))
    return directory


# --- recipes -------------------------------------------------------------------------------------------------

def weight_of(i, shift=0.0):
    return round(0.4 + 0.1 * i + shift, 3)


# Methods that have no base: it is one more model. And those whose models have no weights.
WITHOUT_BASE = {"linear", "average", "karcher", "passthrough"}
WITHOUT_WEIGHTS = {"average", "karcher", "passthrough", "slerp", "model_stock", "nearswap", "arcee_fusion", "sce",
                   "ram", "ramplus_tl", "consensus_ta", "magmax", "pcb", "metagpt"}


def recipe_text(method, dtype, parameters, models, shift=0.0):
    """A recipe in TOML over the models, the base first; `shift` moves every weight."""
    lines = [f"method = {json.dumps(method)}", f"dtype = {json.dumps(TORCH_NAMES[dtype])}"]
    sources = models
    if method not in WITHOUT_BASE:
        lines.append(f"base = {json.dumps(str(models[0]))}")
        sources = models[1:]
    lines.append("\n[parameters]")
    lines += [f"{name} = {json.dumps(value)}" for name, value in parameters.items()]  # JSON's values are TOML's
    for i, source in enumerate(sources):
        lines += ["\n[[models]]", f"path = {json.dumps(str(source))}"]
        if method not in WITHOUT_WEIGHTS:
            lines.append(f"weight = {weight_of(i, shift)}")
    return "\n".join(lines) + "\n"
