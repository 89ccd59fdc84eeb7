# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own hibernation: when it is tried instead, and what is offered."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from kjump import errors
from kjump.machine.cmdline import parse
from kjump.session.cycle.history import History
from kjump.session.log import set_up
from kjump.session.service import main
from kjump.session.systemd import kernel_hibernation, sleep, systemd_bus
from kjump.session.systemd.kernel_hibernation import (
    KernelHibernation,
    decide,
    offered,
    why_not,
)
from kjump.session.target import mounts, swaps
from kjump.session.target.swaps import SwapArea
from kjump.settings import Settings

GIB = 1 << 30


def swap(size: int, used: int, device: str) -> SwapArea:
    return SwapArea(Path("/dev/sdz9"), False, size, used, device)


GOOD = KernelHibernation(
    command_line=parse("root=/dev/vda2 resume=UUID=1-2"),
    resume="254:5",
    swaps=(swap(8 * GIB, 0, "254:9"), swap(4 * GIB, 0, "254:5")),
    anonymous=3 * GIB,
)


@pytest.fixture(autouse=True)
def plain_log() -> None:
    set_up()


def test_it_is_possible() -> None:
    assert why_not(GOOD) == ""
    # The initrd may have its own word.
    assert why_not(replace(GOOD, command_line=parse(""))) == ""


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"program": False}, "systemd-sleep"),
        ({"state": "freeze mem"}, "itself offers no hibernation"),
        ({"disk": "[disabled]"}, "itself offers no hibernation"),
        ({"command_line": parse("resume=/dev/sda3 noresume")}, "noresume"),
        ({"command_line": parse("resume=/dev/sda3 nohibernate")}, "nohibernate"),
        ({"command_line": parse("resume=/dev/sda3 hibernate=no")}, "hibernate=no"),
        ({"swaps": ()}, "No swap"),
        ({"resume": "0:0\n"}, "resume="),
        ({"resume": ""}, "resume="),
        ({"resume": "254:7"}, "254:7, which boots resume from, is not in use"),
        # What kjumpd has put there is no sign that any boot looks there.
        ({"resume": "254:5\n", "recorded": "254:5"}, "resume="),
        ({"anonymous": 4 * GIB}, "4096 MiB of swap are free"),
        ({"swaps": (swap(4 * GIB, 2 * GIB, "254:5"),)}, "2048 MiB of swap are free"),
    ],
)
def test_it_is_not_possible(changes: dict[str, object], word: str) -> None:
    assert word in why_not(replace(GOOD, **changes))  # type: ignore[arg-type]


def test_which_errors_lead_to_it() -> None:
    def falls_back(error: errors.KjumpError, *, jumped: bool = False, to: str = "stock") -> bool:
        return decide(error, jumped=jumped, fallback=to, facts=GOOD).fall_back

    for name, cls in errors.table().items():
        asked_wrongly = {"NotAuthorized", "Busy", "Inhibited", "Interrupted", "BadRequest"}
        assert falls_back(cls("x")) is (name not in asked_wrongly)
        # After the jump the machine was suspended and came back: it is not to sleep once more.
        assert not falls_back(cls("x"), jumped=True)
        assert not falls_back(cls("x"), to="none")
    assert (
        decide(errors.NoKexecJump("x"), jumped=False, fallback="none", facts=GOOD).why_not
        == "The configuration has Fallback=none."
    )
    no_swap = replace(GOOD, swaps=())
    decision = decide(errors.NoKexecJump("x"), jumped=False, fallback="stock", facts=no_swap)
    assert (decision.fall_back, decision.why_not) == (False, "No swap is in use.")


def test_what_logind_is_to_offer() -> None:
    bad = replace(GOOD, swaps=())
    assert offered(True, "none", bad) and offered(True, "stock", bad)
    assert offered(False, "stock", GOOD)
    assert not offered(False, "none", GOOD) and not offered(False, "stock", bad)


def test_the_offer(tmp_path: Path) -> None:
    path = tmp_path / "sleep.conf.d/60-kjump.conf"
    assert not kernel_hibernation.offer(True, path)
    assert kernel_hibernation.offer(False, path) and not kernel_hibernation.offer(False, path)
    text = path.read_text()
    assert "[Sleep]\nAllowHibernation=no\n" in text
    assert path.stat().st_mode & 0o777 == 0o644 and len(list(path.parent.iterdir())) == 1
    assert (
        kernel_hibernation.offer(True, path)
        and not path.exists()
        and not kernel_hibernation.offer(True, path)
    )


def test_reading_swaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "swap file"
    file.touch()
    text = (
        "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
        "/dev/null                               partition\t4194300\t\t1024\t\t-2\n"
        "/dev/zram0                              partition\t1000\t\t0\t\t100\n"
        f"{str(file).replace(' ', chr(92) + '040')} file\t\t8\t\t4\t\t-3\n"
    )
    monkeypatch.setattr(swaps, "SWAPS", tmp_path / "swaps")
    assert kernel_hibernation.read_state().swaps == ()
    (tmp_path / "swaps").write_text(text)
    null, found = kernel_hibernation.read_state().swaps
    assert (null.size, null.used, null.device) == (4194300 << 10, 1024 << 10, "1:3")
    status = file.stat()
    assert (found.path, found.free) == (file, 4 << 10)
    assert found.device == f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}"
    assert "1:3" in swaps.swap_numbers()
    assert mounts.device_number("/nonexistent") == ""


def test_reading_this_machine() -> None:
    assert kernel_hibernation.read_state().command_line.words


@pytest.mark.parametrize("taken_over", [False, True])
def test_logind_is_informed_only_if_requests_lead_to_kjump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken_over: bool
) -> None:
    drop_in = tmp_path / "drop-in"
    if taken_over:
        drop_in.touch()
    offers: list[bool] = []
    set_up()  # what logged before may have written to another test's captured output

    def offer(yes: bool) -> bool:
        offers.append(yes)
        return True

    monkeypatch.setattr(main, "TAKEN_OVER", drop_in)
    monkeypatch.setattr(kernel_hibernation, "read_state", KernelHibernation)
    monkeypatch.setattr(kernel_hibernation, "offer", offer)
    assert main.offer(False, Settings()) is not taken_over
    assert main.offer(True, Settings())
    assert offers == [not taken_over, True]


def test_sessions_are_frozen_if_systemd_does_it_and_nobody_says_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(systemd_bus.FREEZE_VARIABLE, raising=False)
    monkeypatch.setattr(systemd_bus, "freezes_sessions", lambda: True)
    assert sleep.freezes() and main.actions_by(None, History()).freeze is not None
    monkeypatch.setenv(systemd_bus.FREEZE_VARIABLE, "0")
    assert not sleep.freezes() and main.actions_by(None, History()).freeze is None
    monkeypatch.delenv(systemd_bus.FREEZE_VARIABLE)
    monkeypatch.setattr(systemd_bus, "freezes_sessions", lambda: False)
    assert not sleep.freezes()
