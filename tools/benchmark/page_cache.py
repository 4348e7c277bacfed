"""The two states of the page cache that a row can be measured in.

cold: nothing of the inputs is in the page cache (evicted, and checked with mincore); warm: all of it is.
"""
import ctypes
import mmap
import os
from pathlib import Path

from benchmark.skipped import Skipped

MADV_POPULATE_WRITE = 23
SPARED = 1 << 30  # of free memory, so that nothing is swapped or evicted for what is populated

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]

WHOLE = 0.99     # resident: as good as all
MOST_READS = 3   # once 98 % of 9.9 GB were there after one read, with 15 GB free


def resident_share(paths):
    """The share of the files' pages that is in the page cache."""
    resident = pages = 0
    for path in paths:
        size = path.stat().st_size
        if size == 0:
            continue
        fd = os.open(path, os.O_RDONLY)
        address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        os.close(fd)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"cannot map {path}")
        count = -(-size // mmap.PAGESIZE)
        flags = ctypes.create_string_buffer(count)
        failed = libc.mincore(address, size, flags)
        libc.munmap(address, size)
        if failed:
            raise OSError(ctypes.get_errno(), f"cannot ask what is resident of {path}")
        resident += sum(flag & 1 for flag in flags.raw)
        pages += count
    return resident / max(pages, 1)


def evict(paths):
    os.sync()  # dirty pages cannot be evicted
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_all(paths):
    buffer = bytearray(8 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cache_all(paths):
    """Reads the files until they stay in the page cache; returns the share of them that does."""
    for _ in range(MOST_READS):
        read_all(paths)
        os.sync()
        share = resident_share(paths)
        if share > WHOLE:
            break
    return share


def enter_state(state, inputs):
    """Brings the inputs into a cache state, and free memory into one too; returns the share of them that is there."""
    into_state = cache_all if state == "warm" else evict
    into_state(inputs)
    # Most that a run can want: its inputs in the page cache, and its own memory. Outputs are written past it.
    populate_free_memory(sum(path.stat().st_size for path in inputs) + (3 << 29))
    # Populating pushes some of the inputs out (up to 0.3 % of 9.9 GB, with 14 GB free), and the host takes away what it
    # maps of others: a warm merge that came right after it took 1.65 s instead of 1.2, its limit 0.9 instead of 0.8.
    share = cache_all(inputs) if state == "warm" else resident_share(inputs)
    if (state == "warm") != (share > 0.5) or 1 - WHOLE < share < WHOLE:
        raise Skipped(f"a page cache that can be made {state}; {share:.0%} of the inputs are resident")
    return share


def memory(field):
    """Bytes of a line of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def populate_free_memory(most):
    """Has the kernel own its free memory (so many bytes at most), as on a machine of its own, before a measurement.

    A virtual machine with free page reporting gives its free memory back to the host and gets it again page by page,
    at 1.3 ms per MiB where this was measured (11.2 GiB: 15 s, and 0.6 s when touched again at once). Which of two runs
    pays for that would be chance.
    """
    size = min(memory("MemFree") - SPARED, most)
    if size <= 0:
        return
    child = os.fork()  # of its own, or the peak memory of what is measured next would be that of this process
    if child > 0:
        os.waitpid(child, 0)
        return
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_HUGEPAGE)
        pages.madvise(MADV_POPULATE_WRITE)  # Linux 5.14
    finally:
        os._exit(0)
