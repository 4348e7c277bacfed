"""The random methods: their draws are Braid's own, so that what is compared is how often what is kept.

On a base of zeros a merge of one fine-tune without rescale is its task vector where it was kept, and 0 elsewhere: the
mask can be read off the output. The same checks run on what mergekit writes, where it can be asked the same.
"""
import itertools
from dataclasses import dataclass

import numpy as np

import reference
import rules
from common import read_tensors
from compare import Disagreement
from rules import ELECTING

METHODS = ["dare_linear", "dare_ties", "della", "della_linear"]
SIGMAS = 5          # of a check's own error: none of some hundred checks fails by chance in a thousand runs
SEEDS = 40
EPSILON = 0.15      # of della, its default


def need(condition, text):
    if not condition:
        raise Disagreement(text)


def probabilities(method, delta, density):
    """Of each entry to be kept."""
    if method.startswith("dare") or density >= 1:
        return np.full(delta.shape, min(density, 1.0))
    rows = np.abs(delta.reshape(-1, delta.shape[-1]))
    ranks = rows.argsort(axis=1).argsort(axis=1)
    return ((density - EPSILON) + 2 * EPSILON * ranks / (rows.shape[1] - 1)).reshape(delta.shape)


def within(found, expected, variance, what):
    off = abs(found - expected) / np.sqrt(variance)
    need(off <= SIGMAS, f"{what}: {found:g} where {expected:g} is expected, {off:.1f} standard deviations off")


def check_rates(method, density, deltas, masks, who):
    """Kept overall, and by how probable it is."""
    p = np.concatenate([probabilities(method, delta, density).ravel() for delta in deltas.values()])
    kept = np.concatenate([masks[name].ravel() for name in deltas])
    within(kept.sum(), p.sum(), (p * (1 - p)).sum(), f"{who}: entries kept")
    edges = np.quantile(p, np.linspace(0, 1, 11)) if method.startswith("della") else [density]
    for low, high in zip(edges, edges[1:]):
        part = (p >= low) & (p <= high)
        within(kept[part].sum(), p[part].sum(), (p[part] * (1 - p[part])).sum(),
               f"{who}: entries kept of those with a probability of {low:.3f} to {high:.3f}")


def check_values(deltas, output, who):
    """What is kept is the task vector, bit for bit."""
    masks = {}
    for name, delta in deltas.items():
        masks[name] = output[name] != 0
        need(rules.same(output[name], np.where(masks[name], delta, reference.F(0))).all(),
             f"{who}: {name} holds what is neither the task vector nor 0")
    return masks


def check_norms(deltas, output, who):
    """With rescale all kept entries are multiplied by one number, which restores the l1 norm."""
    for name, delta in deltas.items():
        before, after = np.abs(delta.astype(np.float64)).sum(), np.abs(output[name].astype(np.float64)).sum()
        kept = after == 0 or abs(after / before - 1) < 1e-5
        need(kept, f"{who}: the l1 norm of {name} went from {before} to {after}")
        factors = (output[name].astype(np.float64) / delta)[output[name] != 0]
        need(not factors.size or np.ptp(factors) <= 1e-6 * factors.mean(), f"{who}: {name} has more than one factor")


def check_independent(pairs, what):
    for a, b in pairs:
        r = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        need(abs(r) <= SIGMAS / np.sqrt(a.size), f"{what}: masks of {a.size} entries correlate by {r:.4f}")


