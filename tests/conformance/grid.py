"""The recipes whose every element is compared: for each method its parameters, types and shapes."""
from dataclasses import dataclass, field

from common import read_tensors
from compare import compare_tensors, summary
from rules import IN_FLOAT64


@dataclass
class Case:
    name: str
    method: str
    models: list                                    # parameters of ft1, ft2, ...
    parameters: dict = field(default_factory=dict)  # of the recipe
    family: str = "plain-f32"
    base: bool = True
    base_parameters: dict = None                    # when the base is one of the listed models
    dtype: str = None                               # "bfloat16": mergekit rounds every step
    out_dtype: str = None                           # default: float32

    @property
    def listed(self):
        names = [f"ft{i + 1}" for i in range(len(self.models))]
        if self.base_parameters is not None:
            names.insert(1, "base")
        return names

    def recipe(self, directory):
        """As a mapping; one file for both programs."""
        of_model = list(self.models)
        if self.base_parameters is not None:
            of_model.insert(1, self.base_parameters)
        family = directory / self.family
        models = [{"model": str(family / name), **({"parameters": parameters} if parameters else {})}
                  for name, parameters in zip(self.listed, of_model)]
        recipe = {"merge_method": self.method, "models": models}
        if self.base:
            recipe["base_model"] = str(family / "base")
        if self.parameters:
            recipe["parameters"] = self.parameters
        recipe["dtype"] = self.dtype or ("float64" if self.method in IN_FLOAT64 else "float32")
        if self.out_dtype or recipe["dtype"] == "float64":
            recipe["out_dtype"] = self.out_dtype or "float32"
        return recipe

    def check(self, suite):
        recipe = self.recipe(suite.work)
        ours, (theirs, resolved) = suite.ours(recipe), suite.theirs(recipe)
        return summary(compare_tensors(self, read_tensors(ours), read_tensors(theirs), resolved))


def weights(*values):
    return [{"weight": value} for value in values]


class Grid:
    """Draws what varies between runs from the seed, in a fixed order."""

    def __init__(self, rng):
        self.rng, self.cases = rng, []

    def draw(self, low=0.1, high=1.0):
        return round(self.rng.uniform(low, high), 4)

    def drawn(self, count, low=0.1, high=1.0):
        return weights(*(self.draw(low, high) for _ in range(count)))

    def gradient(self):
        """A value that varies over layers and by name."""
        return [{"filter": "self_attn", "value": [self.draw(), self.draw(), self.draw()]},
                {"filter": "mlp.down", "value": self.draw(-1, 1)},
                {"value": [self.draw(0.2), self.draw(0.2)]}]

    def add(self, name, method, models, parameters=None, **more):
        self.cases.append(Case(f"{method}: {name}", method, models, parameters or {}, **more))


def every_family(grid, method, models, parameters=None, families=("plain-bf16", "plain-f16", "odd-f32", "odd-bf16"),
                 what="", **more):
    for family in families:
        grid.add(f"{what}of {family}", method, models, parameters, family=family, **more)


# --- the task-vector family ----------------------------------------------------------------------------------

def task_vector_cases(grid, method):
    """What holds for every method that sums or elects weighted task vectors. `density` stays where `some` has it."""
    draw = grid.draw
    trims = method in ("ties", "breadcrumbs", "breadcrumbs_ties")
    some = {"density": 0.45} if trims else {}
    if method.startswith(("dare", "della")):
        some = {"density": 1.0}  # nothing is drawn: the rest of the method is deterministic
    if method == "ties":
        some["rescale"] = False
    add = grid.add
    add("three models", method, grid.drawn(3), {**some})
    add("one model", method, weights(1.0), {**some})
    add("one model, a weight below one", method, weights(draw()), {**some, "lambda": draw(0.3, 1.5)})
    add("normalized", method, grid.drawn(3), {**some, "normalize": True})
    add("not normalized", method, grid.drawn(3), {**some, "normalize": False, "lambda": draw(0.3, 1.5)})
    add("negative weights", method, weights(draw(), draw(-1, -0.1), draw(), draw(-1, -0.1)),
        {**some, "normalize": True})
    add("weights that cancel", method, weights(0.5, -0.5), {**some, "normalize": True})
    add("a weight of zero", method, weights(draw(), 0, draw()), {**some, "normalize": True})
    add("no weight at all", method, weights(0, 0), {**some})
    add("eight models", method, grid.drawn(8, -0.2, 1), {**some, "int8_mask": True})
    add("gradients and filters", method,
        [{"weight": grid.gradient()}, {"weight": [0, 0.3, 0.7, 1]}, {"weight": draw()}],
        {**some, "lambda": [{"filter": "mlp", "value": 0.8}, {"value": [1.1, 0.5]}],
         "normalize": [{"filter": "q_proj", "value": True}, {"value": [False, True, False]}]})
    add("the base listed too", method, grid.drawn(2), {**some}, base_parameters={"weight": 0.7})
    add("lambda zero", method, grid.drawn(2), {**some, "lambda": 0})
    every_family(grid, method, grid.drawn(3, -0.3, 1), {**some, "normalize": True})
    add("out_dtype bfloat16", method, grid.drawn(3), {**some}, out_dtype="bfloat16")
    add("out_dtype float16 of bf16", method, grid.drawn(3), {**some}, out_dtype="float16", family="plain-bf16")


