# SPDX-License-Identifier: GPL-2.0-or-later
"""What an operation does to the machine, as functions that tests replace.

Runs in the session, in an operation's thread.  Nothing here decides.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kjump.errors import KjumpError, StaleHelper
from kjump.handoff import documents
from kjump.handoff import report as reports
from kjump.image.prepare import retire_image
from kjump.image.target import Target
from kjump.machine import syscalls
from kjump.session import mark
from kjump.session.checks.facts import Facts, read_facts
from kjump.session.cycle.history import CycleReport
from kjump.session.staging import load, warm
from kjump.session.staging.sizing import Sizing
from kjump.session.systemd import hooks, kernel_hibernation
from kjump.session.systemd.kernel_hibernation import KernelHibernation
from kjump.session.target import claim
from kjump.session.target.claim import Claim
from kjump.session.target.devices import TargetDevice
from kjump.settings import Settings


class StagedHelper(Protocol):
    """An image of ours in the kernel; what `kjump.session.staging.load.stage` returns."""

    def describe(self) -> dict[str, int]: ...
    def check(self) -> None: ...
    def jump(self) -> None: ...
    def report(self) -> reports.Report | None: ...
    def close(self) -> None: ...


class WarmHelper(StagedHelper, Protocol):
    """A helper that rests until it is asked; what `kjump.session.staging.warm.stage` returns."""

    def welcome(self, report: reports.Report) -> None: ...
    def is_ours(self) -> bool: ...


def _target_and_sizing(settings: Settings, facts: Facts) -> tuple[Target, Sizing]:
    assert isinstance(facts.target, TargetDevice)
    assert facts.sizing is not None and not isinstance(facts.sizing, KjumpError)
    return facts.target.target(settings.target.path), facts.sizing


def _stage(settings: Settings, facts: Facts, cycle: uuid.UUID, mode: str = "") -> StagedHelper:
    target, sizing = _target_and_sizing(settings, facts)
    return load.stage(settings, sizing, cycle_id=cycle, target=target, mode=mode)


def _stage_dry(settings: Settings, facts: Facts, cycle: uuid.UUID) -> StagedHelper:
    return _stage(settings, facts, cycle, documents.DRY_RUN)


def _stage_warm(settings: Settings, facts: Facts) -> WarmHelper:
    target, sizing = _target_and_sizing(settings, facts)
    return warm.stage(settings, sizing, target)


def _ask(helper: WarmHelper, settings: Settings, facts: Facts, cycle: uuid.UUID) -> None:
    assert isinstance(helper, warm.Warm)
    target, sizing = _target_and_sizing(settings, facts)
    try:
        helper.ask(settings, sizing, cycle_id=cycle, target=target)
    except OSError as error:
        raise StaleHelper(f"The warm helper cannot be judged: {error}.") from error


def _misfit(helper: WarmHelper, settings: Settings, facts: Facts) -> StaleHelper | None:
    assert isinstance(helper, warm.Warm)
    if facts.sizing is None or isinstance(facts.sizing, KjumpError):
        return StaleHelper("The helper's kernel or initrd is not there any more.")
    try:
        return helper.misfit(settings, facts.sizing)
    except OSError as error:
        return StaleHelper(f"The warm helper cannot be judged: {error}.")


def _prepare(facts: Facts, cycle: uuid.UUID) -> Claim:
    assert isinstance(facts.target, TargetDevice)
    assert facts.sizing is not None and not isinstance(facts.sizing, KjumpError)
    return claim.prepare(facts.target, cycle, (facts.sizing.kernel, facts.sizing.initrd))


def _retire(path: Path, error: KjumpError | None, cycle: uuid.UUID | None) -> None:
    retire_image(path, error, cycle_id=cycle)


def unload() -> None:
    """Unload whatever kexec image is loaded.  Raises OSError."""
    if syscalls.kexec_loaded():
        syscalls.kexec_unload()


def _hooks(when: str, seconds: float) -> Sequence[hooks.Result]:
    return hooks.run_all(when, seconds=seconds)


@dataclass(frozen=True)
class Actions:
    """All that an operation does to the machine.  Paths are device nodes, times seconds."""

    read: Callable[[Settings], Facts] = read_facts
    look_back: Callable[[Facts], bool] = lambda facts: False
    """Look once at what an earlier boot left on the target; whether it did so now."""
    prepare: Callable[[Facts, uuid.UUID], Claim | None] = _prepare
    stage: Callable[[Settings, Facts, uuid.UUID], StagedHelper] = _stage
    stage_warm: Callable[[Settings, Facts], WarmHelper] = _stage_warm
    stage_dry: Callable[[Settings, Facts, uuid.UUID], StagedHelper] = _stage_dry
    ask: Callable[[WarmHelper, Settings, Facts, uuid.UUID], None] = _ask
    misfit: Callable[[WarmHelper, Settings, Facts], StaleHelper | None] = _misfit
    freeze: Callable[[], None] | None = None
    """Stop the sessions of users; None if systemd does not do that when it sleeps."""
    thaw: Callable[[], None] = lambda: None
    hooks: Callable[[str, float], Sequence[hooks.Result]] = _hooks
    lock_homes: Callable[[], None] = lambda: None
    sync: Callable[[], None] = os.sync
    retire: Callable[[Path, KjumpError | None, uuid.UUID | None], None] = _retire
    is_loaded: Callable[[], bool] = syscalls.kexec_loaded
    unload: Callable[[], None] = unload
    write_mark: Callable[[mark.Mark], None] = mark.write_mark
    clear_mark: Callable[[], None] = mark.clear_mark
    record: Callable[[CycleReport], None] = lambda report: None
    """Add a cycle's report to the history."""
    read_kernel_hibernation: Callable[[], KernelHibernation] = kernel_hibernation.read_state


def read_machine(do: Actions, settings: Settings, helper: WarmHelper | None) -> tuple[Facts, bool]:
    """Read the machine, and look once at what an earlier boot left; whether that was now.

    ``helper``: the one that rests; while it is what is loaded, that image is no foreign one.
    """
    facts = do.read(settings)
    if helper is not None and helper.is_ours():
        facts = replace(facts, warm=True)
    return facts, do.look_back(facts)
