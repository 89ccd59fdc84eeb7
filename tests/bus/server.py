# SPDX-License-Identifier: GPL-2.0-or-later
"""The real daemon code on a private bus, with a machine that is played.

``python3 -m tests.bus.server ADDRESS DIRECTORY``.  The test says through files in the directory
what the machine does:

- ``reasons``: names of errors, one a line, that the machine is not ready for;
- ``hold``: while it is there, the jump does not return;
- ``fail``: name of the error the jump fails with;
- ``stale``: a warm helper does not fit any more;
- ``cold``: the helper cannot be kept;
- ``inhibited``: somebody inhibits sleep; its text is the mode;
- ``kernel-hibernation``: the kernel's own hibernation is possible;
- ``offered``: is there while hibernation is offered to logind;
- ``slow``: while it is there, reading the machine does not return;
- ``done``: what was done, one word a line, is written here.
"""

from __future__ import annotations

import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gi.repository import GLib

from kjump import errors
from kjump.handoff import report as reports
from kjump.handoff.report import Report
from kjump.session.checks.facts import Facts
from kjump.session.connection import connect
from kjump.session.cycle.actions import Actions
from kjump.session.cycle.history import History
from kjump.session.cycle.recovery import CleanUpActions, LookBack, clean_up
from kjump.session.log import set_up
from kjump.session.mark import Mark, clear_mark, write_mark
from kjump.session.service.assessment import LogindActions
from kjump.session.service.authority import Polkit
from kjump.session.service.main import Service
from kjump.session.service.manager import Manager
from kjump.session.service.notify import ServiceManager
from kjump.session.systemd import kernel_hibernation
from kjump.session.systemd.hooks import Result
from kjump.session.systemd.kernel_hibernation import KernelHibernation
from kjump.session.systemd.systemd_bus import Inhibitor
from kjump.session.target.swaps import SwapArea
from kjump.settings import Settings, parse
from tests.unit.test_readiness import DISK, READY

