# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.service.manager and .calls, without a bus: who may, and what is answered."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gi.repository import Gio, GLib

from kjump import errors
from kjump.names import INTERFACE
from kjump.session.cycle.history import History
from kjump.session.service import calls
from kjump.session.service.assessment import LogindActions
from kjump.session.service.calls import Wrapper
from kjump.session.service.manager import Manager, interface_xml
from kjump.session.systemd import systemd_bus
from kjump.session.systemd.kernel_hibernation import KernelHibernation
from kjump.session.systemd.systemd_bus import Inhibitor
from kjump.session.target.swaps import SwapArea
from kjump.settings import Settings, parse
from tests.unit.played import Authority, Caller, Invocation, Machine, NoThreads, settle, until
from tests.unit.test_readiness import READY

HIBERNATE, MANAGE = "org.kjump1.hibernate", "org.kjump1.manage"
BURNER = Inhibitor("shutdown:sleep", "Burner", "burning", "block", 0, 1)


class Service:
    """A manager and all that it talks to."""

    def __init__(self, folder: Path) -> None:
        self.machine = Machine()
        self.authority = Authority()
        self.history = History(folder / "history.jsonl")
        self.settings = Settings()
        self.inhibitors: list[Inhibitor] | errors.Inhibited = []
        self.looks = [True]
        self.kernel = KernelHibernation()
        self.status: list[str] = []
        self.signals: list[tuple[str, tuple[Any, ...]]] = []
        machine = self.machine
        self.manager = Manager(
            settings=lambda: self.settings,
            authority=self.authority,
            history=self.history,
            actions=machine.actions(
                record=self.history.add,
                look_back=lambda facts: bool(self.looks and self.looks.pop()),
                read_kernel_hibernation=lambda: self.kernel,
            ),
            logind=LogindActions(machine.offer, machine.set_resume_device),
            status=self.status.append,
            inhibitors=lambda done: done(self.inhibitors),
        )
        for name in ("CycleStarted", "CycleFinished", "PropertiesChanged"):
            getattr(self.manager, name).connect(self.heard(name))

    def heard(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.signals.append((name, arguments))

    def can_hibernate(self) -> Any:
        caller = Caller("sa(ss)")
        self.manager.CanHibernate(caller.call)
        return caller.answer

    def hibernate(self, *, interactive: bool = False, **options: Any) -> Caller:
        caller = Caller("a{sv}", interactive=interactive)
        given = {name.replace("_", "-"): value for name, value in options.items()}
        with caller.call.answers_errors():
            self.manager.Hibernate(caller.call, given)
        return caller

    def call(self, method: str, signature: str = "", *arguments: Any) -> Caller:
        caller = Caller(signature)
        with caller.call.answers_errors():
            getattr(self.manager, method)(caller.call, *arguments)
        return caller

    def stage(self) -> Caller:
        return self.call("Stage", "a{sv}", {"warm": True})

    def dry_run(self) -> Caller:
        return self.call("DryRun", "a{sv}")


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    found = Service(tmp_path)
    yield found
    for event in found.machine.holds.values():
        event.set()
    found.manager.worker.stop()
    until(lambda: found.manager.worker.operation is None)
    settle()


# -- CanHibernate and Check


def test_can_hibernate(service: Service) -> None:
    assert service.can_hibernate() == ("yes", [])
    assert service.authority.asked == [(HIBERNATE, False)]
    service.authority.answers[HIBERNATE] = "challenge"
    assert service.can_hibernate() == ("challenge", [])
    service.authority.answers[HIBERNATE] = "no"
    answer, reasons = service.can_hibernate()
    assert answer == "no" and reasons[0][0] == "NotAuthorized"
    service.machine.facts = replace(READY, jump=errors.NoKexecJump("It has none."))
    answer, reasons = service.can_hibernate()
    assert answer == "na" and reasons == [
        ("NoKexecJump", "It has none.  " + errors.NoKexecJump.advice)
    ]
    assert len(service.authority.asked) == 3  # polkit is not asked in vain
    assert service.manager.Available == "na" and service.manager.Reasons == reasons
    assert service.status[-1].startswith("Cannot hibernate: It has none.")


def test_the_target_that_was_read_is_shown(service: Service) -> None:
    assert not service.manager.Target["present"].unpack()
    service.can_hibernate()
    assert service.manager.Target["path"].unpack() == "/dev/vda3"
    assert service.manager.Window["size"] == 160 << 20
    # One that could not be read again is not gone.
    service.machine.fails["read"] = OSError(5, "I/O error")
    answer, ((name, _sentence),) = service.can_hibernate()
    assert (answer, name) == ("no", "Internal")
    assert service.manager.Target["present"].unpack()


def test_many_who_check_share_one_answer(service: Service) -> None:
    reading = service.machine.hold("read")
    crowd = [service.call("Check", "a(sssss)") for _ in range(20)]
    until(service.machine.at("read"))
    reading.set()
    (first,) = crowd[0].answer
    assert all(one.answer == (first,) for one in crowd)
    assert ("machine", "ok") in [(name, state) for name, state, *_ in first]
    assert service.machine.done.count("read") == 1


def test_checks_that_fail_are_answered_and_the_next_are_made(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> list[tuple[str, str, str]]:
        (found,) = service.call("Check", "a(sssss)").answer
        return [finding[:3] for finding in found]

    with NoThreads("checks"):
        assert check() == [("reading", "failed", "TooLittleMemory")]
    with NoThreads():
        assert check() == [("reading", "failed", "TooLittleMemory")]
    service.machine.fails["read"] = OSError(5, "I/O error")
    assert check() == [("reading", "failed", "Internal")]
    service.machine.fails.clear()
    with monkeypatch.context() as patch:
        patch.setattr("kjump.session.checks.doctor.examine", None)
        assert check() == [("reading", "failed", "Internal")]
    assert len(check()) > 5


# -- Hibernate


def test_a_cycle(service: Service) -> None:
    service.can_hibernate()
    service.signals.clear()
    (report,) = service.hibernate().answer
    assert report["result"] == "ok" and report["phases"]["copy"] == 1.5
    names = [name for name, _ in service.signals]
    assert names.count("CycleStarted") == names.count("CycleFinished") == 1
    finished = service.signals[names.index("CycleFinished")][1]
    assert finished[0] == report["cycle"]
    # Whoever hears of the end finds the report in place.
    before = service.signals[names.index("CycleFinished") - 1][1][1]
    assert before["State"] == "idle" and before["LastCycle"]["cycle"].unpack() == report["cycle"]
    entry = service.history.last()
    assert entry is not None and entry["cycle"] == report["cycle"]
    assert "Jumping into the helper kernel" in service.status


def test_the_operation_is_shown(service: Service) -> None:
    jumping = service.machine.hold("jump")
    for begin, name in (
        (service.stage, "warm-up"),
        (service.dry_run, "dry-run"),
        (service.hibernate, "hibernate"),
    ):
        jumping.clear()
        service.machine.done.clear()
        caller = begin()
        until(service.machine.at("jump"))
        assert caller.is_waiting and service.manager.Operation == name
        jumping.set()
        assert caller.answer[0]["result"] in ("warm", "returned", "ok")
        assert service.manager.Operation == "none" and service.manager.State == "idle"
    assert service.history.last() is not None and len(service.history.entries()) == 1


def test_an_error_is_answered_in_two_lines(service: Service) -> None:
    service.machine.fails["jump"] = errors.JumpFailed("The kernel did not jump:\nEIO.")
    caller = service.hibernate()
    assert caller.error == "JumpFailed"
    assert errors.split_message(caller.answer[1]) == (
        "The kernel did not jump: EIO.",
        errors.JumpFailed.advice,
    )
    assert service.manager.LastCycle["error"].unpack() == "JumpFailed"
    assert service.machine.done[-1] != "jump" and "unload" in service.machine.done


def test_who_may_not_hibernate(service: Service) -> None:
    service.authority.answers = {HIBERNATE: "challenge", MANAGE: "no"}
    assert service.hibernate(interactive=True).error == "NotAuthorized"
    assert service.dry_run().error == "NotAuthorized"
    for caller in (service.stage(), service.call("Unstage"), service.call("Reload", "as")):
        assert caller.error == "NotAuthorized"
    assert service.authority.asked[0] == (HIBERNATE, True)
    assert service.machine.done == []


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("Hibernate", {"fast": True}),
        ("Hibernate", {"fallback": "yes"}),
        ("Hibernate", {"freeze": 1}),
        ("Stage", {}),
        ("Stage", {"warm": False}),
        ("Stage", {"warm": True, "hot": True}),
    ],
)
def test_options_that_are_refused(service: Service, method: str, options: dict[str, Any]) -> None:
    assert service.call(method, "a{sv}", options).error == "BadRequest"
    assert not service.authority.asked


