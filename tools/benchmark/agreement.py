"""Compares what two programs merged from the same models, element by element; runs where torch is.

    python agreement.py METHOD OURS THEIRS PARAMETERS.json BASE MODEL...

Prints {"elements", "equal", "beyond"}: how many elements there are, how many are equal, and how many
differ by more than roundings to the type account for. With ties, elements whose magnitude equals a threshold are not
`beyond`: which of them are kept is each program's choice.
"""
import json
import sys
from pathlib import Path

import torch

from torch_merge import Checkpoint


BLOCK = 1 << 24     # elements compared at a time


def thresholds(base, models, density):
    """The smallest magnitude of each task vector that is kept."""
    kept = max(1, int(density * base.numel()))
    return [(model.float() - base.float()).abs().kthvalue(base.numel() - kept + 1).values for model in models]


def beyond_rounding(method, parameters, limits, ours, theirs, base, *models):
    """Elements whose difference is larger than half a unit for each rounding on the way, of both programs."""
    unit = torch.finfo(ours.dtype).eps
    ours, theirs, base, *models = [block.float() for block in (ours, theirs, base, *models)]
    parts = [base, *models] if method == "linear" else [model - base for model in models]
    reach = max(parameters["weights"]) * parameters.get("lambda", 1.0)
    size = ours.abs() + 2 * reach * sum(part.abs() for part in parts)
    beyond = (ours - theirs).abs() > unit * size
    for part, limit in zip(parts, limits):
        beyond &= part.abs() != limit
    return int(beyond.sum())


def main():
    method, ours, theirs, parameters, *directories = sys.argv[1:]
    parameters = json.loads(Path(parameters).read_text())
    ours, theirs, base, *models = [Checkpoint(directory) for directory in (ours, theirs, *directories)]
    if set(ours.where) != set(theirs.where):
        sys.exit("the outputs have different tensors")
    counts = {"elements": 0, "equal": 0, "beyond": 0}
    for name in ours.where:
        a, b = ours.get(name), theirs.get(name)
        if a.dtype != b.dtype or a.shape != b.shape:
            sys.exit(f"{name}: {a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}")
        tensors = [tensor.flatten() for tensor in (a, b, base.get(name), *(m.get(name) for m in models))]
        limits = thresholds(tensors[2], tensors[3:], parameters["density"]) if method == "ties" else []
        counts["elements"] += a.numel()
        counts["equal"] += int((a == b).sum())
        for at in range(0, a.numel(), BLOCK):
            counts["beyond"] += beyond_rounding(method, parameters, limits, *(t[at:at + BLOCK] for t in tensors))
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
