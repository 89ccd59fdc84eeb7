# SPDX-License-Identifier: GPL-2.0-or-later
"""From the order to the report: the boot side and the session read what the helper saved."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kjump.errors import WrongTarget
from kjump.handoff import report as reports
from kjump.handoff.documents import FileSystem, TargetPlace
from kjump.helper import copy
from kjump.helper.completion import Completion
from kjump.helper.states import WINDOW, PageSpan, States
from kjump.helper.watch import Watch
from kjump.image import prepare, target
from kjump.image.device import DirectDevice
from kjump.image.layout import COMPLETE
from kjump.image.read import Image
from kjump.machine import pages
from kjump.machine.ranges import PAGE
from kjump.resume import restore

from . import imaging, samples

RAM = 600
MEMORY = random.Random(5).randbytes(RAM * PAGE)
INFO = {"OSRELEASE": "6.12.0", "PAGESIZE": "4096"}
JUMP_BACK = 0x7000000


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A target that is prepared, and a session whose memory is `MEMORY`."""

    def classified(*_: object) -> States:
        states = States([(0, RAM)])
        states.mark([(10, 20)], pages.FREE)
        states.mark([(20, 30)], pages.ZERO)
        states.mark([(500, RAM)], WINDOW)
        return states

    def gather(span: PageSpan, bundle: pages.Bundle) -> None:
        bundle.gather(
            MEMORY, span.first * PAGE, span.last - span.first, span.kinds, span.at, span.first
        )

    monkeypatch.setattr(copy, "classify", classified)
    monkeypatch.setattr(copy, "gatherer", lambda _core: gather)
    path = imaging.prepared(tmp_path / "target", 32 << 20)
    prepare.prepare_target(path, cycle_id=samples.ORDER.cycle, hostname="h")
    return path


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """The end of saving changes what two signals do."""
    before = {number: signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def save(path: Path, **changes: Any) -> reports.Report:
    order = samples.order(target=TargetPlace("t", (str(path),), 0), **changes)
    completion = Completion(path.parent / "record")
    core: Any = None
    return copy.save(core, INFO, order, JUMP_BACK, copy.Clock(), Watch(), completion)


def test_what_is_saved_is_what_is_read(disk: Path, tmp_path: Path) -> None:
    system = tmp_path / "fs"
    system.write_bytes(bytes(1 << 20))
    facts = {"ram": ((0, RAM * PAGE),), "window": (500 * PAGE, RAM * PAGE), "hostname": "host"}
    report = save(disk, file_systems=(FileSystem("ext4", (str(system),)),), **facts)
    assert (report.by, report.result) == ("helper", "ok")
    assert report.pages["data"] == 480 and report.pages["window"] == 100
    assert list(report.phases) == ["helper boot", "scan", "find target", "copy", "commit"]
    assert report.image["data"] == 480 * PAGE and report.rate > 0 and report.profile
    with DirectDevice(disk) as device:
        image = Image(device)
        assert image.superblock.state == COMPLETE and image.superblock.outcome == report
        description = image.description()
        for pfn, page in imaging.content(image, image.index()):
            assert page == MEMORY[pfn * PAGE : (pfn + 1) * PAGE]
    assert description.facts == samples.order(**facts).facts
    assert (description.jump_back, description.hostname) == (JUMP_BACK, "host")
    assert description.cycle == str(samples.ORDER.cycle) and description.saved > 0
    assert "OSRELEASE=6.12.0\n" in description.vmcoreinfo
    restore.check_file_systems(description)
    assert description.file_systems[0].fingerprint
    # And what the session finds when it runs again.
    insert = restore.report_page(description, replace(report, tries=1))
    assert insert.pfn == description.facts.report_page // PAGE
    found = reports.unpack(insert.data, description.facts.nonce)
    assert found is not None and (found.by, found.result, found.way) == ("resume", "ok", "snapshot")
    assert found.figures == report.figures and found.phases == report.phases
    assert found.boot_memory["total"] > 0 and found.saved == description.saved and not found.tries


def test_free_pages_are_recorded_as_zeros_if_the_kernel_trusts_them_to_be(disk: Path) -> None:
    report = save(disk, free_pages="zero")
    assert report.pages["free"] == 0 and report.pages["zero"] == 20


def test_a_target_of_another_cycle_is_left_alone(disk: Path) -> None:
    before = disk.read_bytes()
    with pytest.raises(WrongTarget):
        save(disk, cycle=type(samples.ORDER.cycle)(int=9))
    assert disk.read_bytes() == before
    examined = target.examine(disk)
    assert examined is not None and examined.state == "empty"
    assert examined.reason == reports.Report(hostname="h")
