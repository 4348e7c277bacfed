"""The merge that someone with torch and safetensors would write by hand; `tools/bench --peer` times it.

    python torch_merge.py METHOD OUT PARAMETERS.json BASE MODEL...

Arithmetic in float32, output in bfloat16 as the inputs; one tensor at a time, so that memory holds the output and
one tensor of each model.
"""
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class Checkpoint:
    def __init__(self, directory):
        self.where = {}
        for path in sorted(Path(directory).glob("*.safetensors")):
            file = safe_open(path, "pt")
            self.where.update(dict.fromkeys(file.keys(), file))

    def get(self, name):
        return self.where[name].get_tensor(name)


def trimmed(delta, density):
    """delta with all but its largest magnitudes set to zero."""
    magnitude = delta.abs()
    kept = max(1, int(density * delta.numel()))
    threshold = magnitude.flatten().kthvalue(delta.numel() - kept + 1).values
    return torch.where(magnitude >= threshold, delta, 0)


def ties(base, models, weights, parameters):
    base = base.float()
    deltas = torch.stack([trimmed(m.float() - base, parameters["density"]) * w for m, w in zip(models, weights)])
    elected = torch.where(deltas.sum(0) >= 0, 1.0, -1.0)
    agrees = deltas.sign() == elected
    divisor = sum(agree * w for agree, w in zip(agrees, weights))
    divisor[divisor == 0] = 1
    return base + (deltas * agrees).sum(0) / divisor


def task_arithmetic(base, models, weights, parameters):
    base = base.float()
    return base + sum((m.float() - base) * w for m, w in zip(models, weights)) * parameters["lambda"]


def linear(base, models, weights, parameters):
    sources = [base, *models]
    return sum(m.float() * w for m, w in zip(sources, weights)) / sum(weights)


def main():
    method, output, parameters, *directories = sys.argv[1:]
    merge, parameters = globals()[method], json.loads(Path(parameters).read_text())
    base, *models = [Checkpoint(directory) for directory in directories]
    merged = {}
    for name in base.where:
        tensor = base.get(name)
        merged[name] = merge(tensor, [m.get(name) for m in models], parameters["weights"], parameters).to(tensor.dtype)
    Path(output).mkdir()
    save_file(merged, Path(output) / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