def density_cases(grid, method, some=None):
    draw, some = grid.draw, some or {}
    for density in (0, 0.001, 0.29, 0.5, 0.9, 0.9999, 1):
        grid.add(f"density {density}", method, grid.drawn(2), {**some, "density": density})
    grid.add("a density for each", method,
             [{"weight": draw(), "density": draw(0.05, 0.95)}, {"weight": draw(), "density": 1.0},
              {"weight": draw(-1, -0.1), "density": 0.1}], {**some, "density": 0.5})
    grid.add("density gradients", method,
             [{"weight": draw(), "density": [1, 0.7, 0.1]},
              {"weight": draw(), "density": [{"filter": "q_proj", "value": 0.05}, {"value": [0.2, 0.9]}]},
              {"weight": draw()}], {**some, "density": [{"filter": "mlp", "value": 0.6}, {"value": 0.3}]})
    grid.add("rescaled", method, grid.drawn(3), {**some, "density": 0.4, "rescale": True})
    grid.add("rescaled, of bf16", method, grid.drawn(3), {**some, "density": 0.3, "rescale": True},
             family="plain-bf16")
    for family in ("plain-bf16", "odd-bf16", "odd-f32"):
        for density in (0.1, 0.7):
            grid.add(f"density {density} of {family}", method, grid.drawn(3), {**some, "density": density},
                     family=family)


def family_cases(grid):
    for method in ("task_arithmetic", "ties", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della",
                   "della_linear"):
        task_vector_cases(grid, method)
    grid.add("density without effect", "task_arithmetic", grid.drawn(2), {"density": 0.3})
    grid.add("bfloat16 arithmetic", "task_arithmetic", weights(0.5, 0.25, -0.5), {"lambda": 0.75},
             family="plain-bf16", dtype="bfloat16")
    density_cases(grid, "ties")
    for method in ("breadcrumbs", "breadcrumbs_ties"):
        density_cases(grid, method)
        for gamma, density in ((0, 0.5), (0.1, 0.5), (0.5, 0.8), (0.9, 0.3), (1, 0.2)):
            grid.add(f"gamma {gamma}, density {density}", method, grid.drawn(2),
                     {"gamma": gamma, "density": density})
        grid.add("a gamma for each", method, [{"weight": 1.0, "gamma": 0.2}, {"weight": 0.5, "gamma": [0, 0.3]}],
                 {"density": 0.6})


# --- ram, nearswap, passthrough ------------------------------------------------------------------------------

