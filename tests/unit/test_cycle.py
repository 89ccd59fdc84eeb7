# SPDX-License-Identifier: GPL-2.0-or-later
"""Cycles: whatever fails, what is owed is given back, and the report names it."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump import errors
from kjump.handoff.report import Report
from kjump.image.prepare import prepare_target, retire_image
from kjump.session.checks.facts import Facts
from kjump.session.cycle import operation as cycles
from kjump.session.cycle.actions import Actions
from kjump.session.cycle.history import CycleReport, History
from kjump.session.cycle.kinds import Cycle, DryRun, WarmUp
from kjump.session.cycle.operation import Operation, Step
from kjump.session.cycle.recovery import CleanUpActions, LookBack, clean_up, look_back
from kjump.session.log import set_up
from kjump.session.mark import Mark, clear_mark, read_mark, write_mark
from kjump.session.systemd import hooks
from kjump.session.systemd.kernel_hibernation import KernelHibernation
from kjump.session.target.swaps import SwapArea
from kjump.settings import Settings
from tests.unit.test_readiness import DISK, READY

ID = uuid.UUID("11111111-2222-3333-4444-555555555555")
RESTORED = {
    "by": "resume",
    "result": "ok",
    "phases": {"copy": 2.0, "check": 0.25},
    "pages": {"data": 1000, "zero": 20, "free": 3000},
    "image": {"size": 2048000, "data": 4096000},
    "memory": {"available": 5},
    "speed": 17,
}


@pytest.fixture(autouse=True)
def plain_log() -> None:
    set_up()


class World:
    """A machine that notes what is done to it, and fails as the test says."""

    def __init__(self, report: dict[str, Any] | None = RESTORED) -> None:
        self.done: list[str] = []
        self.fail: dict[str, Exception] = {}
        self.fail_once: tuple[str, Exception] | None = None
        self.before: dict[str, Callable[[], None]] = {}
        self.foreign = False
        """Somebody else's image is loaded."""
        self.jumped: Callable[[], None] = lambda: None
        self.answer = report
        self.facts: Facts = READY
        self.loaded = False
        self.kernel = KernelHibernation()
        self.mark: Mark | None = None
        self.retired: list[tuple[Path, errors.KjumpError | None, uuid.UUID | None]] = []
        self.steps: list[Step] = []

    def do(self, name: str) -> None:
        self.done.append(name)
        if name in self.before:
            self.before[name]()
        if self.fail_once and self.fail_once[0] == name:
            error, self.fail_once = self.fail_once[1], None
            raise error
        if name in self.fail:
            raise self.fail[name]

    # what a helper that rests is besides
    def welcome(self, _report: Report) -> None:
        self.do("welcome")

    def is_ours(self) -> bool:
        if self.foreign and "whose" in self.fail:
            raise self.fail["whose"]
        return self.loaded and not self.foreign

    # what staging gives
    def describe(self) -> dict[str, Any]:
        return {"start": 1 << 28, "size": 160 << 20}

    def check(self) -> None:
        self.do("recheck")

    def jump(self) -> None:
        assert self.mark is not None and self.mark.hooks and self.loaded
        self.do("jump")
        self.jumped()

    def report(self) -> Report | None:
        self.do("report")
        return None if self.answer is None else Report.from_json(self.answer)

    def close(self) -> None:
        self.do("close")
        self.loaded = False

    # actions
    def read(self, _settings: Settings) -> Facts:
        self.do("read")
        return self.facts

    def prepare(self, facts: Facts, cycle: uuid.UUID) -> None:
        assert (facts.target, cycle) == (DISK, ID)
        self.do("prepare")

    def stage(self, _settings: Settings, _facts: Facts, _cycle: uuid.UUID) -> World:
        assert self.mark is not None  # a killed daemon must find it
        self.loaded = True
        self.do("stage")
        return self

    def stage_warm(self, _settings: Settings, _facts: Facts) -> World:
        assert self.mark is not None and self.mark.kind == "warm-up"
        self.loaded = True
        self.do("stage-warm")
        return self

    def stage_dry(self, _settings: Settings, _facts: Facts, cycle: uuid.UUID) -> World:
        assert self.mark is not None and self.mark.kind == "dry-run" and cycle == ID
        assert not self.loaded  # there is room for one only
        self.loaded = True
        self.do("stage-dry")
        return self

    def ask(self, helper: object, _settings: Settings, _facts: Facts, cycle: uuid.UUID) -> None:
        assert helper is self and cycle == ID
        self.do("ask")

    def misfit(self, *_arguments: object) -> errors.StaleHelper | None:
        return None

    def freeze(self) -> None:
        assert self.mark is not None and self.mark.frozen  # a killed daemon must find it
        self.do("freeze")

    def thaw(self) -> None:
        self.do("thaw")

    def lock_homes(self) -> None:
        self.do("lock")

    def read_kernel_hibernation(self) -> KernelHibernation:
        return self.kernel

    def look_back(self, _facts: Facts) -> bool:
        return False

    def record(self, report: CycleReport) -> None:
        self.do("record")
        self.recorded = dict(report)

    def hooks(self, when: str, _seconds: float) -> list[hooks.Result]:
        self.do(when)
        return [hooks.Result(Path("/h"), 1, 0.1, "a line")]

    def sync(self) -> None:
        self.do("sync")

    def retire(self, path: Path, error: errors.KjumpError | None, cycle: uuid.UUID | None) -> None:
        self.retired.append((path, error, cycle))
        self.do("retire")

    def is_loaded(self) -> bool:
        return self.loaded or self.foreign

    def unload(self) -> None:
        self.loaded = self.foreign = False
        self.do("unload")

    def write_mark(self, mark: Mark) -> None:
        self.mark = mark
        self.do("mark")

    def clear_mark(self) -> None:
        self.do("clear")
        self.mark = None

    def actions(self) -> Actions:
        return Actions(**{name: getattr(self, name) for name in Actions.__dataclass_fields__})

    def cycle(self, *, warm: bool = False, may_fall_back: bool = False) -> Cycle:
        cycle = Cycle(
            Settings(),
            actions=self.actions(),
            notify=self.steps.append,
            cycle_id=ID,
            may_fall_back=may_fall_back,
        )
        self.loaded, cycle.warm = warm, self if warm else None
        return cycle

    def dry_run(self, *, warm: bool = False) -> DryRun:
        dry_run = DryRun(Settings(), actions=self.actions(), notify=self.steps.append, cycle_id=ID)
        self.loaded, dry_run.warm = warm, self if warm else None
        return dry_run

    def warm_up(self) -> WarmUp:
        return WarmUp(Settings(), actions=self.actions(), notify=self.steps.append, cycle_id=ID)


