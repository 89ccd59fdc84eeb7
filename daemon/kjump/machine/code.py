"""The assembled code, and filling in its parameters.

Pure but for reading the built files.  Sources are ``entry.S`` and ``jump.S`` in this folder; each
keeps its parameters as quads at the offset named here, which a test compares with the symbols.
"""

from __future__ import annotations

import struct
from pathlib import Path

from kjump.machine.paging import identity
from kjump.machine.ranges import PAGE

BUILT = Path(__file__).with_name("built")
ENTRY_PARAMETERS = 0x100
JUMP_PARAMETERS = 0x80
JUMP_KEPT = 0x60
"""Where a kernel that wants to be entered again enters the jump code; see ``jump.S``."""


def blob(name: str) -> bytes:
    """Machine code of ``name`` ("entry" or "jump"), parameters zero."""
    return (BUILT / f"{name}.bin").read_bytes()


def entry_stub(*, note_slot: int, cell_slot: int, boot_params: int, kernel_entry: int) -> bytes:
    """The helper's first instructions; all arguments are physical addresses."""
    code = bytearray(blob("entry"))
    struct.pack_into("<4Q", code, ENTRY_PARAMETERS, note_slot, cell_slot, boot_params, kernel_entry)
    return bytes(code)


def jump_pages(at: int, target: int, *, levels: int, gigabyte_pages: bool) -> bytes:
    """The code and tables that jump to ``target``, for the physical address ``at``.

    Page 0 is the code (entered at its first byte, or at `JUMP_KEPT`), page 1 the stack, the rest
    page tables that map these pages and the target.
    """
    root = at + 2 * PAGE
    ranges = [(at, at + (1 << 21)), (target, target + PAGE)]
    tables = identity(root, ranges, levels=levels, gigabyte_pages=gigabyte_pages)
    code = bytearray(blob("jump"))
    struct.pack_into("<3Q", code, JUMP_PARAMETERS, root, at + 2 * PAGE - 16, target)
    return bytes(code).ljust(2 * PAGE, b"\0") + tables
