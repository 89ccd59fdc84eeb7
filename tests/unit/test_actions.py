# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.cycle.actions: what an operation's steps pass on to those that do the work."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump import errors
from kjump.handoff import documents
from kjump.image.prepare import prepare_target
from kjump.image.target import examine
from kjump.machine import syscalls
from kjump.session.cycle import actions
from kjump.session.cycle.actions import Actions, read_machine
from kjump.session.staging import load, warm
from kjump.session.target import claim
from kjump.settings import Settings
from tests.unit.test_readiness import DISK, READY

ID = uuid.uuid4()


class Warm(warm.Warm):
    """A helper that answers as the test says."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: dict[str, Any] = {}

    def ask(self, *_about: object, **more: Any) -> None:
        self.asked = more
        if self.error is not None:
            raise self.error

    def misfit(self, *_about: object) -> errors.StaleHelper | None:
        if self.error is not None:
            raise self.error
        return None

    def is_ours(self) -> bool:
        return True


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the functions that stage and prepare, which take a kernel."""
    found: list[Any] = []
    monkeypatch.setattr(load, "stage", lambda *about, **more: found.append((about, more)))
    monkeypatch.setattr(warm, "stage", lambda *about: found.append(about))
    monkeypatch.setattr(claim, "prepare", lambda *about: found.append(about))
    return found


def test_staging_gets_target_and_size(given: list[Any]) -> None:
    do, settings = Actions(), Settings()
    do.stage(settings, READY, ID)
    do.stage_dry(settings, READY, ID)
    do.stage_warm(settings, READY)
    cold, dry, ahead = given
    assert cold[0] == dry[0] == (settings, READY.sizing)
    assert cold[1]["cycle_id"] == ID and cold[1]["target"].path == DISK.path
    assert (cold[1]["mode"], dry[1]["mode"]) == ("", documents.DRY_RUN)
    assert ahead == (settings, READY.sizing, cold[1]["target"])


def test_the_target_gets_what_restores(given: list[Any]) -> None:
    Actions().prepare(READY, ID)
    sizing: Any = READY.sizing
    assert given == [(DISK, ID, (sizing.kernel, sizing.initrd))]


def test_a_helper_that_cannot_be_judged_is_stale() -> None:
    do = Actions()
    broken = Warm(OSError(5, "I/O error"))
    with pytest.raises(errors.StaleHelper, match="I/O error"):
        do.ask(broken, Settings(), READY, ID)
    assert isinstance(do.misfit(broken, Settings(), READY), errors.StaleHelper)
    gone = replace(READY, sizing=errors.NoHelperInitrd("It is not there."))
    assert isinstance(do.misfit(Warm(), Settings(), gone), errors.StaleHelper)
    good = Warm()
    do.ask(good, Settings(), READY, ID)
    assert good.asked["cycle_id"] == ID and do.misfit(good, Settings(), READY) is None


def test_unloading(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(syscalls, "kexec_unload", lambda: done.append("unload"))
    for loaded in (False, True):
        monkeypatch.setattr(syscalls, "kexec_loaded", lambda loaded=loaded: loaded)
        actions.unload()
    assert done == ["unload"]


def test_retiring_marks_the_image(tmp_path: Path) -> None:
    image = tmp_path / "target"
    with image.open("wb") as stream:
        stream.truncate(32 << 20)
    prepare_target(image, cycle_id=ID, hostname="h")
    Actions().retire(image, errors.JumpFailed("No."), ID)
    found = examine(image)
    assert found is not None and found.state == "spent" and found.reason.error == "JumpFailed"


def test_a_helper_of_ours_is_no_foreign_image() -> None:
    looks: list[object] = []

    def look_back(facts: object) -> bool:
        looks.append(facts)
        return True

    do = Actions(read=lambda settings: READY, look_back=look_back)
    assert read_machine(do, Settings(), None) == (READY, True)
    facts, _ = read_machine(do, Settings(), Warm())
    assert facts.warm and looks == [READY, facts]
