"""The limit of a row: what this machine needs to read the same bytes and durably write the same bytes."""
import json

from benchmark.page_cache import enter_state
from benchmark.process import Failed, run_measured

# (read method, readers, write method) of braid-limit. Which is fastest depends on the disk, so all are tried.
METHODS = {
    "cold": [("direct", 4, "direct"), ("direct", 2, "direct"), ("direct", 4, "dontcache"),
             ("mapped", 1, "direct"), ("mapped", 1, "dontcache"), ("mapped", 1, "window")],
    "warm": [("mapped", 2, "direct"), ("mapped", 1, "direct"), ("mapped", 2, "dontcache"),
             ("mapped", 1, "dontcache"), ("mapped", 1, "window")],
}
# A method that was this much slower than the turn's best is not run again, nor for rows that read and write the same.
HOPELESS = 1.05


class Limit:
    """One turn runs every method that may be the fastest; the fastest run of all turns is the limit.

    `contenders`: what another row with the same inputs and output was left with; None: all methods.
    """

    def __init__(self, program, target, inputs, state, bytes_written, bytes_read=None, before_exec=None,
                 contenders=None):
        self.program, self.target, self.inputs, self.state = program, target, inputs, state
        self.bytes_written, self.bytes_read, self.before_exec = bytes_written, bytes_read, before_exec
        self.contenders = contenders or METHODS[state]
        self.best = None
        self.all_seconds = {}

    def turn(self, say):
        first = {}
        for method in self.contenders:
            result = self._run(method, say)
            if result is None:
                continue
            first[method] = result["seconds"]
            self.all_seconds.setdefault(result["method"], []).append(result["seconds"])
            if self.best is None or result["seconds"] < self.best["seconds"]:
                self.best = result
        if self.best is None:
            raise Failed("no method of braid-limit works on this disk")
        self.contenders = [m for m, seconds in first.items() if seconds < HOPELESS * min(first.values())]

    def _run(self, method, say):
        read, readers, write = method
        command = [self.program, "--read", read, "--readers", readers, "--write", write, "--output", self.target,
                   "--bytes", self.bytes_written, *self.inputs]
        if self.state == "warm":
            command.insert(1, "--keep-cached")
        if self.bytes_read is not None:
            command[1:1] = ["--read-bytes", self.bytes_read]
        self.target.unlink(missing_ok=True)  # the disk frees blocks before the run, as for a merge
        enter_state(self.state, self.inputs)
        try:
            result = json.loads(run_measured(command, self.before_exec).output)
        except Failed:
            say(f"  this disk cannot do {read} + {write}")
            return None
        finally:
            self.target.unlink(missing_ok=True)
        say(f"  limit {result['method']}: {result['seconds']:.2f} s")
        return result
