# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.service.operations: one at a time, and nobody is forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from gi.repository import GLib

from kjump import errors
from kjump.session.cycle.history import CycleReport
from kjump.session.cycle.kinds import Cycle, DryRun, WarmUp
from kjump.session.cycle.operation import Operation, Step
from kjump.session.service.assessment import Assessment, LogindActions, is_possible
from kjump.session.service.operations import Worker, later
from kjump.settings import Helper, Settings
from tests.unit.played import Machine, NoThreads, settle, until
from tests.unit.test_readiness import READY

WARM = Settings(helper=Helper(warm=True))


class Listener:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.assessments: list[Assessment] = []

    def began(self, operation: Operation) -> None:
        self.heard.append(("began", operation.kind))

    def stepped(self, step: Step) -> None:
        self.heard.append(("step", step.state))

    def ended(self, operation: Operation, report: CycleReport) -> None:
        self.heard.append(("ended", operation.kind))

    def assessed(self, assessment: Assessment) -> None:
        self.assessments.append(assessment)


class Waiting:
    """Who waits for an operation, or for an assessment."""

    def __init__(self) -> None:
        self.operation: Operation | None = None
        self.report: CycleReport = {}
        self.refusal: errors.KjumpError | None = None
        self.assessment: Assessment | None = None

    def ended(self, operation: Operation, report: CycleReport) -> None:
        assert self.operation is None
        self.operation, self.report = operation, report

    def refused(self, error: errors.KjumpError) -> None:
        assert self.refusal is None
        self.refusal = error

    def assessed(self, assessment: Assessment) -> None:
        assert self.assessment is None
        self.assessment = assessment


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def worker(machine: Machine, listener: Listener) -> Iterator[Worker]:
    found = make(machine, listener)
    yield found
    finish(machine, found)


def make(machine: Machine, listener: Listener, settings: Settings | None = None) -> Worker:
    return Worker(
        settings or Settings(),
        listener,
        actions=machine.actions(),
        logind=LogindActions(machine.offer, machine.set_resume_device),
        warm_delay=0.01,
        look_again=1,
    )


def finish(machine: Machine, worker: Worker) -> None:
    for event in machine.holds.values():
        event.set()
    worker.stop()
    until(lambda: worker.operation is None)
    settle()


def run(worker: Worker, kind: type[Operation], **options: Any) -> Waiting:
    """An operation, to its end."""
    waiting = Waiting()
    worker.begin(kind, waiting.ended, **options)
    until(lambda: waiting.operation)
    return waiting


def assessed(worker: Worker) -> Assessment:
    waiting = Waiting()
    worker.assess(waiting.assessed)
    until(lambda: waiting.assessment)
    assert waiting.assessment is not None
    return waiting.assessment


# -- one at a time


@pytest.mark.parametrize(
    ("kind", "result"), [(Cycle, "ok"), (WarmUp, "warm"), (DryRun, "returned")]
)
def test_operations(
    worker: Worker, machine: Machine, listener: Listener, kind: type[Operation], result: str
) -> None:
    waiting = run(worker, kind)
    assert waiting.report["result"] == result and worker.operation is None
    assert listener.heard[0] == ("began", kind.kind) and listener.heard[-1] == ("ended", kind.kind)
    assert worker.has_warm_helper is (kind is WarmUp)
    # The machine is another now.
    until(lambda: listener.assessments)
    assert len(machine.recorded) == (kind is Cycle)


def test_the_helper_that_rests_is_used_by_the_next_cycle(worker: Worker, machine: Machine) -> None:
    run(worker, WarmUp)
    assert assessed(worker).facts == replace(READY, warm=True)
    run(worker, Cycle)
    assert "ask" in machine.done and "stage" not in machine.done
    assert not worker.has_warm_helper


@pytest.mark.parametrize("running", [Cycle, WarmUp, DryRun])
def test_who_comes_second_is_refused(
    worker: Worker, machine: Machine, running: type[Operation]
) -> None:
    jumping = machine.hold("jump")
    waiting = Waiting()
    worker.begin(running, waiting.ended)
    for kind in (Cycle, WarmUp, DryRun):
        with pytest.raises(errors.Busy):
            worker.begin(kind, waiting.ended)
    with pytest.raises(errors.Busy):
        worker.unstage(lambda: None)
    if running is not WarmUp:
        with pytest.raises(errors.Busy):
            worker.request(Cycle, waiting.ended, waiting.refused)
    jumping.set()
    until(lambda: waiting.operation)