def test_inhibitors_are_heeded(service: Service) -> None:
    service.inhibitors = [BURNER]
    caller = service.hibernate()
    assert caller.error == "Inhibited" and "Burner (burning)" in caller.answer[1]
    service.inhibitors = [BURNER._replace(mode="delay")]
    assert service.hibernate().answer[0]["result"] == "ok"


def test_if_nobody_knows_who_inhibits_the_request_is_refused(service: Service) -> None:
    service.inhibitors = errors.Inhibited("logind does not say.")
    assert service.hibernate().error == "Inhibited"
    assert "stage" not in service.machine.done
    # An administrator does not have to care.
    assert service.hibernate(ignore_inhibitors=True).answer[0]["result"] == "ok"


def test_ignoring_inhibitors_takes_an_administrator(service: Service) -> None:
    service.authority.answers = {MANAGE: "no"}
    assert service.hibernate(ignore_inhibitors=True).error == "NotAuthorized"
    assert service.authority.asked == [(HIBERNATE, False), (MANAGE, False)]


def test_falling_back_is_no_error(service: Service) -> None:
    service.machine.facts = replace(READY, boot=None)
    assert service.hibernate(fallback=True).error == "NoBootResume"
    assert "no_fallback" in service.manager.LastCycle
    service.kernel = KernelHibernation(
        resume="8:1", swaps=(SwapArea(Path("/dev/sda1"), False, 1 << 30, 0, "8:1"),)
    )
    (report,) = service.hibernate(fallback=True).answer
    assert (report["result"], report["fallback"]) == ("failed", "stock")
    assert service.hibernate().error == "NoBootResume"


