"""Page states and gathering, natively: ctypes front of ``pages.c``.

Runs in the helper (the boot side and the session use parts).  Kinds of pages are bytes, one a
page.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from kjump.machine.structpage import Layout

SAVE, FREE, OFFLINE, POISONED, UNACCEPTED, ZERO = range(6)
NAMES = ("data", "free", "offline", "hwpoison", "unaccepted", "zero")

Buffer = bytearray | mmap.mmap


class _Layout(ctypes.Structure):
    """``struct layout`` of pages.c."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("mapcount", ctypes.c_uint32),
        ("private", ctypes.c_uint32),
        ("buddy", ctypes.c_uint32),
        ("offline", ctypes.c_uint32),
        ("unaccepted", ctypes.c_uint32),
        ("has_offline", ctypes.c_uint32),
        ("has_unaccepted", ctypes.c_uint32),
        ("max_order", ctypes.c_uint32),
        ("hwpoison_bit", ctypes.c_int32),
    )


def _library() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(Path(__file__).with_name("built") / "libkjump.so"))
    u64, pointer = ctypes.c_uint64, ctypes.c_void_p
    lib.kj_classify.argtypes = (pointer, u64, ctypes.POINTER(_Layout), u64, pointer)
    lib.kj_classify.restype = u64
    lib.kj_gather.argtypes = (pointer, u64, pointer, pointer, u64, ctypes.POINTER(u64))
    lib.kj_gather.restype = u64
    lib.kj_runs.argtypes = (pointer, u64, u64, pointer, u64)
    lib.kj_runs.restype = ctypes.c_int64
    return lib


_lib = _library()


def address_of(buffer: object) -> int:
    """Address of a buffer's first byte, read-only mappings included.  It must be kept alive."""
    view = _View()
    api = ctypes.pythonapi
    api.PyObject_GetBuffer.argtypes = (ctypes.py_object, ctypes.POINTER(_View), ctypes.c_int)
    api.PyBuffer_Release.argtypes = (ctypes.POINTER(_View),)
    api.PyObject_GetBuffer(buffer, ctypes.byref(view), 0)
    address = int(view.buf or 0)
    api.PyBuffer_Release(ctypes.byref(view))
    return address


class _View(ctypes.Structure):
    """``Py_buffer`` (Include/pybuffer.h); a read-only mmap has no other way to its address."""

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


class Classifier:
    """Classifies struct pages in ascending order, keeping track of free blocks across calls."""

    def __init__(self, layout: Layout) -> None:
        self._layout = _Layout(
            layout.size,
            layout.flags,
            layout.mapcount,
            layout.private,
            layout.buddy,
            layout.offline or 0,
            layout.unaccepted or 0,
            layout.offline is not None,
            layout.unaccepted is not None,
            layout.max_order,
            -1 if layout.hwpoison_bit is None else layout.hwpoison_bit,
        )
        self._size = layout.size
        self._left = 0

    def restart(self) -> None:
        """Before a jump in pfn: no free block goes on."""
        self._left = 0

    def classify(self, structs: object, offset: int, count: int, kinds: bytearray, at: int) -> None:
        """Kinds of ``count`` pages, whose struct pages begin ``offset`` bytes into ``structs``,
        into ``kinds`` from index ``at`` on."""
        if at + count > len(kinds):
            raise ValueError("kinds too short")
        if offset + count * self._size > len(structs):  # type: ignore[arg-type]
            raise ValueError("struct pages too short")
        out = (ctypes.c_char * len(kinds)).from_buffer(kinds)
        self._left = _lib.kj_classify(
            address_of(structs) + offset,
            count,
            ctypes.byref(self._layout),
            self._left,
            ctypes.addressof(out) + at,
        )


def gather(
    memory: object, offset: int, count: int, kinds: bytearray, at: int, out: Buffer, out_page: int
) -> tuple[int, int]:
    """Copy pages of kind SAVE from ``memory`` (from byte ``offset`` on) to ``out`` (from page
    ``out_page`` on), turning pages of zeros into kind ZERO.

    Returns (pages looked at, pages copied); stops early where ``out`` is full.
    """
    if offset + count * 4096 > len(memory) or at + count > len(kinds):  # type: ignore[arg-type]
        raise ValueError("out of bounds")
    copied = ctypes.c_uint64()
    flags = (ctypes.c_char * len(kinds)).from_buffer(kinds)
    looked = _lib.kj_gather(
        address_of(memory) + offset,
        count,
        ctypes.addressof(flags) + at,
        address_of(out) + out_page * 4096,
        len(out) // 4096 - out_page,
        ctypes.byref(copied),
    )
    return int(looked), copied.value


def runs(kinds: bytearray, first_pfn: int) -> list[tuple[int, int, int]]:
    """(first pfn, pages, kind) of each run of equal kind, in ascending order."""
    room = 1024
    flags = (ctypes.c_char * len(kinds)).from_buffer(kinds)
    while True:
        out = (ctypes.c_uint64 * (3 * room))()
        count = _lib.kj_runs(ctypes.addressof(flags), len(kinds), first_pfn, out, room)
        if count >= 0:
            values = out[: 3 * count]
            return list(zip(values[0::3], values[1::3], values[2::3], strict=True))
        room *= 8
