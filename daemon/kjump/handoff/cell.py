# SPDX-License-Identifier: GPL-2.0-or-later
"""The return cell: the way back that does not depend on the note.

It is 64 bytes in the window's first page.  The helper finds it through ``kjump.return=`` on its
command line (physical address).  The entry stub writes the jump-back address here as well as into
the note, so that a helper with a damaged note still knows where to jump back and where to report.
Little-endian:

====== ==== ==============================================================
offset size field
====== ==== ==============================================================
0      8    magic ``KJUMPRET``
8      8    jump-back address (physical), written by the entry stub
16     8    report page (physical), 0 for none
24     16   nonce of the report page
40     8    window start (physical)
48     8    window size in bytes
56     4    version, 1
60     4    CRC-32 of the cell with jump-back address and checksum zero
====== ==== ==============================================================
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from kjump.errors import DamagedHandoff

MAGIC = b"KJUMPRET"
VERSION = 1
NONCE_SIZE = 16
"""Of the report page, here and wherever it is named; bytes."""
CELL = struct.Struct(f"<8sQQ{NONCE_SIZE}sQQII")
JUMP_BACK_OFFSET = 8


@dataclass(frozen=True)
class Cell:
    """The cell's content; addresses are physical."""

    report_page: int
    nonce: bytes
    window_start: int
    window_size: int
    jump_back: int = 0

    def pack(self) -> bytes:
        """The 64 bytes; the jump-back address is not covered by the checksum."""
        fixed = (self.report_page, self.nonce, self.window_start, self.window_size, VERSION)
        checksum = zlib.crc32(CELL.pack(MAGIC, 0, *fixed, 0))
        return CELL.pack(MAGIC, self.jump_back, *fixed, checksum)


def unpack(data: bytes) -> Cell:
    """Read a cell.  Raises `DamagedHandoff`."""
    if len(data) < CELL.size or data[:8] != MAGIC:
        raise DamagedHandoff("There is no return cell where the command line says.")
    _magic, jump_back, page, nonce, start, size, version, checksum = CELL.unpack_from(data)
    if (
        version != VERSION
        or zlib.crc32(CELL.pack(MAGIC, 0, page, nonce, start, size, version, 0)) != checksum
    ):
        raise DamagedHandoff("The return cell's checksum is wrong.")
    return Cell(page, nonce, start, size, jump_back)
