# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpd: the service.  Starts, notifies systemd, answers the bus, ends cleanly.

Runs in the session as root.  The main thread runs GLib's main loop and nothing that waits; whatever
takes time runs in threads (see `kjump.session.service.operations`).  Nothing stays staged when the
daemon ends, however it ends: `clean_up` runs when it stops, when it starts, and by ExecStopPost=.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gi.repository import GLib

from kjump import settings as configuration
from kjump.names import BUS_NAME
from kjump.session.checks.facts import Facts, read_text
from kjump.session.connection import connect
from kjump.session.cycle.actions import Actions
from kjump.session.cycle.history import History
from kjump.session.cycle.recovery import LookBack, clean_up, clean_up_actions
from kjump.session.log import logger, set_up
from kjump.session.service import manager as bus
from kjump.session.service.assessment import LogindActions
from kjump.session.service.authority import Polkit
from kjump.session.service.manager import Manager
from kjump.session.service.notify import ServiceManager
from kjump.session.systemd import kernel_hibernation, resume_device, systemd_bus
from kjump.session.systemd.sleep import freezes, run_hooks, thaw
from kjump.session.target.watch import watch_devices

TAKEN_OVER = Path("/etc/systemd/system/systemd-hibernate.service.d/50-kjump.conf")
"""It exists if ``kjumpctl enable`` led hibernation to kjump."""
SETTLE_MS = 250
"""Device events come in bursts; one reading serves them all."""

log = logger()


def set_resume_device(facts: Facts) -> None:
    """Name a resume device to the kernel if logind insists on one, and kjump is what hibernates."""
    if not TAKEN_OVER.exists():
        return
    try:
        named = resume_device.set_resume_device(facts.target, facts.command_line)
    except OSError as error:
        log.warning(f"no resume device could be named to the kernel: {error}")
        return
    if named is not None:
        log.info(f"swap named to the kernel, for logind: {named[0]}, page {named[1]}")


def offer(possible: bool, settings: configuration.Settings) -> bool:
    """Have logind offer hibernation if kjump or the kernel can do it; whether it does now.

    Only if requests are led to kjump: otherwise logind looks for itself.
    """
    yes = not TAKEN_OVER.exists() or kernel_hibernation.offered(
        possible, settings.session.fallback, kernel_hibernation.read_state()
    )
    try:
        if kernel_hibernation.offer(yes):
            log.info(
                "logind offers hibernation from now on"
                if yes
                else "logind offers no hibernation from now on: nothing can do it here"
            )
    except OSError as error:
        log.warning(f"what logind offers could not be set: {error}")
    return yes


# -- by way of systemd -----------------------------------------------------------------------------


def actions_by(connection: Any, history: History) -> Actions:
    """What an operation does, on the machine and over the bus."""
    return Actions(
        look_back=LookBack(history),
        record=history.add,
        freeze=(lambda: systemd_bus.freeze(connection)) if freezes() else None,
        thaw=lambda: thaw(lambda: connection),
        hooks=lambda when, seconds: run_hooks(connection, when, seconds),
        lock_homes=lambda: systemd_bus.lock_homes(connection),
    )


# -- the service -----------------------------------------------------------------------------------


class Service:
    """Everything that lives as long as the daemon; in tests with a private bus and fakes."""

    def __init__(self, connection: Any, manager: Manager, manages: ServiceManager) -> None:
        self.loop = GLib.MainLoop()
        self.manager = manager
        self._manages = manages
        self._bus = connection
        self._settling = 0
        self._stop_watching: Callable[[], None] = lambda: None
        self._registration = bus.register(connection, manager)
        try:
            # After the object, so that whoever waits for the name finds it.
            self._name = connection.request_name(BUS_NAME, allow_replacement=False)
        except RuntimeError:
            self._registration.unregister()
            raise

    def run(self, *, watch: bool = True) -> None:
        """Serve until `stop`."""
        if watch:
            try:
                self._stop_watching = watch_devices(self._devices_changed)
            except (ImportError, OSError) as error:
                log.warning(f"devices cannot be watched: {error}")
        if self._manages.watchdog_ms:
            GLib.timeout_add(self._manages.watchdog_ms // 3, self._manages.pet)
        self.manager.worker.assess()
        self._manages.send("READY=1", "STATUS=Ready")
        try:
            self.loop.run()
        finally:
            self._stop_watching()
            self._name.unown()
            self._registration.unregister()

    def stop(self) -> bool:
        """End: at once, or as soon as what runs has given back what it owes."""
        self._manages.send("STOPPING=1")
        self.manager.worker.stop()

        def when_idle() -> bool:
            if self.manager.worker.operation is not None:
                return True
            self.loop.quit()
            return False

        if when_idle():
            GLib.timeout_add(50, when_idle)
        return True

    def reload(self) -> bool:
        """SIGHUP."""
        self.manager.reload()
        return True

    def _devices_changed(self) -> None:
        if not self._settling:
            self._settling = GLib.timeout_add(SETTLE_MS, self._settled)

    def _settled(self) -> bool:
        self._settling = 0
        if self.manager.worker.operation is None:
            self.manager.worker.assess()
        return False


def main(arguments: Sequence[str] | None = None) -> int:
    """The daemon; with ``--clean-up`` only what ExecStopPost= needs."""
    parser = argparse.ArgumentParser(
        prog="kjumpd", description="Hibernates by kexec jump; see kjumpd(8)."
    )
    parser.add_argument(
        "--clean-up", action="store_true", help="give back what a killed daemon owes, and end"
    )
    parser.add_argument("--address", help="serve on this bus, not on the system's")
    parser.add_argument("--debug", action="store_true", help="log more")
    options = parser.parse_args(arguments)
    set_up(debug=options.debug)
    kept = History()
    settings = configuration.load()

    def end() -> None:
        """Leave nothing behind, also of what an earlier daemon left."""
        clean_up(
            kept,
            actions=clean_up_actions(lambda: connect(options.address).con),
            hook_timeout=settings.session.hook_timeout,
        )

    end()
    if options.clean_up:
        kernel_hibernation.offer(True)
        return 0

    for warning in settings.warnings:
        log.warning(str(warning))
    manages = ServiceManager()
    try:
        connection = connect(options.address)
        manager = Manager(
            settings=configuration.load,
            authority=Polkit(connection.con),
            history=kept,
            actions=actions_by(connection.con, kept),
            logind=LogindActions(offer, set_resume_device),
            status=manages.status,
            inhibitors=lambda done: systemd_bus.list_inhibitors(connection.con, done),
        )
        service = Service(connection, manager, manages)
    except (GLib.Error, RuntimeError) as error:
        log.error(f"the bus name {BUS_NAME} could not be acquired: {error}")
        return 1
    GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGTERM, service.stop)
    GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGINT, service.stop)
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGHUP, service.reload)
    log.info("serving", release=read_text("/proc/sys/kernel/osrelease").strip())
    service.run()
    # A staged helper would turn a reboot into a jump: it goes before anything else can happen.
    manager.worker.close()
    end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
