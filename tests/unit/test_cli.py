# SPDX-License-Identifier: GPL-2.0-or-later
"""kjumpctl without a daemon: drop-ins, figures, exit codes, colour, the manual."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kjump import errors
from kjump.cli import client, dropins, initrds, show
from kjump.cli import main as kjumpctl
from kjump.cli.client import error_of
from kjump.image import prepare
from kjump.session.cycle.history import History
from kjump.session.systemd import kernel_hibernation
from kjump.session.target.swaps import SwapArea

ROOT = Path(__file__).parents[2]
REPORT = {
    "cycle": "11111111-2222",
    "result": "ok",
    "where": "resume",
    "started": 1_800_000_000.0,
    "finished": 1_800_000_100.0,
    "phases": {"check": 0.1, "jump": 12.345},
    "pages": {"data": 1000, "zero": 10, "free": 100},
    "image": {"size": 2_048_000, "data": 4_096_000},
}
FAILED = {
    **REPORT,
    "result": "failed",
    "where": "helper",
    **errors.TargetWriteFailed("Write error at 5 MiB.").report(),
}


# -- what is printed


def test_a_report() -> None:
    text = show.report_text(REPORT)
    assert "Cycle 11111111-2222: restored from disk" in text
    assert re.search(r"^jump +12\.35 s|12\.34 s$", text, re.MULTILINE)
    assert re.search(r"^pages saved +1000 \(4000 KiB\)$", text, re.MULTILINE)
    assert re.search(r"^image size +2000 KiB$", text, re.MULTILINE)
    assert re.search(r"^ratio +2\.00 : 1$", text, re.MULTILINE)
    assert "\x1b" not in text
    assert "\x1b[32m" in show.report_text(REPORT, colour=True)


def test_a_failed_report_says_where_and_what_to_do() -> None:
    text = show.report_text(FAILED)
    assert "TargetWriteFailed (helper): Write error at 5 MiB.  Check the device" in text


def test_reports_with_holes() -> None:
    assert show.report_text({}) == "Cycle ?: ?"
    assert "Cycle" in show.report_text({"result": "new", "pages": {}, "image": {"size": 0}})
    assert "Can hibernate: ?" in show.status_text({})


def test_sizes() -> None:
    assert show.size(0) == "0 B"
    assert show.size(4096) == "4096 B"
    assert show.size(160 << 20) == "160 MiB"
    assert show.size(5 << 30) == "5120 MiB"
    assert show.size(64 << 30) == "64.0 GiB"
    assert show.size(3 << 50) == "3145728 GiB"


def test_colour_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def __init__(self, terminal: bool) -> None:
            self.terminal = terminal

        def isatty(self) -> bool:
            return self.terminal

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert show.wants_colour(Stream(True))  # type: ignore[arg-type]
    assert not show.wants_colour(Stream(False))  # type: ignore[arg-type]
    monkeypatch.setenv("NO_COLOR", "1")
    assert not show.wants_colour(Stream(True))  # type: ignore[arg-type]


def test_history(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "history.jsonl"
    assert kjumpctl.main(["history", "--file", str(path)]) == 0
    assert capsys.readouterr().out == "No cycle yet.\n"
    kept = History(path)
    kept.add(REPORT)
    kept.add(FAILED)
    assert kjumpctl.main(["history", "--file", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and lines[2].endswith("TargetWriteFailed")
    assert kjumpctl.main(["history", "--json", "--file", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == [REPORT, FAILED]


# -- errors


def test_remote_errors_become_ours() -> None:
    error = error_of("org.kjump1.Error.Busy", "A cycle is running.  Wait.")
    assert type(error) is errors.Busy and error.sentence == "A cycle is running.  Wait."
    # What happened and what to do stay apart, as in an error of our own.
    ours = errors.TargetTooSmall("The target has 1 MiB.")
    assert error_of(ours.dbus_name, ours.message).report() == ours.report()
    new = error_of("org.kjump1.Error.New", "x\ny")
    assert (new.exit_code, new.what, new.todo) == (1, "x", "y")
    unreachable = error_of("org.freedesktop.DBus.Error.ServiceUnknown", "No such name")
    assert isinstance(unreachable, errors.ServiceUnreachable)


def test_errors_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KJUMP_BUS_ADDRESS", "unix:path=/nonexistent")
    assert kjumpctl.main(["status", "--json"]) == 69
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["error"] == "ServiceUnreachable"


@pytest.mark.parametrize("words", [[], ["explode"], ["image"], ["hibernate", "--fast"]])
def test_wrong_command_lines(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        kjumpctl.main(words)
    assert ended.value.code == 2


def test_help_and_manual_name_every_exit_code_and_command() -> None:
    text = kjumpctl.parser().format_help()
    manual = (ROOT / "docs/kjumpctl.1.md").read_text()
    for name, cls in errors.table().items():
        assert re.search(rf"^ +{cls.exit_code}  {name}$", text, re.MULTILINE)
        assert re.search(rf"^\| {cls.exit_code} \| `{name}` \|", manual, re.MULTILINE), name
    for action in kjumpctl.parser()._subparsers._group_actions:  # type: ignore[union-attr]
        for command in action.choices or ():
            assert f"**{command}**" in manual, command


def test_the_command_line_needs_nothing_but_the_standard_library() -> None:
    """The build reads it, and --help is not to wait for what it does not need."""
    program = (
        "import sys; sys.path.insert(0, 'daemon'); from kjump.cli.main import parser;"
        " parser().format_help(); print(*sys.modules)"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-ISB", "-c", program],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    ours = {name for name in done.stdout.split() if name.startswith("kjump.")}
    assert "kjump.cli.commands.image" in ours
    assert not [name for name in ours if re.match(r"kjump\.(session|image|machine\.native)", name)]


# -- the image


def test_image_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import uuid

    path = tmp_path / "target"
    with path.open("wb") as stream:
        stream.truncate(32 << 20)
    assert kjumpctl.main(["image", "info", str(path)]) == errors.NoImage.exit_code
    cycle = uuid.uuid4()
    prepare.prepare_target(path, cycle_id=cycle, hostname="h")
    capsys.readouterr()
    assert kjumpctl.main(["image", "info", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["cycle"]) == ("empty", str(cycle))
    assert kjumpctl.main(["image", "info", str(path)]) == 0
    assert re.search(r"^state +empty$", capsys.readouterr().out, re.MULTILINE)
    assert kjumpctl.main(["image", "info", str(tmp_path / "gone")]) in (
        errors.NoImage.exit_code,
        errors.TargetMissing.exit_code,
    )


# -- drop-ins


@pytest.fixture
def root(tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(ROOT / "units/dropins", tmp_path / dropins.SHIPPED)
    return tmp_path


PLACES = (
    "etc/systemd/sleep.conf.d/50-kjump.conf",
    "etc/systemd/system/systemd-hibernate.service.d/50-kjump.conf",
    "etc/systemd/system/systemd-logind.service.d/50-kjump.conf",
)


def test_enable_and_disable(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    others = root / "etc/systemd/sleep.conf.d/90-mine.conf"
    others.parent.mkdir(parents=True)
    others.write_text("[Sleep]\n")
    assert kjumpctl.main(["enable", "--root", str(root)]) == 0
    assert "logind" in capsys.readouterr().out
    assert dropins.are_enabled(root)
    for place in PLACES:
        assert (root / place).stat().st_mode & 0o777 == 0o644
    assert kjumpctl.main(["enable", "--root", str(root)]) == 0
    assert capsys.readouterr().out == "Already enabled.\n"
    (root / PLACES[1]).write_text("old\n")
    assert dropins.enable(root) == [root / PLACES[1]]
    assert kjumpctl.main(["disable", "--root", str(root), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["changed"]) == 3
    left = [path for path in (root / "etc").rglob("*") if path.is_file()]
    assert left == [others]
    assert kjumpctl.main(["disable", "--root", str(root)]) == 0
    assert "Was not enabled" in capsys.readouterr().out


def test_enable_without_an_installation(tmp_path: Path) -> None:
    assert kjumpctl.main(["enable", "--root", str(tmp_path)]) == errors.Internal.exit_code


def test_the_drop_in_replaces_what_hibernation_starts() -> None:
    text = (ROOT / "units/dropins/systemd-hibernate.service.d/50-kjump.conf").read_text()
    assert re.search(
        r"^ExecStart=\n(#.*\n)*ExecStart=/usr/libexec/kjump/kjump-hibernate$", text, re.MULTILINE
    )


def test_no_update_initrds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(initrds, "UPDATE_INITRDS", str(tmp_path / "gone"))
    assert kjumpctl.main(["update-initrd"]) == errors.Internal.exit_code
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(initrds, "UPDATE_INITRDS", str(script))
    assert kjumpctl.main(["update-initrd"]) == 1


class Kjumpd:
    """The daemon, as the command line sees it: answers with a report, or is not there."""

    def __init__(self, report: dict[str, Any] | None) -> None:
        self.report = report
        self.asked: list[dict[str, bool]] = []

    def properties(self) -> dict[str, Any]:
        if self.report is None:
            raise errors.ServiceUnreachable("kjumpd does not answer: gone.")
        return {}

    def hibernate(self, **options: bool) -> dict[str, Any]:
        self.asked.append(options)
        return {"json": json.dumps(self.report)}


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that kjumpctl became."""
    found: list[list[str]] = []

    def become(_path: str, words: list[str]) -> None:
        found.append(words)
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", become)
    return found