@dataclass
class RandomCase:
    method: str
    density: float
    seed: int

    @property
    def name(self):
        return f"{self.method}: draws at density {self.density}"

    def recipe(self, directory, weights=(1.0, 0.0, 0.0), **parameters):
        family = directory / "masks-f32"
        return {"merge_method": self.method, "base_model": str(family / "base"), "dtype": "float32",
                "models": [{"model": str(family / f"ft{i + 1}"), "parameters": {"weight": weight}}
                           for i, weight in enumerate(weights)],
                "parameters": {"density": self.density, "seed": self.seed, "rescale": False, "normalize": False,
                               **parameters}}

    def check(self, suite):
        deltas = [arrays(suite.work / "masks-f32" / f"ft{i + 1}") for i in range(3)]

        def merged(*arguments, **parameters):
            return arrays(suite.ours(self.recipe(suite.work, *arguments, **parameters)))

        theirs, _ = suite.theirs(self.recipe(suite.work), seed=self.seed)
        for who, output in (("mergekit", arrays(theirs)), ("braid", merged())):
            check_rates(self.method, self.density, deltas[0], check_values(deltas[0], output, who), who)
        masks = [check_values(delta, merged(tuple(float(i == j) for j in range(3))), "braid")
                 for i, delta in enumerate(deltas)]
        other_seed = check_values(deltas[0], merged(seed=self.seed + 1), "braid")
        self.check_independence(deltas, masks, other_seed)
        self.check_merge(merged, deltas, masks)
        check_norms(deltas[0], merged(rescale=True), "braid")
        self.check_unbiased(merged, deltas[0])
        return f"{sum(mask.size for mask in masks[0].values())} entries, {SEEDS} seeds"

    def check_independence(self, deltas, masks, other_seed):
        def noise(mask, delta):
            """What is left of a mask after its probabilities, of tensors that have enough entries; by their names."""
            return {name: mask[name] - probabilities(self.method, delta[name], self.density) for name in sorted(mask)
                    if mask[name].size > 1000}

        first, second = noise(masks[0], deltas[0]), noise(masks[1], deltas[1])
        check_independent(zip(first.values(), second.values()), "between models")
        check_independent(zip(first.values(), noise(other_seed, deltas[0]).values()), "between seeds")
        check_independent(((a, b) for (_, a), (_, b) in itertools.combinations(first.items(), 2)
                           if a.shape == b.shape), "between tensors")
        for lag in (1, 2, 4, 8, 48):
            check_independent(((a.ravel()[:-lag], a.ravel()[lag:]) for a in first.values()), f"{lag} entries apart")

    def check_merge(self, merged, deltas, masks):
        """Of several models: what the masks of each, drawn alone, say. Their votes are then deterministic."""
        weights = (0.7, -0.3, 0.5)
        output = merged(weights, normalize=True, **{"lambda": 0.9})
        for name, found in output.items():
            kept = [np.where(mask[name], delta[name], reference.F(0)) for mask, delta in zip(masks, deltas)]
            wanted = reference.merge_deltas(np.zeros_like(found), kept, weights, self.method in ELECTING, True, 0.9)
            need(rules.same(found, wanted).all(), f"{name} is not what the masks of its models make")

    def check_unbiased(self, merged, delta):
        """Over many seeds each entry is kept as often as its probability says."""
        counts = {name: np.zeros(values.shape) for name, values in delta.items()}
        for i in range(SEEDS):
            for name, values in merged(seed=self.seed + 100 + i).items():
                counts[name] += values != 0
        p = np.concatenate([probabilities(self.method, values, self.density).ravel() for values in delta.values()])
        kept, variance = np.concatenate([c.ravel() for c in counts.values()]), SEEDS * p * (1 - p)
        squares = (kept - SEEDS * p) ** 2 / variance
        # A binomial's standardised square has mean 1 and this variance.
        spread = 2 + (1 - 6 * p * (1 - p)) / variance
        within(squares.sum(), squares.size, spread.sum(), "squares of the entries' deviations over all seeds")


def arrays(directory):
    return {name: tensor.numpy() for name, tensor in read_tensors(directory).items()}


def random_cases(rng):
    return [RandomCase(method, density, rng.randrange(2 ** 31)) for method in METHODS
            for density in ((0.1, 0.5, 0.9) if method.startswith("dare") else (0.2, 0.5, 0.8))]
