"""When two results for a tensor agree: a rule per method, as README.md lists them.

A rule looks at one tensor and says where a difference is allowed, and why. Whatever else differs in a bit is a failure.
"""
import numpy as np

import reference
from reference import F

ULPS = 2                # what rounding once and carrying float32 sums may cost beside float64
NEAR = 1e-5             # relative distance from a threshold within which an element may lie on either side
OPPOSITE = 1e-4         # where unit vectors cancel so far, float64 cannot say to float32's precision what remains
NORM_ERROR = 4e-6       # of a float32 sum of magnitudes in torch, relative
BASE_IS_A_MODEL = {"linear", "karcher", "passthrough"}


class Tensor:
    """One tensor of one merge, as float32 lanes (types of 16 bits are exact there)."""

    def __init__(self, method, resolved, ours, theirs, out_type):
        self.method, self.resolved, self.out_type = method, resolved, out_type
        self.ours, self.theirs = ours, theirs
        base = None if method in BASE_IS_A_MODEL else resolved.base
        self.base = resolved.lanes.get(base)            # None: the method has none
        self.paths = [path for path in resolved.lanes if path != base]
        self.models = [resolved.lanes[path] for path in self.paths]
        has_weights = all("weight" in resolved.of_model[path] for path in self.paths)
        self.weights = self.each("weight") if has_weights else None

    def shared(self, parameter):
        return self.resolved.shared[parameter]

    def each(self, parameter):
        """Its value for each of the models."""
        return [self.resolved.of_model[path][parameter] for path in self.paths]


def bits(array):
    return np.ascontiguousarray(array).view(np.int32)


def same(a, b):
    return (bits(a) == bits(b)) | (np.isnan(a) & np.isnan(b))


def unit(values, out_type):
    """The distance of a value to the next one of its type."""
    values = np.abs(np.asarray(values, np.float32))
    if out_type == "bfloat16":
        return np.spacing(values).astype(np.float64) * 2.0 ** 16
    if out_type == "float16":
        return np.maximum(np.spacing(values).astype(np.float64) * 2.0 ** 13, 2.0 ** -24)
    return np.spacing(values).astype(np.float64)


def distance(tensor):
    with np.errstate(invalid="ignore"):
        return np.abs(tensor.ours.astype(np.float64) - tensor.theirs.astype(np.float64))


# --- bit for bit ---------------------------------------------------------------------------------------------

def kept_zeros(tensor):
    """Where nothing is added Braid keeps the base as it is; mergekit adds +0, which makes +0 of -0."""
    if tensor.base is None:
        return {}
    return {"-0.0 of the base": (bits(tensor.ours) == bits(tensor.base)) & (tensor.base == 0) & (tensor.theirs == 0)}


SELECTIONS = {
    "ties": lambda t, delta, i: reference.largest(delta, t.each("density")[i]),
    "breadcrumbs": lambda t, delta, i: reference.without_outliers(delta, t.each("density")[i], t.each("gamma")[i]),
    "breadcrumbs_ties": lambda t, delta, i: reference.without_outliers(delta, t.each("density")[i],
                                                                       t.each("gamma")[i]),
}


ELECTING = {"ties", "breadcrumbs_ties", "dare_ties", "della"}


def selected(tensor):
    """Per model: its task vector, the mask of what stays by our rule, the mask of what another order may exchange."""
    parts = []
    for i, model in enumerate(tensor.models):
        delta = model - tensor.base
        parts.append((delta, *SELECTIONS[tensor.method](tensor, delta, i)))
    return parts


def options_of(tensor):
    return {"elect": tensor.method in ELECTING, "normalize": tensor.shared("normalize"),
            "lam": tensor.shared("lambda")}


def rounded(values, out_type):
    """To a type of 16 bits and back, to nearest even."""
    if out_type == "float32":
        return values
    if out_type == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    raw = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    return (((raw + 0x7FFF + ((raw >> 16) & 1)) >> 16) << 16).astype(np.uint32).view(np.float32)


