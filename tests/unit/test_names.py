# SPDX-License-Identifier: GPL-2.0-or-later
"""What the text calls by a module's name is there: scripts within strings, comments, units.

Linters see imports; they do not see a script that a test sends into a guest, nor a comment that
sends the reader to a module that has moved.
"""

from __future__ import annotations

import importlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("daemon", "tests", "packaging", "docs", "units", "config")
IMPORTED = re.compile(r"^\s*from (kjump[\w.]*) import ([\w, ]+)", re.MULTILINE)
NAMED = re.compile(r"`(kjump(?:\.\w+){2,})`")  # `kjump.noresume` is a word for the kernel


def texts() -> list[tuple[Path, str]]:
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "-co", "--exclude-standard", *FOLDERS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    out = []
    for name in filter(None, done.stdout.split("\0")):
        path = ROOT / name
        try:
            out.append((path, path.read_text()))
        except (UnicodeDecodeError, FileNotFoundError):
            continue
    return out


@cache
def exists(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one."""
    head, _, rest = name, "", ""
    tail: list[str] = []
    while head:
        try:
            found: object = importlib.import_module(head)
        except ModuleNotFoundError:
            head, _, rest = head.rpartition(".")
            tail.insert(0, rest)
            continue
        for part in tail:
            annotated = getattr(found, "__annotations__", {})
            if not hasattr(found, part) and part not in annotated:
                return False
            found = getattr(found, part, object)
        return True
    return False


def names(text: str) -> set[str]:
    found = set(NAMED.findall(text))
    for module, things in IMPORTED.findall(text):
        found |= {f"{module}.{thing.split()[0]}" for thing in things.split(",") if thing.strip()}
    return found


def test_every_name_in_the_text_is_there() -> None:
    pytest.importorskip("gi")
    lost = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, text in texts()
        for name in names(text)
        if not exists(name)
    }
    assert not lost


def test_a_name_that_is_not_there_is_found() -> None:
    assert exists("kjump.errors.KjumpError") and exists("kjump.session.log")
    assert not exists("kjump.session.devices")
    assert names("    from kjump.session import devices\n") == {"kjump.session.devices"}
    assert names("see `kjump.image.layout`") == {"kjump.image.layout"}