def hibernated(monkeypatch: pytest.MonkeyPatch, daemon: Kjumpd, *words: str) -> int:
    monkeypatch.setattr(client, "Client", lambda: daemon)
    try:
        return kjumpctl.main(["hibernate", "--quiet", *words])
    except SystemExit as end:
        return int(end.code or 0)


SLEEP = ["/usr/lib/systemd/systemd-sleep", "hibernate"]
GOOD = kernel_hibernation.KernelHibernation(
    resume="8:1", swaps=(SwapArea(Path("/dev/sda1"), False, 1 << 30, 0, "8:1"),)
)


def test_what_hibernate_asks_for(monkeypatch: pytest.MonkeyPatch, became: list[list[str]]) -> None:
    monkeypatch.delenv("SYSTEMD_SLEEP_FREEZE_USER_SESSIONS", raising=False)
    daemon = Kjumpd({"result": "ok"})
    hibernated(monkeypatch, daemon)
    hibernated(monkeypatch, daemon, "--fallback", "--ignore-inhibitors")
    monkeypatch.setenv("SYSTEMD_SLEEP_FREEZE_USER_SESSIONS", "false")
    hibernated(monkeypatch, daemon)
    assert daemon.asked == [{}, {"fallback": True, "ignore_inhibitors": True}, {"freeze": False}]
    assert not became


