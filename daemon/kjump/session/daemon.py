# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpd: the service.  Starts, tells systemd, answers the bus, ends cleanly.

Runs in the session as root.  The main thread runs GLib's main loop and nothing that waits;
whatever takes time runs in threads (see `kjump.session.bus`).  Nothing stays staged when the
daemon ends, however it ends: `clean_up` runs when it stops, when it starts, and by
ExecStopPost=.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from uuid import UUID

from gi.repository import GLib

from kjump import settings as configuration
from kjump.errors import HooksFailed, KjumpError
from kjump.machine.identity import machine_identity
from kjump.session import bus, devices, history, hooks, logind, readiness, stock, units
from kjump.session.authority import Polkit
from kjump.session.bus import Manager
from kjump.session.connection import connect
from kjump.session.cycle import Actions
from kjump.session.devices import FILE, Device
from kjump.session.history import History
from kjump.session.log import bound, logger, set_up
from kjump.session.readiness import Facts, read_text

TAKEN_OVER = Path("/etc/systemd/system/systemd-hibernate.service.d/50-kjump.conf")
"""There where ``kjumpctl enable`` led hibernation to us."""
SETTLE_MS = 250
"""Device events come in bursts; one reading serves them all."""

log = logger()


# -- after an earlier self ---------------------------------------------------------------------


@dataclass(frozen=True)
class Cleaning:
    """What cleaning up does to the machine."""

    mark: Path = history.MARK
    unload: Callable[[], None] = field(default_factory=lambda: Actions().unload)
    post_hooks: Callable[[float], Sequence[hooks.Result]] = lambda seconds: hooks.run(
        "post", seconds=seconds
    )
    thaw: Callable[[], None] = lambda: None


def cleaning_by(connection: Callable[[], Any]) -> Cleaning:
    """Cleaning by way of systemd; the bus is connected to only where that is needed."""
    return Cleaning(
        post_hooks=lambda seconds: run_hooks(connection(), "post", seconds),
        thaw=lambda: thaw(connection),
    )


def clean_up(kept: History, *, cleaning: Cleaning | None = None, hook_timeout: float = 30) -> bool:
    """Give back what a killed daemon's cycle still owes; whether there was one.

    The kexec image is unloaded only if the mark says it is ours.
    """
    do = cleaning or Cleaning()
    mark = history.read_mark(do.mark)
    if mark is None:
        return False
    error = history.interrupted(mark.cycle)
    if mark.kind == "warm":
        log.info("unloading a warm helper that a daemon before this one has left")
    else:
        log.warning(error.what, KJUMP_CYCLE=mark.cycle)
    try:
        do.unload()
    except OSError as failure:
        log.error(f"the kexec image could not be unloaded: {failure}")
        return True  # the mark stays, so that it is tried again
    if mark.hooks:
        with bound(KJUMP_CYCLE=mark.cycle):
            try:
                hooks.tell("post", do.post_hooks(hook_timeout))
            except (KjumpError, OSError, GLib.Error) as failure:
                log.error(f"the hooks could not be run: {failure}")
    if mark.frozen:
        do.thaw()
    now = round(time.time(), 3)
    entry = {
        "cycle": mark.cycle,
        "result": "failed",
        "where": "session",
        "started": now,
        "finished": now,
        "phases": {},
        "wall": {},
        "target": mark.target,
        **error.report(),
    }
    try:
        told = any(known.get("cycle") == mark.cycle for known in kept.entries())
        if mark.kind not in ("warm", "dry-run") and not told:
            kept.add(entry)
        history.clear_mark(do.mark)
    except OSError as failure:
        log.error(f"the interrupted cycle could not be recorded: {failure}")
    return True


