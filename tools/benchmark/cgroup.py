"""A memory cgroup with a hard limit, version 1 or 2, for as long as a row is measured."""
import os
from pathlib import Path

from benchmark.skipped import Skipped


def own_groups():
    """(path in the file system, version) of the groups that a child could be made in; this process's own first."""
    mounts = []
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, options, *_ = line.split()
        if kind == "cgroup" and "memory" in options.split(","):
            mounts.append((Path(mount), 1))
        elif kind == "cgroup2":
            mounts.append((Path(mount), 2))
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for mount, version in mounts:
            if version == (1 if "memory" in controllers.split(",") else 2 if controllers == "" else 0):
                yield mount / path.lstrip("/"), version
    yield from mounts  # a container may see its own group as the root


class MemoryCgroup:
    """with MemoryCgroup(bytes) as group: run_measured(command, group.enter)"""

    def __init__(self, limit):
        self.limit = limit
        self.path = None

    def __enter__(self):
        for parent, version in own_groups():
            if self._make(parent / f"braid-bench-{os.getpid()}", version):
                return self
        raise Skipped("a memory cgroup that can be made (root, and a writable cgroup file system)")

    def _make(self, path, version):
        try:
            path.mkdir()
        except OSError:
            return False
        self.path = path
        try:
            self._set("memory.limit_in_bytes" if version == 1 else "memory.max", self.limit)
        except (OSError, ValueError):  # a group to which the memory controller is not delegated has no such file
            self.__exit__()
            return False
        try:
            if version == 1:
                self._set("memory.memsw.limit_in_bytes", self.limit)
            else:
                self._set("memory.swap.max", 0)
        except (OSError, ValueError):
            pass  # a kernel that does not count swap
        return True

    def _set(self, name, value):
        (self.path / name).write_text(str(value))
        if int((self.path / name).read_text()) != value:
            raise ValueError(name)

    def enter(self):
        """Puts the calling process into the group; for subprocess's preexec_fn."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def __exit__(self, *_):
        if self.path is not None:
            self.path.rmdir()  # its processes have ended, and its page cache goes to the parent
            self.path = None