def exact_cases(grid):
    for method in ("ram", "ramplus_tl"):
        for count in (1, 2, 3, 8):
            grid.add(f"{count} models", method, [{}] * count)
        for epsilon in (0, 1e-3, 2e-3):
            grid.add(f"epsilon {epsilon}", method, [{}] * 3, {"epsilon": epsilon})
        every_family(grid, method, [{}] * 3, {"epsilon": 1e-3})
        grid.add("out_dtype bfloat16", method, [{}] * 3, {"epsilon": 1e-3}, out_dtype="bfloat16")
    for r, alpha in ((0.5, 2.0), (0.1, 0), (1, 0.1)):
        grid.add(f"r {r}, alpha {alpha}", "ramplus_tl", [{}] * 3, {"r": r, "alpha": alpha, "epsilon": 1e-3})
    grid.add("gradients and filters", "ramplus_tl", [{}] * 3,
             {"r": [0.1, 0.9], "alpha": [{"filter": "mlp", "value": 0.5}], "epsilon": [1e-4, 2e-3]})
    for t in (0, 1e-4, 0.001, 0.01, 1):
        grid.add(f"t {t}", "nearswap", [{}], {"t": t})
    grid.add("gradients and filters", "nearswap", [{}],
             {"t": [{"filter": "self_attn", "value": [1e-4, 3e-3]}, {"value": 1e-3}]})
    every_family(grid, "nearswap", [{}], {"t": 1e-3})
    grid.add("out_dtype bfloat16", "nearswap", [{}], {"t": 1e-3}, out_dtype="bfloat16")
    grid.add("as it is", "passthrough", [{}], base=False)
    grid.add("scaled", "passthrough", [{"scale": grid.draw(-2, 2)}], base=False)
    grid.add("scale of the recipe", "passthrough", [{}], {"scale": grid.draw(-2, 2)}, base=False)
    grid.add("gradients and filters", "passthrough",
             [{"scale": [{"filter": "o_proj", "value": 0}, {"filter": "down_proj", "value": [1, 2, 4]}]}], base=False)
    every_family(grid, "passthrough", [{"scale": 0.7}], base=False)
    every_family(grid, "passthrough", [{}], base=False, what="as it is, ")
    grid.add("out_dtype bfloat16", "passthrough", [{"scale": 0.7}], base=False, out_dtype="bfloat16")


# --- by norms, angles and thresholds -------------------------------------------------------------------------

def linear_cases(grid):
    draw, add = grid.draw, lambda *args, **more: grid.add(args[0], "linear", *args[1:], **{"base": False, **more})
    for count in (1, 2, 3, 8):
        add(f"{count} models", grid.drawn(count))
    add("not normalized", grid.drawn(3), {"normalize": False})
    add("negative weights", weights(draw(1.1, 2), draw(-0.5, -0.1), draw()))
    add("a weight of zero", weights(0.4, 0, 0.6))
    add("gradients and filters", [{"weight": grid.gradient()}, {"weight": draw(1.1, 2)}, {"weight": [2.5, 1.1]}])
    add("weight of the recipe", [{}, {}, {"weight": 2}], {"weight": 0.3})
    add("the base, too", grid.drawn(3), {"normalize": False}, base=True, base_parameters={"weight": draw()})
    every_family(grid, "linear", grid.drawn(3), base=False)
    add("out_dtype bfloat16", grid.drawn(3), out_dtype="bfloat16")
    add("bfloat16 arithmetic", weights(0.3, 0.5, 0.2), family="plain-bf16", dtype="bfloat16")


