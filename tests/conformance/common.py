"""What the comparisons share: their virtual environment, running tools, checkpoints as arrays."""
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SKIPPED = 77  # the exit status that ctest counts as skipped

os.environ["TQDM_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here may ask the network for a model


def enter_venv(modules):
    """Goes on under tests/conformance/.venv unless this Python has the modules already."""
    from importlib.util import find_spec
    if all(find_spec(module) for module in modules):
        return
    made = subprocess.run([HERE / "setup_venv.sh"]).returncode
    python = HERE / ".venv/bin/python"
    if made != 0 or Path(sys.prefix) == HERE / ".venv":
        sys.exit(SKIPPED if made == SKIPPED else 1)
    os.execv(python, [str(python), *sys.argv])


def run(command):
    """Runs a command and returns its output; shows everything when it fails."""
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\nexited with {done.returncode}:\n{done.stdout[-6000:]}")
    return done.stdout


def braid_merge(braid, recipe, output):
    run([braid, "merge", recipe, output, "--memory", "256MiB", "--quiet"])


def weight_files(directory):
    return sorted(Path(directory).glob("*.safetensors"))


def read_tensors(directory):
    """Name -> torch tensor of a whole checkpoint, read with the reference reader."""
    from safetensors import safe_open
    tensors = {}
    for path in weight_files(directory):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                assert name not in tensors, f"{name} is in two shards of {directory}"
                tensors[name] = file.get_tensor(name)
    return tensors


def write_checkpoint(directory, tensors, config, shards=1):
    """A Hugging Face directory; tensors go round the shards in turn."""
    from safetensors.torch import save_file
    directory = Path(directory)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    names = list(tensors)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for i in range(shards):
        file_name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        save_file(part, directory / file_name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file_name))
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
