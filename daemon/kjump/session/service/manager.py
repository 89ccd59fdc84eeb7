# SPDX-License-Identifier: GPL-2.0-or-later
"""org.kjump1 on the bus: the interface, and how calls become work and answers.

Runs in the session.  All of it on the main loop, and none of it waits: work goes to threads, and
their answers come back through `GLib.idle_add`.

pydbus registers the object, but its ``publish()`` is not used: that lets the name be taken over
and makes unnamed errors of all exceptions.  `Wrapper` gives every method a `Call` to answer when
it likes, with results or with a named error.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gi.repository import Gio, GLib
from pydbus.generic import signal
from pydbus.registration import ObjectRegistration

from kjump import VERSION
from kjump.errors import (
    BadRequest,
    Busy,
    ForeignKexecImage,
    Inhibited,
    Internal,
    KjumpError,
    NotAuthorized,
    NoWindow,
    TargetTooSmall,
    TooLittleMemory,
)
from kjump.session.checks import doctor, readiness
from kjump.session.checks.facts import Facts
from kjump.session.cycle.actions import Actions, WarmHelper
from kjump.session.cycle.history import History
from kjump.session.cycle.operation import IDLE, Cycle, DryRun, Operation, Step, WarmUp
from kjump.session.log import logger
from kjump.session.service import authority as polkit
from kjump.session.service.authority import Authority
from kjump.session.service.calls import Call, Wrapper
from kjump.session.service.values import flatten, flatten_target, same, window_figures
from kjump.session.systemd import kernel_hibernation, systemd_bus
from kjump.session.target.devices import TargetDevice
from kjump.settings import KERNEL_HIBERNATION, Settings

NAME = "org.kjump1"
PATH = "/org/kjump1"
INTERFACE = "org.kjump1.Manager"

INSTALLED_XML = Path("/usr/share/dbus-1/interfaces/org.kjump1.Manager.xml")
SOURCE_XML = Path(__file__).parents[4] / "config/dbus/org.kjump1.Manager.xml"

WARM_DELAY = 10
"""Seconds from when a warm helper is missing until one is started: that stops the session for as
long as a kernel takes to boot, and whoever just came back has something else to do first."""

LOOK_AGAIN = 60
"""Seconds between looks at a machine where nothing can hibernate: logind offers nothing there, so
that nobody asks, and not everything that may change sends word."""
PASSING = (TooLittleMemory, NoWindow, ForeignKexecImage, TargetTooSmall)
"""Reasons that come and go unseen: for these logind is not told to offer nothing."""

log = logger()


def interface_xml() -> str:
    """The introspection document: of the source checkout the code runs from, else as installed."""
    path = SOURCE_XML if SOURCE_XML.exists() else INSTALLED_XML
    return path.read_text(encoding="utf-8")


# -- values for the bus ------------------------------------------------------------------------

# -- calls -----------------------------------------------------------------------------------


# -- the object --------------------------------------------------------------------------------


@dataclass
class _Assessment:
    facts: Facts
    reasons: list[KjumpError]
    offered: bool = True


@dataclass(frozen=True)
class _Request:
    """A call of Hibernate: its options."""

    call: Call
    fallback: bool = False
    ignore_inhibitors: bool = False
    freeze: bool = True

    @classmethod
    def read(cls, call: Call, options: Mapping[str, Any]) -> _Request:
        """Raises `BadRequest`."""
        known = {
            "fallback": "fallback",
            "ignore-inhibitors": "ignore_inhibitors",
            "freeze": "freeze",
        }
        unknown = sorted(options.keys() - known.keys())
        if unknown:
            raise BadRequest(f"Unknown option: {', '.join(unknown)}.")
        for name, value in options.items():
            if not isinstance(value, bool):
                raise BadRequest(f"The option {name} is a boolean.")
        return cls(call, **{known[name]: value for name, value in options.items()})


class Manager:
    """The object at /org/kjump1.  Attributes in capitals are the interface; main loop only."""

    CycleStarted = signal()
    CycleFinished = signal()
    PropertiesChanged = signal()

    def __init__(
        self,
        *,
        settings: Callable[[], Settings],
        authority: Authority,
        history: History,
        actions: Actions | None = None,
        look_back: Callable[[Facts], None] = lambda facts: None,
        status: Callable[[str], None] = lambda text: None,
        inhibitors: Callable[[Callable[[list[systemd_bus.Inhibitor]], None]], None] = (
            lambda done: done([])
        ),
        warm_delay: float = WARM_DELAY,
        look_again: int = LOOK_AGAIN,
    ) -> None:
        """``look_back`` is called in a thread before the first cycle can touch the target;
        ``status`` is told, on the main loop, what goes on; ``inhibitors`` calls back with who
        inhibits something; ``warm_delay`` and ``look_again`` in seconds."""
        self._load = settings
        self._settings = settings()
        self._authority = authority
        self._history = history
        self._actions = actions or Actions()
        self._look_back = look_back
        self._status = status
        self._inhibitors = inhibitors
        self._looked_back = False
        self._cycle: Operation | None = None
        self._warm: WarmHelper | None = None
        """The helper that rests.  Changed only by who holds `_machine`."""
        self._warm_delay = warm_delay
        self._look_again = look_again
        self._warm_due = 0
        self._warm_failed = False
        """Getting warm has failed, and nothing has changed since."""
        self._after: list[_Request] = []
        """Requests that came while a helper got warm."""
        self._checks: list[Call] = []
        """Calls of Check that wait."""
        self._thread: threading.Thread | None = None
        self._machine = threading.Lock()
        """Held while facts are read or a cycle runs: the probe for kexec jump must not meet a
        staged image of ours."""
        self._assessing = False
        self._waiting: list[Callable[[_Assessment], None]] = []
        self._again = False
        self._look_due = 0
        self._values: dict[str, Any] = {
            "Version": VERSION,
            "State": IDLE,
            "Operation": "none",
            "Progress": (0, ""),
            "Staged": "no",
            "LastCycle": flatten(history.last()),
            "Target": flatten_target(self._settings.target.path, None),
            "Window": {},
            "Available": "no",
            "Reasons": [],
            "Warnings": [str(warning) for warning in self._settings.warnings],
        }

    def __getattr__(self, name: str) -> Any:
        """Properties are read by name (pydbus's way)."""
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def _set(self, **values: Any) -> None:
        """Change properties and tell those that changed."""
        changed = {
            key: value for key, value in values.items() if not same(value, self._values[key])
        }
        if changed:
            self._values |= changed
            self.PropertiesChanged(INTERFACE, changed, [])

    # -- methods

    def CanHibernate(self, call: Call) -> None:
        """See the interface."""
        if isinstance(self._cycle, Cycle):
            busy = Busy("A cycle is running.")
            call.reply("no", [(busy.name, busy.sentence)])
            return

        def assessed(assessment: _Assessment) -> None:
            reasons = [(reason.name, reason.sentence) for reason in assessment.reasons]
            available = readiness.availability(assessment.reasons)
            if available != "yes":
                call.reply(available, reasons)
                return

            def decided(answer: str) -> None:
                refused = NotAuthorized("You may not hibernate this machine.")
                told = [(refused.name, refused.sentence)] if answer == polkit.NO else []
                call.reply(answer, told)

            self._authority.check(call.sender, polkit.HIBERNATE, interactive=False, done=decided)

        self.assess(assessed)

    def Check(self, call: Call) -> None:
        """See the interface.  Callers that wait share one answer."""
        self._checks.append(call)
        if len(self._checks) > 1:
            return

        def assessed(assessment: _Assessment) -> None:
            threading.Thread(target=work, args=(assessment,), name="check", daemon=True).start()

        def work(assessment: _Assessment) -> None:
            facts, settings = assessment.facts, self._settings
            try:
                found = doctor.examine(
                    facts, doctor.read_surroundings(settings, facts), assessment.reasons
                )
            except Exception as error:
                log.exception("the checks failed")
                unexpected = Internal(f"{type(error).__name__}: {error}")
                found = [doctor.failed("reading", unexpected)]
            _later(answer, found)

        def answer(found: list[doctor.Finding]) -> None:
            calls, self._checks = self._checks, []
            for waiting in calls:
                waiting.reply([finding.texts() for finding in found])

        self.assess(assessed)

    def Hibernate(self, call: Call, options: dict[str, Any]) -> None:
        """See the interface."""
        request = _Request.read(call, options)
        self._refuse_if_busy(but=WarmUp)

        def go() -> None:
            self._refuse_if_busy(but=WarmUp)
            if self._cycle is None:
                self._start(request)
            else:
                # Getting warm ends soon, or has not jumped yet and need not do so now.
                self._cycle.interrupt()
                self._after.append(request)

        def listed(inhibitors: list[systemd_bus.Inhibitor]) -> None:
            try:
                self._refuse_if_inhibited(inhibitors)
                go()
            except KjumpError as error:
                call.fail(error)

        def decided(answer: str) -> None:
            if answer != polkit.YES:
                call.fail(NotAuthorized("You may not hibernate this machine."))
            elif request.ignore_inhibitors:
                self._manage(call, go)
            else:
                self._inhibitors(listed)

        self._authority.check(
            call.sender, polkit.HIBERNATE, interactive=call.interactive, done=decided
        )

    def _refuse_if_inhibited(self, inhibitors: list[systemd_bus.Inhibitor]) -> None:
        """As logind does for requests that come to it."""
        found = systemd_bus.blocking(inhibitors)
        if found:
            told = ", ".join(f"{one.who} ({one.why})" for one in found)
            raise Inhibited(f"Sleep is inhibited by {told}.")

    def Stage(self, call: Call, options: dict[str, Any]) -> None:
        """See the interface."""
        unknown = sorted(options.keys() - {"warm"})
        if unknown:
            raise BadRequest(f"Unknown option: {', '.join(unknown)}.")
        if options.get("warm") is not True:
            raise BadRequest("Only a warm helper can be staged ahead: warm=true.")
        self._refuse_if_busy()

        def assessed(_assessment: _Assessment) -> None:
            # The assessment has unloaded a helper that does not fit any more.
            if self._warm is not None:
                call.reply({})
                return
            try:
                self._refuse_if_busy()
            except Busy as busy:
                call.fail(busy)
                return
            self._warm_up(call)

        self._manage(call, lambda: self.assess(assessed))

    def Unstage(self, call: Call) -> None:
        """See the interface."""
        self._refuse_if_busy()

        def dropped() -> None:
            self._show_staged()
            call.reply()
            self.assess()

        def work() -> None:
            with self._machine:
                self._drop()
            _later(dropped)

        def allowed() -> None:
            self._refuse_if_busy()
            self._warm_failed = True  # until something changes
            threading.Thread(target=work, name="unstage", daemon=True).start()

        self._manage(call, allowed)

    def DryRun(self, call: Call) -> None:
        """See the interface."""
        self._refuse_if_busy()

        def decided(answer: str) -> None:
            try:
                if answer != polkit.YES:
                    raise NotAuthorized("You may not hibernate this machine.")
                self._refuse_if_busy()
                self._try_out(call)
            except KjumpError as error:
                call.fail(error)

        self._authority.check(
            call.sender, polkit.HIBERNATE, interactive=call.interactive, done=decided
        )

    def Reload(self, call: Call) -> None:
        """See the interface."""

        def allowed() -> None:
            self.reload()
            call.reply(self._values["Warnings"])

        self._manage(call, allowed)

    def _manage(self, call: Call, action: Callable[[], None]) -> None:
        """Do something that takes an administrator, if the caller may; errors are answered."""

        def decided(answer: str) -> None:
            try:
                if answer != polkit.YES:
                    raise NotAuthorized("You may not change this machine's settings.")
                action()
            except KjumpError as error:
                call.fail(error)

        self._authority.check(
            call.sender, polkit.MANAGE, interactive=call.interactive, done=decided
        )

    # -- what the daemon calls

    @property
    def busy(self) -> bool:
        """Whether a cycle runs, or a helper gets warm."""
        return self._cycle is not None

    def close(self) -> None:
        """Unload a helper that rests.  The last thing that is called."""
        with self._machine:
            self._drop()

    def interrupt(self) -> None:
        """Ask a running cycle to end, where it has not jumped yet."""
        if self._cycle is not None:
            self._cycle.interrupt()

    def reload(self) -> None:
        """Read the configuration again; a running cycle keeps its own."""
        self._settings = self._load()
        self._warm_failed = False
        for warning in self._settings.warnings:
            log.warning(str(warning))
        self._set(Warnings=[str(warning) for warning in self._settings.warnings])
        self.assess()

    def assess(self, done: Callable[[_Assessment], None] | None = None) -> None:
        """Read the machine in a thread, bring the properties up to date, then call ``done``.

        Calls that come while it reads share the next reading, so a flood of them costs little.
        """
        if done is not None:
            self._waiting.append(done)
        if self._assessing:
            self._again = True
            return
        self._assessing, self._again = True, False
        waiting, self._waiting = self._waiting, []
        settings = self._settings

        def work() -> None:
            with self._machine:
                try:
                    facts = self._read(settings)
                    reasons = readiness.reasons(facts)
                    self._look_back_once(facts)
                    self._drop_misfit(settings, facts)
                except Exception as error:
                    log.exception("the machine could not be read")
                    facts = Facts()
                    reasons = [Internal(f"{type(error).__name__}: {error}")]
            lasting = [reason for reason in reasons if not isinstance(reason, PASSING)]
            offered = self._actions.offer(not lasting, settings)
            GLib.idle_add(finish, _Assessment(facts, reasons, offered))

        def finish(assessment: _Assessment) -> bool:
            self._assessing = False
            # Nobody goes without an answer because of another.
            for tell in (self._show, *waiting):
                try:
                    tell(assessment)
                except Exception:
                    log.exception("an assessment could not be told")
            waiting.clear()
            if self._again:
                self.assess()
            elif not assessment.offered:
                self._look_again_later()
            return False

        threading.Thread(target=work, name="readiness", daemon=True).start()

    # -- inside

    def _look_again_later(self) -> None:
        def due() -> bool:
            self._look_due = 0
            if self._cycle is None:
                self.assess()
            return False

        if not self._look_due:
            self._look_due = GLib.timeout_add_seconds(self._look_again, due)

    def _refuse_if_busy(self, *, but: type[Operation] | None = None) -> None:
        """``but``: an operation that is no reason."""
        if isinstance(self._cycle, Cycle):
            raise Busy("A cycle is running.")
        if isinstance(self._cycle, DryRun):
            raise Busy("A dry run is under way.")
        if self._after or (self._cycle is not None and but is not WarmUp):
            raise Busy("A helper is getting warm.")

    def _read(self, settings: Settings) -> Facts:
        """The facts; what is staged by us is told from what others have staged."""
        facts = self._actions.read(settings)
        if self._warm is not None and self._warm.is_ours():
            facts = replace(facts, warm=True)
        return facts

    def _drop(self) -> None:
        """Unload the helper that rests, if there is one.  `_machine` is held."""
        helper, self._warm = self._warm, None
        if helper is not None:
            log.info("the warm helper is unloaded")
            try:
                helper.close()
                self._actions.clear_mark()
            except OSError as error:
                log.error(f"the warm helper could not be unloaded: {error}")

    def _drop_misfit(self, settings: Settings, facts: Facts) -> None:
        """Unload a helper that does not fit the machine any more.  `_machine` is held."""
        if self._warm is None:
            return
        stale = self._actions.misfit(self._warm, settings, facts)
        if stale is not None:
            log.info(stale.what)
            self._drop()
            self._warm_failed = False

    def _look_back_once(self, facts: Facts) -> None:
        if not self._looked_back and isinstance(facts.target, TargetDevice):
            self._looked_back = True
            self._look_back(facts)
            GLib.idle_add(self._show_history)

    def _show_history(self) -> bool:
        self._set(LastCycle=flatten(self._history.last()))
        return False

    def _show(self, assessment: _Assessment) -> None:
        reasons = [(reason.name, reason.sentence) for reason in assessment.reasons]
        available = readiness.availability(assessment.reasons)
        self._set(
            Available=available,
            Reasons=reasons,
            Target=flatten_target(self._settings.target.path, assessment.facts.target),
            Window=window_figures(assessment.facts),
        )
        self._show_staged()
        if self._cycle is None:
            self._status("Ready" if not reasons else f"Cannot hibernate: {reasons[0][1]}")
            if not reasons:
                self._warm_up_later()

    def _show_staged(self) -> None:
        self._set(Staged="no" if self._warm is None else "warm")

    def _warm_up_later(self) -> None:
        """Where the settings want a warm helper and there is none, start one after a while."""
        wanted = self._settings.helper.warm and not self._warm_failed
        if not wanted or self._warm is not None or self._warm_due:
            return

        def due() -> bool:
            self._warm_due = 0
            wanted = self._settings.helper.warm and not self._warm_failed
            if wanted and self._cycle is None and self._warm is None:
                self._warm_up(None)
            return False

        self._warm_due = GLib.timeout_add(int(self._warm_delay * 1000), due)

    def _warm_up(self, call: Call | None) -> None:
        actions = Actions(**{**self._actions.__dict__, "read": self._read_and_look_back})
        warming = WarmUp(
            self._settings, actions=actions, tell=lambda step: _later(self._stepped, step)
        )
        self._cycle = warming

        def work() -> None:
            with self._machine:
                report = warming.run()
                self._warm = warming.warm
            _later(self._warmed, call, warming, report)

        log.info("a helper is started ahead", KJUMP_CYCLE=str(warming.id))
        self._set(Operation="stage")
        self._thread = threading.Thread(target=work, name="warming")
        self._thread.start()

    def _warmed(self, call: Call | None, warming: WarmUp, report: dict[str, Any]) -> None:
        self._cycle = self._thread = None
        self._warm_failed = warming.error is not None
        took = sum(report["phases"].get(name, 0.0) for name in ("jump", "hooks-pre", "hooks-post"))
        log.info(
            f"getting warm ends: {report['result']} after {took:.1f} s",
            KJUMP_CYCLE=str(warming.id),
            KJUMP_RESULT=report["result"],
        )
        self._set(State=IDLE, Operation="none", Progress=(100, ""))
        self._show_staged()
        if call is not None:
            if warming.error is not None:
                call.fail(warming.error)
            else:
                call.reply(flatten(report))
        after, self._after = self._after, []
        if after:
            self._start(after[0])
            for late in after[1:]:
                late.call.fail(Busy("A cycle is running."))
        else:
            self.assess()

    def _try_out(self, call: Call) -> None:
        actions = Actions(**{**self._actions.__dict__, "read": self._read_and_look_back})
        trial = DryRun(
            self._settings,
            actions=actions,
            tell=lambda step: _later(self._stepped, step),
            warm=self._warm,
        )
        self._cycle = trial

        def work() -> None:
            with self._machine:
                report = trial.run()
                self._warm = trial.warm
            _later(self._tried_out, call, trial, report)

        log.info("a dry run begins", KJUMP_CYCLE=str(trial.id))
        self._set(Operation="dry-run")
        self._thread = threading.Thread(target=work, name="dry-run")
        self._thread.start()

    def _tried_out(self, call: Call, trial: Operation, report: dict[str, Any]) -> None:
        self._cycle = self._thread = None
        log.info(
            f"the dry run ends: {report['result']}",
            KJUMP_CYCLE=str(trial.id),
            KJUMP_RESULT=report["result"],
        )
        self._set(State=IDLE, Operation="none", Progress=(100, ""))
        self._show_staged()
        if trial.error is not None:
            call.fail(trial.error)
        else:
            call.reply(flatten(report))
        self.assess()

    def _read_and_look_back(self, settings: Settings) -> Facts:
        facts = self._read(settings)
        self._look_back_once(facts)
        return facts

    def _record(self, request: _Request, cycle: Operation, report: dict[str, Any]) -> None:
        """Keep a cycle's report.  In the cycle's thread, `_machine` is held."""
        self._fall_back(request, cycle, report)
        try:
            self._history.add(report)
        except OSError as error:
            log.error(f"the history could not be written: {error}")

    def _fall_back(self, request: _Request, cycle: Operation, report: dict[str, Any]) -> None:
        """Decide what a request by way of systemd becomes that could not be served, and put it
        into the report."""
        if cycle.error is None or not request.fallback:
            return
        wanted = cycle.settings.session.fallback
        decision = kernel_hibernation.decide(
            cycle.error, jumped=cycle.jumped, fallback=wanted, facts=self._actions.stock()
        )
        if decision.fall_back:
            report["fallback"] = KERNEL_HIBERNATION
            log.warning("the kernel's own hibernation is done instead")
        elif decision.why_not:
            report["no_fallback"] = decision.why_not
            log.warning(f"no other hibernation is done instead: {decision.why_not}")

    def _start(self, request: _Request) -> None:
        actions = replace(
            self._actions,
            read=self._read_and_look_back,
            record=lambda cycle, report: self._record(request, cycle, report),
        )
        cycle = Cycle(
            self._settings,
            actions=actions,
            tell=lambda step: _later(self._stepped, step),
            warm=self._warm,
            freeze=request.freeze,
        )
        self._cycle = cycle

        def work() -> None:
            with self._machine:
                report = cycle.run()
                self._warm = cycle.warm
                if "fallback" in report:
                    self._drop()  # the kernel's own hibernation is to find nothing of ours
            _later(self._finished, request.call, cycle, report)

        log.info("cycle begins", KJUMP_CYCLE=str(cycle.id))
        self._set(Operation="hibernate")
        self.CycleStarted(str(cycle.id))
        # Not a daemon thread: the process does not end while something is staged.
        self._thread = threading.Thread(target=work, name="cycle")
        self._thread.start()

    def _stepped(self, step: Step) -> None:
        self._set(State=step.state, Progress=(step.percent, step.message))
        self._status(step.message)

    def _finished(self, call: Call, cycle: Cycle, report: dict[str, Any]) -> None:
        self._cycle = self._thread = None
        self._warm_failed = False
        self._show_staged()
        flat = flatten(report)
        took = sum(report["phases"].get(name, 0.0) for name in report["wall"])
        log.info(
            f"cycle ends: {report['result']} after {took:.1f} s",
            KJUMP_CYCLE=str(cycle.id),
            KJUMP_RESULT=report["result"],
        )
        self._set(State=IDLE, Operation="none", Progress=(100, ""), LastCycle=flat)
        self.CycleFinished(str(cycle.id), flat)
        if cycle.error is not None and "fallback" not in report:
            call.fail(cycle.error)
        else:
            call.reply(flat)
        self.assess()


def _later(function: Callable[..., None], *arguments: Any) -> None:
    """Call on the main loop, once, from any thread."""

    def once() -> bool:
        function(*arguments)
        return False

    GLib.idle_add(once)


def register(bus: Any, manager: Manager) -> Any:
    """Put the object on a pydbus bus; returns the registration (``unregister()``)."""
    interfaces = Gio.DBusNodeInfo.new_for_xml(interface_xml()).interfaces
    return ObjectRegistration(bus, PATH, interfaces, Wrapper(manager, interfaces), own_wrapper=True)
