# SPDX-License-Identifier: GPL-2.0-or-later
"""One operation, from the request to the report: the state machine around the jump.

Runs in the session, in a thread of its own, never on the main loop.  It knows nothing of D-Bus.
What it does to the machine stands in `Actions`, so that each failure can be played in a test.

::

    idle -> checking -> staging -> hooks -> jumping -> reporting -> idle

Whatever fails, and at whatever point: what is staged is unloaded, hooks that had their ``pre`` get
their ``post``, the target is marked spent with the reason, and the report names the error.

`Operation` is what all have in common; `kjump.session.cycle.kinds` has the three there are.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ClassVar

from kjump.errors import ForeignKexecImage, Internal, Interrupted, KjumpError
from kjump.handoff import report as reports
from kjump.session import mark
from kjump.session.checks import readiness
from kjump.session.checks.facts import Facts
from kjump.session.cycle.actions import Actions, StagedHelper, WarmHelper, read_machine
from kjump.session.cycle.history import CycleReport
from kjump.session.cycle.verdict import merged_phases, verdict, where
from kjump.session.log import bound, logger
from kjump.session.systemd import hooks
from kjump.session.target.claim import Claim
from kjump.session.target.devices import TargetDevice
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

# systemd's message ids (sd-messages.h), so that tools that look for sleep find ours too.
SLEEP_START = "6bbd95ee977941e497c48be27c254128"
SLEEP_STOP = "8811e6df2a8e40f58a94cea26f8ebf14"

log = logger()


@dataclass(frozen=True)
class Step:
    """How far an operation is: its state, per cent of its steps, and a sentence."""

    state: str
    percent: int
    message: str


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

    def rename(self, name: str, to: str) -> None:
        """The phase comes again: what it was the first time gets another name."""
        for times in (self.monotonic, self.wall):
            if name in times:
                times[to] = times.pop(name)


class Operation:
    """What cycles, warm-ups and dry runs have in common.  `run` does it all and never raises."""

    kind: ClassVar[str]
    """As the mark has it."""
    title: ClassVar[str]
    """For the journal."""
    locks_homes: ClassVar[bool] = False
    """Whether encrypted home directories are locked meanwhile."""

    def __init__(
        self,
        settings: Settings,
        *,
        actions: Actions | None = None,
        notify: Callable[[Step], None] = lambda step: None,
        cycle_id: uuid.UUID | None = None,
    ) -> None:
        """``notify`` is called at each step, in the operation's thread."""
        self.id = cycle_id or uuid.uuid4()
        self.error: KjumpError | None = None
        self.warm: WarmHelper | None = None
        """The helper that rests; None: nothing is staged.  Whoever runs the operation hands it over
        before, and takes it back afterwards."""
        self.looked_back = False
        """Whether it looked at what an earlier boot left: then the history may have changed."""
        self._settings = settings
        self._do = actions or Actions()
        self._notify = notify
        self._clock = _Clock()
        self._stop = threading.Event()
        self._report: reports.Report | None = None
        self._result = "failed"
        self._staged: StagedHelper | None = None
        self._held: Claim | None = None
        self._facts: Facts | None = None
        self._described: dict[str, int] = {}
        self._unload_owed = self._post_owed = self._retire_owed = self._clear_owed = False
        self._thaw_owed = False
        self._still_loaded = False
        """Whether the kernel did not unload what was staged."""
        self._jumped = False

    @property
    def jumped(self) -> bool:
        """Whether it came as far as the jump."""
        return self._jumped

    def interrupt(self) -> None:
        """Ask the operation to end at the next step before the jump; thread-safe."""
        self._stop.set()

    def run(self) -> CycleReport:
        """The whole of it.  The report it returns says how it ended; `error` too."""
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
            report = self._document(started)
            # The mark goes last: if the daemon is killed before, the next one adds to the history.
            self._conclude(report)
            self._clear()
            return report

    def _forward(self) -> None:
        """From the checks to the session running again.  Raises what fails."""
        raise NotImplementedError

    def _conclude(self, report: CycleReport) -> None:
        """What is left to do when all was given back.  Must not raise."""

    def _step(self, state: str, percent: int, message: str) -> None:
        if self._stop.is_set() and not self._jumped:
            raise Interrupted("kjumpd was asked to stop.")
        self._notify(Step(state, percent, message))

    def _check(self) -> Facts:
        self._step(CHECKING, 5, "Checking that hibernation is possible")
        with self._clock.phase("check"):
            facts, self.looked_back = read_machine(self._do, self._settings, self.warm)
            self._facts = facts
            for reason in readiness.reasons(facts):
                raise reason
        return facts

    def _pre_hooks_and_sync(self) -> None:
        self._step(HOOKS, 30, "Running system-sleep hooks")
        with self._clock.phase("hooks-pre"):
            self._mark(hooks_owed=True)
            self._post_owed = True
            hooks.log_results("pre", self._do.hooks("pre", self._settings.session.hook_timeout))
            if self.locks_homes:
                self._attempt("locking home directories", self._do.lock_homes)
        self._step(JUMPING, 40, "Writing out file systems")
        with self._clock.phase("sync"):
            self._do.sync()

    def _jump(self, staged: StagedHelper, *, warming: bool = False) -> KjumpError | None:
        """Jump; when the session runs again, the error that was reported, or None."""
        self._step(JUMPING, 45, "Jumping into the helper kernel")
        with self._clock.phase("jump"):
            staged.check()
            if self._held is not None:
                self._held.check()
            if not self._jumped:
                log.info("system sleep begins", MESSAGE_ID=SLEEP_START, SLEEP="hibernate")
            self._jumped = True
            staged.jump()
        self._report = staged.report()
        self._result, error = verdict(self._report, warming=warming)
        return error

    def _unload_for_another(self) -> None:
        """Unload the helper that rests: there is room for one image only.

        Raises `ForeignKexecImage` if somebody loaded an image of their own in its place.
        """
        replaced = self._unload()
        if replaced and self._do.is_loaded():
            self._unload_owed = False
            raise ForeignKexecImage("Another kexec image was loaded while a helper rested.")

    def _unload(self) -> bool:
        """Unload what is staged; whether somebody else had unloaded the helper that rested.  Then
        whatever is loaded now stays."""
        replaced = self.warm is not None and self._is_replaced(self.warm)
        staged, self._staged, self.warm = self._staged, None, None
        with self._clock.phase("unload"):
            if staged is not None:
                self._attempt("closing what is staged", staged.close)
            if replaced:
                log.warning("the warm helper was unloaded by somebody else")
            else:
                unloaded = self._attempt("unloading the kexec image", self._do.unload)
                self._still_loaded = not unloaded and self._do.is_loaded()
        return replaced

    @staticmethod
    def _is_replaced(warm: WarmHelper) -> bool:
        """Whether the helper that rested is not what is loaded now."""
        try:
            return not warm.is_ours()
        except Exception as error:  # noqa: BLE001 (whatever it is, the image is unloaded)
            # An image of ours that stays would turn a reboot into a jump.
            log.warning(f"cannot determine whose kexec image is loaded: {error}")
            return False

    def _backward(self) -> None:
        """Give back what is owed.  Runs every time; what fails here is logged, not raised."""
        do, clock = self._do, self._clock
        if self.error is not None:
            self._result = "failed"
            log.error(self.error.what, KJUMP_ERROR=self.error.name)
        if self._jumped:
            log.info("system sleep ended", MESSAGE_ID=SLEEP_STOP, SLEEP="hibernate")
        # Unloading comes first: a staged image would turn a reboot into a jump.
        if self._unload_owed:
            self._unload()
        # Then the image: while the session runs, nobody may resume from it.
        if self._retire_owed and self._facts and isinstance(self._facts.target, TargetDevice):
            path, held = self._facts.target.path, self._held
            retire = held.retire if held else lambda error: do.retire(path, error, self.id)
            self._attempt("marking the image spent", lambda: retire(self.error))
            if held is not None:
                self._attempt("giving the target back", held.close)
        if self._post_owed:
            self._notify(Step(HOOKS, 90, "Running system-sleep hooks"))
            with clock.phase("hooks-post"):
                self._attempt(
                    "running the hooks",
                    lambda: hooks.log_results(
                        "post", do.hooks("post", self._settings.session.hook_timeout)
                    ),
                )
        if self._thaw_owed:
            with clock.phase("thaw"):
                self._thaw_owed = not self._attempt("letting the sessions go on", do.thaw)
        self._notify(Step(REPORTING, 95, "Reporting"))
        if self._post_owed:
            self._mark(hooks_owed=False)

    def _clear(self) -> None:
        """Nothing is owed any more, but for a helper that rests.

        What could not be given back stays on the mark: kjumpd tries again when it ends, which is
        before the machine can reboot.
        """
        if not self._clear_owed or self.warm is not None:
            return
        if self._still_loaded or self._thaw_owed:
            self._mark(hooks_owed=False)
        else:
            self._attempt("removing the mark of the cycle", self._do.clear_mark)

    def _attempt(self, what: str, action: Callable[[], object]) -> bool:
        """Whether it succeeded; a failure is logged."""
        try:
            action()
        except Exception as error:
            # Everything else that is owed still has to be given back.
            unexpected = not isinstance(error, KjumpError | OSError)
            log.error(f"{what} failed: {error}", exc_info=unexpected)
            return False
        return True

    def _mark(self, *, hooks_owed: bool) -> None:
        target = self._facts.target if self._facts else None
        path = str(target.path) if isinstance(target, TargetDevice) else ""
        self._clear_owed = True
        try:
            self._do.write_mark(
                mark.Mark(str(self.id), path, hooks_owed, self.kind, self._thaw_owed)
            )
        except OSError as error:
            log.warning(f"the mark of the cycle could not be written: {error}")

    def _document(self, started: float) -> CycleReport:
        report, error = self._report, self.error
        out: CycleReport = {
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
            out |= {"window": self._described}
        if self._facts and isinstance(self._facts.target, TargetDevice):
            out["target"] = str(self._facts.target.path)
        if report is not None:
            out |= {name: dict(figures) for name, figures in report.figures.items()}
            if report.more:
                out["more"] = report.more
        return out
