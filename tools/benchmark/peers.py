"""The other ways to merge, on the same files: mergekit, and the script that one would write with torch.

Both are of the versions in tests/conformance/requirements.txt and live in the virtual environment of tests/conformance,
which is made when --peer asks for it.
"""
import json
import os
import shutil
import subprocess
from pathlib import Path

from benchmark.families import TORCH_NAMES, weight_of
from benchmark.page_cache import enter_state
from benchmark.process import Failed, run_measured
from benchmark.skipped import Skipped

HERE = Path(__file__).resolve().parent
CONFORMANCE = HERE.parent.parent / "tests/conformance"
ENOUGH_SECONDS = 60     # a peer that has run for longer is not run again

# mergekit rounds every step of ties to bfloat16 and so trims other elements; nothing bounds the difference.
COMPARABLE = {"torch script": ("ties", "linear", "task_arithmetic"), "mergekit": ("linear", "task_arithmetic")}


def make_environment():
    """The virtual environment's directory."""
    made = subprocess.run([CONFORMANCE / "setup_venv.sh"], env={**os.environ, "BRAID_PEERS": "1"},
                          stdout=subprocess.PIPE, text=True)
    if made.returncode != 0:
        raise SystemExit(f"bench: {made.stdout.strip()}")
    return CONFORMANCE / ".venv"


class Peers:
    def __init__(self, environment, directory, say):
        self.bin, self.directory, self.say = environment / "bin", directory, say
        os.environ["HF_HUB_OFFLINE"] = "1"  # no peer may ask the network for a model

    def measure(self, row, models, inputs, ours, braid_seconds):
        """name of the peer -> its best run, how many times braid was faster, and whether the outputs agree."""
        sources = models if row.method == "linear" else models[1:]
        weights = [weight_of(i) for i in range(len(sources))]
        parameters = self.directory / "parameters.json"
        parameters.write_text(json.dumps({**row.parameters, "weights": weights}))
        output = self.directory / "peer"
        commands = {
            "torch script": [self.bin / "python", HERE / "torch_merge.py", row.method, output, parameters, *models],
            "mergekit": [self.bin / "mergekit-yaml", self._mergekit_recipe(row, models, sources, weights), output,
                         "--no-copy-tokenizer", "--quiet"],
        }
        results = {}
        for name, command in commands.items():
            entry = {}
            try:
                entry.update(self._best(name, command, row, inputs, output))
                entry["times_braid"] = entry["seconds"] / braid_seconds
                entry["agreement"] = self._agreement(name, row, ours, output, parameters, models)
            except Skipped as skipped:
                entry["skipped"] = str(skipped)
            except Failed as failed:
                entry["failed"] = str(failed)
                self.say(f"  {name}: {failed}")
            finally:
                shutil.rmtree(output, ignore_errors=True)
            results[name] = entry
        return results

    def _mergekit_recipe(self, row, models, sources, weights):
        recipe = {"merge_method": row.method, "dtype": TORCH_NAMES[row.family.dtype], "parameters": row.parameters,
                  "models": [{"model": str(source), "parameters": {"weight": weight}}
                             for source, weight in zip(sources, weights)]}
        if row.method != "linear":
            recipe["base_model"] = str(models[0])
        path = self.directory / "mergekit.yml"
        path.write_text(json.dumps(recipe))  # JSON is YAML
        return path

    def _best(self, name, command, row, inputs, output):
        runs = []
        while len(runs) < 3 and sum(run.seconds for run in runs) < ENOUGH_SECONDS:
            shutil.rmtree(output, ignore_errors=True)
            enter_state(row.state, inputs)
            runs.append(run_measured(command, quiet=True))
            self.say(f"  {name}: {runs[-1].seconds:.1f} s")
        best = min(runs, key=lambda run: run.seconds)
        return {"seconds": best.seconds, "cpu_seconds": best.cpu_seconds, "peak_bytes": best.peak_bytes,
                "runs": len(runs)}

    def _agreement(self, name, row, ours, theirs, parameters, models):
        run = run_measured([self.bin / "python", HERE / "agreement.py", row.method, ours, theirs, parameters, *models])
        counts = json.loads(run.output)
        comparable = row.method in COMPARABLE[name]
        if comparable and counts["beyond"] > 0:
            raise Failed(f"{counts['beyond']} of {counts['elements']} elements differ from braid's by more than "
                         "rounding")
        self.say(f"  {name}: {counts['equal'] / counts['elements']:.2%} of the elements equal braid's"
                 + ("" if comparable else f", {counts['beyond']} differ by more than rounding"))
        return {**counts, "comparable": comparable}
