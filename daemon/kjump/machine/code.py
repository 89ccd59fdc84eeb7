# SPDX-License-Identifier: GPL-2.0-or-later
"""The assembled code, and filling in its parameters.

Pure, except that it reads the built files.  The sources are ``entry.S`` and ``jump.S`` in
``kjump/native``; each keeps its parameters as quads at the offset given here, and a test compares
these offsets with the symbols.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from kjump.machine.native import BUILT
from kjump.machine.paging import identity
from kjump.machine.ranges import PAGE, Range, align_up

ENTRY_PARAMETERS = 0x100
JUMP_PARAMETERS = 0x80
JUMP_KEPT = 0x60
"""Where a kernel that will be entered again enters the jump code; see ``jump.S``."""
END_OF_ZEROS = 16
"""Bytes of the empty extent that ends the list of pages to clear."""


def blob(name: str) -> bytes:
    """The machine code of ``name`` ("entry" or "jump"), with all parameters zero."""
    return (BUILT / f"{name}.bin").read_bytes()


def entry_stub(*, note_slot: int, cell_slot: int, boot_params: int, kernel_entry: int) -> bytes:
    """The helper's first instructions; all arguments are physical addresses."""
    code = bytearray(blob("entry"))
    struct.pack_into("<4Q", code, ENTRY_PARAMETERS, note_slot, cell_slot, boot_params, kernel_entry)
    return bytes(code)


@dataclass(frozen=True)
class Jump:
    """The code that jumps: whole pages, entered at the first byte or at `JUMP_KEPT`."""

    data: bytes
    tables: int
    """Physical address of the page tables in these pages: a valid CR3 for entering them."""


def jump_pages(
    at: int,
    target: int,
    *,
    levels: int,
    gigabyte_pages: bool,
    zeros: bytes | bytearray = b"",
    memory: Iterable[Range] = (),
) -> Jump:
    """The code and tables that jump to ``target``, for loading at the physical address ``at``.

    ``zeros``: extents of pages to clear before the jump, in the form of an image's index;
    ``memory``: the physical ranges that contain these pages.  Page 0 is the code, page 1 the
    stack; the list of pages to clear follows, then page tables that map all this, the memory and
    the target.
    """
    listed = bytes(zeros) + bytes(END_OF_ZEROS) if zeros else b""
    listed = listed.ljust(align_up(len(listed), PAGE), b"\0")
    root = at + 2 * PAGE + len(listed)
    ranges = [(at, root), (target, target + PAGE), *memory]
    tables = identity(root, ranges, levels=levels, gigabyte_pages=gigabyte_pages)
    code = bytearray(blob("jump"))
    struct.pack_into(
        "<4Q",
        code,
        JUMP_PARAMETERS,
        root,
        at + 2 * PAGE - 16,
        target,
        at + 2 * PAGE if zeros else 0,
    )
    return Jump(bytes(code).ljust(2 * PAGE, b"\0") + listed + tables, root)