RETURNED = {
    "by": "helper",
    "result": "returned",
    "phases": {"helper boot": 2.0},
    "map": {"cell_pages": 1024, "data": "Z0"},
}


def test_a_dry_run_touches_no_target_and_leaves_nothing() -> None:
    world = World(RETURNED)
    dry_run = world.dry_run()
    report = dry_run.run()
    assert dry_run.error is None and report["result"] == "returned"
    assert report["phases"]["helper boot"] == 2.0 and report["map"] == RETURNED["map"]
    assert world.done == [
        "read",
        "mark",
        "stage-dry",
        "mark",
        "pre",
        "sync",
        "recheck",
        "jump",
        "report",
        "close",
        "unload",
        "post",
        "mark",
        "clear",
    ]
    assert not world.retired and not world.loaded and dry_run.warm is None


def test_a_dry_run_takes_the_place_of_a_warm_helper() -> None:
    world = World(RETURNED)
    dry_run = world.dry_run(warm=True)
    assert dry_run.run()["result"] == "returned"
    assert world.done.index("close") < world.done.index("stage-dry")
    assert dry_run.warm is None and not world.loaded


@pytest.mark.parametrize("name", ["read", "stage-dry", "pre", "recheck", "jump", "report"])
def test_a_dry_run_that_fails_gives_back_what_it_owes(name: str) -> None:
    world = World(RETURNED)
    world.fail[name] = errors.JumpFailed("no")
    dry_run = world.dry_run()
    report = dry_run.run()
    assert isinstance(dry_run.error, errors.JumpFailed) and report["error"] == "JumpFailed"
    assert not world.loaded and world.mark is None and not world.retired
    assert ("post" in world.done) == ("pre" in world.done)


def test_a_dry_run_that_saved_is_no_success() -> None:
    dry_run = World(RESTORED).dry_run()
    assert dry_run.run()["result"] == "failed"
    assert isinstance(dry_run.error, errors.HelperSilent)


def test_a_restored_cycle() -> None:
    world = World()
    cycle = world.cycle()
    report = cycle.run()
    assert cycle.error is None
    assert world.done == [
        "read",
        "mark",
        "prepare",
        "stage",
        "mark",
        "freeze",
        "mark",
        "pre",
        "lock",
        "sync",
        "recheck",
        "jump",
        "report",
        "close",
        "unload",
        "retire",
        "post",
        "thaw",
        "mark",
        "record",
        "clear",
    ]
    assert world.retired == [(DISK.path, None, ID)]
    assert (report["result"], report["where"]) == ("ok", "resume")
    assert "error" not in report
    assert report["cycle"] == str(ID)
    assert report["pages"] == RESTORED["pages"] and report["image"] == RESTORED["image"]
    assert report["window"] == world.describe()
    assert report["target"] == "/dev/vda3"
    assert report["more"] == {"speed": 17}
    assert list(report["phases"]) == [
        "check",
        "prepare",
        "stage",
        "freeze",
        "hooks-pre",
        "sync",
        "jump",
        "copy",
        "resume check",
        "unload",
        "hooks-post",
        "thaw",
    ]
    assert report["finished"] >= report["started"]
    assert set(report["wall"]) == set(report["phases"]) - {"copy", "resume check"}


