# SPDX-License-Identifier: GPL-2.0-or-later
"""Plymouth in the helper: nobody waits for it, whatever it does."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kjump.console import lines as console
from kjump.console import splash
from kjump.helper import screen
from kjump.helper.screen import Screen

DAEMON = 'echo $$ >"{0}/pid"; printf "%s|" "$@" >"{0}/started"; exec sleep 60'
CLIENT = '{{ printf "%s|" "$@"; echo; }} >>"{0}/said"; [ "$1" != quit ] || kill $(cat "{0}/pid")'
HANGS = 'echo $$ >>"{0}/hung"; touch "{0}/came"; exec sleep 600'
FOR_EVER = 600.0
"""Seconds for which everything waits that does wait: as long as what hangs."""
AT_ONCE = 60.0
"""Seconds in which the busiest machine does what waits for nothing."""


@pytest.fixture(autouse=True)
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "also", [])


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Screen]]:
    made: list[Screen] = []

    def program(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text("#!/bin/sh\n" + script.format(tmp_path) + "\n")
        path.chmod(0o755)
        return path

    def build(daemon: str = DAEMON, client: str = CLIENT) -> Screen:
        found = Screen([program("plymouthd", daemon)], [program("plymouth", client)])
        made.append(found)
        return found

    yield build
    for each in made:
        each.end()
    for process in lines_of(tmp_path / "hung"):
        os.kill(int(process), signal.SIGKILL)


def lines_of(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def said(folder: Path) -> list[str]:
    return lines_of(folder / "said")


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + AT_ONCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def runs(folder: Path) -> bool:
    """Whether the daemon does; one that was killed may wait long for somebody to reap it."""
    try:
        number = int((folder / "pid").read_text())
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return False
    return state != "Z"


def test_what_the_console_says_is_shown_until_the_end(
    make: Callable[..., Screen], tmp_path: Path
) -> None:
    shown = make()
    shown.begin("console=ttyS0 plymouth.debug splash=verbose")
    console.also[0]("saving 1 %")
    until(lambda: "display-message|--text=saving 1 %|" in said(tmp_path))
    console.also[0]("saving 2 %")
    until(lambda: "display-message|--text=saving 2 %|" in said(tmp_path))
    assert runs(tmp_path)
    time.sleep(0.3)
    assert said(tmp_path).count("display-message|--text=saving 2 %|") == 1
    shown.end()
    assert not runs(tmp_path)
    lines = said(tmp_path)
    assert lines[:2] == ["--ping|", "show-splash|"] and lines[-1] == "quit|"
    words = (tmp_path / "started").read_text()
    assert "--no-daemon|" in words
    kernel_words = "splash plymouth.ignore-serial-consoles plymouth.debug"
    assert f"--kernel-command-line={kernel_words}|" in words


def test_only_the_last_of_several_lines_is_shown(
    make: Callable[..., Screen], tmp_path: Path
) -> None:
    shown = make()
    shown.begin()
    for number in range(100):
        shown.show(f"saving {number} %")
    until(lambda: "display-message|--text=saving 99 %|" in said(tmp_path))
    assert len(said(tmp_path)) < 50


def test_without_plymouth_nothing_happens(tmp_path: Path) -> None:
    shown = Screen([tmp_path / "plymouthd"], [tmp_path / "plymouth"])
    shown.begin()
    assert console.also == []
    shown.show("saving 1 %")
    shown.end()


@pytest.mark.parametrize(
    ("daemon", "client"),
    [
        ('touch "{0}/came"; exit 1', CLIENT),  # it does not start
        (DAEMON, 'touch "{0}/came"; exit 1'),  # it starts, and does not answer
        (DAEMON, HANGS),
        (DAEMON, f'[ "$1" = --ping ] || {{{{ {HANGS}; }}}}'),  # it hangs later
        (
            "trap '' TERM; " + DAEMON.removesuffix("exec sleep 60") + "while :; do sleep 1; done",
            f'[ "$1" != show-splash ] || {{{{ {HANGS}; }}}}',
        ),
        (
            'until grep -q display "{0}/said"; do sleep 0.01; done; touch "{0}/came"',
            CLIENT,
        ),  # it dies later
    ],
)
def test_nobody_waits_for_one_that_fails(
    make: Callable[..., Screen],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    daemon: str,
    client: str,
) -> None:
    monkeypatch.setattr(splash, "PATIENCE", FOR_EVER)
    monkeypatch.setattr(screen, "START", FOR_EVER)
    shown = make(daemon, client)
    begun = time.monotonic()
    shown.begin()
    shown.show("saving 1 %")
    until((tmp_path / "came").exists)
    shown.show("saving 2 %")
    monkeypatch.setattr(screen, "LEAVE", 0.2)
    shown.end()
    assert time.monotonic() - begun < AT_ONCE
    until(lambda: not runs(tmp_path))


def test_the_helper_waits_no_longer_than_that_for_it_to_go(make: Callable[..., Screen]) -> None:
    """What hangs then is left to its thread."""
    assert screen.LEAVE <= 2
    waited: list[float | None] = []

    class Thread:
        def join(self, seconds: float | None = None) -> None:
            waited.append(seconds)

    shown = make()
    shown._thread = Thread()  # type: ignore[assignment]
    shown.end()
    assert waited == [screen.LEAVE]


def test_for_a_question_it_goes_and_stays_away(make: Callable[..., Screen], tmp_path: Path) -> None:
    """The person who is asked sees the console, and Plymouth has none of her keys."""
    shown = make()
    shown.begin()
    console.also[0]("resuming 1 %")
    until(lambda: "display-message|--text=resuming 1 %|" in said(tmp_path))
    with shown.out_of_the_way():
        assert not runs(tmp_path)
    console.also[0]("resuming 2 %")
    assert said(tmp_path)[-1] == "quit|" and not runs(tmp_path)