def other_sum(tensor, merge):
    """Of five models and more torch adds up some elements in another order. `merge(add)`: the tensor, with sums so
    taken; ours must be the one, mergekit's the other."""
    if len(tensor.models) < 5:
        return {}
    ours, theirs = (rounded(merge(add), tensor.out_type) for add in (reference.in_turn, reference.in_fours))
    return {"another order of sums": same(tensor.ours, ours) & (tensor.theirs == theirs)}


def chosen(tensor):
    """Where magnitudes at a threshold are equal, mergekit may have kept any of them; Braid keeps lower indices."""
    parts, options = selected(tensor), options_of(tensor)
    kept_deltas = [np.where(kept, delta, F(0)) for delta, kept, _ in parts]
    open_choice = np.logical_or.reduce([tied for _, _, tied in parts])
    at = np.nonzero(open_choice & ~same(tensor.ours, tensor.theirs))
    excused = np.zeros(tensor.base.shape, bool)
    if at[0].size:
        base = tensor.base[at]

        def merged(deltas):
            return rounded(reference.merge_deltas(base, deltas, tensor.weights, **options), tensor.out_type)

        one_of_theirs = np.zeros(base.shape, bool)
        for choice in range(2 ** len(parts)):  # keep or drop, for each model that ties at the element
            theirs = merged([np.where(np.where(tied, bool(choice >> i & 1), kept), delta, F(0))[at]
                             for i, (delta, kept, tied) in enumerate(parts)])
            one_of_theirs |= (theirs == tensor.theirs[at])  # +0 and -0 alike
        excused[at] = same(merged([delta[at] for delta in kept_deltas]), tensor.ours[at]) & one_of_theirs
    return {**kept_zeros(tensor), "equal magnitudes at a threshold": excused,
            **other_sum(tensor, lambda add: reference.merge_deltas(tensor.base, kept_deltas, tensor.weights,
                                                                   **options, add=add))}


def rescaled(tensor):
    """`rescale` multiplies by a quotient of two sums of magnitudes, which torch adds up in float32."""
    parts, options = selected(tensor), options_of(tensor)
    factors = []
    for delta, kept, _ in parts:
        before = np.abs(delta.astype(np.float64)).sum()
        after = np.abs(delta.astype(np.float64)[kept]).sum()
        factors.append(1.0 if kept.all() or before < 1e-7 or after < 1e-7 else before / after)
    votes = [np.abs(delta.astype(np.float64)) * factor * abs(weight)
             for (delta, _, _), factor, weight in zip(parts, factors, tensor.weights)]
    divisor = sum(np.abs(np.float64(w)) for w in tensor.weights) if options["normalize"] else 1.0
    least = min([abs(w) for w in tensor.weights if w] or [1.0]) if options["normalize"] else 1.0
    size = sum(votes) * abs(options["lam"]) / min(divisor, least)
    close = distance(tensor) <= NORM_ERROR * size + ULPS * unit(tensor.theirs, tensor.out_type)
    total = sum(np.where(kept, delta.astype(np.float64) * factor * weight, 0)
                for (delta, kept, _), factor, weight in zip(parts, factors, tensor.weights))
    undecided = np.abs(total) <= NORM_ERROR * sum(votes)
    return {**kept_zeros(tensor), "torch's float32 norms": close, "votes that cancel within their error": undecided,
            "equal magnitudes at a threshold": np.logical_or.reduce([tied for _, _, tied in parts])}


def task_vectors(tensor):
    if tensor.method in SELECTIONS and any(density < 1 for density in tensor.each("density")):
        return rescaled(tensor) if tensor.shared("rescale") else chosen(tensor)
    deltas = [model - tensor.base for model in tensor.models]
    return {**kept_zeros(tensor), **other_sum(tensor, lambda add: reference.merge_deltas(
        tensor.base, deltas, tensor.weights, **options_of(tensor), add=add))}


