"""Checks that what a merge wrote is a whole model, the same in every run."""
import hashlib
import json
import struct

from benchmark.families import weight_files
from benchmark.process import Failed


def catalogue(directory):
    """Name -> (type, shape) of a checkpoint; raises Failed when a file is not as long as its header says."""
    tensors = {}
    for path in weight_files(directory):
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        end = 0
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            if name in tensors:
                raise Failed(f"{path}: {name} is there twice")
            tensors[name] = (tensor["dtype"], tuple(tensor["shape"]))
            end = max(end, tensor["data_offsets"][1])
        if path.stat().st_size != 8 + length + end:
            raise Failed(f"{path}: not as long as its header says")
    return tensors


def digest(directory):
    state = hashlib.sha256()
    for path in weight_files(directory):
        with open(path, "rb") as file:
            while block := file.read(8 << 20):
                state.update(block)
    return state.hexdigest()


class OutputCheck:
    """Every output is compared with the base's catalogue and with the first output."""

    def __init__(self, base):
        self.expected = catalogue(base)
        self.digest = None
        self.base_digest = digest(base)

    def check(self, output):
        if catalogue(output) != self.expected:
            raise Failed(f"{output} does not have the tensors of the base")
        if not (output / "config.json").exists():
            raise Failed(f"{output} has no config.json")
        found = digest(output)
        if found == self.base_digest:
            raise Failed(f"{output} is a copy of the base")
        if self.digest not in (None, found):
            raise Failed("runs of the same merge differ in their output")
        self.digest = found