def slerp_cases(grid):
    for t in (0, 0.25, grid.draw(), 0.5, 1, 1.3):
        grid.add(f"t {t}", "slerp", [{}], {"t": t})
    every_family(grid, "slerp", [{}], {"t": grid.draw()})
    every_family(grid, "slerp", [{}], {"t": 0.5}, what="half way, ", base_parameters={})
    grid.add("the base listed", "slerp", [{}], {"t": grid.draw()}, base_parameters={})
    grid.add("gradients and filters", "slerp", [{}],
             {"t": [{"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]}, {"value": 0.5}]})
    grid.add("out_dtype bfloat16", "slerp", [{}], {"t": 0.4}, out_dtype="bfloat16")


def nuslerp_cases(grid):
    ways = {"flat": {}, "last axis": {"nuslerp_flatten": False},
            "first axis": {"nuslerp_flatten": False, "nuslerp_row_wise": True},
            "flat in spite of row_wise": {"nuslerp_row_wise": True}}
    for way, parameters in ways.items():
        for base in (False, True):
            of = "task vectors, " if base else ""
            grid.add(f"{of}{way}", "nuslerp", grid.drawn(2), parameters, base=base)
            grid.add(f"{of}{way}, of odd-f32", "nuslerp", grid.drawn(2), parameters, base=base, family="odd-f32")
            grid.add(f"{of}{way}, of bf16", "nuslerp", grid.drawn(2), parameters, base=base, family="plain-bf16")
    grid.add("weights that cancel", "nuslerp", weights(0.5, -0.5), base=False)
    grid.add("a negative weight", "nuslerp", weights(1.2, -0.3), base=False)
    grid.add("one weight zero", "nuslerp", weights(1, 0), base=False)
    grid.add("gradients and filters", "nuslerp", [{"weight": grid.gradient()}, {"weight": [1.1, 2]}], base=True)
    grid.add("of plain-f16", "nuslerp", grid.drawn(2), base=True, family="plain-f16")
    grid.add("out_dtype bfloat16", "nuslerp", grid.drawn(2), base=False, out_dtype="bfloat16")


def multislerp_cases(grid):
    for base in (False, True):
        of = "task vectors, " if base else ""
        for count in (1, 2, 3, 8):
            grid.add(f"{of}{count} models", "multislerp", grid.drawn(count), base=base)
        grid.add(f"{of}not normalized", "multislerp", grid.drawn(3), {"normalize_weights": False}, base=base)
        grid.add(f"{of}a negative weight", "multislerp", weights(1.0, -0.3, 0.5), base=base)
        grid.add(f"{of}eps", "multislerp", grid.drawn(3), {"eps": 1e-3}, base=base)
        grid.add(f"{of}gradients and filters", "multislerp",
                 [{"weight": grid.gradient()}, {"weight": grid.draw(1.1, 2)}, {"weight": [2, 1.1]}], base=base)
        # Where two models are equal to the base, or opposite, their mean direction may be zero: of three that is an
        # error.
        every_family(grid, "multislerp", grid.drawn(3), base=base, what=of,
                     families=("runnable-bf16",) if base else ("plain-bf16", "plain-f16"))
        every_family(grid, "multislerp", grid.drawn(2), base=base, what=of,
                     families=("odd-f32", "odd-bf16"))
        grid.add(f"{of}opposite, equal weights", "multislerp", weights(0.5, 0.5), base=base, family="odd-f32")
    grid.add("out_dtype bfloat16", "multislerp", grid.drawn(3), base=True, out_dtype="bfloat16")


def karcher_cases(grid):
    for count in (1, 2, 3, 8):
        grid.add(f"{count} models", "karcher", [{}] * count, base=False)
    grid.add("the base, too", "karcher", [{}] * 3)
    for parameters in ({"max_iter": 1}, {"max_iter": 0}, {"max_iter": 50, "tol": 1e-9}, {"tol": 0.3},
                       {"max_iter": [1, 4, 9]}):
        grid.add(f"{parameters}", "karcher", [{}] * 3, parameters, base=False)
    every_family(grid, "karcher", [{}] * 3, base=False)
    grid.add("out_dtype bfloat16", "karcher", [{}] * 3, base=False, out_dtype="bfloat16")


def model_stock_cases(grid):
    for filter_wise in (False, True):
        for count in (2, 3, 8):
            grid.add(f"{count} models{', filter_wise' * filter_wise}", "model_stock", [{}] * count,
                     {"filter_wise": filter_wise})
        for family in ("plain-bf16", "plain-f16", "odd-f32", "odd-bf16"):
            grid.add(f"of {family}{', filter_wise' * filter_wise}", "model_stock", [{}] * 3,
                     {"filter_wise": filter_wise}, family=family)
    grid.add("filter_wise by filter", "model_stock", [{}] * 3,
             {"filter_wise": [{"filter": "mlp", "value": True}, {"value": False}]})
    grid.add("out_dtype bfloat16", "model_stock", [{}] * 3, out_dtype="bfloat16")


def threshold_cases(grid):
    for count in (1, 2, 3, 8):
        grid.add(f"{count} models", "sce", [{}] * count)
    for topk in (0, 0.001, 0.1, 0.5, 0.9, 1):
        grid.add(f"select_topk {topk}", "sce", [{}] * 3, {"select_topk": topk})
    grid.add("gradients and filters", "sce", [{}] * 3,
             {"select_topk": [{"filter": "mlp", "value": [0.2, 0.8]}, {"value": 0.5}]})
    every_family(grid, "sce", [{}] * 3)
    grid.add("out_dtype bfloat16", "sce", [{}] * 3, out_dtype="bfloat16")
    grid.add("two models", "arcee_fusion", [{}])
    every_family(grid, "arcee_fusion", [{}])
    grid.add("out_dtype bfloat16", "arcee_fusion", [{}], out_dtype="bfloat16")


def numeric_cases(rng):
    grid = Grid(rng)
    family_cases(grid)
    exact_cases(grid)
    linear_cases(grid)
    slerp_cases(grid)
    nuslerp_cases(grid)
    multislerp_cases(grid)
    karcher_cases(grid)
    model_stock_cases(grid)
    threshold_cases(grid)
    return grid.cases