def test_a_report_that_says_so_leads_to_systemd_sleep(
    monkeypatch: pytest.MonkeyPatch, became: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    report = {"result": "failed", "what": "No CONFIG_KEXEC_JUMP.", "fallback": "stock"}
    hibernated(monkeypatch, Kjumpd(report), "--fallback")
    assert became == [SLEEP]
    reported = capsys.readouterr().err
    assert "No CONFIG_KEXEC_JUMP.  The kernel's own hibernation is done instead." in reported


def test_without_the_daemon(
    monkeypatch: pytest.MonkeyPatch, became: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    code = errors.ServiceUnreachable.exit_code
    monkeypatch.setattr(kernel_hibernation, "read_state", lambda: GOOD)
    assert hibernated(monkeypatch, Kjumpd(None)) == code and not became
    hibernated(monkeypatch, Kjumpd(None), "--fallback")
    assert became == [SLEEP]
    monkeypatch.setattr(kernel_hibernation, "read_state", kernel_hibernation.KernelHibernation)
    assert hibernated(monkeypatch, Kjumpd(None), "--fallback") == code
    assert became == [SLEEP] and "No swap is in use." in capsys.readouterr().err


def test_a_daemon_that_dies_meanwhile_is_no_reason_to_hibernate_again(
    monkeypatch: pytest.MonkeyPatch, became: list[list[str]]
) -> None:
    class Dies(Kjumpd):
        def hibernate(self, **options: bool) -> dict[str, Any]:
            raise errors.ServiceUnreachable("kjumpd does not answer: no reply.")

    monkeypatch.setattr(kernel_hibernation, "read_state", lambda: GOOD)
    code = errors.ServiceUnreachable.exit_code
    assert hibernated(monkeypatch, Dies({}), "--fallback") == code and not became


def test_disable_has_logind_look_for_itself_again(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "units/dropins", tmp_path / "usr/share/kjump/dropins")
    path = tmp_path / "run/systemd/sleep.conf.d/60-kjump.conf"
    kernel_hibernation.offer(False, path)
    assert path.exists()
    assert kjumpctl.main(["disable", "--root", str(tmp_path)]) == 0
    assert not path.exists()


def test_a_report_tells_what_was_done_instead() -> None:
    assert "was done instead" in show.report_text({**REPORT, "fallback": "stock"})
    assert "No swap." in show.report_text({**REPORT, "no_fallback": "No swap."})
