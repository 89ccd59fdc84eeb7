# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaving the helper: back into the session, or off.

Runs in the helper.  Jumping back needs nothing but the return cell, so it works even if everything
else is damaged.  The helper's systemd starts ``kjump-return`` (`main`) when the copy could not even
begin.
"""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from kjump.console.lines import say
from kjump.errors import DamagedHandoff, HelperFailed, HelperHung, KjumpError, NoWarmHelper
from kjump.handoff import cell as cells
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.helper import watch, watchdog
from kjump.machine import cmdline, code, memory, syscalls
from kjump.machine.ranges import PAGE
from kjump.machine.syscalls import Segment

COMPLETING = Path("/run/kjump-completing.json")
"""Written before the image's state becomes `complete`; see `kjump.helper.completion`."""


def find_cell() -> cells.Cell:
    """The return cell that ``kjump.return=`` on the command line points to.

    Raises `DamagedHandoff`.
    """
    found = cmdline.read().value(cmdline.RETURN)
    if found is None:
        raise DamagedHandoff(f"There is no {cmdline.RETURN}= on the helper's command line.")
    try:
        address = int(found, 16)
        with memory.PhysicalMemory() as physical:
            return cells.unpack(physical.read(address, cells.CELL.size))
    except (OSError, ValueError) as error:
        raise DamagedHandoff(f"The return cell cannot be read: {error}.") from error


def write_report(cell: cells.Cell, report: Report) -> bool:
    """Write the report to the session's report page, if the page proves to be that."""
    if not cell.report_page:
        return False
    try:
        with memory.PhysicalMemory(writable=True) as physical:
            if not reports.is_for(physical.read(cell.report_page, PAGE), cell.nonce):
                say("the report page is not at its address; going back without a report")
                return False
            physical.write(cell.report_page, reports.pack(cell.nonce, report))
    except OSError as error:
        say(f"the report cannot be written: {error}")
        return False
    return True


def _jump_pages(cell: cells.Cell) -> tuple[int, bytes]:
    """The code for the way back, and the physical address for which it was made."""
    at = cell.window_start + memory.HEADROOM
    return at, code.jump_pages(
        at,
        cell.jump_back,
        levels=5 if memory.is_5_level() else 4,
        gigabyte_pages=memory.has_gigabyte_pages(),
    ).data


def jump_back_kept(cell: cells.Cell) -> None:
    """Jump back into the session and keep this kernel: returns when the session enters it again.

    The jump-back address stays the same as long as the session keeps its staged image, because it
    lies in a page that belongs to that image (``control_code_page``, kernel/kexec.c).  Raises
    `NoWarmHelper` if the kernel refuses; nothing has changed then.
    """
    at, pages = _jump_pages(cell)
    try:
        syscalls.kexec_load(
            at + code.JUMP_KEPT, [Segment(pages, at, len(pages))], preserve_context=True
        )
        syscalls.reboot_kexec()
    except OSError as error:
        raise NoWarmHelper(f"The helper's kernel cannot be left: {error.strerror}.") from error
    # The loaded image is used up: it would start at the session's address, without our tables.
    syscalls.kexec_unload()


def jump_back(cell: cells.Cell) -> NoReturn:
    """Jump back into the session for good.  Raises `HelperFailed` if the kernel refuses."""
    at, pages = _jump_pages(cell)
    try:
        # Plain, not preserving: this also sends the other CPUs into HLT, where the session's kernel
        # expects them.
        syscalls.kexec_load(at, [Segment(pages, at, len(pages))], preserve_context=False)
        syscalls.reboot_kexec()
    except OSError as error:
        raise HelperFailed(f"The helper cannot jump back: {error.strerror}.") from error
    raise HelperFailed("The jump back returned.")


def main() -> int:
    """``kjump-return``: the copy never began or its process died."""
    if COMPLETING.exists():
        # Imported only now: the way back is short, and must work if little else does.
        from kjump.helper.completion import Completion

        if Completion().finish():
            return 1  # the machine should be off; systemd tries again
    say("the helper could not do its work; jumping back to the session")
    cell = find_cell()
    error: KjumpError = HelperFailed("The helper's copy service did not start or was killed.")
    if watch.has_hung():
        error = HelperHung("The copy program hung and was stopped.")
    if watch.ALIVE.exists():
        watchdog.stop_all()
    write_report(cell, reports.failed(reports.HELPER, error))
    jump_back(cell)
