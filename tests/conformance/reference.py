"""The methods once more, written plainly in numpy: float32 steps in the order of the recipe. Not a line of it is
shared with Braid, so that the two agree only when both do what methods are documented to do."""
import numpy as np

F = np.float32


# --- which entries stay --------------------------------------------------------------------------------------

def span_of_order(magnitude, first, last):
    """Positions [first, last) of the entries by descending magnitude, the lower index first among equals, as a mask;
    and the entries whose equals lie on both sides of an end, of which another order would keep others."""
    flat = magnitude.reshape(-1)
    order = np.argsort(-flat, kind="stable")
    kept, open_choice = np.zeros(flat.size, bool), np.zeros(flat.size, bool)
    kept[order[first:last]] = True
    for end in {first, last} if first < last else ():
        if 0 < end < flat.size and flat[order[end - 1]] == flat[order[end]]:
            open_choice |= flat == flat[order[end]]
    return kept.reshape(magnitude.shape), open_choice.reshape(magnitude.shape)


def everything(delta, kept):
    return np.full(delta.shape, kept), np.zeros(delta.shape, bool)


def largest(delta, density):
    """The max(1, int(density n)) largest magnitudes."""
    if density >= 1 or density <= 0 or delta.size == 0:
        return everything(delta, density >= 1)
    return span_of_order(np.abs(delta), 0, max(1, int(density * delta.size)))


def without_outliers(delta, density, gamma):
    """int(density n) entries after the int(gamma n) largest, of which fewer go where that leaves too few."""
    if density >= 1:
        return everything(delta, True)
    count = max(0, int(density * delta.size))
    dropped = min(int(gamma * delta.size), delta.size - count)
    return span_of_order(np.abs(delta), dropped, dropped + count)


# --- merging -------------------------------------------------------------------------------------------------

def in_turn(parts):
    """Their sum, one after the other."""
    total = np.zeros_like(parts[0])
    for part in parts:
        total = total + part
    return total


def in_fours(parts):
    """Their sum as torch takes it over the elements at the end of a tensor that fill no vector: four sums of every
    fourth part, the rest to the first of them. Up to four parts are added in turn."""
    whole = len(parts) // 4 * 4
    sums = [in_turn(parts[i:whole:4]) if whole else np.zeros_like(parts[0]) for i in range(4)]
    for part in parts[whole:]:
        sums[0] = sums[0] + part
    return in_turn(sums)


def merge_deltas(base, deltas, weights, elect, normalize, lam, add=in_turn):
    """base + lambda times the sum of the weighted deltas; `elect`: of those with the elected sign."""
    votes = [delta * F(weight) for delta, weight in zip(deltas, weights)]
    if elect:
        elected = np.where(add(votes) >= 0, F(1), F(-1))
        agrees = [np.sign(vote) == elected for vote in votes]
        mixed = add([np.where(mask, vote, F(0)) for mask, vote in zip(agrees, votes)])
        divisor = add([np.where(mask, F(weight), F(0)) for mask, weight in zip(agrees, weights)])
        divisor = np.where(divisor == 0, F(1), divisor)
    else:
        mixed = add(votes)
        divisor = in_turn([np.array(weight, F) for weight in weights])
        divisor = F(1) if abs(divisor) < 1e-8 else divisor
    if normalize:
        mixed = mixed / divisor
    if lam != 1:
        mixed = mixed * F(lam)
    return np.where(mixed == 0, base, base + mixed)


def ram(base, deltas, epsilon, factors, add=in_turn):
    """What one model changed times its factor; what several changed, averaged over those."""
    changed = [np.abs(delta) > F(epsilon) for delta in deltas]
    count = in_turn([mask.astype(F) for mask in changed])
    parts = [np.where(mask, np.where(count == 1, delta * F(factor), delta / np.maximum(count, F(1))), F(0))
             for mask, delta, factor in zip(changed, deltas, factors)]
    mixed = add(parts)
    return np.where(mixed == 0, base, base + mixed)


def task_arithmetic(base, models, weights, normalize=False, lam=1.0):
    return merge_deltas(base, [model - base for model in models], weights, False, normalize, lam)


def ties(base, models, weights, densities, normalize=True, lam=1.0):
    deltas = [model - base for model in models]
    trimmed = [np.where(largest(delta, density)[0], delta, F(0)) for delta, density in zip(deltas, densities)]
    return merge_deltas(base, trimmed, weights, True, normalize, lam)


def linear(models, weights, normalize=True):
    mixed, total = np.zeros_like(models[0]), F(0)
    for model, weight in zip(models, weights):
        mixed = mixed + model * F(weight)
        total = F(total + F(weight))
    return mixed / total if normalize else mixed
