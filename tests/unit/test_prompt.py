# SPDX-License-Identifier: GPL-2.0-or-later
"""The key that skips resuming: what is asked, and what is on the disk while it is."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from kjump.console import prompt, splash
from kjump.console.keys import ESC, POWER
from kjump.errors import ResumeSkipped
from kjump.handoff.report import Report
from kjump.image import prepare, skip, superblocks
from kjump.image.device import DirectDevice
from kjump.image.extents import Extents
from kjump.image.layout import COMPLETE
from kjump.image.read import Image
from kjump.machine import syscalls
from kjump.resume import restore, snapshot

from . import imaging, samples


class Hand:
    """Presses keys at their times, and is the clock besides."""

    def __init__(self, *presses: tuple[float, str]) -> None:
        self.now = 0.0
        self.presses = list(presses)

    def clock(self) -> float:
        return self.now

    def read(self, seconds: float) -> list[str]:
        """The keys pressed up to the first that comes within the time."""
        end = self.now + seconds
        self.now = min([end, *(max(at, self.now) for at, _ in self.presses)])
        found = [key for at, key in self.presses if at <= self.now]
        self.presses = [(at, key) for at, key in self.presses if at > self.now]
        return found

    def close(self) -> None:
        pass


def chance(hand: Hand, wait: float = 2) -> prompt.SkipPrompt:
    return prompt.SkipPrompt(hand, wait, clock=hand.clock)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        (["y"], prompt.GIVE_UP),
        (["Y"], prompt.GIVE_UP),
        (["p"], prompt.SWITCH_OFF),
        ([POWER], prompt.SWITCH_OFF),
        (["r"], prompt.RESUME),
        (["x", "\r", "r"], prompt.RESUME),
        (["p", "y"], prompt.SWITCH_OFF),
        ([ESC], None),
        (["z", " ", "\r", "\x03"], None),
        ([], None),
    ],
)
def test_answers(keys: list[str], found: str | None) -> None:
    assert prompt.answer(keys) == found


def test_no_answer_resumes_after_a_minute() -> None:
    hand = Hand((1, ESC), (2, "x"))
    assert chance(hand).decide() == prompt.RESUME
    assert hand.now == prompt.PATIENCE


def test_nobody_waits_longer_than_the_time_that_is_left() -> None:
    hand = Hand()
    waits = chance(hand)
    hand.now = 1.5  # so long it took to read the memory
    assert not waits.asked()
    assert hand.now == 1.5
    assert not waits.last()
    assert hand.now == 2
    hand.now = 30
    assert not waits.last()
    assert hand.now == 30


def test_esc_in_the_last_moment_counts() -> None:
    assert chance(Hand((1.9, ESC))).last()
    assert chance(Hand((0, "x"), (1.9, ESC))).last()
    assert not chance(Hand((2.1, ESC))).last()
    assert chance(Hand((0, ESC)), 0).last()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    path = tmp_path / "target"
    with path.open("wb") as file:
        file.truncate(16 << 20)
    prepare.prepare_target(path, cycle_id=uuid.UUID(int=1), hostname="h")
    with DirectDevice(path, writable=True) as device:
        done = imaging.fill(device, [(0x200, b"page" * 4096)], description=samples.DESCRIPTION)
        superblocks.store(device, done, outcome=Report("helper"))
        yield Image(device)


def begin(image: Image) -> None:
    image.superblock = superblocks.store(
        image.device, image.superblock, outcome=Report("helper", tries=2)
    )


def on_disk(image: Image) -> tuple[int, int]:
    """State, and how often a resume was begun."""
    found = superblocks.load(image.device)
    assert found is not None
    return found.state, found.outcome.tries


class Off(Exception):
    """The machine is off."""


def test_the_question_is_no_try_that_failed(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens to the machine then, the session is there at the next boot."""
    seen: list[tuple[int, int]] = []

    class Watched(Hand):
        def read(self, seconds: float) -> list[str]:
            if seconds > 30:
                seen.append(on_disk(image))
            return super().read(seconds)

    asks = skip.ResumeAttempt(image, chance(Watched((0, ESC), (3, "r"))))
    begin(image)
    before = on_disk(image)
    assert before == (COMPLETE, 2)
    asks.look()
    assert seen[0] == (COMPLETE, 1)
    assert on_disk(image) == before  # and it goes on as if nothing had been


