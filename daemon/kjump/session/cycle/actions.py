# SPDX-License-Identifier: GPL-2.0-or-later
"""What a cycle does to the machine, as functions that tests replace.

Runs in the session, in a cycle's thread.  Nothing here decides.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kjump.errors import (
    KjumpError,
    StaleHelper,
)
from kjump.image.prepare import retire_image
from kjump.session import mark
from kjump.session.checks.facts import Facts, read_facts
from kjump.session.systemd import hooks
from kjump.session.systemd import kernel_hibernation as stock
from kjump.session.target.devices import TargetDevice
from kjump.settings import Settings

if TYPE_CHECKING:
    from kjump.image.target import Target
    from kjump.session.cycle.operation import Operation, Report
    from kjump.session.staging.sizing import Sizing


class Staged(Protocol):
    """What `kjump.session.staging.load.stage` gives: an image of ours in the kernel."""

    def describe(self) -> dict[str, Any]: ...
    def check(self) -> None: ...
    def jump(self) -> None: ...
    def report(self) -> dict[str, Any] | None: ...
    def close(self) -> None: ...


class Held(Protocol):
    """What `kjump.session.target.claim.prepare` gives: the target, held until the cycle is over."""

    def check(self) -> None: ...
    def retire(self, error: KjumpError | None) -> None: ...
    def close(self) -> None: ...


class WarmHelper(Staged, Protocol):
    """What `kjump.session.staging.warm.stage` gives: a helper that rests until it is asked."""

    def welcome(self, report: Mapping[str, Any]) -> None: ...
    def is_ours(self) -> bool: ...


def _target_and_sizing(settings: Settings, facts: Facts) -> tuple[Target, Sizing]:
    assert isinstance(facts.target, TargetDevice)
    assert facts.sizing is not None and not isinstance(facts.sizing, KjumpError)
    return facts.target.target(settings.target.path), facts.sizing


def _stage(settings: Settings, facts: Facts, cycle: uuid.UUID) -> Staged:
    from kjump.session.staging import load

    target, sizing = _target_and_sizing(settings, facts)
    return load.stage(settings, sizing, cycle_id=cycle, target=target)


def _stage_dry(settings: Settings, facts: Facts, cycle: uuid.UUID) -> Staged:
    from kjump.handoff import note
    from kjump.session.staging import load

    target, sizing = _target_and_sizing(settings, facts)
    return load.stage(settings, sizing, cycle_id=cycle, target=target, mode=note.DRY_RUN)


def _stage_warm(settings: Settings, facts: Facts) -> WarmHelper:
    from kjump.session.staging import warm

    target, sizing = _target_and_sizing(settings, facts)
    return warm.stage(settings, sizing, target)


def _ask(helper: WarmHelper, settings: Settings, facts: Facts, cycle: uuid.UUID) -> None:
    from kjump.session.staging import warm

    assert isinstance(helper, warm.Warm)
    target, sizing = _target_and_sizing(settings, facts)
    try:
        helper.ask(settings, sizing, cycle_id=cycle, target=target)
    except OSError as error:
        raise StaleHelper(f"The warm helper cannot be judged: {error}.") from error


def _misfit(helper: WarmHelper, settings: Settings, facts: Facts) -> StaleHelper | None:
    from kjump.session.staging import warm

    assert isinstance(helper, warm.Warm)
    if facts.sizing is None or isinstance(facts.sizing, KjumpError):
        return StaleHelper("The helper's kernel or initrd is not there any more.")
    try:
        return helper.misfit(settings, facts.sizing)
    except OSError as error:
        return StaleHelper(f"The warm helper cannot be judged: {error}.")


def _prepare(facts: Facts, cycle: uuid.UUID) -> Held:
    from kjump.session.target import claim

    assert isinstance(facts.target, TargetDevice)
    assert facts.sizing is not None and not isinstance(facts.sizing, KjumpError)
    return claim.prepare(facts.target, cycle, (facts.sizing.kernel, facts.sizing.initrd))


def _retire(path: Path, error: KjumpError | None, cycle: uuid.UUID | None) -> None:
    retire_image(path, error, cycle_id=cycle)


def _unload() -> None:
    from kjump.machine import syscalls

    if syscalls.kexec_loaded():
        syscalls.kexec_unload()


def _hooks(when: str, seconds: float) -> Sequence[hooks.Result]:
    return hooks.run_all(when, seconds=seconds)


@dataclass(frozen=True)
class Actions:
    """All that a cycle does to the machine.  Paths are device nodes, times seconds."""

    read: Callable[[Settings], Facts] = read_facts
    prepare: Callable[[Facts, uuid.UUID], Held | None] = _prepare
    stage: Callable[[Settings, Facts, uuid.UUID], Staged] = _stage
    stage_warm: Callable[[Settings, Facts], WarmHelper] = _stage_warm
    stage_dry: Callable[[Settings, Facts, uuid.UUID], Staged] = _stage_dry
    ask: Callable[[WarmHelper, Settings, Facts, uuid.UUID], None] = _ask
    misfit: Callable[[WarmHelper, Settings, Facts], StaleHelper | None] = _misfit
    freeze: Callable[[], None] | None = None
    """Stop the sessions of users; None where systemd does not do that when it sleeps."""
    thaw: Callable[[], None] = lambda: None
    hooks: Callable[[str, float], Sequence[hooks.Result]] = _hooks
    lock_homes: Callable[[], None] = lambda: None
    sync: Callable[[], None] = os.sync
    retire: Callable[[Path, KjumpError | None, uuid.UUID | None], None] = _retire
    unload: Callable[[], None] = _unload
    write_mark: Callable[[mark.Mark], None] = mark.write_mark
    clear_mark: Callable[[], None] = mark.clear_mark
    record: Callable[[Operation, Report], None] = lambda operation, report: None
    """Keep the report, which may be added to."""
    stock: Callable[[], stock.KernelHibernation] = stock.read_state
    offer: Callable[[bool, Settings], bool] = lambda possible, settings: True
    """Have logind offer hibernation or not, by whether a jump is possible; whether it is offered
    now."""
