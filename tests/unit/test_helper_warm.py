# SPDX-License-Identifier: GPL-2.0-or-later
"""A warm helper on its side: it rests with nothing done, and is asked through memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kjump.errors import (
    DamagedHandoff,
    KexecDisabled,
    NoWarmHelper,
    StaleHelper,
    TargetMissing,
)
from kjump.handoff import request
from kjump.handoff.documents import FileSystem, SaveOrder
from kjump.helper import warm
from kjump.image import target
from kjump.machine import syscalls
from kjump.machine.ranges import PAGE

from . import samples
from .played_helper import CELL, NONCE, Machine

REQUEST_PAGE, AT = 0x20000, 0x22000
JUMP_BACK = 0x7654000
ORDER = replace(samples.WARM_ORDER, request_page=REQUEST_PAGE, devices=("/dev/disk/by-x/t",))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    played = Machine(monkeypatch, tmp_path / "memory")
    monkeypatch.setattr(warm, "say", played.said.append)
    monkeypatch.setattr(warm, "park_badly", lambda *_: False)
    monkeypatch.setattr(syscalls, "probe_kexec_jump", lambda: None)
    monkeypatch.setattr(target, "wait_for", lambda *_: None)
    return played


def ask(machine: Machine, order: SaveOrder) -> None:
    """In two pages that lie apart."""
    data = request.pack(order.to_json())
    places = [AT, AT + 4 * PAGE][: -(-len(data) // PAGE)]
    machine.put(REQUEST_PAGE, request.pack_page(NONCE, places, len(data)))
    for number, place in enumerate(places):
        machine.put(place, data[number * PAGE :][:PAGE])


# -- ahead -----------------------------------------------------------------------------------------


def test_the_targets_driver_is_waited_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[list[Path], float]] = []
    monkeypatch.setattr(target, "wait_for", lambda links, wait: waited.append((links, wait)))
    warm.prepare(ORDER, 30)
    assert waited == [([Path("/dev/disk/by-x/t")], 30)]
    assert not machine.done


def test_a_target_that_does_not_come_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise TargetMissing("It is not there.")

    monkeypatch.setattr(target, "wait_for", missing)
    with pytest.raises(TargetMissing):
        warm.prepare(ORDER, 30)
    assert not machine.done


def test_processors_that_would_wake_up_keep_it_from_resting(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "park_badly", lambda *_: True)
    with pytest.raises(NoWarmHelper, match="parked"):
        warm.prepare(ORDER, 30)
    assert not machine.done


def test_a_kernel_that_cannot_be_kept_is_named_with_its_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "probe_kexec_jump", lambda: KexecDisabled("It is switched off."))
    with pytest.raises(NoWarmHelper, match=r"cannot be kept running\.  It is switched off\."):
        warm.prepare(ORDER, 30)
    assert not machine.done


# -- resting ---------------------------------------------------------------------------------------


def test_it_reports_before_it_goes_and_is_there_again_after(machine: Machine) -> None:
    warm.rest(CELL, JUMP_BACK, {"boot": 1.5})
    assert machine.done == ["load to come back", "jump", "unload"]
    found = machine.report()
    assert found is not None
    assert (found.by, found.result, found.jump_back) == ("helper", "warm", JUMP_BACK)
    assert found.phases == {"boot": 1.5}
    assert machine.said[-1] == "the helper runs again"


# -- asked -----------------------------------------------------------------------------------------


def test_a_request_is_read_out_of_the_sessions_memory(machine: Machine) -> None:
    order = samples.order(file_systems=(FileSystem("ext4", ("x" * 100,)),) * 50)
    assert len(request.pack(order.to_json())) > PAGE
    ask(machine, order)
    assert warm.asked(CELL, ORDER) == order


def test_a_request_for_another_machine_is_stale(machine: Machine) -> None:
    ask(machine, samples.order(ram=((0x100000, 0x9000000),)))
    with pytest.raises(StaleHelper, match="ram"):
        warm.asked(CELL, ORDER)


def test_nothing_asked_is_no_request(machine: Machine) -> None:
    machine.put(REQUEST_PAGE, request.blank(NONCE))
    with pytest.raises(DamagedHandoff):
        warm.asked(CELL, ORDER)


def test_a_request_with_another_nonce_is_not_ours(machine: Machine) -> None:
    machine.put(REQUEST_PAGE, request.pack_page(bytes(16), [AT], 100))
    with pytest.raises(DamagedHandoff, match="nonce"):
        warm.asked(CELL, ORDER)


def test_a_damaged_request_is_named(machine: Machine) -> None:
    ask(machine, samples.ORDER)
    machine.put(AT + 40, b"\xff")
    with pytest.raises(DamagedHandoff, match="checksum"):
        warm.asked(CELL, ORDER)


def test_a_request_in_the_window_is_our_own_memory(machine: Machine) -> None:
    machine.put(REQUEST_PAGE, request.pack_page(NONCE, [CELL.window_start + PAGE], 100))
    with pytest.raises(DamagedHandoff, match="cannot lie at"):
        warm.asked(CELL, ORDER)


def test_memory_that_cannot_be_read_is_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("kjump.machine.memory.PhysicalMemory.read", refuse)
    with pytest.raises(DamagedHandoff, match="cannot be read at 0x20000: Operation not permitted"):
        warm.asked(CELL, ORDER)
