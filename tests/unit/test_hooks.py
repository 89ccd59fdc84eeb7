# SPDX-License-Identifier: GPL-2.0-or-later
"""kjump.session.systemd.hooks: which hooks run, with what, and for how long."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from kjump.session.mark import Mark
from kjump.session.systemd import hooks


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    found = (tmp_path / "etc", tmp_path / "usr")
    for folder in found:
        folder.mkdir()
    return found


def hook(folder: Path, name: str, body: str, mode: int = 0o755) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(mode)
    return path


def test_arguments_environment_and_output(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("KEPT", "yes")
    hook(folders[1], "a", 'echo "$@" $SYSTEMD_SLEEP_ACTION [$NOTIFY_SOCKET] $KEPT; echo err >&2')
    (only,) = hooks.run_all("pre", seconds=10, folders=folders)
    assert only.output == "pre hibernate hibernate [] yes\nerr"
    assert only.code == 0 and not only.failed
    (only,) = hooks.run_all("post", seconds=10, folders=folders)
    assert only.output.startswith("post hibernate")


def test_which_run(folders: tuple[Path, Path]) -> None:
    etc, usr = folders
    hook(usr, "b", "")
    hook(usr, "a", "")
    hook(usr, "masked", "")
    hook(usr, "not-executable", "", 0o644)
    hook(usr, ".hidden", "")
    (usr / "folder").mkdir()
    (etc / "masked").symlink_to("/dev/null")
    replaced = hook(etc, "b", "")
    assert hooks.find_hooks(folders) == [usr / "a", replaced]
    assert hooks.find_hooks([Path("/nonexistent")]) == []


def test_all_at_once(folders: tuple[Path, Path]) -> None:
    # Each waits for a file that the other makes: one after the other they would never end.
    for mine, other in (("a", "b"), ("b", "a")):
        hook(
            folders[1],
            mine,
            f'd=${{0%/*}}/..; touch "$d/{mine}.on";'
            f' while ! [ -e "$d/{other}.on" ]; do sleep 0.02; done',
        )
    results = hooks.run_all("pre", seconds=10, folders=folders)
    assert [result.code for result in results] == [0, 0]


def test_failures_are_reported_and_stop_nothing(folders: tuple[Path, Path]) -> None:
    etc = folders[0]
    hook(etc, "a", "exit 3")
    hook(etc, "b", "kill -9 $$")
    (etc / "c").write_bytes(b"\x7fELF nonsense")
    (etc / "c").chmod(0o755)
    hook(etc, "d", "echo fine")
    a, b, c, d = hooks.run_all("pre", seconds=10, folders=folders)
    assert (a.code, b.code, c.code, d.code) == (3, -9, None, 0)
    assert "ended with 3" in a.sentence()
    assert "signal 9" in b.sentence()
    assert "could not be started" in c.sentence()
    assert d.output == "fine"


def test_one_that_hangs_is_killed_with_its_children(folders: tuple[Path, Path]) -> None:
    etc = folders[0]
    hook(etc, "a", "echo begun; sleep 60 & sleep 60")
    hook(etc, "b", "echo fine")
    since = time.monotonic()
    a, b = hooks.run_all("pre", seconds=1, folders=folders)
    assert time.monotonic() - since < 30
    assert a.timed_out and "was killed" in a.sentence() and a.output == "begun"
    assert not b.failed


def test_what_a_hook_leaves_running_is_not_waited_for(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    left = tmp_path / "left"
    hook(folders[0], "a", f"sleep 60 & echo $! >{left}; echo done")
    since = time.monotonic()
    (only,) = hooks.run_all("pre", seconds=50, folders=folders)
    assert time.monotonic() - since < 30
    assert only.output == "done"
    os.kill(int(left.read_text()), signal.SIGKILL)  # and it still ran


def test_long_output_is_kept_from_its_end(folders: tuple[Path, Path]) -> None:
    hook(folders[0], "a", "yes | head -c 100000; echo end")
    (only,) = hooks.run_all("pre", seconds=10, folders=folders)
    assert len(only.output) <= hooks.KEPT_OUTPUT and only.output.endswith("end")


def test_the_units_program_tells_the_journal_of_the_cycle(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hook(folders[0], "good", 'echo "hello from $1"')
    hook(folders[0], "bad", "exit 3")
    found = hooks.find_hooks(folders)
    monkeypatch.setattr(hooks, "find_hooks", lambda _folders: found)
    monkeypatch.setattr(hooks, "read_mark", lambda: Mark("12345678-aaaa", hooks=True))
    assert hooks.main(["post"]) == 0  # exit codes are noted, not obeyed
    logged = capsys.readouterr().err
    assert "kjumpd [12345678 hooks-post]: good: hello from post" in logged
    assert "bad ended with 3" in logged
    with pytest.raises(SystemExit):
        hooks.main(["meanwhile"])