def ram(tensor):
    deltas, epsilon = [model - tensor.base for model in tensor.models], tensor.shared("epsilon")
    factors = [F(1)] * len(deltas)
    if tensor.method == "ramplus_tl":
        changed = [np.abs(delta) > F(epsilon) for delta in deltas]
        by_many = sum(mask.astype(int) for mask in changed) > 1
        ratios = [F((mask & by_many).sum()) / max(F((mask & ~by_many).sum()), F(epsilon)) for mask in changed]
        factors = [F(1) + F(tensor.shared("r")) * min(ratio, F(tensor.shared("alpha"))) for ratio in ratios]
    return {**kept_zeros(tensor), **other_sum(tensor, lambda add: reference.ram(tensor.base, deltas, epsilon, factors,
                                                                                add))}


# --- within rounding -----------------------------------------------------------------------------------------

def reach(tensor):
    """max(|result|, |b|, |w_i x_i|): the size that rounding is relative to."""
    factors = [1.0] * len(tensor.models)
    if tensor.weights is not None:
        total = sum(tensor.weights)
        normalizes = tensor.resolved.shared.get("normalize", tensor.resolved.shared.get("normalize_weights", True))
        factors = [abs(w / total) if normalizes and abs(total) > 1e-6 else abs(w) for w in tensor.weights]
    size = np.abs(tensor.theirs)
    if tensor.base is not None:
        size = np.maximum(size, np.abs(tensor.base))
    for factor, model in zip(factors, tensor.models):
        size = np.maximum(size, np.abs(model.astype(np.float64) * factor).astype(np.float32))
    return size


def few_ulps(tensor):
    # These add up in float32, each product and each sum rounded, as they are defined.
    # The weights, too.
    ulps = max(ULPS, 2 * len(tensor.models)) if tensor.method in ("linear", "sce") else ULPS
    allowed = ulps * unit(reach(tensor), "float32")
    if tensor.out_type != "float32":  # a sum next to the middle of two values may be rounded to either
        allowed = allowed + unit(tensor.theirs, tensor.out_type)
    return {f"within {ulps} units of float64": distance(tensor) <= allowed}


def vectors(tensor):
    """What is rotated, in float64: the models, or with a base their task vectors."""
    base = 0 if tensor.base is None else tensor.base.astype(np.float64)
    return [model.astype(np.float64) - base for model in tensor.models]


def nuslerp(tensor):
    """Opposite vectors have no arc between them: rounding, here and there, chooses one."""
    a, b = vectors(tensor)
    axis = None if tensor.shared("nuslerp_flatten") else 0 if tensor.shared("nuslerp_row_wise") else -1

    def over(values):
        return np.sum(values, axis=axis, keepdims=True)

    norms = np.maximum(np.sqrt(over(a * a)), 1e-7) * np.maximum(np.sqrt(over(b * b)), 1e-7)
    cosine = over(a * b) / norms
    opposite = np.broadcast_to((cosine < 0) & (1 - cosine ** 2 < OPPOSITE ** 2), a.shape)
    return {**few_ulps(tensor), "opposite vectors": opposite & np.isfinite(tensor.ours)}


def multislerp(tensor):
    """The mean of unit vectors that nearly cancel is rounding here (from inner products) and there (from sums)."""
    parts, weights = vectors(tensor), np.array(tensor.weights)
    if len(parts) == 1:
        return few_ulps(tensor)
    if tensor.shared("normalize_weights"):
        weights = weights / weights.sum()
    mean = sum(w * v / (np.sqrt(np.sum(v * v)) + tensor.shared("eps")) for w, v in zip(weights, parts))
    cancels = np.sqrt(np.sum(mean * mean)) < OPPOSITE
    return {**few_ulps(tensor), "directions that cancel": np.full(mean.shape, cancels) & np.isfinite(tensor.ours)}


# --- thresholds of statistics --------------------------------------------------------------------------------

def near_threshold(tensor, near, kept, dropped):
    """Both results are one of two: the element kept, or dropped."""
    allowed = (len(tensor.models) + 1) * unit(reach(tensor), "float32")

    def either(result):
        return (np.abs(result - kept) <= allowed) | (np.abs(result - dropped) <= allowed)

    return near & either(tensor.ours.astype(np.float64)) & either(tensor.theirs.astype(np.float64))


