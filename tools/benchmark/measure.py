"""Measures one row: the limit and the merge in turns, so that a disk that slows down slows both."""
import json
import math
import shutil
from contextlib import ExitStack

from benchmark import families, routes
from benchmark.cgroup import MemoryCgroup
from benchmark.families import recipe_text, total_size, weight_files
from benchmark.fits import check
from benchmark.limit import Limit
from benchmark.outputs import OutputCheck
from benchmark.page_cache import enter_state, memory
from benchmark.process import Failed, run_measured
from benchmark.rows import MIB, PlanRow, RouteRow
from benchmark.skipped import Skipped

RUNS = 3
PROMISE = 64 * MIB  # resident memory is at most --memory and this much
UNITS = {"MiB": MIB, "GiB": MIB << 10}


def size_of(text):
    return int(text[:-3]) * UNITS[text[-3:]]


def describe(row):
    if isinstance(row, PlanRow):
        return {"name": row.name, "kind": "plan", "method": row.method, "tensors": row.tensors, "shards": row.shards,
                "finetunes": row.finetunes}
    if isinstance(row, RouteRow):
        return routes.describe(row)
    return {"name": row.name, "kind": "merge", "method": row.method, "parameters": row.parameters,
            "model": row.family.arch, "dtype": row.family.dtype, "finetunes": row.finetunes, "memory": row.memory,
            "state": row.state, "cgroup": row.cgroup, "planned": row.planned, "cached": row.cached,
            "target": row.target}


class Bench:
    def __init__(self, build, directory, runs, say, peers=None):
        self.braid, self.limit_program = build / "braid", build / "braid-limit"
        self.directory, self.runs, self.say, self.peers = directory, runs, say, peers
        self.contenders = {}    # of the limits of rows before, by what they read and write
        directory.mkdir(parents=True, exist_ok=True)
        self.families = families.Families(directory, self.braid, say)
        told = json.loads(run_measured([self.braid, "methods", "--json"]).output)
        self.methods = {method["name"] for method in told["methods"]}

    def measure(self, row, still_needed):
        """An entry of the report: what was asked, and what was measured or why nothing was."""
        self.say(f"{row.name}:")
        entry = describe(row)
        try:
            kinds = {PlanRow: self._plan, RouteRow: self._route}
            entry.update(kinds.get(type(row), self._merge)(row, still_needed))
        except Skipped as skipped:
            entry["skipped"] = str(skipped)
            self.say(f"  skipped: {skipped}")
        except Failed as failed:
            entry["failed"] = str(failed)
            self.say(f"  FAILED: {failed}")
        for one in entry.get("checks", []):
            self.say(f"  {one['what']} {one['value']:.4g} {one['unit']} (target {one['target']:.4g}): "
                     f"{'met' if one['met'] else 'MISSED'}")
        return entry

    # --- merges ----------------------------------------------------------------------------------------------

    def _merge(self, row, still_needed):
        if row.method not in self.methods:
            raise Skipped(f"the method {row.method}, which this braid does not have")
        if row.cached and "--cache" not in run_measured([self.braid, "merge", "--help"]).output:
            raise Skipped("--cache")
        models = self.families.obtain(row.family, [*still_needed, row.family])[:row.finetunes + 1]
        inputs = [file for model in models for file in weight_files(model)]
        bytes_in, bytes_out = total_size(inputs), total_size(weight_files(models[0]))
        self.families.need_space(bytes_out, [*still_needed, row.family])
        if row.state == "warm" and bytes_in + bytes_out > 0.8 * memory("MemAvailable"):
            raise Skipped(f"{(bytes_in + bytes_out) / 0.8e9:.0f} GB of free memory")
        recipe = self.directory / "recipe.toml"
        recipe.write_text(recipe_text(row.method, row.family.dtype, row.parameters, models))

        with ExitStack() as stack:
            enter = stack.enter_context(MemoryCgroup(row.cgroup)).enter if row.cgroup else None
            planned = self._planned_bytes(recipe, row, enter)
            merge = Merge(self, row, recipe, models, inputs, enter)
            stack.callback(merge.clean)
            merge.prepare(models)
            bytes_read = planned if row.planned else None
            same = (tuple(inputs), row.state, bytes_out, bytes_read, row.cgroup)
            limit = Limit(self.limit_program, self.directory / "limit.bin", inputs, row.state, bytes_out, bytes_read,
                          enter, self.contenders.get(same))
            for _ in range(self.runs):
                merge.remove_output()
                limit.turn(self.say)
                merge.turn()
            self.contenders[same] = limit.contenders
            entry = merge.entry(bytes_in, bytes_out, planned, limit)
            if self.peers and row.peer_target:
                entry["peers"] = self.peers.measure(row, models, inputs, merge.output, entry["seconds"])
        entry["checks"] = list(self._checks(row, entry))
        return entry

    def _planned_bytes(self, recipe, row, enter):
        run = run_measured([self.braid, "plan", recipe, "--memory", row.memory, "--json"], enter)
        return json.loads(run.output)["bytes_read"]

    def _checks(self, row, entry):
        if not (math.isfinite(entry["ratio"]) and entry["ratio"] > 0):
            raise Failed(f"a ratio of {entry['ratio']}")
        if row.target:
            yield check("x limit", entry["ratio"], row.target, entry["ratio"] <= row.target)
        bound = size_of(row.memory) + PROMISE
        yield check("peak memory", entry["peak_bytes"] / MIB, bound / MIB, entry["peak_bytes"] <= bound, "MiB")
        if "peers" in entry and "seconds" in entry["peers"].get("mergekit", {}):
            faster = entry["peers"]["mergekit"]["seconds"] / entry["seconds"]
            yield check("x faster than mergekit", faster, row.peer_target, faster >= row.peer_target)

    # --- routes ----------------------------------------------------------------------------------------------

    def _route(self, row, still_needed):
        models = self.families.obtain(row.family, [*still_needed, row.family])[:row.finetunes + 1]
        # Compressed models, a checkpoint in float32 between two merges, and the output.
        self.families.need_space(row.family.bytes_per_model * (row.finetunes + 3), [*still_needed, row.family])
        route = routes.ROUTES[row.route](self, row, models)
        try:
            return route.measure()
        finally:
            route.clean()

    # --- plans -----------------------------------------------------------------------------------------------

    def _plan(self, row, still_needed):
        self.families.need_space(row.tensors * 250 * (row.finetunes + 1), still_needed)
        models = [families.make_sparse(self.directory / f"sparse-{row.tensors}" / f"m{i}", row.tensors, row.shards)
                  for i in range(row.finetunes + 1)]
        recipe = self.directory / "recipe.toml"
        recipe.write_text(recipe_text(row.method, "bf16", {}, models))
        runs = [run_measured([self.braid, "plan", recipe]) for _ in range(self.runs)]
        best = min(runs, key=lambda run: run.seconds)
        entry = {"seconds": best.seconds, "cpu_seconds": best.cpu_seconds,
                 "peak_bytes": max(run.peak_bytes for run in runs), "checks": []}
        if row.seconds is not None:
            entry["checks"] = [
                check("seconds", best.seconds, row.seconds, best.seconds <= row.seconds, "s"),
                check("peak memory", entry["peak_bytes"] / MIB, row.peak / MIB, entry["peak_bytes"] <= row.peak, "MiB")]
        return entry