def test_the_states_come_in_order() -> None:
    world = World()
    world.cycle().run()
    states = [step.state for step in world.steps]
    assert list(dict.fromkeys(states)) == ["checking", "staging", "hooks", "jumping", "reporting"]
    percents = [step.percent for step in world.steps]
    assert percents == sorted(percents) and all(step.message for step in world.steps)
    assert set(states) < set(cycles.STATES)


def test_a_deliberate_return() -> None:
    world = World({"by": "helper", "result": "returned"})
    cycle = world.cycle()
    assert cycle.run()["result"] == "returned"
    assert cycle.error is None


POINTS = (
    "read",
    "mark",
    "prepare",
    "stage",
    "pre",
    "sync",
    "recheck",
    "jump",
    "report",
    "close",
    "unload",
    "post",
    "retire",
    "clear",
)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    "failure", [errors.StagingFailed("It broke."), OSError(5, "I/O error"), RuntimeError("bug")]
)
def test_every_point_of_failure(point: str, failure: Exception) -> None:
    """Nothing stays staged, hooks are paired, the mark goes, and the report has the cause."""
    world = World()
    world.fail[point] = failure
    cycle = world.cycle()
    report = cycle.run()
    done = world.done

    if "stage" in done:
        assert not world.loaded
        assert "unload" in done
        if "pre" in done:  # a reboot must not find it staged while hooks run
            assert done.index("unload") < done.index("post")
    assert ("pre" in done) == ("post" in done)
    if "prepare" in done:
        assert len(world.retired) == 1
        assert world.retired[0][1] is cycle.error
    if point != "clear":
        assert world.mark is None

    backwards = point in ("close", "unload", "post", "retire", "clear")
    unimportant = point == "mark" and isinstance(failure, OSError)
    if backwards or unimportant:
        assert cycle.error is None and report["result"] == "ok"
        return
    assert report["result"] == "failed"
    if isinstance(failure, errors.KjumpError):
        assert cycle.error is failure
        assert report["error"] == "StagingFailed" and report["what"] == "It broke."
    else:
        assert report["error"] == "Internal"
        assert type(failure).__name__ in report["what"]
    assert report["where"] == "session" or point == "report"


@pytest.mark.parametrize("point", ["close", "unload", "post", "retire"])
def test_a_failure_on_the_way_back_hides_none_before(point: str) -> None:
    world = World()
    world.fail = {"jump": errors.JumpFailed("No."), point: RuntimeError("bug")}
    report = world.cycle().run()
    assert report["error"] == "JumpFailed"
    assert "post" in world.done and "unload" in world.done
    assert world.mark is None


def test_a_reason_of_the_checks_stages_nothing() -> None:
    world = World()
    world.facts = replace(READY, boot=None, target_user="mounted on /")
    cycle = world.cycle()
    report = cycle.run()
    assert isinstance(cycle.error, errors.TargetInUse)  # the first of them
    assert world.done == ["read", "record"]
    assert (report["error"], report["where"]) == ("TargetInUse", "session")


@pytest.mark.parametrize(
    ("report", "error", "where"),
    [
        (None, "HelperSilent", "helper"),
        (
            {"by": "helper", "result": "failed", **errors.TargetWriteFailed("EIO").report()},
            "TargetWriteFailed",
            "helper",
        ),
        (
            {"by": "resume", "result": "failed", **errors.ImageDamaged("x").report()},
            "ImageDamaged",
            "resume",
        ),
        ({"by": "helper", "result": "ok"}, "HelperSilent", "helper"),
        ({"by": "resume", "result": "returned"}, "HelperSilent", "resume"),
        ({"result": "failed", "error": "Flux", "what": "?"}, "HelperFailed", "session"),
        ({}, "HelperSilent", "helper"),
    ],
)
def test_reports_of_failure(report: dict[str, Any] | None, error: str, where: str) -> None:
    world = World(report)
    cycle = world.cycle()
    report_of_it = cycle.run()
    assert cycle.error is not None and cycle.error.name == error
    assert (report_of_it["result"], report_of_it["error"], report_of_it["where"]) == (
        "failed",
        error,
        where,
    )
    assert world.retired == [(DISK.path, cycle.error, ID)]
    assert "post" in world.done and not world.loaded


@pytest.mark.parametrize("state", ["checking", "staging", "hooks"])
def test_an_interrupted_cycle_gives_back(state: str) -> None:
    world = World()

    def notify(step: Step) -> None:
        if step.state == state:
            cycle.interrupt()

    cycle = Cycle(Settings(), actions=world.actions(), notify=notify, cycle_id=ID)
    cycle.run()
    assert isinstance(cycle.error, errors.Interrupted)
    assert "jump" not in world.done and not world.loaded and world.mark is None
    assert ("pre" in world.done) == ("post" in world.done)


def test_an_interruption_after_the_jump_changes_nothing() -> None:
    world = World()
    cycle = world.cycle()
    world.jumped = cycle.interrupt
    assert cycle.run()["result"] == "ok"


def test_strange_figures_do_no_harm() -> None:
    report = {"by": "resume", "result": "ok", "phases": {"a": "long", "b": 1}, "pages": 7}
    ours = World(report).cycle().run()
    assert ours["phases"]["b"] == 1.0 and "a" not in ours["phases"] and "pages" not in ours


