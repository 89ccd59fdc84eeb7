# SPDX-License-Identifier: GPL-2.0-or-later
"""One cycle, from the request to the report: the state machine around the jump.

Runs in the session, in a thread of its own, never on the main loop.  It knows nothing of D-Bus.
What it does to the machine stands in `Actions`, so that each failure can be played in a test.

::

    idle -> checking -> staging -> hooks -> jumping -> reporting -> idle

Whatever fails, and wherever: what is staged is unloaded, hooks that had their ``pre`` get their
``post``, the target is marked spent with the reason, and the report names the error.

`Cycle` hibernates.  `Warming` goes the same way as far as into the helper and back, so that a later
cycle finds the helper running (`kjump.session.staging.warm`); a helper that does not fit any more
is replaced by a new one in the middle of the cycle.  `Trial`, a dry run, goes into the helper and
back, too, and leaves nothing behind.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kjump.errors import (
    HelperSilent,
    Internal,
    Interrupted,
    KjumpError,
    StaleHelper,
)
from kjump.handoff import report as reports
from kjump.session import mark
from kjump.session.checks import readiness
from kjump.session.checks.facts import Facts
from kjump.session.cycle.actions import Actions, Held, Staged, WarmHelper
from kjump.session.cycle.verdict import merged_phases, verdict, where
from kjump.session.log import bound, logger
from kjump.session.systemd import hooks
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

log = logger()

Report = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """What the world is told while a cycle runs."""

    state: str
    percent: int
    message: str


# -- deciding ------------------------------------------------------------------------------------


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

    def rename(self, name: str, to: str) -> None:
        """The phase comes again: what it was the first time gets another name."""
        for times in (self.monotonic, self.wall):
            if name in times:
                times[to] = times.pop(name)


class Operation:
    """What a cycle and getting warm have in common.  `run` does it all and never raises."""

    kind = "cycle"
    """As the mark has it."""

    def __init__(
        self,
        settings: Settings,
        *,
        actions: Actions | None = None,
        tell: Callable[[Step], None] = lambda step: None,
        cycle_id: uuid.UUID | None = None,
        warm: WarmHelper | None = None,
        freeze: bool = True,
    ) -> None:
        """``warm``: a helper that rests; it is this operation's from now on.  ``freeze``: whether
        sessions may be stopped."""
        self.id = cycle_id or uuid.uuid4()
        self.error: KjumpError | None = None
        self.warm = warm
        """The helper that rests when the operation has ended; None: nothing is staged."""
        self._settings = settings
        self._do = actions or Actions()
        self._tell = tell
        self._freezing = freeze
        self._clock = _Clock()
        self._stop = threading.Event()
        self._report: Report | None = None
        self._result = "failed"
        self._staged: Staged | None = None
        self._held: Held | None = None
        self._facts: Facts | None = None
        self._described: dict[str, Any] = {}
        self._unload_owed = self._post_owed = self._retire_owed = self._clear_owed = False
        self._thaw_owed = False
        self._jumped = False

    @property
    def settings(self) -> Settings:
        """Those that it was started with."""
        return self._settings

    @property
    def jumped(self) -> bool:
        """Whether it came as far as the jump."""
        return self._jumped

    def interrupt(self) -> None:
        """Ask the operation to end at the next step before the jump; thread-safe."""
        self._stop.set()

    def run(self) -> Report:
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
            # The mark goes last: where a daemon is killed before, the next one tells the history.
            self._attempt("recording the report", lambda: self._do.record(self, report))
            self._clear()
            return report

    def _forward(self) -> None:
        """From the checks to the session running again.  Raises what fails."""
        raise NotImplementedError

    def _step(self, state: str, percent: int, message: str) -> None:
        if self._stop.is_set() and not self._jumped:
            raise Interrupted("The daemon was told to stop.")
        self._tell(Step(state, percent, message))

    def _check(self) -> Facts:
        self._step(CHECKING, 5, "Checking that hibernation is possible")
        with self._clock.phase("check"):
            self._facts = facts = self._do.read(self._settings)
            for reason in readiness.reasons(facts):
                raise reason
        return facts

    def _freeze(self) -> None:
        """Stop the sessions of users, as systemd-sleep does: nothing of theirs runs while hooks
        and devices get ready.  A jump needs it not, so that it fails is told and no more."""
        freeze = self._do.freeze
        if freeze is None or not self._freezing:
            return
        self._step(HOOKS, 25, "Stopping the sessions of users")
        with self._clock.phase("freeze"):
            self._thaw_owed = True
            self._mark(hooks_owed=False)
            self._attempt("stopping the sessions", freeze)

    def _pre_hooks_and_sync(self) -> None:
        self._step(HOOKS, 30, "Running system-sleep hooks")
        with self._clock.phase("hooks-pre"):
            self._mark(hooks_owed=True)
            self._post_owed = True
            self._log_hooks("pre", self._do.hooks("pre", self._settings.session.hook_timeout))
            if self.kind == Cycle.kind:
                self._attempt("locking home directories", self._do.lock_homes)
        self._step(JUMPING, 40, "Writing out file systems")
        with self._clock.phase("sync"):
            self._do.sync()

    def _jump(self, staged: Staged, *, warming: bool = False) -> KjumpError | None:
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

    def _unload(self) -> None:
        """What is staged goes."""
        staged, self._staged, self.warm = self._staged, None, None
        with self._clock.phase("unload"):
            if staged is not None:
                self._attempt("closing what is staged", staged.close)
            self._attempt("unloading the kexec image", self._do.unload)

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
            self._unload()
        # Then the image: while the session runs, nobody may resume from it.
        if self._retire_owed and self._facts and isinstance(self._facts.target, TargetDevice):
            path, held = self._facts.target.path, self._held
            retire = held.retire if held else lambda error: do.retire(path, error, self.id)
            self._attempt("marking the image spent", lambda: retire(self.error))
            if held is not None:
                self._attempt("giving the target back", held.close)
        if self._post_owed:
            self._tell(Step(HOOKS, 90, "Running system-sleep hooks"))
            with clock.phase("hooks-post"):
                self._attempt(
                    "running the hooks",
                    lambda: self._log_hooks(
                        "post", do.hooks("post", self._settings.session.hook_timeout)
                    ),
                )
        if self._thaw_owed:
            with clock.phase("thaw"):
                self._attempt("letting the sessions go on", do.thaw)
            self._thaw_owed = False
        self._tell(Step(REPORTING, 95, "Reporting"))
        if self._post_owed:
            self._mark(hooks_owed=False)

    def _clear(self) -> None:
        """Nothing is owed any more, but for a helper that rests."""
        if self._clear_owed and self.warm is None:
            self._attempt("removing the mark of the cycle", self._do.clear_mark)

    def _attempt(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            # Everything else that is owed still has to be given back.
            log.error(f"{what} failed: {error}", exc_info=not isinstance(error, KjumpError))

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

    def _log_hooks(self, when: str, results: Sequence[hooks.Result]) -> None:
        hooks.log_results(when, results)

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
        if self._facts and isinstance(self._facts.target, TargetDevice):
            out["target"] = str(self._facts.target.path)
        for part in reports.FIGURES:
            if report and isinstance(report.get(part), Mapping):
                out[part] = dict(report[part])
        if report:
            rest = {
                key: value
                for key, value in report.items()
                if key
                not in (
                    *reports.FIGURES,
                    "phases",
                    "by",
                    "result",
                    "error",
                    "what",
                    "todo",
                    "window",
                )
            }
            if rest:
                out["more"] = rest
        return out


class Cycle(Operation):
    """One hibernation: with the helper that rests, or with one that is started for it."""

    def _forward(self) -> None:
        do, clock = self._do, self._clock
        facts = self._check()
        assert isinstance(facts.target, TargetDevice)

        self._step(STAGING, 10, "Preparing the target")
        with clock.phase("prepare"):
            self._mark(hooks_owed=False)
            # From here on something may be staged, even where staging fails.
            self._staged, self._unload_owed = self.warm, self.warm is not None
            self._retire_owed = True
            self._held = do.prepare(facts, self.id)
        staged = self._ask(facts) or self._stage(facts)
        self._freeze()
        self._pre_hooks_and_sync()
        error: KjumpError | None
        try:
            error = self._jump(staged)
        except StaleHelper as stale:
            error = stale
        if isinstance(error, StaleHelper) and self.warm is not None:
            log.warning(error.what, KJUMP_ERROR=error.name)
            clock.rename("jump", "stale jump")
            self._unload()
            error = self._jump(self._stage(facts))
        if error is not None:
            raise error

    def _ask(self, facts: Facts) -> Staged | None:
        """Have the helper that rests serve this cycle; None where there is none that can."""
        warm = self.warm
        if warm is None:
            return None
        self._step(STAGING, 15, "Asking the warm helper")
        with self._clock.phase("ask"):
            try:
                self._do.ask(warm, self._settings, facts, self.id)
            except StaleHelper as stale:
                log.warning(stale.what, KJUMP_ERROR=stale.name)
            else:
                self._described = warm.describe()
                return warm
        self._unload()
        return None

    def _stage(self, facts: Facts) -> Staged:
        if not self._jumped:
            self._step(STAGING, 15, "Staging the helper kernel")
        with self._clock.phase("stage"):
            self._unload_owed = True
            self._staged = staged = self._do.stage(self._settings, facts, self.id)
            self._described = staged.describe()
        return staged


class WarmUp(Operation):
    """Starting a helper ahead.  Devices are suspended as in a cycle, so hooks are run as well."""

    kind = "warm"

    def _forward(self) -> None:
        facts = self._check()
        self._step(STAGING, 15, "Staging the helper kernel")
        with self._clock.phase("stage"):
            self._mark(hooks_owed=False)
            self._unload_owed = True
            helper = self._do.stage_warm(self._settings, facts)
            self._staged = helper
            self._described = helper.describe()
        self._pre_hooks_and_sync()
        error = self._jump(helper, warming=True)
        if error is not None:
            raise error
        helper.welcome(self._report or {})
        self.warm, self._unload_owed = helper, False


class DryRun(Operation):
    """A dry run: into the helper and straight back: all that can be tried without writing anything.

    The target is not touched.  Hooks are run, as the devices are suspended.
    """

    kind = "dry-run"

    def _forward(self) -> None:
        facts = self._check()
        self._step(STAGING, 15, "Staging the helper kernel")
        self._mark(hooks_owed=False)
        self._unload_owed = True
        if self.warm is not None:
            self._staged = self.warm
            self._unload()  # there is room for one only
        with self._clock.phase("stage"):
            self._staged = staged = self._do.stage_dry(self._settings, facts, self.id)
            self._described = staged.describe()
        self._pre_hooks_and_sync()
        error = self._jump(staged)
        if error is not None:
            raise error
        if self._result != "returned":
            raise HelperSilent(f"The helper was told to come back, and reported {self._result!r}.")


# systemd's message ids (sd-messages.h), so that tools that look for sleep find ours too.
SLEEP_START = "6bbd95ee977941e497c48be27c254128"
SLEEP_STOP = "8811e6df2a8e40f58a94cea26f8ebf14"
