"""The methods once more, written plainly in numpy: float32 steps in the order of the recipe. Not a line of it is
shared with Braid, so that the two agree only when both do what methods are documented to do."""
import numpy as np

F = np.float32


def keep_largest(delta, density):
    """Trims to the max(1, int(density n)) largest magnitudes; the lower index first among equals."""
    if density >= 1:
        return delta
    flat = delta.reshape(-1)
    if density <= 0 or flat.size == 0:
        return np.zeros_like(delta)
    kept = np.argsort(-np.abs(flat), kind="stable")[:max(1, int(density * flat.size))]
    trimmed = np.zeros_like(flat)
    trimmed[kept] = flat[kept]
    return trimmed.reshape(delta.shape)


def finish(base, mixed, divisor, normalize, lam):
    if normalize:
        mixed = mixed / divisor
    if lam != 1:
        mixed = mixed * F(lam)
    return np.where(mixed == 0, base, base + mixed)


def task_arithmetic(base, models, weights, normalize=False, lam=1.0):
    mixed, total = np.zeros_like(base), F(0)
    for model, weight in zip(models, weights):
        mixed = mixed + (model - base) * F(weight)
        total = F(total + F(weight))
    return finish(base, mixed, F(1) if abs(total) < 1e-8 else total, normalize, lam)


def ties(base, models, weights, densities, normalize=True, lam=1.0):
    votes = [keep_largest(m - base, d) * F(w) for m, w, d in zip(models, weights, densities)]
    total = np.zeros_like(base)
    for vote in votes:
        total = total + vote
    elected = np.where(total >= 0, F(1), F(-1))
    mixed, divisor = np.zeros_like(base), np.zeros_like(base)
    for vote, weight in zip(votes, weights):
        agrees = np.sign(vote) == elected
        mixed = mixed + np.where(agrees, vote, F(0))
        divisor = divisor + np.where(agrees, F(weight), F(0))
    return finish(base, mixed, np.where(divisor == 0, F(1), divisor), normalize, lam)


def linear(models, weights, normalize=True):
    mixed, total = np.zeros_like(models[0]), F(0)
    for model, weight in zip(models, weights):
        mixed = mixed + model * F(weight)
        total = F(total + F(weight))
    return mixed / total if normalize else mixed
