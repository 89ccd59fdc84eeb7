# SPDX-License-Identifier: GPL-2.0-or-later
"""org.kjump1 on the bus: the interface's methods, signals and properties.

Runs in the session, on the main loop.  Nothing here waits, reads the machine or starts a thread:
that is the worker's (`kjump.session.service.operations`), whose results are answered here.

pydbus registers the object, but its ``publish()`` is not used: that lets the name be taken over
and makes unnamed errors of all exceptions.  `Wrapper` passes every method a `Call`, which is
answered later, with results or with a named error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gi.repository import Gio
from pydbus.generic import signal
from pydbus.registration import ObjectRegistration

from kjump import VERSION
from kjump.errors import BadRequest, Busy, Inhibited, Internal, KjumpError, NotAuthorized
from kjump.names import INTERFACE, OBJECT_PATH
from kjump.session.checks import doctor
from kjump.session.cycle.actions import Actions
from kjump.session.cycle.history import CycleReport, History
from kjump.session.cycle.kinds import Cycle, DryRun, WarmUp
from kjump.session.cycle.operation import IDLE, Operation, Step
from kjump.session.log import logger
from kjump.session.service import authority as polkit
from kjump.session.service.assessment import Assessment, LogindActions
from kjump.session.service.authority import Authority
from kjump.session.service.calls import Call, Wrapper
from kjump.session.service.operations import LOOK_AGAIN, Worker
from kjump.session.service.values import flatten, flatten_target, same, window_figures
from kjump.session.service.warm_helper import WARM_DELAY
from kjump.session.systemd import systemd_bus
from kjump.session.systemd.systemd_bus import Inhibitor
from kjump.settings import Settings

INSTALLED_XML = Path("/usr/share/dbus-1/interfaces/org.kjump1.Manager.xml")
SOURCE_XML = Path(__file__).parents[4] / "config/dbus/org.kjump1.Manager.xml"

REFUSALS = {
    polkit.HIBERNATE: "You may not hibernate this machine.",
    polkit.MANAGE: "You may not change this machine's settings.",
}
"""What is answered if polkit says no, by action."""

log = logger()


def interface_xml() -> str:
    """The introspection document: of the source checkout the code runs from, else as installed."""
    path = SOURCE_XML if SOURCE_XML.exists() else INSTALLED_XML
    return path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class HibernateOptions:
    """The options of Hibernate."""

    fallback: bool = False
    ignore_inhibitors: bool = False
    freeze: bool = True

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> HibernateOptions:
        """Raises `BadRequest`."""
        known = {name.replace("_", "-"): name for name in cls.__dataclass_fields__}
        refuse_unknown(options, known)
        for name, value in options.items():
            if not isinstance(value, bool):
                raise BadRequest(f"The option {name} is a boolean.")
        return cls(**{known[name]: value for name, value in options.items()})


def refuse_unknown(options: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str]) -> None:
    """Raises `BadRequest` if there are options that the method does not know."""
    unknown = sorted(options.keys() - set(known))
    if unknown:
        raise BadRequest(f"Unknown option: {', '.join(unknown)}.")


def refuse_if_inhibited(inhibitors: Sequence[Inhibitor]) -> None:
    """As logind does for requests that come to it.  Raises `Inhibited`."""
    found = systemd_bus.blocking(inhibitors)
    if found:
        who = ", ".join(f"{one.who} ({one.why})" for one in found)
        raise Inhibited(f"Sleep is inhibited by {who}.")


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
        logind: LogindActions | None = None,
        status: Callable[[str], None] = lambda text: None,
        inhibitors: Callable[[Callable[[list[Inhibitor] | Inhibited], None]], None] = (
            lambda done: done([])
        ),
        warm_delay: float = WARM_DELAY,
        look_again: int = LOOK_AGAIN,
    ) -> None:
        """``settings`` reads the configuration; ``status`` gets a sentence about what goes on;
        ``inhibitors`` calls back with who inhibits something, or with why that is not known;
        ``warm_delay`` and ``look_again`` in seconds."""
        self._load = settings
        self._authority = authority
        self._history = history
        self._status = status
        self._inhibitors = inhibitors
        self._checks: list[Call] = []
        """Calls of Check that wait."""
        found = settings()
        self.worker = Worker(
            found,
            self,
            actions=actions,
            logind=logind,
            warm_delay=warm_delay,
            look_again=look_again,
        )
        self._values: dict[str, Any] = {
            "Version": VERSION,
            "State": IDLE,
            "Operation": "none",
            "Progress": (0, ""),
            "Staged": "no",
            "LastCycle": flatten(history.last()),
            "Target": flatten_target(found.target.path, None),
            "Window": {},
            "Available": "no",
            "Reasons": [],
            "Warnings": [str(warning) for warning in found.warnings],
        }

    def __getattr__(self, name: str) -> Any:
        """Properties are read by name (pydbus's way)."""
        try:
            return self.__dict__["_values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def _set(self, **values: Any) -> None:
        """Change properties, and signal those that differ."""
        changed = {
            key: value for key, value in values.items() if not same(value, self._values[key])
        }
        if changed:
            self._values |= changed
            self.PropertiesChanged(INTERFACE, changed, [])

    # -- methods

    def CanHibernate(self, call: Call) -> None:
        """See the interface."""
        if isinstance(self.worker.operation, Cycle):
            busy = Busy("A cycle is running.")
            call.reply("no", [(busy.name, busy.sentence)])
            return

        def assessed(assessment: Assessment) -> None:
            if assessment.availability != "yes":
                call.reply(assessment.availability, assessment.texts)
            else:
                self._authority.check(
                    call.sender, polkit.HIBERNATE, interactive=False, done=decided
                )

        def decided(answer: str) -> None:
            refused = NotAuthorized(REFUSALS[polkit.HIBERNATE])
            reasons = [(refused.name, refused.sentence)] if answer == polkit.NO else []
            call.reply(answer, reasons)

        self.worker.assess(assessed)

    def Check(self, call: Call) -> None:
        """See the interface.  Callers that wait share one answer."""
        self._checks.append(call)
        if len(self._checks) == 1:
            self.worker.assess(self._examine)

    def _examine(self, assessment: Assessment) -> None:
        facts, settings = assessment.facts, self.worker.settings

        def work() -> list[doctor.Finding]:
            if facts is None:
                return [doctor.failed("reading", assessment.reasons[0])]
            try:
                evidence = doctor.read_surroundings(settings, facts)
                return doctor.examine(facts, evidence, assessment.reasons)
            except Exception as error:
                log.exception("the checks failed")
                unexpected = Internal(f"{type(error).__name__}: {error}")
                return [doctor.failed("reading", unexpected)]

        try:
            self.worker.in_background("checks", work, self._answer_checks)
        except KjumpError as error:
            self._answer_checks([doctor.failed("reading", error)])

    def _answer_checks(self, findings: Sequence[doctor.Finding]) -> None:
        calls, self._checks = self._checks, []
        for waiting in calls:
            waiting.reply([finding.texts() for finding in findings])

    def Hibernate(self, call: Call, options: dict[str, Any]) -> None:
        """See the interface."""
        wanted = HibernateOptions.read(options)
        self.worker.refuse_if_busy(may_wait=True)

        def ended(cycle: Operation, report: CycleReport) -> None:
            self._answer(call, cycle, report)

        def go() -> None:
            self.worker.request(
                Cycle, ended, call.fail, freeze=wanted.freeze, may_fall_back=wanted.fallback
            )

        def listed(inhibitors: list[Inhibitor] | Inhibited) -> None:
            with call.answers_errors():
                if isinstance(inhibitors, KjumpError):
                    raise inhibitors
                refuse_if_inhibited(inhibitors)
                go()

        def allowed() -> None:
            if wanted.ignore_inhibitors:
                self._if_allowed(call, polkit.MANAGE, go)
            else:
                self._inhibitors(listed)

        self._if_allowed(call, polkit.HIBERNATE, allowed)

    def Stage(self, call: Call, options: dict[str, Any]) -> None:
        """See the interface."""
        refuse_unknown(options, ("warm",))
        if options.get("warm") is not True:
            raise BadRequest("Only a warm helper can be staged ahead: warm=true.")
        self.worker.refuse_if_busy()

        def assessed(_assessment: Assessment) -> None:
            # The assessment has unloaded a helper that does not fit any more.
            with call.answers_errors():
                if self.worker.has_warm_helper:
                    call.reply({})
                else:
                    self.worker.begin(WarmUp, lambda *end: self._answer(call, *end))

        self._if_allowed(call, polkit.MANAGE, lambda: self.worker.assess(assessed))

    def Unstage(self, call: Call) -> None:
        """See the interface."""
        self.worker.refuse_if_busy()

        def unloaded() -> None:
            self._show_staged()
            call.reply()

        self._if_allowed(call, polkit.MANAGE, lambda: self.worker.unstage(unloaded))

    def DryRun(self, call: Call) -> None:
        """See the interface."""
        self.worker.refuse_if_busy()

        def allowed() -> None:
            self.worker.begin(DryRun, lambda *end: self._answer(call, *end))

        self._if_allowed(call, polkit.HIBERNATE, allowed)

    def Reload(self, call: Call) -> None:
        """See the interface."""

        def allowed() -> None:
            self.reload()
            call.reply(self._values["Warnings"])

        self._if_allowed(call, polkit.MANAGE, allowed)

    def _if_allowed(self, call: Call, action: str, go_on: Callable[[], None]) -> None:
        """Go on if polkit lets the caller do this; otherwise, and if that fails, the call is
        answered with the error."""

        def decided(answer: str) -> None:
            with call.answers_errors():
                if answer != polkit.YES:
                    raise NotAuthorized(REFUSALS[action])
                go_on()

        self._authority.check(call.sender, action, interactive=call.interactive, done=decided)

    @staticmethod
    def _answer(call: Call, operation: Operation, report: CycleReport) -> None:
        """With the report, or with the error that the operation failed with."""
        falls_back = isinstance(operation, Cycle) and operation.falls_back
        if operation.error is not None and not falls_back:
            call.fail(operation.error)
        else:
            call.reply(flatten(report))

    # -- what the daemon calls

    def reload(self) -> None:
        """Read the configuration again; what runs keeps its own."""
        settings = self._load()
        for warning in settings.warnings:
            log.warning(str(warning))
        self._set(Warnings=[str(warning) for warning in settings.warnings])
        self.worker.use(settings)

    # -- what the worker reports

    def began(self, operation: Operation) -> None:
        """An operation runs."""
        if isinstance(operation, Cycle):
            self._set(Operation="hibernate")
            self.CycleStarted(str(operation.id))
        else:
            self._set(Operation=operation.kind)

    def stepped(self, step: Step) -> None:
        """The operation came to another step."""
        self._set(State=step.state, Progress=(step.percent, step.message))
        self._status(step.message)

    def ended(self, operation: Operation, report: CycleReport) -> None:
        """The operation has ended, and nothing runs."""
        self._show_staged()
        idle = {"State": IDLE, "Operation": "none", "Progress": (100, "")}
        if isinstance(operation, Cycle):
            flat = flatten(report)
            self._set(**idle, LastCycle=flat)
            self.CycleFinished(str(operation.id), flat)
        else:
            self._set(**idle)
            if operation.looked_back:
                self._show_history()

    def assessed(self, assessment: Assessment) -> None:
        """The machine was read."""
        facts = assessment.facts
        values: dict[str, Any] = {"Available": assessment.availability, "Reasons": assessment.texts}
        if facts is not None:
            spec = self.worker.settings.target.path
            values |= {
                "Target": flatten_target(spec, facts.target),
                "Window": window_figures(facts),
            }
        self._set(**values)
        if assessment.looked_back:
            self._show_history()
        self._show_staged()
        if self.worker.operation is None:
            reasons = assessment.texts
            self._status(f"Cannot hibernate: {reasons[0][1]}" if reasons else "Ready")

    def _show_staged(self) -> None:
        self._set(Staged="warm" if self.worker.has_warm_helper else "no")

    def _show_history(self) -> None:
        self._set(LastCycle=flatten(self._history.last()))


def register(bus: Any, manager: Manager) -> Any:
    """Put the object on a pydbus bus; returns the registration (``unregister()``)."""
    interfaces = Gio.DBusNodeInfo.new_for_xml(interface_xml()).interfaces
    return ObjectRegistration(
        bus, OBJECT_PATH, interfaces, Wrapper(manager, interfaces), own_wrapper=True
    )