class Merge:
    """`braid merge` of one row; the fastest turn counts, and the largest peak of all turns."""

    def __init__(self, bench, row, recipe, models, inputs, enter):
        self.bench, self.row, self.inputs, self.enter = bench, row, inputs, enter
        self.output, self.cache = bench.directory / "merged", bench.directory / "statistics"
        self.command = [bench.braid, "merge", recipe, self.output, "--memory", row.memory, "--quiet", "--json"]
        self.outputs = OutputCheck(models[0])
        self.runs = []

    def prepare(self, models):
        """Fills the statistics cache, with other weights: what it holds serves every merge at these densities."""
        row = self.row
        self.clean()
        if not row.cached:
            return
        self.command += ["--cache", self.cache]
        recipe = self.bench.directory / "fill.toml"
        recipe.write_text(recipe_text(row.method, row.family.dtype, row.parameters, models, shift=0.05))
        run_measured([self.bench.braid, "merge", recipe, self.output, "--memory", row.memory, "--quiet", "--cache",
                      self.cache])

    def remove_output(self):
        shutil.rmtree(self.output, ignore_errors=True)

    def turn(self):
        self.remove_output()
        share = enter_state(self.row.state, self.inputs)
        run = run_measured(self.command, self.enter)
        self.outputs.check(self.output)
        self.runs.append((run, json.loads(run.output), share))
        self.bench.say(f"  braid: {run.seconds:.2f} s")

    def entry(self, bytes_in, bytes_out, planned, limit):
        run, report, share = min(self.runs, key=lambda r: r[0].seconds)
        return {
            "seconds": run.seconds, "cpu_seconds": run.cpu_seconds,
            # VmHWM; what wait4 says begins with what this process had when it forked, 38 MiB.
            "peak_bytes": max(r[1]["peak_rss_bytes"] for r in self.runs), "disk_read_bytes": run.disk_read_bytes,
            "resident_before": share, "all_seconds": [r[0].seconds for r in self.runs], "braid": report,
            "bytes_in": bytes_in, "bytes_out": bytes_out, "bytes_planned": planned,
            "limit": limit.best, "limit_all_seconds": limit.all_seconds,
            "ratio": run.seconds / limit.best["seconds"],
            "gb_per_second": (bytes_in + bytes_out) / run.seconds / 1e9,
        }

    def clean(self):
        for path in (self.output, self.cache):
            shutil.rmtree(path, ignore_errors=True)
