# SPDX-License-Identifier: GPL-2.0-or-later
"""No session runs on while a boot might resume its image, whatever fails at the end of saving."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest

from kjump.errors import HelperFailed, KjumpError, TargetWriteFailed
from kjump.handoff.documents import TargetPlace
from kjump.helper import copy, leave
from kjump.helper.completion import Completion
from kjump.helper.watch import Watch
from kjump.image import superblocks, target
from kjump.image.device import DirectDevice
from kjump.image.layout import BLOCK, COMPLETE, EMPTY, SLOTS, newest
from kjump.machine import cmdline, syscalls

from . import samples
from .test_save import INFO, JUMP_BACK, disk, signals

__all__ = ["disk", "signals"]


class Disk:
    """A disk that loses what was not flushed, and whose requests fail from a certain one on."""

    def __init__(self, path: Path, completion: Completion, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.completion = completion
        self.requests = 0
        self.fails_at, self.fails_for = 0, 0
        self.done_all_the_same = False
        """A request that fails has had its effect."""
        self.pending: list[tuple[int, bytes]] = []
        self.durable: dict[int, bytes] = {}
        write, flush = DirectDevice.write, DirectDevice.flush

        def failing() -> bool:
            if not self.completion.begun:
                return False
            if not self.durable:
                self.durable = self.slots()
            self.requests += 1
            return self.fails_at <= self.requests < self.fails_at + self.fails_for

        def played_write(device: DirectDevice, offset: int, data: bytes) -> None:
            bad = failing()
            if not bad or self.done_all_the_same:
                write(device, offset, data)
                if offset in SLOTS:
                    self.pending.append((offset, data))
            if bad:
                raise TargetWriteFailed("It does not take it.")

        def played_flush(device: DirectDevice) -> None:
            bad = failing()
            if bad:
                raise TargetWriteFailed("It does not flush.")
            flush(device)
            for offset, data in self.pending:
                self.durable[offset] = data
            self.pending.clear()

        monkeypatch.setattr(DirectDevice, "write", played_write)
        monkeypatch.setattr(DirectDevice, "flush", played_flush)

    def slots(self) -> dict[int, bytes]:
        with DirectDevice(self.path) as device:
            return {slot: device.read(slot, BLOCK) for slot in SLOTS}

    def states_after_a_power_cut(self) -> set[int]:
        """What a boot may find: any of the writes that were not flushed may be lost."""
        found: set[int] = set()
        for count in range(len(self.pending) + 1):
            for kept in itertools.combinations(self.pending, count):
                slots = dict(self.durable or self.slots())
                slots.update(kept)
                superblock = newest(list(slots.values()))
                found.add(superblock.state if superblock else EMPTY)
        return found


def save(path: Path, completion: Completion) -> None:
    order = samples.order(target=TargetPlace("t", (str(path),), 0))
    core: Any = None
    copy.save(core, INFO, order, JUMP_BACK, copy.Clock(), Watch(), completion)


REQUESTS = 8
"""Complete into two slots with a flush each, and the report likewise."""


@pytest.mark.parametrize("done_all_the_same", [False, True])
@pytest.mark.parametrize("fails_for", [1, 2, 3, 1000])
@pytest.mark.parametrize("fails_at", range(1, REQUESTS + 1))
def test_whoever_goes_back_leaves_nothing_to_resume(
    disk: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails_at: int,
    fails_for: int,
    done_all_the_same: bool,
) -> None:
    completion = Completion(tmp_path / "record")
    played = Disk(disk, completion, monkeypatch)
    played.fails_at, played.fails_for = fails_at, fails_for
    played.done_all_the_same = done_all_the_same
    with pytest.raises(TargetWriteFailed) as raised:
        save(disk, completion)
    assert completion.begun
    if completion.take_back(raised.value):
        assert COMPLETE not in played.states_after_a_power_cut()
        found = target.examine(disk)
        assert found is not None and found.state == "spent"
        assert found.reason.error == "TargetWriteFailed"
    else:
        assert fails_for > 1, "one request that fails keeps nobody from going back"


def test_all_requests_are_played(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    completion = Completion(tmp_path / "record")
    played = Disk(disk, completion, monkeypatch)
    save(disk, completion)
    assert played.requests == REQUESTS and played.states_after_a_power_cut() == {COMPLETE}


def test_what_fails_before_the_state_is_written_is_an_ordinary_failure(
    disk: Path, tmp_path: Path
) -> None:
    completion = Completion(tmp_path / "missing" / "record")
    with pytest.raises(HelperFailed):
        save(disk, completion)
    assert not completion.begun
    found = target.examine(disk)
    assert found is not None and found.state == "writing"


def test_the_deadline_and_a_hang_interrupt_nothing_from_then_on(disk: Path, tmp_path: Path) -> None:
    completion, watch = Completion(tmp_path / "record"), Watch()

    def interrupt(_signal: int, _frame: object) -> None:
        raise AssertionError("interrupted")

    signal.signal(signal.SIGALRM, interrupt)
    signal.signal(signal.SIGUSR1, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1000)
    with DirectDevice(disk) as device:
        completion.begin(device, samples.ORDER.cycle, watch)
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    signal.raise_signal(signal.SIGALRM)
    signal.raise_signal(signal.SIGUSR1)


# -- kjump-copy ends, and kjump-return starts


class Machine:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        self.stays = False
        monkeypatch.setattr(syscalls, "power_off", self.power_off)
        monkeypatch.setattr(syscalls, "restart", lambda: self.done.append("restart"))

    def power_off(self) -> None:
        self.done.append("power off")
        if self.stays:
            raise OSError(22, "Invalid argument")


def test_a_complete_image_is_left_for_the_boot(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, record = Machine(monkeypatch), tmp_path / "record"
    save(disk, Completion(record))
    assert Completion(record).finish()
    assert machine.done[0] == "power off"
    with DirectDevice(disk) as device:
        found = superblocks.load(device)
    assert found is not None and found.state == COMPLETE and found.outcome.result == "ok"
    machine.stays = True
    machine.done.clear()
    assert Completion(record).finish() and machine.done == ["power off", "restart"]


def test_an_image_that_is_not_complete_lets_the_session_run_on(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, record = Machine(monkeypatch), tmp_path / "record"
    assert not Completion(record).finish()  # kjump-copy had not come so far
    with DirectDevice(disk) as device:
        Completion(record).begin(device, samples.ORDER.cycle, Watch())
    assert not Completion(record).finish()
    save(disk, Completion(record))
    assert Completion(record).take_back(HelperFailed("x"))
    assert not Completion(record).finish() and not machine.done


def test_if_nobody_can_tell_the_machine_restarts(
    disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, record = Machine(monkeypatch), tmp_path / "record"
    save(disk, Completion(record))
    disk.unlink()
    assert Completion(record).finish() and machine.done == ["restart"]
    machine.done.clear()
    for damaged in ("torn", "{}", '{"path": "/x", "locator": null}'):
        record.write_text(damaged)
        assert Completion(record).finish() and machine.done == ["restart"]
        assert not Completion(record).take_back(HelperFailed("x"))
        machine.done.clear()


def test_kjump_return_does_not_jump_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(leave, "COMPLETING", tmp_path)
    monkeypatch.setattr(Completion, "finish", lambda _: True)

    def find_cell() -> None:
        raise AssertionError("it looks for the way back")

    monkeypatch.setattr(leave, "find_cell", find_cell)
    assert leave.main() == 1


def test_kjump_copy_restarts_if_the_image_cannot_be_taken_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch)

    class Restarted(Exception):
        pass

    def restart() -> None:
        machine.done.append("restart")
        raise Restarted

    def run(*arguments: Any) -> None:
        arguments[-1].begun = True
        raise TargetWriteFailed("No.")

    monkeypatch.setattr(syscalls, "restart", restart)
    monkeypatch.setattr(copy, "run", run)
    monkeypatch.setattr(cmdline, "read", lambda: cmdline.parse("quiet"))
    monkeypatch.setattr(leave, "find_cell", lambda: None)
    monkeypatch.setattr(Completion, "take_back", lambda *_: False)
    monkeypatch.setattr(copy, "Screen", lambda: None)
    with pytest.raises(Restarted):
        copy.main()
    assert machine.done == ["restart"]


def test_a_machine_that_does_not_switch_off_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    copy.switch_off(Watch())
    copy.switch_off(Watch("stay"))
    assert machine.done == ["power off"]
    machine.stays = True
    with pytest.raises(KjumpError, match="does not switch off"):
        copy.switch_off(Watch())