# -- a helper that rests

WARM = {"by": "helper", "result": "warm", "jump_back": 4096, "phases": {"helper boot": 3.0}}
STALE = {"by": "helper", "result": "failed", **errors.StaleHelper("It is.").report()}


def test_getting_warm() -> None:
    world = World(WARM)
    warm_up = world.warm_up()
    report = warm_up.run()
    assert warm_up.error is None and warm_up.warm is world and world.loaded
    assert world.done == [
        "read",
        "mark",
        "stage-warm",
        "mark",
        "pre",
        "sync",
        "recheck",
        "jump",
        "report",
        "welcome",
        "post",
        "mark",
    ]
    # A daemon that is killed from now on leaves a mark by which it is unloaded, and nothing more.
    assert world.mark == Mark(str(ID), "/dev/vda3", hooks=False, kind="warm-up")
    assert (report["result"], report["phases"]["helper boot"]) == ("warm", 3.0)
    assert world.retired == []


@pytest.mark.parametrize(
    "point", ["read", "stage-warm", "pre", "sync", "recheck", "jump", "report", "welcome"]
)
def test_failing_to_get_warm_leaves_nothing(point: str) -> None:
    world = World(WARM)
    world.fail[point] = errors.StagingFailed("It broke.")
    warm_up = world.warm_up()
    report = warm_up.run()
    assert warm_up.warm is None and not world.loaded and world.mark is None
    assert report["error"] == "StagingFailed"
    assert ("pre" in world.done) == ("post" in world.done)
    assert world.retired == []


@pytest.mark.parametrize(
    ("report", "error"),
    [
        ({"by": "helper", "result": "failed", **errors.NoWarmHelper("x").report()}, "NoWarmHelper"),
        ({"by": "resume", "result": "ok"}, "HelperSilent"),
        ({"by": "helper", "result": "returned"}, "HelperSilent"),
        (None, "HelperSilent"),
    ],
)
def test_a_helper_that_does_not_get_warm(report: dict[str, Any] | None, error: str) -> None:
    world = World(report)
    assert world.warm_up().run()["error"] == error
    assert not world.loaded and world.mark is None


def test_a_cycle_with_a_warm_helper() -> None:
    world = World()
    cycle = world.cycle(warm=True)
    assert cycle.run()["result"] == "ok"
    assert world.done == [
        "read",
        "mark",
        "prepare",
        "ask",
        "mark",
        "freeze",
        "mark",
        "pre",
        "lock",
        "sync",
        "recheck",
        "jump",
        "report",
        "close",
        "unload",
        "retire",
        "post",
        "thaw",
        "mark",
        "record",
        "clear",
    ]
    # What came back from a disk is used up: its pages are junk.
    assert cycle.warm is None and not world.loaded


def test_a_warm_helper_is_not_a_cycle_that_was_served() -> None:
    world = World(WARM)
    assert world.cycle(warm=True).run()["error"] == "HelperSilent"


def test_a_refused_request_leaves_the_helper_resting() -> None:
    world = World()
    world.facts = replace(READY, boot=None)
    cycle = world.cycle(warm=True)
    assert cycle.run()["error"] == "NoBootResume"
    assert cycle.warm is world and world.loaded and world.done == ["read", "record"]


@pytest.mark.parametrize("point", ["prepare", "ask", "pre", "sync", "recheck", "jump", "report"])
def test_a_failure_with_a_warm_helper_leaves_nothing(point: str) -> None:
    world = World()
    world.fail[point] = errors.StagingFailed("It broke.")
    cycle = world.cycle(warm=True)
    assert cycle.run()["error"] == "StagingFailed"
    assert cycle.warm is None and not world.loaded and world.mark is None
    assert ("pre" in world.done) == ("post" in world.done)


def test_a_failure_in_a_warm_helper_is_like_one_in_a_cold_one() -> None:
    failed = {"by": "helper", "result": "failed", **errors.TargetWriteFailed("EIO").report()}
    world = World(failed)
    cycle = world.cycle(warm=True)
    report = cycle.run()
    assert (report["error"], report["where"]) == ("TargetWriteFailed", "helper")
    assert cycle.warm is None and not world.loaded and world.done.count("jump") == 1


@pytest.mark.parametrize("point", ["ask", "recheck", "report"])
def test_a_stale_helper_is_replaced_in_the_middle(point: str) -> None:
    """Whoever finds it stale, and when: the person's request is served all the same."""
    world = World()
    if point == "report":
        answers = [STALE, RESTORED]
        world.jumped = lambda: setattr(world, "answer", answers.pop(0))
    else:
        world.fail_once = (point, errors.StaleHelper("It is."))
    cycle = world.cycle(warm=True)
    report = cycle.run()
    assert cycle.error is None and report["result"] == "ok"
    assert world.done.count("stage") == 1 and world.done.count("pre") == 1
    assert world.done.count("jump") == (2 if point == "report" else 1)
    assert world.done.index("close") < world.done.index("stage")
    if point != "ask":
        assert list(report["phases"]).index("stale jump") < list(report["phases"]).index("jump")