def look_back(kept: History, facts: Facts) -> None:
    """Read what an earlier boot left on the target, tell the history, and mark it spent; in a
    swap area take its locator away.

    Runs in a thread, before the first cycle of this daemon.  Never raises.
    """
    from kjump.image import locator, target
    from kjump.session import areas

    assert isinstance(facts.target, Device)
    path, at = facts.target.path, facts.target.locator
    try:
        found = target.examine(path, at)
        if found is None or found.is_session_of_another(machine_identity()):
            return
        cycle = str(found.cycle_id)
        known = any(entry.get("cycle") == cycle for entry in kept.entries())
        skipped = not {"kjump.noresume", "noresume"}.isdisjoint(facts.command_line)
        after = history.afterlife(found.state, found.reason, known=known, skipped=skipped)
        try:
            if found.area == locator.SWAP:
                # Its slots are the system's again; only where it would be found may be written to.
                areas.forget(facts.target)
            elif after.retire:
                area = areas.file_area(facts.target) if facts.target.kind == FILE else None
                target.retire(path, after.error, cycle_id=UUID(cycle), area=area)
        except (KjumpError, OSError) as error:
            # What became of the session is to be told all the same.
            log.error(f"the image on {path} could not be marked: {error}")
        if after.error is not None:
            log.warning(after.error.sentence, KJUMP_CYCLE=cycle, KJUMP_ERROR=after.error.name)
            kept.add(
                {
                    "cycle": cycle,
                    "result": "failed",
                    "where": "helper" if found.state in ("empty", "writing") else "resume",
                    "started": found.changed,
                    "finished": round(time.time(), 3),
                    "phases": {},
                    "wall": {},
                    "target": str(path),
                    **after.error.report(),
                }
            )
    except (KjumpError, OSError) as error:
        log.warning(f"the target {path} could not be examined: {error}")


def read(settings: configuration.Settings) -> Facts:
    """The facts; on the way logind is told that there is a device to resume from, where it waits
    for that and kjump is what hibernates."""
    facts = readiness.read(settings)
    try:
        if TAKEN_OVER.exists():
            told = logind.tell(facts.target, facts.command_line)
            if told is not None:
                log.info(f"swap named to the kernel, for logind: {told[0]}, page {told[1]}")
    except OSError as error:
        log.warning(f"no resume device could be named to the kernel: {error}")
    return facts


def offer(possible: bool, settings: configuration.Settings) -> bool:
    """Have logind offer hibernation where kjump or the kernel can do it; whether it does now.

    Only where requests are led to kjump: else logind looks for itself.
    """
    yes = not TAKEN_OVER.exists() or stock.offered(
        possible, settings.session.fallback, stock.read()
    )
    try:
        if stock.offer(yes):
            log.info(
                "logind is told to offer hibernation"
                if yes
                else "logind is told not to offer hibernation: nothing can do it here"
            )
    except OSError as error:
        log.warning(f"what logind offers could not be set: {error}")
    return yes


# -- by way of systemd -----------------------------------------------------------------------------

GRACE = 20
"""Seconds that the unit of the hooks may take beside the hooks."""
THAW_TRIES = 5
FREEZER = Path("/sys/fs/cgroup") / units.SESSIONS / "cgroup.freeze"


def run_hooks(connection: Any, when: str, seconds: float) -> Sequence[hooks.Result]:
    """Run the hooks in their unit, which tells how they ended.  Raises `HooksFailed`."""
    if not hooks.find():
        return []  # most machines have none, and the unit takes time to start
    unit = f"kjump-hooks@{when}.service"
    try:
        result = units.start(connection, unit, seconds=seconds + GRACE)
    except units.BusError as error:
        raise HooksFailed(f"{unit} could not be started: {error}.") from error
    if result != "done":
        raise HooksFailed(f"{unit} ended with: {result}.")
    return []


def thaw(connection: Callable[[], Any]) -> None:
    """Let the sessions go on.  Tried again and again, and at last past systemd: nobody can do
    anything on a machine with frozen sessions."""
    for _ in range(THAW_TRIES):
        try:
            units.thaw(connection())
        except (units.BusError, GLib.Error) as error:
            log.warning(f"the sessions could not be let go on: {error}")
            time.sleep(1)
        else:
            return
    FREEZER.write_text("0")


def actions_by(connection: Any) -> Actions:
    """What a cycle does, on the machine and over the bus."""
    return Actions(
        read=read,
        freeze=(lambda: units.freeze(connection)) if freezes() else None,
        thaw=lambda: thaw(lambda: connection),
        hooks=lambda when, seconds: run_hooks(connection, when, seconds),
        lock_homes=lambda: units.lock_homes(connection),
        offer=offer,
    )


