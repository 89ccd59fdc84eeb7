# SPDX-License-Identifier: GPL-2.0-or-later
"""A warm helper: it boots ahead of time, jumps back, and is entered again when it is needed.

Runs in the helper.  It does in advance everything that does not depend on the request.  It keeps
nothing that it read from the session's memory or from a disk, because the session goes on and
changes both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from kjump.console.lines import say
from kjump.errors import DamagedHandoff, NoWarmHelper
from kjump.handoff import note, request
from kjump.handoff import report as reports
from kjump.handoff.cell import Cell
from kjump.handoff.documents import SaveOrder, WarmOrder
from kjump.helper import leave
from kjump.image import target
from kjump.machine import memory, syscalls
from kjump.machine.ranges import PAGE


def park_badly(cpuinfo: str, online: int) -> bool:
    """Whether processors that the helper switches off would wait with MWAIT.

    They would watch memory that the session's kernel swaps out, wake up, and run whatever is there
    by then.  With HLT they sleep until the session's kernel starts them again.  (The session starts
    the helper with ``clearcpuid=monitor``; a kernel before 5.18 does not know that name.)
    """
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return online > 1 and "monitor" in flags.split()


def prepare(order: WarmOrder, wait: float) -> None:
    """Do everything that is possible in advance.  ``wait``: seconds for the target to appear.

    Raises `NoWarmHelper`, `TargetMissing`.
    """
    if park_badly(Path("/proc/cpuinfo").read_text(), os.sysconf("SC_NPROCESSORS_ONLN")):
        raise NoWarmHelper("The helper's processors cannot be parked without harm to the session.")
    error = syscalls.probe_kexec_jump()
    if error is not None:
        raise NoWarmHelper(f"The helper's kernel cannot be kept running.  {error.what}")
    if order.devices:
        target.wait_for([Path(link) for link in order.devices], wait)


def rest(cell: Cell, jump_back: int, phases: Mapping[str, float]) -> None:
    """Jump back to the session; returns when the session enters the helper again.

    ``jump_back``: the session's jump-back address, from the note.  Raises `NoWarmHelper`.
    """
    leave.write_report(cell, reports.resting(jump_back, phases, memory.own_memory()))
    say("the helper is ready; back to the session until it is needed")
    leave.jump_back_kept(cell)
    say("the helper runs again")


def asked(cell: Cell, order: WarmOrder) -> SaveOrder:
    """Read the session's request.

    Raises `DamagedHandoff`, `WrongHandoffVersion`, `StaleHelper`.
    """
    window = (cell.window_start, cell.window_start + cell.window_size)
    with memory.PhysicalMemory() as physical:

        def get(address: int) -> bytes:
            try:
                return physical.read(address, PAGE)
            except OSError as error:
                raise DamagedHandoff(
                    f"The request cannot be read at {address:#x}: {error.strerror}."
                ) from error

        data = request.read(get(order.request_page), cell.nonce, get, (window,))
    found = SaveOrder.from_json(note.unpack(data).document)
    request.check(order.facts, found.facts)
    return found