@pytest.mark.parametrize("point", ["ask", "recheck"])
def test_somebody_elses_image_stays_loaded(point: str) -> None:
    """Whoever loads an image while a helper rests has unloaded ours with it."""
    world = World()

    def replaced() -> None:
        world.foreign = True

    world.fail[point] = errors.StagingFailed("It broke.")
    cycle = world.cycle(warm=True)
    world.before[point] = replaced
    assert cycle.run()["error"] == "StagingFailed"
    assert "close" in world.done and "unload" not in world.done
    assert cycle.warm is None and world.mark is None


@pytest.mark.parametrize("kind", ["ask", "recheck", "dry-run"])
def test_no_helper_takes_the_place_of_somebody_elses_image(kind: str) -> None:
    """As if it had been loaded before the checks."""
    world = World()

    def replaced() -> None:
        world.loaded, world.foreign = False, True

    if kind == "dry-run":
        operation: Operation = world.dry_run(warm=True)
        world.before["mark"] = replaced
    else:
        operation = world.cycle(warm=True)
        world.before[kind] = replaced
        world.fail[kind] = errors.StaleHelper("Somebody unloaded it.")
    assert operation.run()["error"] == "ForeignKexecImage"
    assert world.foreign and not {"stage", "stage-dry", "unload", "jump"} & set(world.done)
    assert operation.warm is None and ("pre" in world.done) == ("post" in world.done)


def test_a_helper_that_somebody_unloaded_is_staged_anew() -> None:
    world = World()
    world.before["ask"] = lambda: setattr(world, "loaded", False)
    world.fail_once = ("ask", errors.StaleHelper("Somebody unloaded it."))
    assert world.cycle(warm=True).run()["result"] == "ok"
    assert world.done.count("stage") == 1


def test_an_image_of_which_nobody_knows_whose_it_is_is_unloaded() -> None:
    """It would turn a reboot into a jump."""
    world = World()
    cycle = world.cycle(warm=True)
    world.fail["whose"] = OSError(5, "I/O error")
    world.fail["ask"] = errors.StagingFailed("It broke.")
    world.before["ask"] = lambda: setattr(world, "foreign", True)
    cycle.run()
    assert "unload" in world.done


def test_stale_is_said_once() -> None:
    """A helper that was started a moment ago cannot be stale; if it says so, that is the end."""
    world = World(STALE)
    assert world.cycle(warm=True).run()["error"] == "StaleHelper"
    assert world.done.count("jump") == 2
    world = World(STALE)
    assert world.cycle().run()["error"] == "StaleHelper"
    assert world.done.count("jump") == 1


# -- killed at any moment


class Killed(BaseException):
    """What no handler sees: SIGKILL."""


ALL = [
    "read",
    "prepare",
    "stage",
    "freeze",
    "pre",
    "lock",
    "sync",
    "recheck",
    "jump",
    "report",
    "close",
    "unload",
    "retire",
    "post",
    "thaw",
    "record",
    "clear",
]
"""What a cycle does, once each."""


class Mortal(World):
    """Dies at an action, before or after it took effect."""

    def __init__(self, at: str, *, after: bool) -> None:
        super().__init__()
        self.at, self.after = at, after
        self.frozen = False

    def do(self, name: str) -> None:
        if name == self.at and not self.after:
            raise Killed
        super().do(name)
        self.frozen = name == "freeze" or (self.frozen and name != "thaw")
        if name == self.at:
            raise Killed


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("at", ALL)
def test_a_killed_daemon_leaves_nothing(tmp_path: Path, at: str, after: bool) -> None:
    world, kept = Mortal(at, after=after), History(tmp_path / "history.jsonl")
    path = tmp_path / "mark"

    def write(mark: Mark) -> None:
        world.mark = mark
        write_mark(mark, path)

    def record(report: CycleReport) -> None:
        if not after:
            world.do("record")
        kept.add(report)
        if after:
            world.do("record")

    actions = replace(
        world.actions(),
        write_mark=write,
        clear_mark=lambda: clear_mark(path),
        record=record,
    )
    if at == "clear":
        actions = replace(actions, clear_mark=lambda: world.do("clear"))
    cycle = Cycle(Settings(), actions=actions, cycle_id=ID)
    with pytest.raises(Killed):
        cycle.run()
    world.at = ""

    # What ExecStopPost= and the next daemon do.
    def unload() -> None:
        world.loaded = False

    def post(_seconds: float) -> list[hooks.Result]:
        world.done.append("post")
        return []

    def thaw() -> None:
        world.frozen = False

    cleaning = CleanUpActions(path, unload, post, thaw)
    had_mark = path.exists()
    assert clean_up(kept, actions=cleaning) is had_mark
    assert not world.loaded and not world.frozen and not path.exists()
    if "pre" in world.done:
        assert "post" in world.done
    recorded = [entry for entry in kept.entries() if entry["cycle"] == str(ID)]
    # Before the mark nothing was begun: there is nothing to record.
    assert len(recorded) == (0 if at == "read" else 1), recorded
    if at not in ("record", "clear", "read"):
        assert recorded[0]["error"] == "Interrupted"


