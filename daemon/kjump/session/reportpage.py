"""The session's report page: memory that stays where it is while another kernel writes to it.

Runs in the session.  The page is locked; locked pages may still be migrated by compaction, so its
physical address is read again just before the jump, and the writer checks the nonce.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from typing import Any

from kjump.errors import StagingFailed
from kjump.handoff import report
from kjump.machine.ranges import PAGE
from kjump.machine.syscalls import mlock

PRESENT = 1 << 63
PFN = (1 << 55) - 1


def physical_address(address: int) -> int:
    """Physical address of a virtual one of this process (/proc/self/pagemap).

    Raises `StagingFailed` where the page is not in memory or the right to know is missing
    (CAP_SYS_ADMIN).
    """
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address // PAGE * 8)
        (entry,) = struct.unpack("<Q", pagemap.read(8))
    if not entry & PRESENT or not entry & PFN:
        raise StagingFailed("The physical address of the report page is not told.")
    return int((entry & PFN) * PAGE + address % PAGE)


class ReportPage:
    """One locked page with a fresh nonce.  Close it when the report was read."""

    def __init__(self) -> None:
        self.nonce = os.urandom(report.NONCE_SIZE)
        self._memory = mmap.mmap(-1, PAGE)
        self._memory[:] = report.blank(self.nonce)
        self._view = (ctypes.c_char * PAGE).from_buffer(self._memory)
        try:
            mlock(ctypes.addressof(self._view), PAGE)
        except OSError as error:
            raise StagingFailed(f"The report page cannot be locked: {error.strerror}.") from error
        self.physical = self.where()

    def where(self) -> int:
        """Its physical address now."""
        return physical_address(ctypes.addressof(self._view))

    def read(self) -> dict[str, Any] | None:
        """The report that was written there, or None."""
        return report.unpack(bytes(self._memory), self.nonce)

    def close(self) -> None:
        del self._view
        self._memory.close()
