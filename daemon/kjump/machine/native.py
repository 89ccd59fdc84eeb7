# SPDX-License-Identifier: GPL-2.0-or-later
"""The native library: loading it, and getting the addresses of buffers for it.

Runs in all three kernels.  The sources are ``*.c`` in ``kjump/native``.  Each module declares the
functions that it calls.  A call releases the interpreter's lock, so other threads can run.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

BUILT = Path(__file__).parents[1] / "native/built"
"""Where the Makefile puts what it builds from the sources."""
LIBRARY = ctypes.CDLL(str(BUILT / "libkjump.so"))

U32, U64, INT = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int
POINTER = ctypes.c_void_p
U64_OUT = ctypes.POINTER(ctypes.c_uint64)
INT_OUT = ctypes.POINTER(ctypes.c_int)


class _View(ctypes.Structure):
    """``Py_buffer`` (Include/pybuffer.h): the only way to get the address of a read-only mmap."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get = ctypes.pythonapi.PyObject_GetBuffer
_get.argtypes = (ctypes.py_object, ctypes.POINTER(_View), ctypes.c_int)
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes = (ctypes.POINTER(_View),)


def address_of(buffer: object) -> int:
    """Address of a buffer's first byte, also of a read-only mapping.  Keep the buffer alive."""
    view = _View()
    _get(buffer, ctypes.byref(view), 0)
    address = int(view.buf or 0)
    _release(ctypes.byref(view))
    return address