# -- sessions of users


@pytest.mark.parametrize(
    "fails",
    [
        "freeze",
        "pre",
        "lock",
        "sync",
        "recheck",
        "jump",
        "report",
        "close",
        "unload",
        "retire",
        "post",
    ],
)
def test_what_was_frozen_is_let_go_on(fails: str) -> None:
    world = World()
    world.fail[fails] = RuntimeError("no")
    world.cycle().run()
    assert world.done.count("freeze") == world.done.count("thaw") == 1
    assert world.done.index("freeze") < world.done.index("pre") < world.done.index("thaw")
    assert world.mark is None


@pytest.mark.parametrize("owed", ["unload", "thaw"])
def test_what_could_not_be_given_back_stays_on_the_mark(owed: str) -> None:
    """kjumpd tries again when it ends: an image that stays would turn a reboot into a jump."""
    world = World()
    world.fail[owed] = OSError(16, "Device or resource busy")
    if owed == "unload":
        world.before[owed] = lambda: setattr(world, "loaded", True)
    assert world.cycle().run()["result"] == "ok"
    assert world.mark == Mark(str(ID), str(DISK.path), False, "cycle", owed == "thaw")
    del world.fail[owed]
    world.before.clear()
    world.cycle().run()
    assert world.mark is None


def test_that_sessions_cannot_be_frozen_or_homes_not_locked_stops_nothing() -> None:
    world = World()
    world.fail |= {"freeze": RuntimeError("no"), "lock": RuntimeError("no")}
    assert world.cycle().run()["result"] == "ok"


def test_sessions_are_left_alone_if_that_is_wanted() -> None:
    world = World()
    cycle = Cycle(Settings(), actions=world.actions(), cycle_id=ID, freeze=False)
    assert cycle.run()["result"] == "ok"
    assert not {"freeze", "thaw"} & set(world.done) and "lock" in world.done
    world = World()
    cycle = Cycle(Settings(), actions=replace(world.actions(), freeze=None), cycle_id=ID)
    assert cycle.run()["result"] == "ok" and "thaw" not in world.done
    world = World({"by": "helper", "result": "warm"})
    world.warm_up().run()
    assert "jump" in world.done and not {"freeze", "thaw", "lock"} & set(world.done)


def test_hooks_that_cannot_be_run_end_the_cycle_before_the_jump() -> None:
    world = World()
    world.fail["pre"] = errors.HooksFailed("No bus.")
    cycle = world.cycle()
    assert cycle.run()["error"] == "HooksFailed"
    assert not cycle.jumped and "jump" not in world.done
    assert not world.loaded and "post" in world.done


def test_how_far_it_came() -> None:
    for fails, jumped in (("stage", False), ("recheck", False), ("jump", True)):
        world = World()
        world.fail[fails] = errors.StagingFailed("no")
        cycle = world.cycle()
        cycle.run()
        assert cycle.jumped is jumped, fails


# -- the kernel's own hibernation instead

POSSIBLE = KernelHibernation(
    resume="8:1", swaps=(SwapArea(Path("/dev/sda1"), False, 1 << 30, 0, "8:1"),)
)


def test_a_request_that_may_falls_back() -> None:
    world = World()
    world.facts = replace(READY, boot=None)
    world.kernel = POSSIBLE
    cycle = world.cycle(may_fall_back=True)
    report = cycle.run()
    assert cycle.falls_back and report["fallback"] == "stock"
    assert world.recorded["fallback"] == "stock"  # the history says so, too
    cycle = world.cycle()
    assert "fallback" not in cycle.run() and not cycle.falls_back


def test_a_request_that_cannot_fall_back_says_why() -> None:
    world = World()
    world.facts = replace(READY, boot=None)
    cycle = world.cycle(may_fall_back=True)
    assert cycle.run()["no_fallback"] == "No swap is in use." and not cycle.falls_back
    # After the jump there is nothing to explain: it is not a question any more.
    world = World()
    world.kernel = POSSIBLE
    world.fail["jump"] = errors.JumpFailed("No.")
    assert not {"fallback", "no_fallback"} & world.cycle(may_fall_back=True).run().keys()


def test_the_kernels_own_hibernation_finds_no_warm_helper() -> None:
    world = World()
    world.facts = replace(READY, boot=None)
    world.kernel = POSSIBLE
    cycle = world.cycle(warm=True, may_fall_back=True)
    assert cycle.run()["fallback"] == "stock"
    assert world.done == ["read", "close", "unload", "record", "clear"]
    assert cycle.warm is None and not world.loaded


def test_a_failure_to_decide_or_to_record_is_only_logged() -> None:
    world = World()
    world.facts = replace(READY, boot=None)
    world.fail["record"] = OSError(28, "No space left on device")
    world.kernel = None  # type: ignore[assignment]
    assert world.cycle(may_fall_back=True).run()["error"] == "NoBootResume"
    assert world.done == ["read", "record"]


# -- after a daemon that was killed


