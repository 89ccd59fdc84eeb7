# SPDX-License-Identifier: GPL-2.0-or-later
"""The end of saving: from when the image may be resumed, the session may not simply run on.

Runs in the helper, in ``kjump-copy`` and in ``kjump-return``.  A session that runs on writes to its
file systems; a later boot that resumed the image would destroy them.  So once the state `complete`
may be on the disk, the helper leaves in one of two ways: the machine switches off or restarts and
the next boot resumes, or the image is marked `spent`, flushed, and only then the session runs on.
"""

from __future__ import annotations

import json
import signal
import uuid
from pathlib import Path

from kjump.console.lines import say
from kjump.errors import HelperFailed, KjumpError
from kjump.handoff import report as reports
from kjump.handoff.fields import decode
from kjump.helper.leave import COMPLETING
from kjump.helper.watch import Watch
from kjump.image import superblocks, target
from kjump.image.device import DirectDevice
from kjump.image.layout import COMPLETE, SPENT
from kjump.machine import syscalls


class Completion:
    """Whether the image may be complete by now, and the ways out from then on."""

    def __init__(self, record: Path = COMPLETING) -> None:
        """``record`` is written first: ``kjump-return`` looks for it if kjump-copy dies."""
        self._record = record
        self.begun = False
        """The state `complete` may be on the disk."""

    def begin(self, device: DirectDevice, cycle: uuid.UUID, watch: Watch) -> None:
        """The last moment before the state is stored.  Raises `HelperFailed`; it is not begun then.

        From here on neither the deadline nor a hang interrupts this program.
        """
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        watch.deafen()
        at = device.locator_at if isinstance(device, target.Opened) and device.locator else None
        place = {"path": str(device.path), "locator": at, "cycle": str(cycle)}
        try:
            self._record.write_text(json.dumps(place))
        except OSError as error:
            raise HelperFailed(
                f"The helper cannot write {self._record}: {error.strerror}."
            ) from error
        self.begun = True

    def take_back(self, error: KjumpError) -> bool:
        """Mark the image spent, with the reason; whether the session may run on."""
        try:
            path, locator, _cycle = self._place()
            with target.open_image(path, locator, writable=True) as device:
                found = superblocks.load(device)
                if found is None:
                    return True  # a boot finds no image either
                outcome = reports.failed(reports.HELPER, error)
                return superblocks.settle(device, found, state=SPENT, outcome=outcome)
        except (KjumpError, OSError) as failure:
            say(f"the image cannot be marked: {failure}")
            return False

    def finish(self) -> bool:
        """If the image is complete: switch off, for the next boot to resume it.

        For ``kjump-return``.  Returns False if the session may run on: nothing says that the image
        is complete.  If that cannot be found out the machine restarts, and the boot decides.
        """
        if not self._record.exists():
            return False
        try:
            path, locator, cycle = self._place()
            with target.open_image(path, locator, writable=True) as device:
                found = superblocks.load(device)
                if found is None or found.cycle != cycle or found.state != COMPLETE:
                    return False
                # It may lie in the disk's cache still.
                superblocks.store(device, found)
        except (KjumpError, OSError) as error:
            say(f"the image cannot be looked at: {error}; restarting")
            syscalls.restart()
            return True
        say("the image is complete; switching off")
        leave_for_good()
        return True

    def _place(self) -> tuple[Path, int | None, uuid.UUID]:
        """Raises OSError, `HelperFailed`."""
        place = decode(self._record.read_bytes(), "record", HelperFailed)
        try:
            locator = place["locator"]
            return (
                Path(str(place["path"])),
                None if locator is None else int(str(locator)),
                uuid.UUID(str(place["cycle"])),
            )
        except (KeyError, ValueError) as error:
            raise HelperFailed(f"{self._record} is damaged: {error!r}.") from error


def leave_for_good() -> None:
    """Switch the machine off.  If it does not, restart it: the boot resumes.  Raises OSError."""
    try:
        syscalls.power_off()
    except OSError as error:
        say(f"the machine does not switch off: {error.strerror}; restarting")
    syscalls.restart()
