# SPDX-License-Identifier: GPL-2.0-or-later
"""Bash and zsh really complete kjumpctl's words, by the scripts that the build makes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.test_docs import commands

MAKE = Path(__file__).parents[2] / "packaging/make-completions"

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
needs_zsh = pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")

# An interactive zsh in a terminal of its own, whose builtin that gets the matches writes them
# down.  Arguments: the folder of the functions, what was typed, a file.
ZSH = r"""
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "PS1=; fpath=($1 \$fpath); autoload -U compinit; compinit -u -D"
zpty -w z "compadd() {
    if [[ \${@[1,(i)(-|--)]} == *-(O|A|D)\ * ]]; then builtin compadd \"\$@\"; return; fi
    local -a hits; builtin compadd -A hits \"\$@\"; print -rl -- \$hits >>$3
    builtin compadd \"\$@\"
}"
zpty -w z "finish() { print -r -- ::end >>$3; exit }; comppostfuncs=(finish)"
zpty -w z "bindkey '^I' complete-word; print -r -- ::ready >>$3"
repeat 400; do [[ $(<$3) == *::ready* ]] && break; sleep 0.05; done
zpty -n -w z "$2"$'\t'
repeat 400; do [[ $(<$3) == *::end* ]] && break; sleep 0.05; done
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both scripts, as they are installed."""
    folder = tmp_path_factory.mktemp("completions")
    for shell, name in (("bash", "kjumpctl"), ("zsh", "_kjumpctl")):
        with (folder / name).open("wb") as script:
            subprocess.run([MAKE, shell], check=True, stdout=script)
    return folder


def complete(scripts: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words behind ``kjumpctl``."""
    program = (
        'source "$1"; shift; COMP_WORDS=(kjumpctl "$@"); COMP_CWORD=$#; _shtab_kjumpctl;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(scripts / "kjumpctl"), *words],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return [word for word in done.stdout.split("\n") if word]


def complete_zsh(scripts: Path, line: str, out: Path) -> list[str]:
    """What zsh offers behind this line."""
    out.touch()
    command = ["zsh", "-f", "-c", ZSH, "zsh", str(scripts), line, str(out)]
    subprocess.run(command, check=True, timeout=60, stdin=subprocess.DEVNULL)
    found = out.read_text().split("\n")
    assert "::end" in found
    return [word for word in found if word and not word.startswith("::")]


@needs_bash
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["do"], ["doctor"]),
        (["st"], ["status", "stage"]),
        (["doctor", "--n"], ["--no-jump"]),
        (
            ["setup", "--"],
            ["--help", "--json", "--file", "--yes", "--dry-run", "--size", "--no-initrd"],
        ),
        (["setup", "--size", ""], []),
        (["image", ""], ["info", "verify", "export"]),
        (["image", "--"], ["--help"]),
        (["--json", "history", "s"], ["show"]),
        (["history", "show", "l"], ["last"]),
        (["plot", "--o"], ["--output"]),
        (["reload", "x"], []),
    ],
)
def test_words(scripts: Path, words: list[str], offered: list[str]) -> None:
    assert complete(scripts, *words) == offered


@needs_bash
@pytest.mark.parametrize("command", commands())
def test_every_option_and_no_other_is_offered(scripts: Path, command: str) -> None:
    assert set(complete(scripts, *command.split(), "--")) == commands()[command]


def test_every_command_and_option_is_in_both(scripts: Path) -> None:
    known = set()
    for name in ("kjumpctl", "_kjumpctl"):
        text = (scripts / name).read_text()
        for command, options in commands().items():
            known |= options
            for word in (*command.split(), *options):
                assert re.search(rf"(?<![\w-]){word}(?![\w-])", text), f"{name}: {word}"
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known


@needs_zsh
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("kjumpctl do", {"doctor"}),
        ("kjumpctl st", {"status", "stage"}),
        ("kjumpctl doctor --n", {"--no-jump"}),
        (
            "kjumpctl hibernate --",
            {"--help", "--json", "--quiet", "--ignore-inhibitors", "--fallback"},
        ),
        (
            "kjumpctl setup --",
            {"--help", "--file", "--size", "--yes", "--dry-run", "--no-initrd", "--json"},
        ),
        ("kjumpctl image ", {"info", "verify", "export"}),
        ("kjumpctl history s", {"show"}),
        ("kjumpctl history show ", {"last"}),
        ("kjumpctl plot ", {"last"}),
        ("kjumpctl plot --o", {"--output"}),
    ],
)
def test_words_in_zsh(scripts: Path, line: str, offered: set[str], tmp_path: Path) -> None:
    found = complete_zsh(scripts, line, tmp_path / "found")
    last = line.rpartition(" ")[2]
    assert {word for word in found if word.startswith(last)} == offered


@needs_bash
def test_files(scripts: Path, tmp_path: Path) -> None:
    (tmp_path / "some image").touch()
    assert complete(scripts, "image", "verify", f"{tmp_path}/so") == [f"{tmp_path}/some image"]
    assert complete(scripts, "enable", "--root", f"{tmp_path}/so") == []  # no directory