def test_while_a_cycle_runs(service: Service) -> None:
    jumping = service.machine.hold("jump")
    first = service.hibernate()
    until(service.machine.at("jump"))
    answer, ((code, sentence),) = service.can_hibernate()
    assert (answer, code) == ("no", "Busy") and sentence.startswith("A cycle is running.")
    others = (
        service.hibernate(),
        service.dry_run(),
        service.stage(),
        service.call("Unstage"),
    )
    assert [caller.error for caller in others] == ["Busy"] * 4
    jumping.set()
    assert first.answer[0]["result"] == "ok"


def test_no_thread_for_a_cycle(service: Service) -> None:
    with NoThreads("cycle"):
        assert service.hibernate().error == "TooLittleMemory"
    assert service.manager.Operation == "none"
    assert service.hibernate().answer[0]["result"] == "ok"


def test_a_request_behind_a_warm_up_at_the_end(service: Service) -> None:
    jumping = service.machine.hold("jump")
    warm = service.stage()
    until(service.machine.at("jump"))
    waits = service.hibernate()
    assert waits.is_waiting
    service.manager.worker.stop()
    assert waits.error == "Interrupted"
    jumping.set()
    assert warm.answer[0]["result"] == "warm"
    assert service.machine.done.count("jump") == 1


# -- the other methods


def test_staging_and_unstaging(service: Service) -> None:
    (report,) = service.stage().answer
    assert report["result"] == "warm" and service.manager.Staged == "warm"
    assert service.stage().answer == ({},)  # it is there already
    assert service.call("Unstage").answer == ()
    assert service.manager.Staged == "no" and "close" in service.machine.done


def test_a_helper_that_cannot_be_kept(service: Service) -> None:
    service.machine.fails["stage-warm"] = errors.NoWarmHelper("It cannot be kept.")
    assert service.stage().error == "NoWarmHelper" and service.manager.Staged == "no"


def test_somebody_is_faster_than_who_wants_to_stage(service: Service) -> None:
    reading, jumping = service.machine.hold("read"), service.machine.hold("jump")
    stage = service.stage()
    until(service.machine.at("read"))
    dry_run = service.dry_run()
    settle()
    reading.set()
    assert stage.error == "Busy"
    jumping.set()
    assert dry_run.answer[0]["result"] == "returned"


def test_a_dry_run_that_fails(service: Service) -> None:
    service.machine.fails["jump"] = errors.JumpFailed("No.")
    assert service.dry_run().error == "JumpFailed"
    assert service.manager.LastCycle == {} and service.history.last() is None


def test_reloading(service: Service) -> None:
    service.settings = parse(Settings(), "kjump.conf", "[Target]\nPath=/dev/vdb1\nBad=1\n")
    (warnings,) = service.call("Reload", "as").answer
    assert warnings == ["kjump.conf:3: unknown key Bad= in [Target], ignored"]
    assert service.manager.Warnings == warnings
    until(lambda: service.manager.Target["spec"].unpack() == "/dev/vdb1")


@pytest.mark.parametrize("how", ["assessment", "dry run"])
def test_what_an_earlier_boot_left_is_shown(service: Service, how: str) -> None:
    entry = {"cycle": "c1", "result": "failed", **errors.NoBootResume("x").report()}

    service.history.add(entry)
    assert service.manager.LastCycle == {}
    if how == "assessment":
        service.can_hibernate()
    else:
        service.dry_run().answer  # noqa: B018
    assert service.manager.LastCycle["error"].unpack() == "NoBootResume"


def test_attributes_that_are_no_properties(service: Service) -> None:
    with pytest.raises(AttributeError):
        service.manager.Nothing  # noqa: B018
    assert service.manager.Version


