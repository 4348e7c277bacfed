"""Compares what two programs merged from the same models, element by element; runs where torch is.

    python agreement.py METHOD OURS THEIRS PARAMETERS.json BASE MODEL...

Prints {"elements", "equal", "beyond"}: how many elements there are, how many have the same bits, and how many
differ by more than roundings to the type account for. With ties, elements whose magnitude equals a threshold are not
`beyond`: which of them are kept is each program's choice.
"""
import json
import sys
from pathlib import Path

import torch

from torch_merge import Checkpoint


def at_threshold(deltas, density):
    """Where a task vector's magnitude is the smallest that is kept."""
    found = torch.zeros(deltas[0].shape, dtype=torch.bool)
    for delta in deltas:
        magnitude = delta.abs()
        kept = max(1, int(density * delta.numel()))
        found |= magnitude == magnitude.flatten().kthvalue(delta.numel() - kept + 1).values
    return found


def beyond_rounding(method, base, models, ours, theirs, parameters):
    """Elements whose difference is larger than half a unit for each rounding on the way, of both programs."""
    unit = torch.finfo(ours.dtype).eps
    base, models, ours, theirs = base.float(), [m.float() for m in models], ours.float(), theirs.float()
    parts = [base, *models] if method == "linear" else [m - base for m in models]
    reach = max(parameters["weights"]) * parameters.get("lambda", 1.0)
    size = ours.abs() + 2 * reach * sum(part.abs() for part in parts)
    beyond = (ours - theirs).abs() > unit * size
    if method == "ties" and beyond.any():
        beyond &= ~at_threshold(parts, parameters["density"])
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
        counts["elements"] += a.numel()
        counts["equal"] += int((a == b).sum())
        counts["beyond"] += beyond_rounding(method, base.get(name), [m.get(name) for m in models], a, b, parameters)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