def test_a_request_waits_for_a_warm_up(worker: Worker, machine: Machine) -> None:
    jumping = machine.hold("jump")
    warm, cycle, second = Waiting(), Waiting(), Waiting()
    worker.begin(WarmUp, warm.ended)
    until(machine.at("jump"))
    worker.request(Cycle, cycle.ended, cycle.refused)
    with pytest.raises(errors.Busy):  # one waits
        worker.request(Cycle, second.ended, second.refused)
    settle()
    assert cycle.operation is None
    jumping.set()
    until(lambda: cycle.operation)
    assert warm.report["result"] == "warm" and cycle.report["result"] == "ok"
    assert "ask" in machine.done  # it had jumped, so that the helper is there


def test_a_warm_up_that_has_not_jumped_makes_way(worker: Worker, machine: Machine) -> None:
    staging = machine.hold("stage-warm")
    warm, cycle = Waiting(), Waiting()
    worker.begin(WarmUp, warm.ended)
    until(machine.at("stage-warm"))
    worker.request(Cycle, cycle.ended, cycle.refused)
    staging.set()
    until(lambda: cycle.operation)
    assert warm.report["error"] == "Interrupted" and cycle.report["result"] == "ok"
    assert machine.done.count("jump") == 1


def test_a_request_begins_at_once_if_nothing_runs(worker: Worker) -> None:
    cycle = Waiting()
    worker.request(Cycle, cycle.ended, cycle.refused, freeze=False)
    until(lambda: cycle.operation)
    assert cycle.report["result"] == "ok"


def test_a_cycle_is_handed_no_helper_that_an_assessment_unloads(
    worker: Worker, machine: Machine
) -> None:
    """The assessment began first, and finds that the helper does not fit any more."""
    run(worker, WarmUp)
    until(lambda: not worker._assessing)
    machine.stale = errors.StaleHelper("Its initrd is another now.")
    reading = machine.hold("read")
    worker.assess()
    until(worker._machine.locked)
    cycle = Waiting()
    worker.begin(Cycle, cycle.ended)
    settle()
    reading.set()
    until(lambda: cycle.operation)
    assert "error" not in cycle.report and cycle.report["result"] == "ok"
    assert "ask" not in machine.done and machine.done.count("stage") == 1


def test_an_operation_that_breaks_leaves_the_way_free(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_self: Operation) -> CycleReport:
        raise MemoryError

    monkeypatch.setattr(DryRun, "run", broken)
    waiting = run(worker, DryRun)
    assert waiting.report["error"] == "Internal"
    assert waiting.operation is not None and isinstance(waiting.operation.error, errors.Internal)
    worker.refuse_if_busy()


def test_a_listener_that_fails_keeps_nobody_from_an_answer(
    worker: Worker, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_about: object) -> None:
        raise ValueError

    for name in ("began", "stepped", "ended", "assessed"):
        monkeypatch.setattr(listener, name, fail)
    assert run(worker, Cycle).report["result"] == "ok"
    assert assessed(worker).availability == "yes"


# -- threads that cannot be started


@pytest.mark.parametrize("kind", [Cycle, WarmUp, DryRun])
def test_no_thread_for_an_operation(
    worker: Worker, listener: Listener, kind: type[Operation]
) -> None:
    with NoThreads(), pytest.raises(errors.TooLittleMemory, match="No thread"):
        worker.begin(kind, Waiting().ended)
    assert worker.operation is None and not listener.heard
    run(worker, kind)


def test_no_thread_for_a_request_that_waited(worker: Worker, machine: Machine) -> None:
    jumping = machine.hold("jump")
    cycle = Waiting()
    worker.begin(WarmUp, Waiting().ended)
    until(machine.at("jump"))
    worker.request(Cycle, cycle.ended, cycle.refused)
    with NoThreads("cycle"):
        jumping.set()
        until(lambda: cycle.refusal)
    assert isinstance(cycle.refusal, errors.TooLittleMemory)
    run(worker, Cycle)


def test_no_thread_for_an_assessment(worker: Worker, listener: Listener) -> None:
    with NoThreads():
        assessment = assessed(worker)
    assert assessment.facts is None and assessment.availability == "no"
    assert isinstance(assessment.reasons[0], errors.TooLittleMemory)
    assert listener.assessments == [assessment]
    assert assessed(worker).availability == "yes"


