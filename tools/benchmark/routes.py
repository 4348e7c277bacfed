"""Rows that take the same data another way: through a codec, a chain of stages, several ranks. What such a row is
measured beside is the limit of the bytes that it reads and writes, or the same work done the plain way."""
import json
import os
import shutil
import subprocess
import time

from benchmark.families import recipe_text, total_size, weight_files
from benchmark.limit import Limit
from benchmark.outputs import digest
from benchmark.page_cache import enter_state
from benchmark.process import Failed, run_measured
from benchmark.rows import MIB


def compressed_files(directory):
    return sorted(directory.glob("*.safetensors*zst"))


class Route:
    """One row. `turn` runs it once; its fastest turn counts, and the largest peak."""

    def __init__(self, bench, row, models):
        self.bench, self.row, self.models = bench, row, models
        self.directory = bench.directory / "route"
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        self.output = self.directory / "out"
        self.turns = []

    def clean(self):
        shutil.rmtree(self.directory, ignore_errors=True)

    def remove_output(self):
        if self.output.is_dir():
            shutil.rmtree(self.output)
        self.output.unlink(missing_ok=True)

    def recipe(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path

    def merge_command(self, recipe, output, *options):
        return [self.bench.braid, "merge", recipe, output, "--memory", self.row.memory, "--quiet", "--json", *options]

    def merge(self, recipe, output, *options):
        """(seconds, CPU seconds, peak bytes) of one merge."""
        run = run_measured(self.merge_command(recipe, output, *options))
        return run.seconds, run.cpu_seconds, json.loads(run.output)["peak_rss_bytes"]

    def turn(self):
        self.remove_output()
        enter_state(self.row.state, self.inputs)
        self.turns.append(self.run())
        self.bench.say(f"  braid: {self.turns[-1][0]:.2f} s")
        if self.digest() != self.expected:
            raise Failed(f"{self.row.name}: its output is not that of the plain way")

    def digest(self):
        return digest(self.output)

    def entry(self, against):
        seconds, cpu, _ = min(self.turns)
        return {"seconds": seconds, "cpu_seconds": cpu, "peak_bytes": max(peak for _, _, peak in self.turns),
                "all_seconds": [turn[0] for turn in self.turns], "against": against,
                "ratio": seconds / against["seconds"], "stored_share": self.stored_share,
                "gb_per_core_second": self.plain_bytes / cpu / 1e9}

    stored_share = None     # compressed bytes over plain ones


class CodecRoute(Route):
    """What has a codec on its way; beside the limit of the bytes that are stored."""

    def limit(self, bytes_out):
        scratch = self.bench.directory / "limit.bin"
        return Limit(self.bench.limit_program, scratch, self.inputs, self.row.state, bytes_out)

    def compress(self, model, output):
        recipe = self.recipe("compress.toml", recipe_text("passthrough", self.row.family.dtype, {}, [model]))
        self.merge(recipe, output, "--compress", self.row.codec)
        self.stored_share = total_size(compressed_files(output)) / total_size(weight_files(model))

    def measure(self):
        self.prepare()
        limit = self.limit(self.bytes_out)
        for _ in range(self.bench.runs):
            self.remove_output()
            limit.turn(self.bench.say)
            self.turn()
        return self.entry({"what": "limit", "seconds": limit.best["seconds"]})


class Compress(CodecRoute):
    """A merge that writes compressed shards."""

    def prepare(self):
        self.inputs = [file for model in self.models for file in weight_files(model)]
        self.merged = self.recipe("merge.toml", recipe_text("linear", self.row.family.dtype, {}, self.models))
        self.run()
        self.expected = self.digest()
        self.bytes_out = total_size(compressed_files(self.output))
        plain = total_size(weight_files(self.models[0]))
        self.stored_share = self.bytes_out / plain
        self.plain_bytes = total_size(self.inputs) + plain

    def run(self):
        return self.merge(self.merged, self.output, "--compress", self.row.codec)

    def digest(self):
        return [path.stat().st_size for path in compressed_files(self.output)]


class Decompress(CodecRoute):
    """`braid cat` of one shard into a file."""

    def prepare(self):
        self.compress(self.models[0], self.directory / "compressed")
        self.inputs = compressed_files(self.directory / "compressed")[:1]
        self.bytes_out = self.plain_bytes = total_size(weight_files(self.models[0])[:1])
        self.run()
        self.expected = self.digest()

    def run(self):
        script = '"$0" cat "$1" > "$2" && sync "$2"'
        run = run_measured(["sh", "-c", script, self.bench.braid, self.inputs[0], self.output])
        return run.seconds, run.cpu_seconds, run.peak_bytes

    def digest(self):
        return self.output.stat().st_size


class FromCompressed(CodecRoute):
    """A merge of compressed checkpoints."""

    def prepare(self):
        packed = [self.directory / f"model{i}" for i in range(len(self.models))]
        for model, to in zip(self.models, packed):
            self.compress(model, to)
        self.inputs = [file for model in packed for file in compressed_files(model)]
        self.bytes_out = total_size(weight_files(self.models[0]))
        self.plain_bytes = self.bytes_out * (len(self.models) + 1)
        dtype = self.row.family.dtype
        self.merge(self.recipe("plain.toml", recipe_text("linear", dtype, {}, self.models)), self.output)
        self.expected = self.digest()
        self.merged = self.recipe("merge.toml", recipe_text("linear", dtype, {}, packed))

    def run(self):
        return self.merge(self.merged, self.output)


class BesideBraid(Route):
    """What is measured beside braid itself, used the plain way."""

    def measure(self):
        self.inputs = [file for model in self.models for file in weight_files(model)]
        bytes_out = total_size(weight_files(self.models[0]))
        self.plain_bytes = total_size(self.inputs) + bytes_out
        self.prepare()
        plain = []
        for _ in range(self.bench.runs):
            self.remove_output()
            enter_state(self.row.state, self.inputs)
            plain.append(self.run_plainly())
            self.bench.say(f"  {self.plain_way}: {plain[-1]:.2f} s")
            self.expected = self.digest()
            self.turn()
        return self.entry({"what": self.plain_way, "seconds": min(plain)})


class Chain(BesideBraid):
    """Two stages in one recipe, beside two merges with a float32 checkpoint between them."""
    plain_way = "two merges"

    def prepare(self):
        base, *models = map(str, self.models)
        dtype = 'dtype = "bfloat16"\n' if self.row.family.dtype == "bf16" else 'dtype = "float32"\n'
        tables = "".join(f"[[{{0}}models]]\npath = {json.dumps(path)}\n" for path in models[:-1])
        ties = f'method = "ties"\nbase = {json.dumps(base)}\n{{1}}parameters = {{{{ density = 0.2 }}}}\n{tables}'
        slerp = f'method = "slerp"\n{{1}}parameters = {{{{ t = 0.4 }}}}\n'
        last = f"[[{{0}}models]]\npath = {json.dumps(models[-1])}\n"
        self.between = self.directory / "between"
        self.first = self.recipe("first.toml", ties.format("", 'dtype = "float32"\n'))
        # slerp's first model is its base where there are two.
        self.second = self.recipe("second.toml", slerp.format("", dtype) +
                                  f"[[models]]\npath = {json.dumps(str(self.between))}\n" + last.format(""))
        self.chain = self.recipe("chain.toml", '[[stages]]\nname = "first"\n' + ties.format("stages.", "") +
                                 "[[stages]]\n" + slerp.format("", dtype) + '[[stages.models]]\nstage = "first"\n' +
                                 last.format("stages."))

    def run_plainly(self):
        shutil.rmtree(self.between, ignore_errors=True)
        return self.merge(self.first, self.between)[0] + self.merge(self.second, self.output)[0]

    def run(self):
        return self.merge(self.chain, self.output)


class Ranks(BesideBraid):
    """Two ranks at once on this machine, each with half of the budget's threads, beside one process."""
    plain_way = "one process"

    def prepare(self):
        parameters = {"density": 0.2}
        self.merged = self.recipe("merge.toml", recipe_text("ties", self.row.family.dtype, parameters, self.models))

    def run_plainly(self):
        return self.merge(self.merged, self.output)[0]

    def run(self):
        start = time.monotonic()
        commands = [self.merge_command(self.merged, self.output, "--rank", i, "--of", 2, "--threads", 1)
                    for i in range(2)]
        ranks = [subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE) for command in commands]
        reports, cpu = [], 0
        for rank in ranks:
            reports.append(json.loads(rank.stdout.read()))
            _, status, usage = self._wait(rank)
            cpu += usage.ru_utime + usage.ru_stime
            if status != 0:
                raise Failed(f"a rank ended with {status}")
        return time.monotonic() - start, cpu, max(report["peak_rss_bytes"] for report in reports)

    @staticmethod
    def _wait(process):
        pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        return pid, process.returncode, usage


ROUTES = {"compress": Compress, "decompress": Decompress, "from compressed": FromCompressed, "chain": Chain,
          "ranks": Ranks}


def describe(row):
    return {"name": row.name, "kind": "route", "route": row.route, "codec": row.codec, "model": row.family.arch,
            "dtype": row.family.dtype, "finetunes": row.finetunes, "memory": row.memory, "state": row.state,
            "cgroup": None, "what": ROUTES[row.route].__doc__.split(",")[0].strip(".")}


def table_row(entry):
    stored = f"{entry['stored_share']:.1%}" if entry["stored_share"] else ""
    return [f"{entry['seconds']:.2f}", entry["against"]["what"], f"{entry['against']['seconds']:.2f}",
            f"{entry['ratio']:.2f}", f"{entry['gb_per_core_second']:.2f}", stored,
            f"{entry['peak_bytes'] / MIB:.0f} ({entry['memory']})"]