REPORT = Report(
    "resume",
    "ok",
    phases={"copy": 1.5},
    pages={"data": 1000, "zero": 24, "free": 3072},
    image={"size": 1024000, "data": 4096000},
)
FACTS: dict[str, dict[str, Any]] = {
    "NoKexecJump": {"jump": errors.NoKexecJump("No CONFIG_KEXEC_JUMP.")},
    "NoTarget": {"target": errors.NoTarget("No target is configured.")},
    "NoBootResume": {"boot": None},
    "TooLittleMemory": {"available": 1 << 20},
}


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.warming_up = self.dry = False

    def done(self, word: str) -> None:
        with (self.folder / "done").open("a") as stream:
            stream.write(word + "\n")

    def wait_while(self, name: str) -> None:
        while (self.folder / name).exists():
            time.sleep(0.01)

    def read(self, _settings: Settings) -> Facts:
        self.done("read")
        self.wait_while("slow")
        facts: Facts = READY
        try:
            names = (self.folder / "reasons").read_text().split()
        except OSError:
            names = []
        for name in names:
            facts = replace(facts, **FACTS[name])
        return facts

    def stage(self, *_arguments: object) -> World:
        self.done("stage")
        return self

    def stage_warm(self, *_arguments: object) -> World:
        self.done("stage-warm")
        self.warming_up = True
        return self

    def stage_dry(self, *_arguments: object) -> World:
        self.done("stage-dry")
        self.dry = True
        return self

    def welcome(self, _report: object) -> None:
        self.done("welcome")

    def is_ours(self) -> bool:
        return True

    def ask(self, *_arguments: object) -> None:
        self.done("ask")

    def misfit(self, *_arguments: object) -> errors.StaleHelper | None:
        if (self.folder / "stale").exists():
            return errors.StaleHelper("It does not fit.")
        return None

    def describe(self) -> dict[str, Any]:
        return {"start": 1 << 28, "size": 160 << 20}

    def check(self) -> None:
        self.done("check")

    def jump(self) -> None:
        self.done("jump")
        self.wait_while("warm-hold" if self.warming_up else "hold")
        if (self.folder / "fail").exists():
            cls = errors.table()[(self.folder / "fail").read_text().strip()]
            raise cls("The test wants it to fail.")

    def report(self) -> Report:
        if self.warming_up:
            self.warming_up = False
            if (self.folder / "cold").exists():
                error = errors.NoWarmHelper("It cannot.")
                return reports.failed("helper", error)
            return Report("helper", "warm", phases={"helper boot": 2.5})
        if self.dry:
            self.dry = False
            return Report("helper", "returned", phases={"helper boot": 2.5})
        return REPORT

    def close(self) -> None:
        self.done("close")

    def prepare(self, _facts: Facts, _cycle: uuid.UUID) -> None:
        self.done("prepare")

    def hooks(self, when: str, _seconds: float = 0) -> list[Result]:
        self.done(when)
        return []

    def kernel_hibernation(self) -> KernelHibernation:
        area = SwapArea(Path("/dev/sda1"), False, 1 << 30, 0, "8:1")
        swaps = (area,) if self.has("kernel-hibernation") else ()
        return KernelHibernation(resume="8:1", swaps=swaps)

    def offer(self, possible: bool, settings: Settings) -> bool:
        yes = kernel_hibernation.offered(
            possible, settings.session.fallback, self.kernel_hibernation()
        )
        (self.folder / "offered").write_text("yes" if yes else "no")
        return yes

    def inhibitors(self, done: Callable[[list[Inhibitor]], None]) -> None:
        found = []
        if self.has("inhibited"):
            mode = (self.folder / "inhibited").read_text()
            found = [Inhibitor("shutdown:sleep", "Burner", "burning", mode, 0, 1)]
        done(found)

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def freeze(self) -> None:
        self.done("freeze")

    def retire(self, *_arguments: object) -> None:
        self.done("retire")

    def unload(self) -> None:
        self.done("unload")


def settings(folder: Path) -> Settings:
    try:
        text = (folder / "kjump.conf").read_text()
    except OSError:
        text = f"[Target]\nPath={DISK.path}\n"
    return parse(Settings(), "kjump.conf", text)


def main() -> int:
    address, folder = sys.argv[1], Path(sys.argv[2])
    set_up(debug=True)
    world, mark = World(folder), folder / "staged"
    kept = History(folder / "history.jsonl")

    def post(_seconds: float) -> list[Result]:
        return world.hooks("post")

    clean_up(kept, actions=CleanUpActions(mark, world.unload, post))

    def put_mark(found: Mark) -> None:
        write_mark(found, mark)

    actions = Actions(
        read=world.read,
        prepare=world.prepare,
        stage=world.stage,
        stage_warm=world.stage_warm,
        stage_dry=world.stage_dry,
        ask=world.ask,
        misfit=world.misfit,
        hooks=world.hooks,
        freeze=world.freeze,
        thaw=lambda: world.done("thaw"),
        read_kernel_hibernation=world.kernel_hibernation,
        look_back=LookBack(kept, lambda *_about: world.done("look-back")),
        record=kept.add,
        sync=lambda: world.done("sync"),
        retire=world.retire,
        unload=world.unload,
        write_mark=put_mark,
        clear_mark=lambda: clear_mark(mark),
    )
    connection = connect(address)
    manages = ServiceManager()
    manager = Manager(
        settings=lambda: settings(folder),
        authority=Polkit(connection.con),
        history=kept,
        actions=actions,
        logind=LogindActions(offer=world.offer),
        status=manages.status,
        inhibitors=world.inhibitors,
        warm_delay=0.2,
        look_again=1,
    )
    try:
        service = Service(connection, manager, manages)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    GLib.unix_signal_add(GLib.PRIORITY_HIGH, signal.SIGTERM, service.stop)
    service.run(watch=False)
    manager.worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