def test_no_thread_to_unload_a_helper(worker: Worker) -> None:
    run(worker, WarmUp)
    with NoThreads(), pytest.raises(errors.TooLittleMemory):
        worker.unstage(lambda: None)
    assert worker.has_warm_helper


# -- the end


def test_who_waits_behind_a_warm_up_is_not_started_at_the_end(
    worker: Worker, machine: Machine
) -> None:
    """systemd stops kjumpd for an upgrade or at shutdown: no hibernation may begin then."""
    staging = machine.hold("stage-warm")
    warm, cycle = Waiting(), Waiting()
    worker.begin(WarmUp, warm.ended)
    until(machine.at("stage-warm"))
    worker.request(Cycle, cycle.ended, cycle.refused)
    worker.stop()
    assert isinstance(cycle.refusal, errors.Interrupted)
    staging.set()
    until(lambda: worker.operation is None)
    settle()
    assert warm.report["error"] == "Interrupted"
    assert cycle.operation is None and not {"stage", "jump"} & set(machine.done)
    assert machine.done.count("read") == 1  # nor was the machine assessed


def test_nothing_begins_at_the_end(worker: Worker, machine: Machine) -> None:
    worker.stop()
    for kind in (Cycle, WarmUp, DryRun):
        with pytest.raises(errors.Interrupted):
            worker.begin(kind, Waiting().ended)
    with pytest.raises(errors.Interrupted):
        worker.request(Cycle, Waiting().ended, Waiting().refused)
    with pytest.raises(errors.Interrupted):
        worker.unstage(lambda: None)
    with pytest.raises(errors.Interrupted):
        worker.in_background("x", lambda: None, lambda _: None)
    assert assessed(worker).reasons[0].name == "Busy"
    settle()
    assert machine.done == []


def test_who_waits_for_an_assessment_is_answered_at_the_end(
    worker: Worker, machine: Machine, listener: Listener
) -> None:
    reading = machine.hold("read")
    first, second = Waiting(), Waiting()
    worker.assess(first.assessed)
    until(machine.at("read"))
    worker.assess(second.assessed)
    worker.stop()
    for waiting in (first, second):
        assert waiting.assessment is not None and waiting.assessment.reasons[0].name == "Busy"
    reading.set()
    until(lambda: listener.assessments)


def test_a_cycle_that_has_jumped_is_waited_for(worker: Worker, machine: Machine) -> None:
    jumping = machine.hold("jump")
    cycle = Waiting()
    worker.begin(Cycle, cycle.ended)
    until(machine.at("jump"))
    worker.stop()
    settle()
    assert worker.operation is not None
    jumping.set()
    until(lambda: cycle.operation)
    assert cycle.report["result"] == "ok"


def test_closing_unloads_the_helper_that_rests(worker: Worker, machine: Machine) -> None:
    run(worker, WarmUp)
    worker.stop()
    worker.close()
    assert machine.done[-2:] == ["close", "clear mark"] and not worker.has_warm_helper


# -- assessments


def test_a_flood_of_questions_is_two_readings(worker: Worker, machine: Machine) -> None:
    reading = machine.hold("read")
    crowd = [Waiting() for _ in range(100)]
    worker.assess(crowd[0].assessed)
    until(machine.at("read"))
    for one in crowd[1:]:
        worker.assess(one.assessed)
    reading.set()
    until(lambda: all(one.assessment for one in crowd))
    assert machine.done.count("read") == 2
    # Who asked while it was read gets what was read afterwards.
    assert crowd[0].assessment is not crowd[1].assessment is crowd[99].assessment


@pytest.mark.parametrize("error", [OSError(5, "I/O error"), ValueError("not enough values")])
@pytest.mark.parametrize("point", ["read", "offer", "set resume device"])
def test_whatever_fails_in_an_assessment_it_is_answered(
    worker: Worker, machine: Machine, point: str, error: Exception
) -> None:
    machine.fails[point] = error
    found = assessed(worker)
    assert (found.availability, found.facts) == (
        ("no", None) if point == "read" else ("yes", READY)
    )
    del machine.fails[point]
    assert assessed(worker).availability == "yes"


def test_one_answer_that_fails_keeps_no_other_back(worker: Worker) -> None:
    def fail(_assessment: Assessment) -> None:
        raise ValueError

    worker.assess(fail)
    assert assessed(worker).availability == "yes"