def freezes() -> bool:
    """Whether sessions are stopped for a cycle: where systemd does it, and nobody said no."""
    return units.freezes_sessions() and not units.says_no(os.environ.get(units.FREEZE_VARIABLE, ""))


# -- talking to systemd ---------------------------------------------------------------------------


class ServiceManager:
    """READY, STATUS, STOPPING and the watchdog, by sdnotify."""

    def __init__(self) -> None:
        import sdnotify

        self._notifier = sdnotify.SystemdNotifier()
        self.watchdog_ms = int(os.environ.get("WATCHDOG_USEC", "0")) // 1000

    def tell(self, *lines: str) -> None:
        """Send state lines; outside of systemd nothing happens."""
        # sdnotify sends latin-1 and drops what it cannot encode.
        text = "\n".join(lines).encode("ascii", "replace").decode()
        self._notifier.notify(text)

    def status(self, text: str) -> None:
        """What ``systemctl status kjumpd`` shows."""
        self.tell("STATUS=" + text.splitlines()[0])

    def pet(self) -> bool:
        """The watchdog's sign of life; from the main loop, so that a stuck loop is noticed."""
        self.tell("WATCHDOG=1")
        return True


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
        self._swaps: IO[bytes] | None = None
        self._registration = bus.register(connection, manager)
        try:
            # After the object, so that whoever waits for the name finds it.
            self._name = connection.request_name(bus.NAME, allow_replacement=False)
        except RuntimeError:
            self._registration.unregister()
            raise

    def run(self, *, watch: bool = True) -> None:
        """Serve until `stop`."""
        if watch:
            try:
                self._stop_watching = devices.watch(self._devices_changed)
            except (ImportError, OSError) as error:
                log.warning(f"devices cannot be watched: {error}")
            try:
                self._watch_swaps()
            except OSError as error:
                log.warning(f"swap cannot be watched: {error}")
        if self._manages.watchdog_ms:
            GLib.timeout_add(self._manages.watchdog_ms // 3, self._manages.pet)
        self.manager.assess()
        self._manages.tell("READY=1", "STATUS=Ready")
        try:
            self.loop.run()
        finally:
            self._stop_watching()
            self._name.unown()
            self._registration.unregister()

    def stop(self) -> bool:
        """End: at once, or as soon as a running cycle has given back what it owes."""
        self._manages.tell("STOPPING=1")
        self.manager.interrupt()

        def when_idle() -> bool:
            if self.manager.busy:
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

    def _watch_swaps(self) -> None:
        """/proc/swaps is exceptional after each swapon and swapoff until it is read (mm/swapfile.c,
        swaps_poll); no device event tells of them."""
        file = self._swaps = devices.SWAPS.open("rb", buffering=0)
        file.read()

        def changed(_fd: int, _condition: Any) -> bool:
            file.seek(0)
            file.read()
            self._devices_changed()
            return True

        condition = GLib.IOCondition.PRI | GLib.IOCondition.ERR
        GLib.unix_fd_add_full(GLib.PRIORITY_DEFAULT, file.fileno(), condition, changed)

    def _devices_changed(self) -> None:
        if not self._settling:
            self._settling = GLib.timeout_add(SETTLE_MS, self._settled)

    def _settled(self) -> bool:
        self._settling = 0
        if not self.manager.busy:
            self.manager.assess()
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
            cleaning=cleaning_by(lambda: connect(options.address).con),
            hook_timeout=settings.session.hook_timeout,
        )

    end()
    if options.clean_up:
        stock.offer(True)
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
            actions=actions_by(connection.con),
            look_back=lambda facts: look_back(kept, facts),
            status=manages.status,
            inhibitors=lambda done: units.list_inhibitors(connection.con, done),
        )
        service = Service(connection, manager, manages)
    except (GLib.Error, RuntimeError) as error:
        log.error(f"the bus name {bus.NAME} cannot be had: {error}")
        return 1
    GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGTERM, service.stop)
    GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGINT, service.stop)
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGHUP, service.reload)
    log.info("serving", release=read_text("/proc/sys/kernel/osrelease").strip())
    service.run()
    # A staged helper would turn a reboot into a jump: it goes before anything else can happen.
    manager.close()
    end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