def sce(tensor):
    base = tensor.base.astype(np.float64)
    deltas = [model.astype(np.float64) - base for model in tensor.models]
    topk, reasons = tensor.shared("select_topk"), few_ulps(tensor)
    mask = np.ones(base.shape, bool)
    near = np.zeros(base.shape, bool)
    if topk < 1:
        variance = np.var(np.stack(deltas), axis=0)
        count = int(F(np.count_nonzero(variance)) * F(topk))
        ranked = np.sort(variance.reshape(-1))[::-1]
        threshold = ranked[count - 1] if count else np.inf
        mask = variance >= threshold
        near = np.abs(variance - threshold) <= NEAR * threshold
        single = variance.astype(F)
        if not np.isfinite(single).all() or ((variance > 0) & (single < np.finfo(F).tiny)).any():
            return {"variances beyond float32": np.isfinite(tensor.ours)}
    squares = [np.mean(np.where(mask, delta, 0) ** 2) for delta in deltas]
    weights = [s / sum(squares) if sum(squares) >= 1e-6 else 1 / len(deltas) for s in squares]
    total = sum(deltas)
    agreeing = [np.sign(delta) == np.where(total >= 0, 1, -1) for delta in deltas]
    divisor = np.maximum(sum(w * a for w, a in zip(weights, agreeing)), 1e-6)
    merged = base + sum(w * a * d for w, a, d in zip(weights, agreeing, deltas)) / divisor
    undecided = np.abs(total) <= NEAR * sum(np.abs(delta) for delta in deltas)
    return {**reasons, "variances at the threshold": near_threshold(tensor, near, merged, base),
            "votes that cancel": undecided}


def arcee_fusion(tensor):
    base, model = tensor.base.astype(np.float64), tensor.models[0].astype(np.float64)

    def softmax(x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True) + 1e-8

    p, q = softmax(model), softmax(base)
    importance = np.abs(model - base) * np.sum(p * np.log(p / q), axis=-1, keepdims=True)
    ranked = np.sort(importance.reshape(-1))
    q1, median, q3 = (ranked[int(share * (ranked.size - 1))] for share in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (q3 - q1)
    near = np.abs(importance - threshold) <= NEAR * np.abs(threshold)
    return {**few_ulps(tensor), "importances at the threshold": near_threshold(tensor, near, model, base)}


# --- bfloat16 arithmetic -------------------------------------------------------------------------------------

def bfloat16_steps(tensor):
    """With dtype bfloat16 mergekit rounds each step to that type, and Braid once."""
    base = tensor.base if tensor.base is not None else 0
    sizes = [np.abs(model - base) * abs(weight) for model, weight in zip(tensor.models, tensor.weights)]
    lam = max(1.0, abs(tensor.resolved.shared.get("lambda", 1.0)))
    # Half a unit each for the difference, its product with the weight, their sum, and its product with lambda.
    allowed = 2.0 ** -7 * (np.abs(tensor.ours) + 2 * lam * sum(sizes))
    return {"roundings to bfloat16": distance(tensor) <= allowed}


FAMILY = ["task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della",
          "della_linear"]
RULES = {**dict.fromkeys(FAMILY, task_vectors),
         **dict.fromkeys(["ram", "ramplus_tl"], ram), **dict.fromkeys(["nearswap", "passthrough"], kept_zeros),
         **dict.fromkeys(["linear", "slerp", "karcher", "model_stock"], few_ulps),
         "nuslerp": nuslerp, "multislerp": multislerp, "sce": sce, "arcee_fusion": arcee_fusion}
# Their norms and importances are what float32 sums make of them; the comparison is with mergekit in float64.
IN_FLOAT64 = {"linear", "slerp", "nuslerp", "multislerp", "karcher", "model_stock", "sce", "arcee_fusion"}
