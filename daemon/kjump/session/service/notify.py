# SPDX-License-Identifier: GPL-2.0-or-later
"""READY, STATUS, STOPPING and the watchdog, for systemd.

Runs in the session, on the main loop.  Outside of systemd it does nothing.
"""

from __future__ import annotations

import os


class ServiceManager:
    """READY, STATUS, STOPPING and the watchdog, by sdnotify."""

    def __init__(self) -> None:
        import sdnotify

        self._notifier = sdnotify.SystemdNotifier()
        self.watchdog_ms = int(os.environ.get("WATCHDOG_USEC", "0")) // 1000

    def send(self, *lines: str) -> None:
        """Send state lines; outside of systemd nothing happens."""
        # sdnotify sends latin-1 and drops what it cannot encode.
        text = "\n".join(lines).encode("ascii", "replace").decode()
        self._notifier.notify(text)

    def status(self, text: str) -> None:
        """What ``systemctl status kjumpd`` shows."""
        self.send("STATUS=" + text.splitlines()[0])

    def pet(self) -> bool:
        """The watchdog's sign of life; from the main loop, so that a stuck loop is noticed."""
        self.send("WATCHDOG=1")
        return True
