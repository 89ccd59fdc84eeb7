# SPDX-License-Identifier: GPL-2.0-or-later
"""How much of a file is in the page cache, by mincore(2); also a program, for the guests."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys


def cached(path: str | os.PathLike[str]) -> int:
    """In bytes, whole pages."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        start = ctypes.c_char.from_buffer(pages)
        there = (ctypes.c_ubyte * -(-len(pages) // mmap.PAGESIZE))()
        arguments = ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(pages))
        failed = libc.mincore(*arguments, there)
        del start  # or the mapping could not be closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return sum(page & 1 for page in there) * mmap.PAGESIZE


if __name__ == "__main__":
    print(*(cached(path) for path in sys.argv[1:]))
