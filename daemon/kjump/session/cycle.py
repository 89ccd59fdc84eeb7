"""One cycle, from the request to the report: the state machine around the jump.

Runs in the session, in a thread of its own, never on the main loop.  It knows nothing of D-Bus.
What it does to the machine stands in `Actions`, so that each failure can be played in a test.

::

    idle -> checking -> staging -> hooks -> jumping -> reporting -> idle

Whatever fails, and wherever: what is staged is unloaded, hooks that had their ``pre`` get their
``post``, the target is marked spent with the reason, and the report names the error.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kjump.errors import HelperSilent, Internal, Interrupted, KjumpError, from_report
from kjump.session import history, hooks, readiness
from kjump.session.devices import Device
from kjump.session.log import bound, logger
from kjump.session.readiness import Facts
from kjump.settings import Settings

IDLE, CHECKING, STAGING, HOOKS, JUMPING, REPORTING = (
    "idle",
    "checking",
    "staging",
    "hooks",
    "jumping",
    "reporting",
)
STATES = (IDLE, CHECKING, STAGING, HOOKS, JUMPING, REPORTING)

log = logger()

Report = dict[str, Any]


class Staged(Protocol):
    """What `kjump.session.staging.stage` gives: an image of ours in the kernel."""

    def describe(self) -> dict[str, Any]: ...
    def check(self) -> None: ...
    def jump(self) -> None: ...
    def report(self) -> dict[str, Any] | None: ...
    def close(self) -> None: ...


class Held(Protocol):
    """What `kjump.session.areas.prepare` gives: the target, held until the cycle is over."""

    def check(self) -> None: ...
    def retire(self, error: KjumpError | None) -> None: ...
    def close(self) -> None: ...


def _stage(settings: Settings, facts: Facts, cycle: uuid.UUID) -> Staged:
    from kjump.session import staging

    assert isinstance(facts.target, Device)
    assert facts.sizing is not None and not isinstance(facts.sizing, KjumpError)
    target = facts.target.target(settings.target.path)
    return staging.stage(settings, facts.sizing, cycle_id=cycle, target=target)


def _prepare(facts: Facts, cycle: uuid.UUID) -> Held:
    from kjump.session import areas

    assert isinstance(facts.target, Device)
    assert facts.sizing is not None and not isinstance(facts.sizing, KjumpError)
    return areas.prepare(facts.target, cycle, (facts.sizing.kernel, facts.sizing.initrd))


def _retire(path: Path, error: KjumpError | None, cycle: uuid.UUID | None) -> None:
    from kjump.image import target

    target.retire(path, error, cycle_id=cycle)


def _unload() -> None:
    from kjump.machine import syscalls

    if syscalls.kexec_loaded():
        syscalls.kexec_unload()


def _hooks(when: str, seconds: float) -> Sequence[hooks.Result]:
    return hooks.run(when, seconds=seconds)


@dataclass(frozen=True)
class Actions:
    """All that a cycle does to the machine.  Paths are device nodes, times seconds."""

    read: Callable[[Settings], Facts] = readiness.read
    prepare: Callable[[Facts, uuid.UUID], Held | None] = _prepare
    stage: Callable[[Settings, Facts, uuid.UUID], Staged] = _stage
    hooks: Callable[[str, float], Sequence[hooks.Result]] = _hooks
    sync: Callable[[], None] = os.sync
    retire: Callable[[Path, KjumpError | None, uuid.UUID | None], None] = _retire
    unload: Callable[[], None] = _unload
    write_mark: Callable[[history.Mark], None] = history.write_mark
    clear_mark: Callable[[], None] = history.clear_mark


@dataclass(frozen=True)
class Step:
    """What the world is told while a cycle runs."""

    state: str
    percent: int
    message: str


# -- deciding ------------------------------------------------------------------------------------


def verdict(report: Mapping[str, Any] | None) -> tuple[str, KjumpError | None]:
    """What the report page says about the jump: ("ok" | "returned" | "failed", error).

    "ok": restored from disk.  "returned": the helper jumped back because it was told to.
    """
    if report is None:
        return "failed", HelperSilent("The session runs again, but nobody reported why.")
    by, result = report.get("by"), report.get("result")
    if result == "failed" or report.get("error"):
        return "failed", from_report(report)
    if by == "resume" and result == "ok":
        return "ok", None
    if by == "helper" and result == "returned":
        return "returned", None
    return "failed", HelperSilent(f"The report makes no sense: by {by!r}, result {result!r}.")


def where(error: KjumpError | None, report: Mapping[str, Any] | None) -> str:
    """In which of the three kernels a cycle ended: session, helper or resume."""
    by = str(report.get("by", "")) if report else ""
    if by in ("helper", "resume"):
        return by
    return "helper" if isinstance(error, HelperSilent) else "session"


def merged_phases(ours: Mapping[str, float], report: Mapping[str, Any] | None) -> dict[str, float]:
    """Seconds of each phase in the order in which they came: the other kernels' after the jump.

    A name that both have gets its place before it ("resume check").
    """
    theirs: dict[str, float] = {}
    told = report.get("phases") if report else None
    if report and isinstance(told, Mapping):
        for name, seconds in told.items():
            if isinstance(seconds, int | float):
                place = f"{report.get('by', 'helper')} " if name in ours else ""
                theirs[f"{place}{name}"] = round(float(seconds), 3)
    out: dict[str, float] = {}
    for name, seconds in ours.items():
        out[name] = round(seconds, 3)
        if name == "jump":
            out |= theirs
    return out


# -- acting --------------------------------------------------------------------------------------


@dataclass
class _Clock:
    """Durations of the phases: monotonic (the session ran) and by the wall (power-off too)."""

    monotonic: dict[str, float] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        steady, wall = time.monotonic(), time.time()
        try:
            with bound(KJUMP_PHASE=name):
                yield
        finally:
            self.monotonic[name] = time.monotonic() - steady
            self.wall[name] = time.time() - wall


class Cycle:
    """One cycle.  `run` does it all and never raises."""

    def __init__(
        self,
        settings: Settings,
        *,
        actions: Actions | None = None,
        tell: Callable[[Step], None] = lambda step: None,
        cycle_id: uuid.UUID | None = None,
    ) -> None:
        self.id = cycle_id or uuid.uuid4()
        self.error: KjumpError | None = None
        self._settings = settings
        self._do = actions or Actions()
        self._tell = tell
        self._clock = _Clock()
        self._stop = threading.Event()
        self._report: Report | None = None
        self._result = "failed"
        self._staged: Staged | None = None
        self._held: Held | None = None
        self._facts: Facts | None = None
        self._described: dict[str, Any] = {}
        self._unload_owed = self._post_owed = self._retire_owed = self._clear_owed = False

    def interrupt(self) -> None:
        """Ask the cycle to end at the next step before the jump; thread-safe."""
        self._stop.set()

    def run(self) -> Report:
        """The whole cycle.  The report it returns says how it ended; `error` too."""
        started = time.time()
        with bound(KJUMP_CYCLE=str(self.id)):
            try:
                self._forward()
            except KjumpError as error:
                self.error = error
            except Exception as error:
                log.exception("unexpected failure")
                self.error = Internal(f"{type(error).__name__}: {error}")
            self._backward()
            return self._document(started)

    def _step(self, state: str, percent: int, message: str) -> None:
        if self._stop.is_set() and not self._jumped:
            raise Interrupted("The daemon was told to stop.")
        self._tell(Step(state, percent, message))

    _jumped = False

    def _forward(self) -> None:
        """From the checks to the session running again.  Raises what fails."""
        do, clock = self._do, self._clock
        self._step(CHECKING, 5, "Checking that hibernation is possible")
        with clock.phase("check"):
            self._facts = facts = do.read(self._settings)
            for reason in readiness.reasons(facts):
                raise reason
        assert isinstance(facts.target, Device)

        self._step(STAGING, 10, "Preparing the target")
        with clock.phase("prepare"):
            self._mark(hooks_owed=False)
            self._retire_owed = True
            self._held = do.prepare(facts, self.id)
        self._step(STAGING, 15, "Staging the helper kernel")
        with clock.phase("stage"):
            # From here on something may be staged, even where staging fails.
            self._unload_owed = True
            self._staged = staged = do.stage(self._settings, facts, self.id)
            self._described = staged.describe()

        self._step(HOOKS, 30, "Running system-sleep hooks")
        with clock.phase("hooks-pre"):
            self._mark(hooks_owed=True)
            self._post_owed = True
            self._log_hooks("pre", do.hooks("pre", self._settings.session.hook_timeout))
        self._step(JUMPING, 40, "Writing out file systems")
        with clock.phase("sync"):
            do.sync()
        self._step(JUMPING, 45, "Jumping into the helper kernel")
        with clock.phase("jump"):
            staged.check()
            if self._held is not None:
                self._held.check()
            log.info("system sleep begins", MESSAGE_ID=SLEEP_START, SLEEP="hibernate")
            self._jumped = True
            staged.jump()
        self._report = staged.report()
        self._result, error = verdict(self._report)
        if error is not None:
            raise error

    def _backward(self) -> None:
        """Give back what is owed.  Runs every time; what fails here is told, not raised."""
        do, clock = self._do, self._clock
        if self.error is not None:
            self._result = "failed"
            log.error(self.error.what, KJUMP_ERROR=self.error.name)
        if self._jumped:
            log.info("system sleep ended", MESSAGE_ID=SLEEP_STOP, SLEEP="hibernate")
        # Unloading comes first: a staged image would turn a reboot into a jump.
        if self._unload_owed:
            with clock.phase("unload"):
                staged = self._staged
                if staged is not None:
                    self._attempt("closing what is staged", staged.close)
                self._attempt("unloading the kexec image", do.unload)
        # Then the image: while the session runs, nobody may resume from it.
        if self._retire_owed and self._facts and isinstance(self._facts.target, Device):
            path, held = self._facts.target.path, self._held
            retire = held.retire if held else lambda error: do.retire(path, error, self.id)
            self._attempt("marking the image spent", lambda: retire(self.error))
            if held is not None:
                self._attempt("giving the target back", held.close)
        if self._post_owed:
            self._tell(Step(HOOKS, 90, "Running system-sleep hooks"))
            with clock.phase("hooks-post"):
                self._attempt("running the hooks", lambda: self._log_hooks(
                    "post", do.hooks("post", self._settings.session.hook_timeout)
                ))
        self._tell(Step(REPORTING, 95, "Reporting"))
        if self._clear_owed:
            self._attempt("removing the mark of the cycle", do.clear_mark)

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            # Everything else that is owed still has to be given back.
            log.error(f"{what} failed: {error}", exc_info=not isinstance(error, KjumpError))

    def _mark(self, *, hooks_owed: bool) -> None:
        target = self._facts.target if self._facts else None
        path = str(target.path) if isinstance(target, Device) else ""
        self._clear_owed = True
        try:
            self._do.write_mark(history.Mark(str(self.id), path, hooks_owed))
        except OSError as error:
            log.warning(f"the mark of the cycle could not be written: {error}")

    def _log_hooks(self, when: str, results: Sequence[hooks.Result]) -> None:
        for result in results:
            for line in result.output.splitlines():
                log.info(f"{result.path.name}: {line}")
            (log.warning if result.failed else log.debug)(f"{when} hook: {result.sentence()}")

    def _document(self, started: float) -> Report:
        report, error = self._report, self.error
        out: Report = {
            "cycle": str(self.id),
            "result": self._result,
            "where": where(error, report),
            "started": round(started, 3),
            "finished": round(time.time(), 3),
            "phases": merged_phases(self._clock.monotonic, report),
            "wall": {name: round(seconds, 3) for name, seconds in self._clock.wall.items()},
        }
        if error is not None:
            out |= error.report()
        if self._described:
            out["window"] = self._described
        if self._facts and isinstance(self._facts.target, Device):
            out["target"] = str(self._facts.target.path)
        for part in ("pages", "image", "memory"):
            if report and isinstance(report.get(part), Mapping):
                out[part] = dict(report[part])
        if report:
            rest = {
                key: value
                for key, value in report.items()
                if key not in ("phases", "pages", "image", "memory", "by", "result", "error",
                               "what", "todo", "window")
            }
            if rest:
                out["more"] = rest
        return out


# systemd's message ids (sd-messages.h), so that tools that look for sleep find ours too.
SLEEP_START = "6bbd95ee977941e497c48be27c254128"
SLEEP_STOP = "8811e6df2a8e40f58a94cea26f8ebf14"
