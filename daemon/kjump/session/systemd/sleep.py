# SPDX-License-Identifier: GPL-2.0-or-later
"""What systemd-sleep does around a sleep, done around a cycle: hooks, and frozen sessions.

Runs in the session, in a cycle's thread, and when the daemon cleans up.  Never decides
whether to hibernate.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gi.repository import GLib

from kjump.errors import HooksFailed
from kjump.session.log import logger
from kjump.session.systemd import hooks, systemd_bus

log = logger()

GRACE = 20
"""Seconds that the hooks' unit may take in addition to the hooks themselves."""


THAW_TRIES = 5


FREEZER = Path("/sys/fs/cgroup") / systemd_bus.SESSIONS / "cgroup.freeze"


def run_hooks(connection: Any, when: str, seconds: float) -> Sequence[hooks.Result]:
    """Run the hooks in their unit, which logs how they ended.  Raises `HooksFailed`."""
    if not hooks.find_hooks():
        return []  # most machines have none, and the unit takes time to start
    unit = f"kjump-hooks@{when}.service"
    try:
        result = systemd_bus.start(connection, unit, seconds=seconds + GRACE)
    except systemd_bus.BusError as error:
        raise HooksFailed(f"{unit} could not be started: {error}.") from error
    if result != "done":
        raise HooksFailed(f"{unit} ended with: {result}.")
    return []


def thaw(connection: Callable[[], Any]) -> None:
    """Let the sessions continue.  Tries several times, and finally without systemd: a machine with
    frozen sessions is useless."""
    for _ in range(THAW_TRIES):
        try:
            systemd_bus.thaw(connection())
        except (systemd_bus.BusError, GLib.Error) as error:
            log.warning(f"the sessions could not be thawed: {error}")
            time.sleep(1)
        else:
            return
    FREEZER.write_text("0")


def freezes() -> bool:
    """Whether sessions are frozen for a cycle: if systemd does so, and nobody said no."""
    return systemd_bus.freezes_sessions() and not systemd_bus.says_no(
        os.environ.get(systemd_bus.FREEZE_VARIABLE, "")
    )
