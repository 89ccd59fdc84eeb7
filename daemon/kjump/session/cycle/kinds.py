# SPDX-License-Identifier: GPL-2.0-or-later
"""The three operations: a cycle, a warm-up and a dry run.

Runs in the session, in an operation's thread, never on the main loop.

`Cycle` hibernates.  `WarmUp` goes the same way as far as into the helper and back, so that a later
cycle finds the helper running (`kjump.session.staging.warm`); a helper that does not fit any more
is replaced by a new one in the middle of the cycle.  `DryRun` goes into the helper and back, too,
and leaves nothing behind.
"""

from __future__ import annotations

from typing import Any

from kjump.errors import HelperSilent, KjumpError, StaleHelper
from kjump.handoff.report import Report
from kjump.session.checks.facts import Facts
from kjump.session.cycle.actions import StagedHelper
from kjump.session.cycle.history import CycleReport
from kjump.session.cycle.operation import HOOKS, STAGING, Operation
from kjump.session.log import logger
from kjump.session.systemd import kernel_hibernation
from kjump.session.target.devices import TargetDevice
from kjump.settings import KERNEL_HIBERNATION, Settings

log = logger()


class Cycle(Operation):
    """One hibernation: with the helper that rests, or with one that is started for it."""

    kind = "cycle"
    title = "the cycle"
    locks_homes = True

    def __init__(
        self, settings: Settings, *, freeze: bool = True, may_fall_back: bool = False, **more: Any
    ) -> None:
        """``freeze``: whether sessions may be stopped.  ``may_fall_back``: whether the caller can
        hibernate in the kernel's own way, if the report says so.  ``more``: as for `Operation`."""
        super().__init__(settings, **more)
        self._may_freeze = freeze
        self._may_fall_back = may_fall_back
        self.falls_back = False
        """Whether the caller is to do that."""

    def _forward(self) -> None:
        do, clock = self._do, self._clock
        facts = self._check()
        assert isinstance(facts.target, TargetDevice)

        self._step(STAGING, 10, "Preparing the target")
        with clock.phase("prepare"):
            self._mark(hooks_owed=False)
            # From here on something may be staged, even if staging fails.
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
            self._unload_for_another()
            error = self._jump(self._stage(facts))
        if error is not None:
            raise error

    def _freeze(self) -> None:
        """Stop the sessions of users, as systemd-sleep does: nothing of theirs runs while hooks
        and devices get ready.  The jump works without it, so a failure is only logged."""
        freeze = self._do.freeze
        if freeze is None or not self._may_freeze:
            return
        self._step(HOOKS, 25, "Stopping the sessions of users")
        with self._clock.phase("freeze"):
            self._thaw_owed = True
            self._mark(hooks_owed=False)
            self._attempt("stopping the sessions", freeze)

    def _ask(self, facts: Facts) -> StagedHelper | None:
        """Have the helper that rests serve this cycle; None if there is none that can."""
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
        self._unload_for_another()
        return None

    def _stage(self, facts: Facts) -> StagedHelper:
        if not self._jumped:
            self._step(STAGING, 15, "Staging the helper kernel")
        with self._clock.phase("stage"):
            self._unload_owed = True
            self._staged = staged = self._do.stage(self._settings, facts, self.id)
            self._described = staged.describe()
        return staged

    def _conclude(self, report: CycleReport) -> None:
        error = self.error
        if error is not None and self._may_fall_back:
            self._attempt("falling back", lambda: self._fall_back(error, report))
        self._attempt("writing the history", lambda: self._do.record(report))

    def _fall_back(self, error: KjumpError, report: CycleReport) -> None:
        """Decide whether the caller is to hibernate in the kernel's own way; the report says so."""
        decision = kernel_hibernation.decide(
            error,
            jumped=self._jumped,
            fallback=self._settings.session.fallback,
            facts=self._do.read_kernel_hibernation(),
        )
        if decision.fall_back:
            self.falls_back = True
            report["fallback"] = KERNEL_HIBERNATION
            log.warning("the kernel's own hibernation is done instead")
            if self.warm is not None:
                # It must find nothing of ours.
                self._staged, self._clear_owed = self.warm, True
                self._unload()
        elif decision.why_not:
            report["no_fallback"] = decision.why_not
            log.warning(f"no other hibernation is done instead: {decision.why_not}")


class WarmUp(Operation):
    """Starting a helper ahead.  Devices are suspended as in a cycle, so hooks are run as well."""

    kind = "warm-up"
    title = "the warm-up"

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
        helper.welcome(self._report or Report())
        self.warm, self._unload_owed = helper, False


class DryRun(Operation):
    """Into the helper and straight back: all that can be tried without writing anything.

    The target is not touched.  Hooks are run, as the devices are suspended.
    """

    kind = "dry-run"
    title = "the dry run"

    def _forward(self) -> None:
        facts = self._check()
        self._step(STAGING, 15, "Staging the helper kernel")
        self._mark(hooks_owed=False)
        self._unload_owed = True
        if self.warm is not None:
            self._staged = self.warm
            self._unload_for_another()
        with self._clock.phase("stage"):
            self._staged = staged = self._do.stage_dry(self._settings, facts, self.id)
            self._described = staged.describe()
        self._pre_hooks_and_sync()
        error = self._jump(staged)
        if error is not None:
            raise error
        if self._result != "returned":
            raise HelperSilent(f"The helper had to come back, and reported {self._result!r}.")
