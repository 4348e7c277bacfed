"""The rows of the bench and the families of checkpoints that they merge."""
from dataclasses import dataclass, field

MIB = 1 << 20


@dataclass(frozen=True)
class Family:
    """A base and fine-tunes of it, made by `braid synth`."""
    arch: str
    finetunes: int
    parameters: float           # about as many; settles disk space before the family is made
    dtype: str = "bf16"

    @property
    def name(self):
        return f"{self.arch}-{self.dtype}"

    @property
    def bytes_per_model(self):
        return self.parameters * (4 if self.dtype == "f32" else 2)


@dataclass(frozen=True)
class Row:
    """A merge, measured in one state of the page cache against the limit."""
    name: str
    family: Family
    method: str
    state: str                          # of the page cache, before each run: cold or warm
    target: float = None                # at most so many times the limit
    parameters: dict = field(default_factory=dict)
    finetunes: int = 3
    memory: str = "1GiB"
    planned: bool = False               # the limit reads what `braid plan` says, not every input byte once
    cgroup: int = None                  # bytes of a hard memory cgroup around merge and limit
    cached: bool = False                # --cache with the statistics that a merge with other weights left
    peer_target: float = None           # at least so many times faster than mergekit
    series: tuple = ()                  # the lines that this row is a point of


@dataclass(frozen=True)
class PlanRow:
    """`braid plan` on sparse checkpoints: headers are real, data are holes."""
    name: str
    tensors: int
    shards: int
    finetunes: int                      # 0: one checkpoint, by itself
    seconds: float = None               # targets
    peak: int = None

    @property
    def method(self):
        return "ties" if self.finetunes else "linear"


@dataclass(frozen=True)
class RouteRow:
    """The same data another way: see routes.py."""
    name: str
    family: Family
    route: str
    codec: str = None
    finetunes: int = 3
    state: str = "cold"
    memory: str = "1GiB"


@dataclass(frozen=True)
class Series:
    """Rows that differ in one thing; time must be a line over the bytes they read and write."""
    name: str
    intercept: float = None             # targets: at most so many seconds for no bytes at all,
    deviation: float = None             # every row's seconds per byte within this share of the line's,
    peak_spread: float = None           # peak memories within so many MiB of each other


TIES = {"density": 0.2, "normalize": True}
MODEL_TIES = {**TIES, "scope": "model"}

B007 = Family("llama-70m", 32, 0.071e9)
B035 = Family("llama-350m", 3, 0.341e9)
B124 = Family("llama-1b", 4, 1.236e9)
B3 = Family("llama-3b", 3, 3.213e9)
ONE_TENSOR = Family("one-tensor", 2, 4e9)

# A budget that is small for every size, so that all are merged in the same way: with more, a model whose tensors fit is
# read once instead of three times, and time is no line.
SCALING = {"method": "ties", "state": "cold", "parameters": TIES, "memory": "32MiB"}
NUMBERS = {**SCALING, "memory": "128MiB"}

