# SPDX-License-Identifier: GPL-2.0-or-later
"""A warm helper: booted ahead, back in the session, and entered again when it is needed.

Runs in the helper.  All that can be done before anything is asked is done first.  Nothing of the
session's memory, and nothing of a disk, is kept from then: the session runs on in between and
changes both.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kjump.console.lines import say
from kjump.errors import DamagedHandoff, NoWarmHelper
from kjump.handoff import note, request
from kjump.handoff.cell import Cell
from kjump.helper import leave
from kjump.image import target
from kjump.machine import memory, syscalls
from kjump.machine.ranges import PAGE

MODE = "warm"
"""What ``mode`` in the note says."""


@dataclass(frozen=True)
class Orders:
    """What the note tells a helper that is to be warm."""

    page: int
    """Physical address of the request page."""
    devices: tuple[Path, ...]
    """Links of the target, so that its driver is there."""


def orders(document: Mapping[str, Any]) -> Orders:
    """Raises `DamagedHandoff` for what lacks."""
    try:
        page = int(document["request_page"])
        devices = tuple(Path(str(link)) for link in document["devices"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedHandoff(f"The handoff note lacks something: {error!r}.") from error
    if page <= 0 or page % PAGE:
        raise DamagedHandoff(f"The request page cannot lie at {page:#x}.")
    return Orders(page, devices)


def park_badly(cpuinfo: str, online: int) -> bool:
    """Whether processors that the helper switches off would wait with MWAIT.

    They would watch memory that the session's kernel swaps away, wake, and run whatever lies there
    then.  With HLT they sleep until the session's kernel starts them anew.  (The session starts
    the helper with ``clearcpuid=monitor``; a kernel before 5.18 does not know that name.)
    """
    flags = next((line for line in cpuinfo.splitlines() if line.startswith("flags")), "")
    return online > 1 and "monitor" in flags.split()


def prepare(noted: note.Note, wait: float) -> Orders:
    """Do ahead what can be done ahead.  ``wait``: seconds for the target to appear.

    Raises `NoWarmHelper`, `TargetMissing`, `DamagedHandoff`.
    """
    wanted = orders(noted.document)
    if park_badly(Path("/proc/cpuinfo").read_text(), os.sysconf("SC_NPROCESSORS_ONLN")):
        raise NoWarmHelper("The helper's processors cannot be parked out of the session's way.")
    error = syscalls.probe_kexec_jump()
    if error is not None:
        raise NoWarmHelper(f"The helper's kernel cannot be kept running.  {error.what}")
    if wanted.devices:
        target.wait_for(list(wanted.devices), wait)
    return wanted


def rest(cell: Cell, noted: note.Note, phases: Mapping[str, float]) -> None:
    """Back to the session; returns when that comes again.  Raises `NoWarmHelper`."""
    leave.tell(
        cell,
        {
            "by": "helper",
            "result": MODE,
            "jump_back": noted.jump_back,
            "phases": dict(phases),
            "memory": memory.own_memory(),
        },
    )
    say("the helper is ready; back to the session until it is needed")
    leave.jump_back_kept(cell)
    say("the helper runs again")


def asked(cell: Cell, noted: note.Note, wanted: Orders) -> note.Note:
    """The request, with the way back that the note knows."""
    window = (cell.window_start, cell.window_start + cell.window_size)
    with memory.PhysicalMemory() as physical:

        def get(address: int) -> bytes:
            try:
                return physical.read(address, PAGE)
            except OSError as error:
                raise DamagedHandoff(
                    f"The request cannot be read at {address:#x}: {error.strerror}."
                ) from error

        data = request.read(get(wanted.page), cell.nonce, get, (window,))
    found = note.unpack(data)
    request.check(noted.document, found.document)
    return note.Note(noted.jump_back, found.document)