def test_what_is_offered_follows_the_reasons(worker: Worker, machine: Machine) -> None:
    assessed(worker)
    assert machine.done == ["read", "set resume device", "offer"]
    machine.facts = replace(READY, available=1)  # that passes
    assert assessed(worker).texts[0][0] == "TooLittleMemory" and machine.done[-1] == "offer"
    machine.facts = replace(READY, boot=None)
    assert not assessed(worker).offered and machine.done[-1] == "offer nothing"
    assert is_possible([]) and not is_possible([errors.NoWindow("x"), errors.NoTarget("x")])


def test_a_machine_that_is_offered_nothing_is_looked_at_again(
    worker: Worker, machine: Machine
) -> None:
    machine.facts = replace(READY, boot=None)
    assessed(worker)
    machine.facts = READY
    until(lambda: machine.done.count("read") == 2)
    assert machine.done[-1] != "offer nothing"
    time.sleep(1.1)
    settle()
    assert machine.done.count("read") == 2


def test_a_machine_that_could_not_be_read_is_looked_at_again(
    worker: Worker, listener: Listener
) -> None:
    with NoThreads():
        assessed(worker)
    until(lambda: listener.assessments[-1].availability == "yes")


def test_a_look_back_is_passed_on(machine: Machine, listener: Listener) -> None:
    looks = [True, False]
    worker = Worker(
        Settings(), listener, actions=machine.actions(look_back=lambda facts: looks.pop(0))
    )
    assert assessed(worker).looked_back and not assessed(worker).looked_back


def test_results_do_not_wait_until_the_main_loop_is_idle() -> None:
    order: list[str] = []
    GLib.idle_add(lambda: order.append("idle"))
    later(order.append, "result")
    settle()
    assert order == ["result", "idle"]


# -- a helper that rests


def test_unloading_the_helper(worker: Worker, machine: Machine) -> None:
    run(worker, WarmUp)
    ended = threading.Event()
    worker.unstage(ended.set)
    until(ended.is_set)
    assert not worker.has_warm_helper and "close" in machine.done


def test_a_helper_that_cannot_be_unloaded_is_logged(
    worker: Worker, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    run(worker, WarmUp)
    machine.fails["close"] = OSError(16, "Device or resource busy")
    ended = threading.Event()
    worker.unstage(ended.set)
    until(ended.is_set)
    assert not worker.has_warm_helper and "clear mark" not in machine.done


def test_a_helper_is_started_ahead_and_again(machine: Machine, listener: Listener) -> None:
    worker = make(machine, listener, WARM)
    worker.assess()
    until(lambda: worker.has_warm_helper)
    assert machine.done.count("stage-warm") == 1
    # After it was used ...
    until(lambda: worker.operation is None)
    run(worker, Cycle)
    until(lambda: machine.done.count("stage-warm") == 2 and worker.operation is None)
    # ... and after the machine changed.
    machine.stale = errors.StaleHelper("x")
    assert assessed(worker).unloaded
    machine.stale = None
    until(lambda: machine.done.count("stage-warm") == 3 and worker.operation is None)
    finish(machine, worker)


def test_none_is_started_after_a_failure_until_something_changes(
    machine: Machine, listener: Listener
) -> None:
    worker = make(machine, listener, WARM)
    machine.fails["stage-warm"] = errors.NoWarmHelper("It cannot be kept.")
    worker.assess()
    until(lambda: ("ended", "warm-up") in listener.heard)

    def stays(count: int) -> None:
        for _ in range(3):
            assessed(worker)
            time.sleep(0.03)
            settle()
        assert machine.done.count("stage-warm") == count

    stays(1)
    machine.fails.clear()
    worker.use(WARM)
    until(lambda: worker.has_warm_helper and worker.operation is None)
    # Whoever unloads it means it.
    ended = threading.Event()
    worker.unstage(ended.set)
    until(ended.is_set)
    stays(2)
    worker.use(Settings())
    stays(2)
    finish(machine, worker)


def test_a_helper_that_cannot_be_started_ahead_is_no_failure_of_ours(
    machine: Machine, listener: Listener
) -> None:
    worker = make(machine, listener, WARM)
    with NoThreads("warm-up"):
        assessed(worker)
        time.sleep(0.05)
        settle()
    assert worker.operation is None and not listener.heard
    worker.stop()
