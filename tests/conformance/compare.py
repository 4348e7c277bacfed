"""Compares two checkpoints, tensor by tensor, by the rule of the method."""
from collections import Counter

import numpy as np

import rules

TYPES = {"torch.float32": "float32", "torch.bfloat16": "bfloat16", "torch.float16": "float16"}


class Disagreement(Exception):
    """The two programs' results differ where nothing allows it."""


def rule_of(case):
    return rules.bfloat16_steps if getattr(case, "dtype", None) == "bfloat16" else rules.RULES[case.method]


def compare_tensors(case, ours, theirs, resolved):
    """How many elements differ, and why they may."""
    if set(ours) != set(theirs):
        raise Disagreement(f"only braid has {sorted(set(ours) - set(theirs))}, "
                           f"only mergekit {sorted(set(theirs) - set(ours))}")
    counts, examples = Counter(), []
    for name, wanted in theirs.items():
        found = ours[name]
        if found.dtype != wanted.dtype or found.shape != wanted.shape:
            raise Disagreement(f"{name}: {found.dtype} {list(found.shape)}, mergekit {wanted.dtype} "
                               f"{list(wanted.shape)}")
        tensor = rules.Tensor(case.method, resolved[name], found.float().numpy(), wanted.float().numpy(),
                              TYPES[str(found.dtype)])
        left = ~rules.same(tensor.ours, tensor.theirs)
        counts["elements"] += left.size
        if not left.any():
            continue
        for reason, allowed in rule_of(case)(tensor).items():
            counts[reason] += int((left & allowed).sum())
            left &= ~allowed
        counts["forbidden"] += int(left.sum())
        for index in np.argwhere(left)[:2]:
            at = tuple(int(i) for i in index)
            examples.append(f"{name}{list(at)}: braid {tensor.ours[at]!r}, mergekit {tensor.theirs[at]!r}")
    if counts["forbidden"]:
        raise Disagreement(f"{counts['forbidden']} of {counts['elements']} elements: {'; '.join(examples[:5])}")
    return counts


def summary(counts):
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count and reason != "elements")
    return f"{counts['elements']} elements" + (f", {reasons}" if reasons else "")
