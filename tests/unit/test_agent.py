# SPDX-License-Identifier: GPL-2.0-or-later
"""How the host talks to a guest: what gets lost on the way is asked again, and done once."""

from __future__ import annotations

import os
import pty
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..vm import agent as agents
from ..vm import channel as channels
from ..vm.agent import Agent
from ..vm.channel import Channel


class Line:
    """A serial line between a channel and an agent, which loses the bytes that a test names."""

    def __init__(self, channel: Channel) -> None:
        self.port, device = pty.openpty()
        self.agent = Agent(os.ttyname(device))
        self.drop = {True: 0, False: 0}  # bytes, by whether they go to the guest
        socket = channel.far_end.dup()
        channel.begin()
        for to_guest, source, sink in (
            (True, socket.fileno(), self.port),
            (False, self.port, socket.fileno()),
        ):
            threading.Thread(target=self.carry, args=(to_guest, source, sink), daemon=True).start()
        threading.Thread(target=self.agent.serve, daemon=True).start()
        self.keep = (socket, device)

    def carry(self, to_guest: bool, source: int, sink: int) -> None:
        while True:
            try:
                data = os.read(source, 4096)
            except OSError:
                return
            if not data:
                return
            lost = min(self.drop[to_guest], len(data))
            self.drop[to_guest] -= lost
            if data[lost:]:
                os.write(sink, data[lost:])


@contextmanager
def line(*, lossy: bool) -> Iterator[tuple[Channel, Line]]:
    channel = Channel(lossy=lossy)
    yield channel, Line(channel)
    channel.close()


def run(script: str) -> dict[str, object]:
    return {"op": "run", "argv": ["sh", "-c", script]}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "AGAIN", 0.2)


@pytest.mark.parametrize("to_guest", [True, False])
def test_what_is_lost_is_asked_again_and_done_once(tmp_path: Path, *, to_guest: bool) -> None:
    count = tmp_path / "count"
    with line(lossy=True) as (channel, wire):
        wire.drop[to_guest] = 16  # as many as a port's queue holds
        answer = channel.ask(run(f"echo once >>{count}; echo said"), 20)
        assert answer is not None and answer["out"] == "said\n"
    assert count.read_text() == "once\n"


def test_what_takes_long_is_done_once(tmp_path: Path) -> None:
    count = tmp_path / "count"
    with line(lossy=True) as (channel, _wire):
        answer = channel.ask(run(f"echo once >>{count}; sleep 0.7"), 20)
        assert answer is not None and answer["rc"] == 0
    assert count.read_text() == "once\n"


def test_a_monitor_is_not_asked_again() -> None:
    with line(lossy=False) as (channel, wire):
        wire.drop[True] = 16
        begin = time.monotonic()
        assert channel.ask({"op": "ping"}, 1) is None
        assert time.monotonic() - begin < 20


def test_an_agent_keeps_few_answers() -> None:
    with line(lossy=True) as (channel, wire):
        for _ in range(3 * agents.KEPT):
            assert channel.ask({"op": "ping"}, 20)
        assert len(wire.agent.answers) <= agents.KEPT + 1
