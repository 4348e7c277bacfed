"""The two states of the page cache that a row can be measured in.

cold: nothing of the inputs is in the page cache (evicted, and checked with mincore); warm: all of it is.
"""
import ctypes
import mmap
import os
from pathlib import Path

from benchmark.skipped import Skipped

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


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


def enter_state(state, inputs):
    """Brings the inputs into a cache state and returns the share of them that is resident."""
    if state == "warm":
        read_all(inputs)
        os.sync()
    else:
        evict(inputs)
    share = resident_share(inputs)
    if (state == "warm") != (share > 0.5) or 0.01 < share < 0.99:
        raise Skipped(f"a page cache that can be made {state}; {share:.0%} of the inputs are resident")
    return share


def available_memory():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