# -- calls


@pytest.fixture
def wrapper(service: Service) -> Wrapper:
    return Wrapper(service.manager, Gio.DBusNodeInfo.new_for_xml(interface_xml()).interfaces)


def send(
    wrapper: Wrapper, method: str, arguments: Any = None, interface: str = INTERFACE
) -> Invocation:
    invocation = Invocation()
    parameters = arguments if arguments is not None else GLib.Variant("()", ())
    wrapper.call_method(None, ":1.1", "/", interface, method, parameters, invocation)
    return invocation


def test_methods_are_called_by_name(wrapper: Wrapper) -> None:
    invocation = send(wrapper, "CanHibernate")
    until(lambda: invocation.answers)
    assert invocation.answers == [("yes", [])]


def test_errors_of_methods_are_named(
    wrapper: Wrapper, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = GLib.Variant("(a{sv})", ({"fast": GLib.Variant("b", True)},))
    ((name, message),) = send(wrapper, "Hibernate", options).answers
    assert name == "org.kjump1.Error.BadRequest" and "fast" in message
    monkeypatch.setattr(service.manager, "Unstage", lambda call: 1 / 0)
    ((name, message),) = send(wrapper, "Unstage").answers
    assert name == "org.kjump1.Error.Internal" and "ZeroDivisionError" in message
    long = GLib.Variant("(a{sv})", ({"x" * (17 << 10): GLib.Variant("b", True)},))
    ((name, _),) = send(wrapper, "Hibernate", long).answers
    assert name == "org.kjump1.Error.BadRequest"


def test_properties_are_read(
    wrapper: Wrapper, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = calls.PROPERTIES
    one = GLib.Variant("(ss)", (INTERFACE, "State"))
    assert send(wrapper, "Get", one, properties).answers == [("idle",)]
    ((values,),) = send(wrapper, "GetAll", GLib.Variant("(s)", (INTERFACE,)), properties).answers
    assert values["State"] == "idle" and values["LastCycle"] == {}
    new = GLib.Variant("(ssv)", (INTERFACE, "State", GLib.Variant("s", "x")))
    ((name, _),) = send(wrapper, "Set", new, properties).answers
    assert name == "org.freedesktop.DBus.Error.PropertyReadOnly"
    service.manager._values["State"] = object()
    ((name, _),) = send(wrapper, "Get", one, properties).answers
    assert name == "org.kjump1.Error.Internal"


@pytest.mark.parametrize("values", [("\udcff",), (1,), (), ("a", "b")])
def test_an_answer_that_does_not_fit_is_an_error(values: tuple[Any, ...]) -> None:
    caller = Caller("s")
    caller.call.reply(*values)
    assert caller.error == "Internal"
    caller.call.reply("again")
    caller.call.fail(errors.Busy("again"))
    assert len(caller.invocation.answers) == 1


def test_an_error_with_a_strange_file_name_is_named() -> None:
    caller = Caller()
    caller.call.fail(errors.BadRequest("/media/\udcff\0 is no file."))
    assert caller.error == "BadRequest" and caller.answer[1].startswith("/media/?? is no file.")


def test_a_call_that_everybody_forgot_is_answered() -> None:
    caller = Caller("s")
    del caller.call
    gc.collect()
    assert caller.error == "Internal"
    answered = Caller("s")
    answered.call.reply("yes")
    del answered.call
    gc.collect()
    assert answered.answer == ("yes",)


# -- logind


class Logind:
    """Answers like a `Gio.DBusConnection`."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def call(self, *arguments: Any) -> None:
        arguments[-1](self, None)

    def call_finish(self, _result: object) -> Any:
        if isinstance(self.answer, GLib.Error):
            raise self.answer
        return self.answer


def listed(answer: Any) -> list[Inhibitor] | errors.Inhibited:
    box: list[list[Inhibitor] | errors.Inhibited] = []
    systemd_bus.list_inhibitors(Logind(answer), box.append)
    return box[0]


def test_a_logind_that_does_not_answer_is_not_nobody() -> None:
    late = GLib.Error.new_literal(
        Gio.io_error_quark(), "Timeout was reached", Gio.IOErrorEnum.TIMED_OUT
    )
    found = listed(late)
    assert isinstance(found, errors.Inhibited)
    assert "Timeout was reached" in found.what and "--ignore-inhibitors" in found.todo


def test_without_logind_nobody_inhibits() -> None:
    absent = Gio.DBusError.new_for_dbus_error(
        "org.freedesktop.DBus.Error.ServiceUnknown", "The name was not provided."
    )
    assert listed(absent) == []
    one = GLib.Variant("(a(ssssuu))", ([tuple(BURNER)],))
    assert listed(one) == [BURNER]