@pytest.fixture
def kept(tmp_path: Path) -> History:
    return History(tmp_path / "history.jsonl")


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def cleaning(tmp_path: Path, done: list[str]) -> Iterator[CleanUpActions]:
    def post(_seconds: float) -> list[hooks.Result]:
        done.append("post")
        return []

    yield CleanUpActions(tmp_path / "staged", lambda: done.append("unload"), post)


def test_cleaning_up_if_nothing_is_owed(
    kept: History, cleaning: CleanUpActions, done: list[str]
) -> None:
    """Somebody else's kexec image stays."""
    assert not clean_up(kept, actions=cleaning)
    assert done == [] and kept.last() is None


@pytest.mark.parametrize("owed", [False, True])
def test_cleaning_up_after_a_killed_daemon(
    kept: History, cleaning: CleanUpActions, done: list[str], owed: bool
) -> None:
    write_mark(Mark(str(ID), "/dev/vda3", owed), cleaning.mark)
    assert clean_up(kept, actions=cleaning)
    assert done == (["unload", "post"] if owed else ["unload"])
    last = kept.last()
    assert last is not None
    assert (last["cycle"], last["result"], last["error"]) == (str(ID), "failed", "Interrupted")
    assert not clean_up(kept, actions=cleaning)


@pytest.mark.parametrize("owed", [False, True])
def test_cleaning_up_a_warm_helper(
    kept: History, cleaning: CleanUpActions, done: list[str], owed: bool
) -> None:
    """It is unloaded; no cycle was lost with it, so the history gets no entry."""
    write_mark(Mark(str(ID), "", owed, "warm-up"), cleaning.mark)
    assert clean_up(kept, actions=cleaning)
    assert done == (["unload", "post"] if owed else ["unload"])
    assert kept.last() is None and read_mark(cleaning.mark) is None


def test_cleaning_up_lets_sessions_go_on(
    kept: History, cleaning: CleanUpActions, done: list[str]
) -> None:
    def post(_seconds: float) -> list[hooks.Result]:
        done.append("post")
        raise errors.HooksFailed("systemd is about to end.")

    frozen = replace(cleaning, post_hooks=post, thaw=lambda: done.append("thaw"))
    write_mark(Mark(str(ID), "/dev/vda3", hooks=True, frozen=True), frozen.mark)
    assert clean_up(kept, actions=frozen)
    assert done == ["unload", "post", "thaw"]
    assert read_mark(frozen.mark) is None
    # A mark that cannot be read owes everything.
    frozen.mark.write_text("{")
    assert clean_up(kept, actions=frozen) and done[-1] == "thaw"


def test_cleaning_up_is_tried_again_if_unloading_failed(
    kept: History, cleaning: CleanUpActions
) -> None:
    def refuse() -> None:
        raise OSError(1, "no")

    write_mark(Mark(str(ID)), cleaning.mark)
    assert clean_up(kept, actions=replace(cleaning, unload=refuse))
    assert read_mark(cleaning.mark) is not None
    assert clean_up(kept, actions=cleaning)
    assert read_mark(cleaning.mark) is None


def test_whatever_fails_in_cleaning_up_the_rest_is_given_back(
    kept: History, cleaning: CleanUpActions, done: list[str]
) -> None:
    """An image that the kernel does not unload at once leaves nobody with frozen sessions."""

    def fail(what: str) -> None:
        done.append(what)
        raise OSError(16, "Device or resource busy")

    failing = replace(cleaning, unload=lambda: fail("unload"), thaw=lambda: done.append("thaw"))
    write_mark(Mark(str(ID), "/dev/vda3", hooks=True, frozen=True), cleaning.mark)
    assert clean_up(kept, actions=failing)
    assert done == ["unload", "post", "thaw"]
    # Only what is still owed is tried again, and the cycle is recorded once.
    assert read_mark(cleaning.mark) == Mark(str(ID), "/dev/vda3")
    assert clean_up(kept, actions=replace(cleaning, thaw=lambda: done.append("thaw")))
    assert done == ["unload", "post", "thaw", "unload"]
    assert read_mark(cleaning.mark) is None and len(kept.entries()) == 1

    write_mark(Mark(str(ID), "/dev/vda3", hooks=True, frozen=True), cleaning.mark)
    assert clean_up(kept, actions=replace(cleaning, thaw=lambda: fail("thaw")))
    assert read_mark(cleaning.mark) == Mark(str(ID), "/dev/vda3", frozen=True)


def test_a_history_that_cannot_be_read_stops_no_cleaning_up(
    cleaning: CleanUpActions, done: list[str], tmp_path: Path
) -> None:
    write_mark(Mark(str(ID)), cleaning.mark)
    assert clean_up(History(tmp_path), actions=cleaning)  # a folder
    assert done == ["unload"] and read_mark(cleaning.mark) is None


def test_a_look_back_is_made_once_as_soon_as_the_target_is_there(kept: History) -> None:
    looks: list[object] = []
    look_back_once = LookBack(kept, lambda *about: looks.append(about))
    assert not look_back_once(replace(READY, target=errors.TargetMissing("It is not there.")))
    assert look_back_once(READY) and not look_back_once(READY)
    assert looks == [(kept, READY)]


