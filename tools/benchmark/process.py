"""Runs a program to its end and says what that cost."""
import os
import subprocess
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Run:
    output: str
    seconds: float
    cpu_seconds: float          # user and system
    peak_bytes: int             # largest resident set
    disk_read_bytes: int        # what the page cache did not have


class Failed(Exception):
    """A program that was to be measured did not succeed."""


def run_measured(command, before_exec=None, quiet=False):
    """`before_exec` runs in the new process before it becomes the program. Raises Failed."""
    command = [str(part) for part in command]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, preexec_fn=before_exec,
                               stderr=subprocess.STDOUT if quiet else None)
    text = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # it is reaped; Popen must not wait again
    process.stdout.close()
    output = text.decode("utf-8", "replace")
    if process.returncode != 0:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit {process.returncode}"
        raise Failed(f"{' '.join(command[:2])} ...: {how} {output[-2000:].strip()}")
    return Run(output, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, usage.ru_inblock * 512)
