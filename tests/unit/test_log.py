# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.log: what reaches the journal, field by field, and byte by byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kjump.session import log


def test_fields() -> None:
    event = {"event": "hello", "level": "warning", "KJUMP_CYCLE": "c", "count": 3}
    assert log.journal_fields(event) == {
        "MESSAGE": "hello count=3",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "kjumpd",
        "KJUMP_CYCLE": "c",
    }


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, ...]]:
    """The fields of each entry that python3-systemd would send."""
    entries: list[tuple[bytes, ...]] = []
    (tmp_path / "journal").touch()
    monkeypatch.setattr(log, "JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr("systemd.journal.sendv", lambda *fields: entries.append(fields))
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    return entries


def test_a_line_with_what_is_bound(journal: list[tuple[bytes, ...]]) -> None:
    log.set_up()
    with log.bound(KJUMP_CYCLE="c1"), log.bound(KJUMP_PHASE="stage"):
        log.logger().error("it broke", KJUMP_ERROR="StagingFailed", MESSAGE_ID="0" * 32)
    log.logger().debug("not shown")
    log.logger().info("after")
    first, second = journal
    assert first[0] == b"MESSAGE=it broke"
    assert set(first[1:]) == {
        b"PRIORITY=3",
        b"KJUMP_CYCLE=c1",
        b"KJUMP_PHASE=stage",
        b"KJUMP_ERROR=StagingFailed",
        b"MESSAGE_ID=" + b"0" * 32,
        b"SYSLOG_IDENTIFIER=kjumpd",
    }
    assert second[0] == b"MESSAGE=after" and b"KJUMP_CYCLE" not in b"".join(second)


def test_exceptions_are_logged(journal: list[tuple[bytes, ...]]) -> None:
    log.set_up()
    try:
        raise ValueError("why")
    except ValueError:
        log.logger().exception("bad")
    ((message, *_more),) = journal
    assert message.startswith(b"MESSAGE=bad\nTraceback") and b"ValueError: why" in message


def test_text_that_is_not_unicode_raises_nothing(journal: list[tuple[bytes, ...]]) -> None:
    log.set_up()
    log.logger().info("disk \udcff", name="\ud800")
    assert journal[0][0] == b"MESSAGE=disk ? name=?"


def test_a_journal_that_is_gone_raises_nothing(
    journal: list[tuple[bytes, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(*_fields: bytes) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("systemd.journal.sendv", refused)
    log.set_up()
    log.logger().info("still here")
    assert "<6>still here" in capsys.readouterr().err and not journal


# Logs to a socket in the place of journald's, with a /run of its own, and prints what arrives; then
# once more when nobody listens any more.
SCRIPT = r"""
import json, os, socket
from kjump.session import log

os.makedirs("/run/systemd/journal")
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(log.JOURNAL)
listener.settimeout(10)
os.environ["JOURNAL_STREAM"] = "1:2"
log.set_up()

def arrived():
    data, handles, _flags, _sender = socket.recv_fds(listener, 1 << 20, 1)
    # What is too large for a datagram comes in a file.
    return os.pread(handles[0], 1 << 24, 0) if handles else data

with log.bound(KJUMP_CYCLE="c1", KJUMP_PHASE="stage"):
    log.logger().error("two\nlines", KJUMP_ERROR="StagingFailed", MESSAGE_ID="0" * 32)
small = arrived()
log.logger().info("x" * 1_000_000)
large = arrived()
listener.close()
log.logger().info("still here")
print(json.dumps([small.decode("latin-1"), large.decode("latin-1")]))
"""
OWN_RUN = 'mount -t tmpfs none /run && exec "$@"'


def unpack(entry: bytes) -> dict[str, str]:
    """An entry in the journal's protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL)."""
    fields = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(entry[:8], "little")
            value, entry = entry[8 : 8 + size], entry[8 + size + 1 :]
        fields[name.decode()] = value.decode()
    return fields


def test_what_journald_gets() -> None:
    """Through the real library, to a socket where journald's is."""
    command = ["unshare", "--mount", "sh", "-c", OWN_RUN, "-", sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "unshare failed" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("a mount namespace of one's own is not allowed here")
    assert done.returncode == 0, done.stderr
    entries: list[Any] = json.loads(done.stdout)
    small, large = (unpack(entry.encode("latin-1")) for entry in entries)
    assert small == {
        "MESSAGE": "two\nlines",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "kjumpd",
        "KJUMP_CYCLE": "c1",
        "KJUMP_PHASE": "stage",
        "KJUMP_ERROR": "StagingFailed",
        "MESSAGE_ID": "0" * 32,
    }
    assert large["MESSAGE"] == "x" * 1_000_000
    assert done.stderr == "<6>still here\n"


def test_without_a_journal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    log.set_up()
    with log.bound(KJUMP_CYCLE="12345678-aaaa", KJUMP_PHASE="sync"):
        log.logger().info("hello")
    assert capsys.readouterr().err == "kjumpd [12345678 sync]: hello\n"