ROWS = [
    Row("ties cold", B124, "ties", "cold", 1.15, TIES),
    Row("ties warm", B124, "ties", "warm", 1.3, TIES, peer_target=80),
    Row("ties model cold", B124, "ties", "cold", 2.1, MODEL_TIES),
    Row("ties model cached", B124, "ties", "cold", 1.15, MODEL_TIES, cached=True),
    Row("linear cold", B124, "linear", "cold", 1.1),
    Row("task_arithmetic cold", B124, "task_arithmetic", "cold", 1.1, {"lambda": 0.7}),
    Row("linear warm", B124, "linear", "warm", peer_target=6),
    Row("task_arithmetic warm", B124, "task_arithmetic", "warm", parameters={"lambda": 0.7}, peer_target=5),
    Row("size 0.07B", B007, **SCALING, series=("size",)),
    Row("size 0.35B", B035, **SCALING, series=("size",)),
    Row("size 1.24B", B124, **SCALING, series=("size",)),
    Row("size 3B", B3, **SCALING, series=("size",)),
    Row("fine-tunes 3", B007, **NUMBERS, series=("fine-tunes",)),
    Row("fine-tunes 8", B007, **NUMBERS, finetunes=8, series=("fine-tunes",)),
    Row("fine-tunes 16", B007, **NUMBERS, finetunes=16, series=("fine-tunes",)),
    Row("fine-tunes 32", B007, **NUMBERS, finetunes=32, series=("fine-tunes",)),
    Row("cgroup 512MiB", B124, "ties", "cold", 1.15, TIES, finetunes=4, memory="256MiB", planned=True,
        cgroup=512 * MIB),
    Row("one tensor 8GB", ONE_TENSOR, "ties", "cold", 2.1, TIES, finetunes=2, memory="256MiB"),
    PlanRow("plan 100000 tensors", 100_000, 200, 0, 1.0, 256 * MIB),
    PlanRow("plan 100000 tensors, base + 3", 100_000, 200, 3),
]
# A row for every other method, cold: base + 3 of the family, or as many as the method takes.
ONE_ROUND, TWO_ROUNDS, MORE_ROUNDS, DELLA = 1.3, 1.5, 2.5, 3
ROWS += [Row(f"{method} cold", B124, method, "cold", target, parameters, finetunes)
         for method, target, finetunes, parameters in [
    ("average", ONE_ROUND, 3, {}),
    ("dare_linear", TWO_ROUNDS, 3, {"density": 0.2}),
    ("dare_ties", TWO_ROUNDS, 3, {"density": 0.2}),
    ("breadcrumbs", TWO_ROUNDS, 3, {"density": 0.2}),
    ("breadcrumbs_ties", TWO_ROUNDS, 3, {"density": 0.2}),
    ("della", DELLA, 3, {"density": 0.4}),
    ("della_linear", DELLA, 3, {"density": 0.4}),
    ("sce", MORE_ROUNDS, 3, {"select_topk": 0.1}),
    ("slerp", TWO_ROUNDS, 1, {"t": 0.5}),
    ("nuslerp", TWO_ROUNDS, 2, {}),
    ("multislerp", TWO_ROUNDS, 3, {}),
    ("karcher", TWO_ROUNDS, 3, {}),
    ("model_stock", TWO_ROUNDS, 3, {}),
    ("nearswap", ONE_ROUND, 1, {"t": 0.001}),
    ("arcee_fusion", MORE_ROUNDS, 1, {}),
    ("ram", ONE_ROUND, 3, {}),
    ("ramplus_tl", TWO_ROUNDS, 3, {}),
    ("passthrough", ONE_ROUND, 0, {"scale": 0.5}),
    ("consensus_ta", ONE_ROUND, 3, {}),
    ("magmax", ONE_ROUND, 3, {}),
    ("pcb", MORE_ROUNDS, 3, {}),
    ("metagpt", MORE_ROUNDS, 3, {}),
]]

ROWS += [RouteRow(f"{route} {codec}", B124, route, codec) for codec in ("zstd", "planes")
         for route in ("compress", "decompress", "from compressed")]
ROWS += [RouteRow("chain of two", B124, "chain", finetunes=4), RouteRow("ranks 2", B124, "ranks")]

SERIES = [
    Series("size", 0.3, 0.10, 16),
    Series("fine-tunes", None, 0.10, None),
]

SMALL = Family("small", 4, 0.032e9)
SMALL_F32 = Family("small", 2, 0.032e9, "f32")
QUICK = {"method": "ties", "state": "warm", "parameters": TIES, "memory": "64MiB"}
QUICK_ROWS = [
    Row("small ties cold", SMALL, **{**QUICK, "state": "cold"}),
    Row("small ties model", SMALL, **{**QUICK, "parameters": MODEL_TIES}),
    Row("small ties cached", SMALL, **{**QUICK, "parameters": MODEL_TIES}, cached=True),
    Row("small task_arithmetic", SMALL, "task_arithmetic", "warm", None, {"lambda": 0.7}, 2, "64MiB", peer_target=1),
    Row("small linear", SMALL_F32, "linear", "warm", None, {}, 2, "64MiB", peer_target=1),
    Row("small slerp", SMALL, "slerp", "warm", None, {"t": 0.5}, 1, "64MiB"),
    Row("small della", SMALL, "della", "warm", None, {"density": 0.4}, 2, "64MiB"),
    Row("small fine-tunes 2", SMALL, **QUICK, finetunes=2, peer_target=1, series=("fine-tunes",)),
    Row("small fine-tunes 3", SMALL, **QUICK, finetunes=3, series=("fine-tunes",)),
    Row("small fine-tunes 4", SMALL, **QUICK, finetunes=4, series=("fine-tunes",)),
    Row("small cgroup", SMALL, **{**QUICK, "state": "cold"}, planned=True, cgroup=128 * MIB),
    PlanRow("plan 1000 tensors", 1000, 4, 1),
]
QUICK_ROWS += [RouteRow(f"small {route}", SMALL, route, codec, finetunes=2, state="warm", memory="64MiB")
               for route, codec in [("compress", "planes"), ("decompress", "planes"), ("from compressed", "zstd"),
                                    ("chain", None), ("ranks", None)]]
QUICK_SERIES = [Series("fine-tunes")]