def test_given_up_and_switched_off(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    asks = skip.ResumeAttempt(image, chance(Hand((0, ESC), (3, "y"))))
    begin(image)
    with pytest.raises(ResumeSkipped, match="given up"):
        asks.look()

    def off() -> None:
        raise Off

    monkeypatch.setattr(syscalls, "power_off", off)
    asks = skip.ResumeAttempt(image, chance(Hand((0.5, ESC), (3, "p"))))
    begin(image)
    asks.look()  # nothing was pressed yet
    assert on_disk(image) == (COMPLETE, 2)
    with pytest.raises(Off):
        asks.last_look()
    assert on_disk(image) == (COMPLETE, 1)


def test_who_resumes_may_ask_again(image: Image) -> None:
    asks = skip.ResumeAttempt(image, chance(Hand((0, ESC), (1, "r"), (1.5, ESC), (2, "y"))))
    begin(image)
    with pytest.raises(ResumeSkipped):
        asks.last_look()


# -- the splash screen -----------------------------------------------------------------------------


WAIT = 'echo $$ >"$0.waits"; while [ -e "$0.waits" ]; do sleep 0.01; done'
"""What a client runs to hang until `Time` has it go on."""


class Time:
    """Passes only while a client hangs, however busy the machine is; then a second at a time."""

    def __init__(self, waits: Path, hangs_for: float) -> None:
        self.now = 0.0
        self.waits = waits
        self.hangs_for = hangs_for
        self.since: tuple[int, float] = 0, 0.0

    def clock(self) -> float:
        return self.now

    def pause(self, _seconds: float) -> None:
        time.sleep(0.001)
        try:
            process = int(self.waits.read_text())
            os.kill(process, 0)
        except (OSError, ValueError):
            return
        if process != self.since[0]:
            self.since = process, self.now
        self.now += 1
        if self.now - self.since[1] >= self.hangs_for:
            self.waits.unlink()


def plymouth(folder: Path, script: str, hangs_for: float = 0) -> splash.Splash:
    client, said = folder / "plymouth", folder / "said"
    client.write_text(f'#!/bin/sh\n{{ printf "%s|" "$@"; echo; }} >>{said}\n{script}\n')
    client.chmod(0o755)
    passes = Time(folder / "plymouth.waits", hangs_for)
    return splash.Splash((folder / "nonesuch", client), passes.clock, passes.pause)


def test_what_the_console_says_is_on_the_splash_screen(tmp_path: Path) -> None:
    screen = plymouth(tmp_path, "exit 0")
    assert screen.is_there
    screen.show("resuming 10 %")
    screen.show("resuming 20 %")
    hand = Hand((1, "r"))
    asks = prompt.SkipPrompt(hand, 2, screen, hand.clock)  # type: ignore[arg-type]
    assert asks.decide() == prompt.RESUME
    assert (tmp_path / "said").read_text().splitlines() == [
        "--ping|",
        "display-message|--text=resuming 10 %|",
        "hide-message|--text=resuming 10 %|",
        "display-message|--text=resuming 20 %|",
        "hide-splash|",
        "deactivate|",
        "reactivate|",
        "show-splash|",
    ]


def test_no_splash_screen_is_no_matter(tmp_path: Path) -> None:
    screen = plymouth(tmp_path, "exit 1")  # installed, and not running
    assert not screen.is_there
    screen.show("resuming")
    with screen.out_of_the_way():
        pass
    assert (tmp_path / "said").read_text() == "--ping|\n"
    with splash.Splash((tmp_path / "nonesuch",)).out_of_the_way():
        pass


def test_one_that_hung_is_asked_to_make_room_for_a_question_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plymouth has the keys until it gives them back."""
    screen = plymouth(tmp_path, f"case $1 in d*) {WAIT};; esac", hangs_for=4)
    screen.show("resuming 10 %")
    assert not screen.is_there
    with screen.out_of_the_way():
        assert screen.is_there
    said = (tmp_path / "said").read_text().splitlines()
    assert said[2:] == ["hide-splash|", "deactivate|", "reactivate|", "show-splash|"]
    taken: list[bool] = []
    monkeypatch.setattr(splash, "take_terminal", lambda: taken.append(True))
    with screen.out_of_the_way():
        assert not taken
    monkeypatch.setattr(splash, "MAKING_ROOM", 2.0)
    with screen.out_of_the_way():
        assert taken and not screen.is_there


def test_nobody_has_the_terminal_when_the_memory_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Image
) -> None:
    """The kernel may change to another terminal then, and wait for ever for who has this one."""
    at: list[list[str]] = []

    class Device:
        def __enter__(self) -> Device:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def write_page(self, _data: object) -> None:
            pass

        def restore(self) -> None:
            at.append((tmp_path / "said").read_text().splitlines())

    hand = Hand()
    screen = plymouth(tmp_path, "exit 0")
    asks = prompt.SkipPrompt(hand, 0, screen, hand.clock)  # type: ignore[arg-type]
    monkeypatch.setattr(snapshot, "Snapshot", Device)
    monkeypatch.setattr(snapshot, "stream", lambda *_: ())
    restore._load(
        image,
        Extents.of([]),
        snapshot.plan(Extents.of([]), []),
        0,
        samples.DESCRIPTION,
        skip.ResumeAttempt(image, asks),
    )
    assert at[0][-2:] == ["hide-splash|", "deactivate|"]


def test_a_splash_screen_that_hangs_is_done_without(tmp_path: Path) -> None:
    screen = plymouth(tmp_path, f'[ "$1" = --ping ] || {{ {WAIT}; }}', hangs_for=3600)
    assert screen.is_there
    screen.show("resuming 10 %")
    screen.show("resuming 20 %")
    assert screen._clock() <= splash.PATIENCE + 1
    assert not screen.is_there
    assert "20 %" not in (tmp_path / "said").read_text()


@pytest.mark.parametrize(
    ("outcome", "found"),
    [({}, 0), ({"tries": 2}, 2), ({"tries": -1}, 0), ({"tries": "2"}, 0), ({"tries": None}, 0)],
)
def test_tries_that_are_no_number_are_none(outcome: dict[str, object], found: int) -> None:
    assert Report.from_json(outcome).tries == found
