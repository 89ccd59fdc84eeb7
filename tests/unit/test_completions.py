"""Bash really completes kjumpctl's words."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "packaging/completions/kjumpctl"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def complete(*words: str) -> list[str]:
    """What bash offers for the last of these words behind ``kjumpctl``."""
    program = (
        'source "$1"; shift; COMP_WORDS=(kjumpctl "$@"); COMP_CWORD=$#; _kjumpctl;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(SCRIPT), *words],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [word for word in done.stdout.split("\n") if word]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["do"], ["doctor"]),
        (["st"], ["status", "stage"]),
        (["doctor", "--n"], ["--no-jump"]),
        (["setup", "--"], ["--file", "--size", "--yes", "--dry-run", "--no-initrd", "--json",
                           "--help"]),
        (["setup", "--size", ""], []),
        (["image", ""], ["info", "verify", "export", "--help"]),
        (["--json", "history", "s"], ["show"]),
        (["history", "show", "l"], ["last"]),
        (["plot", "--o"], ["--output"]),
        (["reload", "x"], []),
    ],
)  # fmt: skip
def test_words(words: list[str], offered: list[str]) -> None:
    assert complete(*words) == offered


def test_files(tmp_path: Path) -> None:
    (tmp_path / "some image").touch()
    assert complete("image", "verify", f"{tmp_path}/so") == [f"{tmp_path}/some image"]
    assert complete("enable", "--root", f"{tmp_path}/so") == []  # no directory