class Hold:
    """A target that is held, and what becomes of it."""

    def __init__(self, world: World) -> None:
        self.world = world

    def check(self) -> None:
        self.world.do("still there")

    def retire(self, error: errors.KjumpError | None) -> None:
        self.world.retired.append((DISK.path, error, ID))
        self.world.do("retire held")

    def close(self) -> None:
        self.world.do("give back")


class Holding(World):
    """A machine whose target has something to hold over the jump."""

    def prepare(self, facts: Facts, cycle: uuid.UUID) -> Hold:  # type: ignore[override]
        super().prepare(facts, cycle)
        return Hold(self)


def test_what_is_held_is_given_back_after_the_image_was_spent() -> None:
    world = Holding()
    world.cycle().run()
    assert world.done == [
        "read",
        "mark",
        "prepare",
        "stage",
        "mark",
        "freeze",
        "mark",
        "pre",
        "lock",
        "sync",
        "recheck",
        "still there",
        "jump",
        "report",
        "close",
        "unload",
        "retire held",
        "give back",
        "post",
        "thaw",
        "mark",
        "record",
        "clear",
    ]


@pytest.mark.parametrize("point", ["stage", "pre", "recheck", "still there", "jump", "retire held"])
def test_whatever_fails_what_is_held_is_given_back(point: str) -> None:
    world = Holding()
    world.fail[point] = errors.StagingFailed("no")
    world.cycle().run()
    assert world.done.count("give back") == 1
    assert "retire" not in world.done
    assert world.done.index("retire held") < world.done.index("give back")


# -- a real superblock, in a file in place of a device


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    with path.open("wb") as stream:
        stream.truncate(32 << 20)
    return path


def test_an_image_of_an_earlier_boot_is_recorded_once_and_retired(
    kept: History, image: Path
) -> None:
    from kjump.image import target

    facts = replace(READY, target=replace(DISK, path=image))
    look_back(kept, facts)
    assert kept.last() is None
    prepare_target(image, cycle_id=ID, hostname="h")
    look_back(kept, facts)
    last = kept.last()
    assert last is not None and (last["cycle"], last["error"]) == (str(ID), "ImageIncomplete")
    found = target.examine(image)
    assert found is not None and found.state == "spent"
    look_back(kept, facts)
    assert len(kept.entries()) == 1


def test_a_failed_resume_is_recorded_after_the_boot(kept: History, image: Path) -> None:

    prepare_target(image, cycle_id=ID, hostname="h")
    retire_image(image, errors.MemoryMapChanged("It changed."))
    look_back(kept, replace(READY, target=replace(DISK, path=image)))
    last = kept.last()
    assert last is not None and last["error"] == "MemoryMapChanged"
    assert last["where"] == "resume"


def test_a_target_that_is_gone_is_no_reason_to_fail(kept: History, tmp_path: Path) -> None:
    look_back(kept, replace(READY, target=replace(DISK, path=tmp_path / "gone")))
    assert kept.last() is None


def test_a_locator_in_the_swap_goes_and_its_slots_are_not_written_to(
    kept: History, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slots are the system's again: what lies there is swapped memory."""
    from kjump.image import locator, target
    from kjump.session.target import claim

    held: list[object] = []

    class Writable:
        """The kernel lets nobody else write to swap in use."""

        def __init__(self, *about: object) -> None:
            held.append(about)

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            held.append("closed")

    monkeypatch.setattr(claim, "Writable", Writable)

    header = bytes(4086) + b"SWAPSPACE2"
    image.write_bytes(header + bytes(31 << 20))
    area = target.Area(locator.SWAP, 0, ((8192, 20 << 20),))
    prepare_target(image, cycle_id=ID, hostname="h", area=area)
    before = image.read_bytes()
    swap = replace(DISK, path=image, kind="swap", locator=0, room=20 << 20)
    for kind in (swap, replace(DISK, path=image)):  # in use as swap or not
        image.write_bytes(before)
        look_back(kept, replace(READY, target=kind))
        assert image.read_bytes() == header + before[4096:]
    (entry,) = kept.entries()
    assert entry["error"] == "ImageIncomplete"
    assert held == [(os.stat(image).st_rdev, 0), "closed"]


def test_the_reason_is_recorded_even_if_the_locator_cannot_be_removed(
    kept: History, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kjump.image import locator, target
    from kjump.session.target import claim

    def busy(*_: object) -> None:
        raise OSError(26, "Text file busy")

    image.write_bytes(bytes(4086) + b"SWAPSPACE2" + bytes(31 << 20))
    area = target.Area(locator.SWAP, 0, ((8192, 20 << 20),))
    prepare_target(image, cycle_id=ID, hostname="h", area=area)
    monkeypatch.setattr(claim, "Writable", busy)
    swap = replace(DISK, path=image, kind="swap", locator=0, room=20 << 20)
    for _ in range(2):  # and only once
        look_back(kept, replace(READY, target=swap))
    (entry,) = kept.entries()
    assert entry["error"] == "ImageIncomplete"
