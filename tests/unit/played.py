# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine, a caller and polkit, played in this process: for the service's tests without a bus."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from gi.repository import Gio, GLib

from kjump import errors
from kjump.handoff.report import Report
from kjump.session.checks.facts import Facts
from kjump.session.cycle.actions import Actions
from kjump.session.log import set_up
from kjump.session.mark import Mark
from kjump.session.service.calls import Call
from kjump.session.service.operations import later
from kjump.session.systemd.kernel_hibernation import KernelHibernation
from kjump.settings import Settings
from tests.unit.test_readiness import READY

REPORTS = {
    "stage": Report("resume", "ok", phases={"copy": 1.5}, pages={"data": 7}),
    "stage-warm": Report("helper", "warm", phases={"helper boot": 2.5}),
    "stage-dry": Report("helper", "returned", phases={"helper boot": 2.5}),
}
"""What comes back from a jump, by what was staged."""


def until(true: Callable[[], object], seconds: float = 10) -> None:
    """Run the main loop until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        if not GLib.MainContext.default().iteration(False):
            time.sleep(0.001)


def settle() -> None:
    """Run what is due on the main loop."""
    while GLib.MainContext.default().iteration(False):
        pass


class Machine:
    """Notes what is done to it; waits at an action, or fails there, as the test says."""

    def __init__(self) -> None:
        set_up()
        self.done: list[str] = []
        self.holds: dict[str, threading.Event] = {}
        self.fails: dict[str, Exception] = {}
        self.facts: Facts = READY
        self.stale: errors.StaleHelper | None = None
        self.staged = ""
        self.recorded: list[Mapping[str, Any]] = []

    def hold(self, name: str) -> threading.Event:
        """From now on the action waits until the event is set."""
        return self.holds.setdefault(name, threading.Event())

    def do(self, name: str) -> None:
        self.done.append(name)
        if name in self.holds:
            assert self.holds[name].wait(10)
        if name in self.fails:
            raise self.fails[name]

    def at(self, name: str) -> Callable[[], bool]:
        """Whether the action was begun."""
        return lambda: name in self.done

    # a helper that is staged
    def describe(self) -> dict[str, int]:
        return {"start": 1 << 28}

    def check(self) -> None:
        self.do("check")

    def jump(self) -> None:
        self.do("jump")

    def report(self) -> Report | None:
        return REPORTS[self.staged]

    def close(self) -> None:
        self.do("close")
        self.staged = ""

    def welcome(self, _report: Report) -> None:
        self.do("welcome")

    def is_ours(self) -> bool:
        return bool(self.staged)

    # actions
    def read(self, _settings: Settings) -> Facts:
        self.do("read")
        return self.facts

    def stage(self, _settings: Settings, _facts: Facts, _cycle: uuid.UUID) -> Machine:
        self.staged = "stage"
        self.do("stage")
        return self

    def stage_warm(self, _settings: Settings, _facts: Facts) -> Machine:
        self.staged = "stage-warm"
        self.do("stage-warm")
        return self

    def stage_dry(self, _settings: Settings, _facts: Facts, _cycle: uuid.UUID) -> Machine:
        self.staged = "stage-dry"
        self.do("stage-dry")
        return self

    def ask(self, _helper: object, *_about: object) -> None:
        assert self.staged, "a helper is asked that is unloaded"
        self.staged = "stage"
        self.do("ask")

    def misfit(self, *_about: object) -> errors.StaleHelper | None:
        return self.stale

    def record(self, report: Mapping[str, Any]) -> None:
        self.recorded.append(report)

    def offer(self, possible: bool, _settings: Settings) -> bool:
        self.do("offer" if possible else "offer nothing")
        return possible

    def set_resume_device(self, _facts: Facts) -> None:
        self.do("set resume device")

    def actions(self, **others: Any) -> Actions:
        def nothing(*_about: object) -> None:
            pass

        def no_hooks(*_about: object) -> list[Any]:
            return []

        def mark(_mark: Mark) -> None:
            self.do("mark")

        given: dict[str, Any] = {
            "read": self.read,
            "prepare": nothing,
            "stage": self.stage,
            "stage_warm": self.stage_warm,
            "stage_dry": self.stage_dry,
            "ask": self.ask,
            "misfit": self.misfit,
            "hooks": no_hooks,
            "sync": nothing,
            "retire": nothing,
            "is_loaded": lambda: bool(self.staged),
            "unload": lambda: self.do("unload"),
            "write_mark": mark,
            "clear_mark": lambda: self.do("clear mark"),
            "record": self.record,
            "read_kernel_hibernation": KernelHibernation,
        }
        return Actions(**{**given, **others})


class NoThreads:
    """While inside, no thread of these names can be started; none at all if none is named."""

    def __init__(self, *names: str) -> None:
        self._patch = pytest.MonkeyPatch()
        self._names = names

    def __enter__(self) -> None:
        start, names = threading.Thread.start, self._names

        def refuse(thread: threading.Thread) -> None:
            if not names or thread.name in names:
                raise RuntimeError("can't start new thread")
            start(thread)

        self._patch.setattr(threading.Thread, "start", refuse)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


class Invocation:
    """A `Gio.DBusMethodInvocation` that keeps what it is answered."""

    __grefcount__ = 1

    def __init__(self, *, interactive: bool = False) -> None:
        self.answers: list[Any] = []
        self._message = Gio.DBusMessage()
        if interactive:
            self._message.set_flags(Gio.DBusMessageFlags.ALLOW_INTERACTIVE_AUTHORIZATION)

    def get_message(self) -> Gio.DBusMessage:
        return self._message

    def return_value(self, value: Any) -> None:
        self.answers.append(value.unpack())

    def return_dbus_error(self, name: str, message: str) -> None:
        message.encode()
        self.answers.append((name, message))


class Caller:
    """A real `Call`, and what it was answered."""

    def __init__(self, signature: str = "", *, interactive: bool = False) -> None:
        self.invocation = Invocation(interactive=interactive)
        self.call = Call(self.invocation, ":1.1", signature)

    @property
    def answer(self) -> Any:
        """Waits for it; a call is answered once."""
        until(lambda: self.invocation.answers)
        (found,) = self.invocation.answers
        return found

    @property
    def error(self) -> str:
        """The last part of the error's name."""
        name, _message = self.answer
        assert isinstance(name, str) and name.startswith(errors.DBUS_PREFIX), self.answer
        return name.removeprefix(errors.DBUS_PREFIX)

    @property
    def is_waiting(self) -> bool:
        settle()
        return not self.invocation.answers


class Authority:
    """polkit: the answer, by action; "yes" to what is not named."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.asked: list[tuple[str, bool]] = []

    def check(
        self, sender: str, action: str, *, interactive: bool, done: Callable[[str], None]
    ) -> None:
        assert sender == ":1.1"
        self.asked.append((action, interactive))
        later(done, self.answers.get(action, "yes"))
