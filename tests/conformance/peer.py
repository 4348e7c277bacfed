"""mergekit in this process: its import alone takes seconds, and one test runs hundreds of recipes.

What runs is what `mergekit-yaml` runs: the file is parsed by its MergeConfiguration and merged by its run_merge.
"""
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import run_merge
from mergekit.merge_methods.registry import registered_methods
from mergekit.merge_methods.task_adapter import ExecuteMergeMethodTask
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner

METHODS = frozenset(method.spec.name for method in registered_methods())


@dataclass
class Resolved:
    """What mergekit merged an output tensor from: its inputs after slices and vocabularies, and the values after
    filters, gradients and defaults."""
    lanes: dict         # directory -> float32 array, in the order of the merge
    base: str           # a directory, or None
    shared: dict        # parameter -> value
    of_model: dict      # directory -> parameter -> value


def quiet():
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("mergekit").setLevel(logging.CRITICAL)
    logging.getLogger().setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore")


class Recorder:
    """While it is open, notes for each output tensor what mergekit merges it from."""

    def __enter__(self):
        self.resolved, self._execute = {}, ExecuteMergeMethodTask.execute
        recorder = self

        def execute(task, tensors, **arguments):
            lanes = {str(model): tensors[model].to(torch.float32).numpy().copy() for model in task.model_order
                     if model in tensors}
            of_model = {str(model): dict(values.items()) for model, values in task.input_parameters.items()}
            recorder.resolved[task.output_weight.name] = Resolved(
                lanes, task.base_model and str(task.base_model), dict(task.parameters.items()), of_model)
            return recorder._execute(task, tensors, **arguments)

        ExecuteMergeMethodTask.execute = execute
        return self.resolved

    def __exit__(self, *error):
        ExecuteMergeMethodTask.execute = self._execute


def merge(recipe, output, seed=None, **options):
    """What `mergekit-yaml recipe output` does; returns output tensor -> Resolved."""
    shutil.rmtree(output, ignore_errors=True)
    source = Path(recipe).read_text()
    options = MergeOptions(**{"copy_tokenizer": False, "write_model_card": False, "quiet": True, "random_seed": seed,
                              **options})
    with Recorder() as resolved, torch.no_grad():
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(source)), str(output), options=options,
                  config_source=source)
    return resolved


def forget_files():
    """Closes what earlier merges opened: mergekit keeps every checkpoint that it has seen."""
    LoaderCache().flush_all()
    LoaderCache.loaders.clear()
    MergePlanner._model_arch.cache_clear()
